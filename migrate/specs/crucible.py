"""Whether each Crucible backend's request can be parsed (instance-specs §6): what only a reader of JSON can tell."""

import json
from collections.abc import Iterator

from migrate.reasons import Reason
from sim_vmm.spec import Spec
from sim_vmm.spec.components import CrucibleStorageBackend


def unusable_requests(spec: Spec) -> Iterator[Reason]:
    """A reason for every request that is no JSON object with a type."""
    for key, backend in spec.of_kind(CrucibleStorageBackend):
        try:
            request = json.loads(backend.request_json)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or "type" not in request:
            yield Reason(
                component=str(key),
                field="request_json",
                have=f"{len(backend.request_json)} characters of something else",  # never quoted: it holds keys
                need="a volume construction request, which is a JSON object with a type",
            )
