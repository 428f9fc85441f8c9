"""From one version of a payload to the next, and what that loses.

Each step is a pure function between neighbouring versions of a kind; longer ways are made of steps.  A downgrade leaves
out what the older version cannot say, without judging.  An upgrade fills in what it does not say: that is **as it was
at the device's birth**, which both sides know, because what a guest is shown is fixed at birth and travels with the
machine (`sim_vmm.birth`).  So an upgrade takes the payload and `born`, the device's state at birth in the version that
it makes.

Whether a version can carry a state is then found out, not promised: it can if down and up again gives an equal state
(`first_difference`).  The rule is applied to the state of the moment, so a device whose guest never used a new feature
goes to a build that does not know it, as with QEMU's subsections.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Final

import attrs

from sim_vmm.payloads.directory import SELECTOR_INVALID, content_of
from sim_vmm.payloads.earlier import (
    LegacyVirtioDeviceState,
    LegacyVirtQueueState,
    NvmeCtrlV1,
    PciVirtioV1,
    PciVirtioV2,
    QemuFwCfgV1,
    VirtQueuesInUse,
)
from sim_vmm.payloads.legacy import FwCfgEntry, FwCfgSelected, FwCfgValueKind, QemuFwCfgV2
from sim_vmm.payloads.nvme import NvmeCtrlV2
from sim_vmm.payloads.schema import Schema
from sim_vmm.payloads.virtio import PciVirtioV3, VirtQueuesState, VirtQueueState

LOW_32_BITS: Final = 0xFFFF_FFFF

#: Characters of a value that a report repeats, at most.
VALUE_TEXT_MAX: Final = 64


# pci-virtio


def _virtio_3_to_2(payload: PciVirtioV3) -> PciVirtioV2:
    queues = payload.queues
    return PciVirtioV2(
        device=payload.device, queues=VirtQueuesInUse(len=queues.len, queues=queues.queues[: queues.len])
    )


def _virtio_2_to_3(payload: PciVirtioV2, _born: PciVirtioV3) -> PciVirtioV3:
    queues = payload.queues  # of another number than `len` says, the device refuses them
    return PciVirtioV3(
        device=payload.device,
        queues=VirtQueuesState(len=queues.len, peak=queues.len, queues=queues.queues),
    )


def _virtio_2_to_1(payload: PciVirtioV2) -> PciVirtioV1:
    device = _said_by(payload.device, LegacyVirtioDeviceState)
    device["negotiated_features"] &= LOW_32_BITS
    return PciVirtioV1(
        device=LegacyVirtioDeviceState(**device),
        queues=tuple(LegacyVirtQueueState(**_said_by(queue, LegacyVirtQueueState)) for queue in payload.queues.queues),
    )


def _virtio_1_to_2(payload: PciVirtioV1, born: PciVirtioV2) -> PciVirtioV2:
    device = attrs.evolve(born.device, **_fields(payload.device))
    queues = tuple(_queue_1_to_2(queue, born.queues.queues) for queue in payload.queues)
    return PciVirtioV2(device=device, queues=VirtQueuesInUse(len=len(queues), queues=queues))


def _queue_1_to_2(queue: LegacyVirtQueueState, born: Sequence[VirtQueueState]) -> VirtQueueState:
    at_birth = next((other for other in born if other.id == queue.id), None)
    if at_birth is None:  # a queue of a device that has agreed on more of them
        return VirtQueueState(**_fields(queue), enabled=False, is_control=False, notify_data=queue.id)
    return attrs.evolve(at_birth, **_fields(queue))


# nvme-ctrl


def _nvme_2_to_1(payload: NvmeCtrlV2) -> NvmeCtrlV1:
    return NvmeCtrlV1(**_said_by(payload, NvmeCtrlV1))


def _nvme_1_to_2(payload: NvmeCtrlV1, born: NvmeCtrlV2) -> NvmeCtrlV2:
    return attrs.evolve(born, **_fields(payload))


# qemu-fwcfg


def _fw_cfg_2_to_1(payload: QemuFwCfgV2) -> QemuFwCfgV1:
    selected = payload.selected
    if selected is None:
        return QemuFwCfgV1(dma_addr=payload.dma_addr, selector=SELECTOR_INVALID, offset=0)
    return QemuFwCfgV1(dma_addr=payload.dma_addr, selector=selected.selector, offset=selected.offset)


def _fw_cfg_1_to_2(payload: QemuFwCfgV1, born: QemuFwCfgV2) -> QemuFwCfgV2:
    selected = None
    if payload.selector != SELECTOR_INVALID:
        cached = _directory_selected(payload.selector, born.entries)
        selected = FwCfgSelected(selector=payload.selector, offset=payload.offset, cached_value=cached)
    return attrs.evolve(born, dma_addr=payload.dma_addr, selected=selected)


def _directory_selected(selector: int, entries: Sequence[FwCfgEntry]) -> bytes | None:
    """The content that is made when `selector` is selected: that of the directory, if it is the directory's."""
    for entry in entries:
        if entry.selector == selector and entry.kind is FwCfgValueKind.FILE_DIR:
            return content_of(entry, entries)
    return None


DOWNGRADES: Final[dict[tuple[Schema, Schema], Callable[[Any], Any]]] = {
    (PciVirtioV3.SCHEMA, PciVirtioV2.SCHEMA): _virtio_3_to_2,
    (PciVirtioV2.SCHEMA, PciVirtioV1.SCHEMA): _virtio_2_to_1,
    (NvmeCtrlV2.SCHEMA, NvmeCtrlV1.SCHEMA): _nvme_2_to_1,
    (QemuFwCfgV2.SCHEMA, QemuFwCfgV1.SCHEMA): _fw_cfg_2_to_1,
}
"""The payload in the next older version."""

UPGRADES: Final[dict[tuple[Schema, Schema], Callable[[Any, Any], Any]]] = {
    (PciVirtioV2.SCHEMA, PciVirtioV3.SCHEMA): _virtio_2_to_3,
    (PciVirtioV1.SCHEMA, PciVirtioV2.SCHEMA): _virtio_1_to_2,
    (NvmeCtrlV1.SCHEMA, NvmeCtrlV2.SCHEMA): _nvme_1_to_2,
    (QemuFwCfgV1.SCHEMA, QemuFwCfgV2.SCHEMA): _fw_cfg_1_to_2,
}
"""The payload in the next newer version, given the state at birth in that version."""


# Ways made of steps


@cache
def versions_of(newest: Schema) -> tuple[Schema, ...]:
    """`newest` and every older version of its kind that there is a way to, newest first."""
    found = [newest]
    while (older := next((old for new, old in DOWNGRADES if new == found[-1]), None)) is not None:
        found.append(older)
    return tuple(found)


def downgrade(payload: Any, to: Schema) -> Any:
    """`payload` in the same or an older version, whatever that leaves out."""
    versions = versions_of(payload.SCHEMA)
    for step in pairwise(versions[: versions.index(to) + 1]):
        payload = DOWNGRADES[step](payload)
    return payload


def upgrade(payload: Any, born: Any) -> Any:
    """`payload` in the version of `born`, which is the same or newer."""
    versions = versions_of(born.SCHEMA)
    older = versions[: versions.index(payload.SCHEMA) + 1]
    for new, old in reversed(list(pairwise(older))):
        payload = UPGRADES[old, new](payload, downgrade(born, new))
    return payload


# What is lost


def first_difference(wanted: Any, got: Any, path: str = "") -> tuple[str, object] | None:
    """The first field in which two payloads of one schema differ: its path, and its value in `wanted`.

    In the order of the fields; a list that has another length differs as a whole, unless an element before the shorter
    one's end does.
    """
    for name, mine, theirs in _parts(wanted, got):
        where = f"{path}{name}" if name.startswith("[") else f"{path}.{name}".removeprefix(".")
        if mine != theirs:
            return first_difference(mine, theirs, where) or (where, mine)
    return None


def _parts(wanted: Any, got: Any) -> Iterator[tuple[str, Any, Any]]:
    """What two values of one type are made of, side by side; nothing if they are not made of parts."""
    if attrs.has(type(wanted)) and type(wanted) is type(got):
        for field in attrs.fields(type(wanted)):
            yield field.name, getattr(wanted, field.name), getattr(got, field.name)
    elif isinstance(wanted, tuple) and isinstance(got, tuple):
        for index, (mine, theirs) in enumerate(zip(wanted, got, strict=False)):
            yield f"[{index}]", mine, theirs


def value_text(value: object) -> str:
    """A field's value for a report: short, numbers beyond one digit in hexadecimal as registers are read."""
    match value:
        case bool():
            text = str(value).lower()
        case int():
            text = str(value) if 0 <= value < 10 else hex(value)
        case bytes():
            text = f"{len(value)} bytes"
        case tuple():
            text = f"{len(value)} of them"
        case None:
            text = "none"
        case _:
            text = str(value)
    return text if len(text) <= VALUE_TEXT_MAX else text[: VALUE_TEXT_MAX - 1] + "…"


def _fields(value: Any) -> dict[str, Any]:
    """The fields of an attrs value by name, one level deep."""
    return attrs.asdict(value, recurse=False)


def _said_by(value: Any, kind: type[Any]) -> dict[str, Any]:
    """Those fields of `value` that `kind` has too."""
    return {field.name: getattr(value, field.name) for field in attrs.fields(kind)}
