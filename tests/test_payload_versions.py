"""Every payload version against every other of its kind: what goes through gives the same back, the rest is refused.

A state goes through an older version as it would between two builds: out of a device, down, into bytes, up again, into
a device of the same birth.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from migrate.payloads import decode_payload, encode_payload
from sim_vmm.devices.base import Device
from sim_vmm.devices.errors import (
    ImportFailed,
    PayloadMissing,
    PayloadUnexpected,
    SchemaNotOffered,
    StateNotRepresentable,
)
from sim_vmm.devices.places import Place
from sim_vmm.payloads import (
    PAYLOADS,
    FwCfgEntry,
    FwCfgSelected,
    FwCfgValueKind,
    NvmeCtrlV1,
    NvmeCtrlV2,
    PciDeviceV1,
    PciVirtioV1,
    PciVirtioV2,
    PciVirtioV3,
    PciVirtioVionaV1,
    Promisc,
    QemuFwCfgV1,
    QemuFwCfgV2,
    Schema,
    VirtioDeviceState,
    VirtQueuesState,
    VirtQueueState,
)
from sim_vmm.payloads.conversions import (
    DOWNGRADES,
    UPGRADES,
    downgrade,
    first_difference,
    upgrade,
    value_text,
    versions_of,
)
from sim_vmm.payloads.directory import SELECTOR_INVALID
from tests.devices import export, nvme, replaced
from tests.machines import make_machine
from tests.payload_states import any_payload, near

QUEUE: Final = VirtQueueState(
    id=0,
    size=256,
    descr_gpa=0,
    avail_gpa=0,
    used_gpa=0,
    mapping_valid=False,
    live=False,
    enabled=False,
    is_control=False,
    notify_data=0,
    avail_cur_idx=0,
    used_idx=0,
)
VIRTIO: Final = PciVirtioV3(
    device=VirtioDeviceState(
        status=0,
        queue_select=0,
        negotiated_features=0,
        device_feature_select=0,
        driver_feature_select=0,
        config_generation=0,
        config_generation_seen=False,
        device_config_size=24,
        mode=2,
        msix_cfg_vec=0xFFFF,
        msix_queue_vec=(0xFFFF, 0xFFFF),
        isr_queue=False,
        isr_cfg=False,
    ),
    queues=VirtQueuesState(
        len=2, peak=2, queues=(QUEUE, attrs.evolve(QUEUE, id=1, size=32, is_control=True, notify_data=1))
    ),
)
VIONA: Final = PciVirtioVionaV1(promisc=Promisc.NONE, filter=0, unicast_mac_filters=(), multicast_mac_filters=())
NVME: Final = NvmeCtrlV2(
    cap=1, cc=0, csts=0, aqa=0, acq_base=0, asq_base=0, dbbuf_shadow=0, dbbuf_evtidx=0, cqs=(), sqs=()
)
DIRECTORY: Final = FwCfgEntry(selector=0x19, name="file-dir", kind=FwCfgValueKind.FILE_DIR, bytes=b"")
FW_CFG: Final = QemuFwCfgV2(
    dma_addr=0,
    selected=None,
    entries=(
        DIRECTORY,
        FwCfgEntry(selector=0x20, name="etc/e820", kind=FwCfgValueKind.BYTES, bytes=b"memory map"),
        FwCfgEntry(selector=0x21, name="etc/ramfb", kind=FwCfgValueKind.RAM_FB, bytes=b""),
    ),
)
LISTING: Final = (
    b"\0\0\0\2"
    b"\0\0\0\x0a\0\x20\0\0" + b"etc/e820".ljust(56, b"\0") + b"\0\0\0\x1c\0\x21\0\0" + b"etc/ramfb".ljust(56, b"\0")
)

#: For every kind with more than one version, or that may be left out, a state at birth.
BIRTHS: Final[dict[str, Any]] = {payload.SCHEMA.kind: payload for payload in (VIRTIO, VIONA, NVME, FW_CFG)}

#: States of each of them, and of each older version, made once: making strategies takes longer than drawing.
STATES: Final[dict[Schema, st.SearchStrategy[Any]]] = {
    schema: near(downgrade(born, schema)) | any_payload(PAYLOADS[schema])
    for born in BIRTHS.values()
    for schema in versions_of(born.SCHEMA)
}

#: Every way down: the newest version of a kind, and an older one or none.
WAYS: Final[list[tuple[str, Schema | None]]] = [
    *((kind, schema) for kind, born in BIRTHS.items() for schema in versions_of(born.SCHEMA)[1:]),
    ("pci-virtio-viona", None),
]
every_way = pytest.mark.parametrize(("kind", "schema"), WAYS, ids=lambda value: str(value) if value else "left out")


def place(state: Any, *, optional: bool = False) -> Place:
    return Place(device="d", state=state, born=BIRTHS[state.SCHEMA.kind], optional=optional)


def arrived(payload: Any, born: Any) -> Any:
    """What a device of the same birth makes of a payload that comes over the wire, or does not come."""
    return born if payload is None else upgrade(decode_payload(payload.SCHEMA, encode_payload(payload)), born)


# The tables


def test_every_older_version_is_one_step_from_the_next_in_both_directions() -> None:
    steps = {
        (Schema(kind, version), Schema(kind, version - 1)) for kind, version in (schema for schema in _above_one())
    }
    assert set(DOWNGRADES) == steps
    assert {(new, old) for old, new in UPGRADES} == steps


def _above_one() -> list[tuple[str, int]]:
    """Versions that follow one that this program has: all but those whose predecessors were never sent."""
    return [(s.kind, s.version) for s in PAYLOADS if Schema(s.kind, s.version - 1) in PAYLOADS]


@pytest.mark.parametrize(
    ("newest", "versions"),
    [("pci-virtio", [3, 2, 1]), ("nvme-ctrl", [2, 1]), ("qemu-fwcfg", [2, 1]), ("pci-virtio-viona", [1])],
)
def test_the_versions_of_a_kind_are_found_newest_first(newest: str, versions: Sequence[int]) -> None:
    assert [schema.version for schema in versions_of(BIRTHS[newest].SCHEMA)] == list(versions)


def test_a_real_time_clock_has_no_version_1_because_it_was_never_sent() -> None:
    assert [schema.version for schema in PAYLOADS if schema.kind == "bhyve-rtc"] == [2]


# The laws


@every_way
@given(data=st.data())
def test_what_an_older_version_takes_it_gives_back_and_what_it_would_lose_it_names(
    kind: str, schema: Schema | None, data: st.DataObject
) -> None:
    born = BIRTHS[kind]
    state = data.draw(STATES[born.SCHEMA])
    here = place(state, optional=schema is None)
    refusal = here.problem(schema)
    if refusal is None:
        payload = here.express(schema)
        assert arrived(payload, born) == state
        assert place(arrived(payload, born), optional=schema is None).express(schema) == payload
        return
    back = arrived(None if schema is None else downgrade(state, schema), born)
    assert _at(state, refusal.field) != _at(back, refusal.field), "it would have come through"
    assert refusal.have == value_text(_at(state, refusal.field))
    assert (refusal.device, refusal.kind) == ("d", kind)
    with pytest.raises(StateNotRepresentable):
        here.express(schema)


@every_way
@given(data=st.data())
def test_what_comes_in_an_older_version_goes_on_in_it(kind: str, schema: Schema | None, data: st.DataObject) -> None:
    born = BIRTHS[kind]
    if schema is None:
        assert place(born, optional=True).express(None) is None
        return
    payload = data.draw(STATES[schema])
    assume(_is_well_formed(payload))
    assert place(upgrade(payload, born)).express(schema) == payload


def _is_well_formed(payload: Any) -> bool:
    """Whether its fields agree; where they do not, the device refuses what the upgrade makes of it."""
    match payload:
        case PciVirtioV2(queues=queues):
            return bool(queues.len == len(queues.queues))
        case QemuFwCfgV1(selector=selector, offset=offset):
            return selector != SELECTOR_INVALID or offset == 0
        case _:
            return True


@given(state=st.one_of(*(any_payload(type(born)) for born in BIRTHS.values())))
def test_the_newest_version_takes_any_state(state: Any) -> None:
    assert place(state).express(state.SCHEMA) == state


@given(state=near(VIRTIO))
def test_what_goes_through_version_1_goes_through_version_2(state: PciVirtioV3) -> None:
    if place(state).problem(PciVirtioV1.SCHEMA) is None:
        assert place(state).problem(PciVirtioV2.SCHEMA) is None


def _at(value: Any, path: str) -> Any:
    """The value at a path such as `queues.queues[0].size`; None for an element that is not there."""
    for step in path.replace("[", ".[").split("."):
        if step.startswith("["):
            index = int(step[1:-1])
            value = value[index] if index < len(value) else None
        else:
            value = getattr(value, step)
    return value


# The history, change by change

MODERN_FEATURES: Final = 1 << 32 | 0x20

#: What a guest did, as fields of the newest payload; then the version, the field it would lose, what would carry it.
LOST: Final[list[tuple[Any, dict[str, Any], Schema | None, str, str, str]]] = [
    (
        VIRTIO,
        {"device.negotiated_features": MODERN_FEATURES},
        PciVirtioV1.SCHEMA,
        "device.negotiated_features",
        "0x100000020",
        "pci-virtio version 2 or newer",
    ),
    (
        VIRTIO,
        {"device.driver_feature_select": 1},
        PciVirtioV1.SCHEMA,
        "device.driver_feature_select",
        "1",
        "pci-virtio version 2 or newer",
    ),
    (VIRTIO, {"device.mode": 1}, PciVirtioV1.SCHEMA, "device.mode", "1", "pci-virtio version 2 or newer"),
    (
        VIRTIO,
        {"queues.queues[0].enabled": True},
        PciVirtioV1.SCHEMA,
        "queues.queues[0].enabled",
        "true",
        "pci-virtio version 2 or newer",
    ),
    (VIRTIO, {"queues.len": 1}, PciVirtioV1.SCHEMA, "queues.peak", "2", "pci-virtio version 3 or newer"),
    (VIRTIO, {"queues.len": 1}, PciVirtioV2.SCHEMA, "queues.peak", "2", "pci-virtio version 3 or newer"),
    (NVME, {"dbbuf_shadow": 0x5000}, NvmeCtrlV1.SCHEMA, "dbbuf_shadow", "0x5000", "nvme-ctrl version 2 or newer"),
    (FW_CFG, {"entries": (DIRECTORY,)}, QemuFwCfgV1.SCHEMA, "entries", "1 of them", "qemu-fwcfg version 2 or newer"),
    (
        FW_CFG,
        {"entries[1].bytes": b"another map"},
        QemuFwCfgV1.SCHEMA,
        "entries[1].bytes",
        "11 bytes",
        "qemu-fwcfg version 2 or newer",
    ),
    (VIONA, {"filter": 0x20}, None, "filter", "0x20", "pci-virtio-viona version 1 or newer"),
    (
        VIONA,
        {"multicast_mac_filters": (b"\x33\x33\0\0\0\1",)},
        None,
        "multicast_mac_filters",
        "1 of them",
        "pci-virtio-viona version 1 or newer",
    ),
]


@pytest.mark.parametrize(("born", "changes", "schema", "field", "have", "need"), LOST, ids=lambda v: str(v)[:40])
def test_a_state_that_a_version_would_lose_is_refused_with_its_field(
    born: Any, changes: dict[str, Any], schema: Schema | None, field: str, have: str, need: str
) -> None:
    state = born
    for path, value in changes.items():
        state = replaced(state, path, value)
    with pytest.raises(StateNotRepresentable) as caught:
        place(state, optional=schema is None).express(schema)
    assert (caught.value.field, caught.value.have, caught.value.need) == (field, have, need)
    assert str(caught.value).startswith(f"device 'd': {born.SCHEMA.kind}.{field} is {have}, which is lost ")


#: What a guest did that the older version carries.
CARRIED: Final[list[tuple[Any, dict[str, Any], Schema]]] = [
    (VIRTIO, {}, PciVirtioV1.SCHEMA),
    (
        VIRTIO,
        {
            "device.status": 7,
            "device.negotiated_features": 0x1000_0020,
            "device.queue_select": 1,
            "device.msix_queue_vec": (1, 2),
            "device.isr_queue": True,
            "queues.queues[0].descr_gpa": 0x8000,
            "queues.queues[0].live": True,
            "queues.queues[0].used_idx": 0xFFFF,
        },
        PciVirtioV1.SCHEMA,
    ),
    (VIRTIO, {"device.mode": 1, "device.negotiated_features": MODERN_FEATURES}, PciVirtioV2.SCHEMA),
    (NVME, {"cc": 1, "csts": 1, "acq_base": 0x1000}, NvmeCtrlV1.SCHEMA),
    (FW_CFG, {"dma_addr": 0x7000}, QemuFwCfgV1.SCHEMA),
    (FW_CFG, {"selected": FwCfgSelected(selector=0x20, offset=3, cached_value=None)}, QemuFwCfgV1.SCHEMA),
    (FW_CFG, {"selected": FwCfgSelected(selector=0x19, offset=4, cached_value=LISTING)}, QemuFwCfgV1.SCHEMA),
]


@pytest.mark.parametrize(("born", "changes", "schema"), CARRIED, ids=lambda value: str(value)[:40])
def test_a_state_that_an_older_version_can_say_comes_back_unchanged(
    born: Any, changes: dict[str, Any], schema: Schema
) -> None:
    state = born
    for path, value in changes.items():
        state = replaced(state, path, value)
    payload = place(state).express(schema)
    assert payload is not None
    assert schema == payload.SCHEMA
    assert arrived(payload, born) == state


def test_a_directory_that_was_made_for_other_files_is_not_the_one_that_would_be_read_on() -> None:
    stale = FwCfgSelected(selector=0x19, offset=4, cached_value=LISTING[:72])
    with pytest.raises(StateNotRepresentable, match=r"selected\.cached_value is 72 bytes"):
        place(attrs.evolve(FW_CFG, selected=stale)).express(QemuFwCfgV1.SCHEMA)


def test_a_choice_that_there_is_not_is_a_bug_of_the_caller() -> None:
    with pytest.raises(SchemaNotOffered):
        place(NVME).express(None)
    with pytest.raises(SchemaNotOffered):
        place(NVME).express(Schema("nvme-ctrl", 3))


def test_the_first_difference_is_found_in_the_order_of_the_fields() -> None:
    other = replaced(replaced(VIRTIO, "queues.queues[1].size", 64), "device.isr_cfg", True)
    assert first_difference(other, VIRTIO) == ("device.isr_cfg", True)
    assert first_difference(VIRTIO, VIRTIO) is None


def test_two_versions_of_one_kind_are_one_payload_twice() -> None:
    payloads = export(nvme())
    older = downgrade(payloads[0], NvmeCtrlV1.SCHEMA)
    with pytest.raises(PayloadUnexpected, match=r"nvme-ctrl v1 has arrived; it must arrive once"):
        nvme().import_([*payloads, older])


# Devices take any version


@pytest.fixture
def nics() -> Iterator[tuple[Device, Device]]:
    """Two NICs of one birth, in two machines."""
    with make_machine() as here, make_machine() as there:
        yield here.devices["nic"], there.devices["nic"]


def test_a_device_takes_each_version_that_there_is(nics: tuple[Device, Device]) -> None:
    here, there = nics
    for schema in versions_of(PciVirtioV3.SCHEMA):
        there.import_(here.export([schema, PciDeviceV1.SCHEMA, PciVirtioVionaV1.SCHEMA]))
        assert export(there) == export(here)


def test_an_optional_payload_may_be_left_out_and_then_means_as_at_birth(nics: tuple[Device, Device]) -> None:
    here, there = nics
    filters = PciVirtioVionaV1(
        promisc=Promisc.ALL_MULTI, filter=2, unicast_mac_filters=(), multicast_mac_filters=(b"\x33\x33\0\0\0\1",)
    )
    virtio, pci, _ = export(here)
    there.import_([virtio, pci, filters])
    assert export(there)[2] == filters
    with pytest.raises(StateNotRepresentable, match=r"pci-virtio-viona\.promisc is all_multi, which is lost without"):
        there.export([PciVirtioV3.SCHEMA, PciDeviceV1.SCHEMA, None])
    without = here.export([PciVirtioV3.SCHEMA, PciDeviceV1.SCHEMA, None])
    assert [payload.SCHEMA for payload in without] == [PciVirtioV3.SCHEMA, PciDeviceV1.SCHEMA]
    there.import_(without)
    assert export(there) == export(here)


def test_any_other_payload_must_be_there(nics: tuple[Device, Device]) -> None:
    here, there = nics
    virtio, pci, viona = export(here)
    before = export(there)
    for payloads in ([virtio, viona], [pci, viona], []):
        with pytest.raises(PayloadMissing):
            there.import_(payloads)
    assert export(there) == before


def test_a_version_whose_lists_do_not_agree_is_refused(nics: tuple[Device, Device]) -> None:
    here, there = nics
    virtio, pci, _ = here.export([PciVirtioV2.SCHEMA, PciDeviceV1.SCHEMA, PciVirtioVionaV1.SCHEMA])
    with pytest.raises(ImportFailed, match=r"queues\.queues: 3 queues; peak says 2"):
        there.import_([replaced(virtio, "queues.len", 2), pci])
