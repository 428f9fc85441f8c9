"""A fingerprint of a machine's spec that does not depend on the version it travels in.

Source and target compute it independently, so they must agree even if one knows fields that the other has never heard
of.  The canonical form therefore lists facts, and leaves out every fact that merely says what was always so before the
field existed (`HISTORIC`): a spec that an old version can carry has the digest that the old version's readers compute.
A new field is added to `HISTORIC` together with the version that introduces it; nothing here is ever changed otherwise.
"""

import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final
from uuid import UUID

import attrs

from migrate import cbor
from sim_vmm.spec import PciPath, Spec, SpecKey

#: Fields that did not exist in version 1, with the value that every machine had before.
HISTORIC: Final[Mapping[tuple[str, str], object]] = {("nvme_disk", "has_write_cache"): True}


def spec_digest(spec: Spec) -> bytes:
    """SHA-256 over the canonical form: 32 bytes."""
    return hashlib.sha256(cbor.encode(canonical_form(spec))).digest()


def canonical_form(spec: Spec) -> dict[str, Any]:
    """The facts of a spec as plain data: `board`, `components`, and `smbios` where set."""
    form: dict[str, Any] = {
        "board": _facts("board", spec.board),
        "components": {
            str(key): {"kind": component.KIND, **_facts(component.KIND, component)}
            for key, component in spec.components.items()
        },
    }
    if spec.smbios is not None:
        form["smbios"] = _facts("smbios", spec.smbios)
    return form


def _facts(kind: str, part: Any) -> dict[str, Any]:
    facts = {}
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        if value is not None and ((kind, field.name) not in HISTORIC or value != HISTORIC[kind, field.name]):
            facts[field.name] = _plain(value)
    return facts


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case bool() | int() | str() | bytes():
            return bytes(value) if isinstance(value, bytes) else value
        case SpecKey() | PciPath() | UUID():
            return str(value)
        case frozenset():
            return sorted(map(_plain, value))
        case tuple():
            return [_plain(item) for item in value]
        case _:
            return _facts(type(value).__name__, value)
