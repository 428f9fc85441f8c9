"""Device payloads as bytes: one frozen schema class per (kind, version), declared beside the machine's devices.

The schema classes live in `sim_vmm.payloads`, where nothing is serialized; this is where they become CBOR and back.
The same rule holds as for specs: a payload goes on the wire only if its own bytes give it back unchanged.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from migrate import cbor
from migrate.plain import Misfit, make_converter, structure, warm_up
from sim_vmm.payloads import PAYLOADS, Payload, Schema

_CONVERTER: Final = make_converter()


class PayloadError(Exception):
    """A payload cannot be written, or what arrived is not what its kind and version say."""


def encode_payload(payload: Payload) -> bytes:
    """Deterministic CBOR of `payload`.

    Raises:
        PayloadError: its bytes do not give it back unchanged, so it must not travel.
    """
    data = cbor.encode(_CONVERTER.unstructure(payload))
    if decode_payload(payload.SCHEMA, data) != payload:
        raise PayloadError(f"{payload.SCHEMA} does not give this state back unchanged")
    return data


def decode_payload(schema: Schema, data: bytes) -> Payload:
    """The payload that `data` holds.

    Raises:
        PayloadError: an unknown schema, or bytes that do not fit it.
    """
    kind = PAYLOADS.get(schema)
    if kind is None:
        raise PayloadError(f"{schema} is unknown; this build knows {', '.join(map(str, PAYLOADS))}")
    try:
        payload: Any = structure(_CONVERTER, cbor.decode(data), kind)
    except (cbor.CborError, Misfit) as error:
        raise PayloadError(f"{schema}: {error}") from None
    return payload  # type: ignore[no-any-return]  # `kind` is one of the payload classes


def newest_first(schemas: Iterable[Schema]) -> dict[str, tuple[int, ...]]:
    """Versions by kind, newest first."""
    versions: dict[str, set[int]] = {}
    for schema in schemas:
        versions.setdefault(schema.kind, set()).add(schema.version)
    return {kind: tuple(sorted(found, reverse=True)) for kind, found in sorted(versions.items())}


@cache
def warm_up_payloads() -> None:
    """Compile the readers of all schemas: the first use of each would cost the blackout a millisecond."""
    warm_up(_CONVERTER, PAYLOADS.values())
