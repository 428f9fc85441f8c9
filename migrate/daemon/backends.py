"""The storage of a machine on this host, from what its spec says of its backends (instance-specs §6).

A Crucible request tells how large the volume is; of a file backend nobody does, so it has a default size.
"""

import json
from pathlib import Path
from typing import Any

from sim_vmm.fence import Fence
from sim_vmm.spec import Spec
from sim_vmm.spec.components import CrucibleStorageBackend
from sim_vmm.storage import Storage


def storage_for(spec: Spec, directory: Path | None, *, fenced: bool = True) -> Storage:
    """The disks of the machine in `directory`, which is made if it is not there, behind its fence; or volatile disks.

    Without `fenced` there is no fence, for tests of what must hold without.

    Raises:
        ValueError: a Crucible request is no JSON object with a type.
        OSError: the directory cannot be made.
    """
    sizes = {str(key): crucible_bytes(str(key), backend) for key, backend in spec.of_kind(CrucibleStorageBackend)}
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    fence = Fence(directory) if directory is not None and fenced else None
    return Storage(directory, {key: size for key, size in sizes.items() if size is not None}, fence)


def crucible_bytes(key: str, backend: CrucibleStorageBackend) -> int | None:
    """The size of a volume: that of its regions together; None if the request does not say it in numbers.

    Raises:
        ValueError: the request is no JSON object with a type.
    """
    try:
        request = json.loads(backend.request_json)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or "type" not in request:
        raise ValueError(f"backend {key!r}: request_json is no volume construction request")
    volumes = request.get("sub_volumes", [request])
    sizes = [_region_bytes(volume) for volume in volumes] if isinstance(volumes, list) else []
    return sum(size for size in sizes if size is not None) or None


def _region_bytes(volume: Any) -> int | None:
    if not isinstance(volume, dict):
        return None
    size = 1
    for field in ("block_size", "blocks_per_extent", "extent_count"):
        number = volume.get(field)
        if type(number) is not int or number <= 0:
            return None
        size *= number
    return size
