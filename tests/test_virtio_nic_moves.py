"""A virtio NIC moves in the middle of its work, and the same guest goes on: nothing acknowledged is lost or repeated.

What an import has to build anew is tested by running the NIC; and for each such thing there is a mutant that does not
build it, which the tests must notice.
"""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_vmm.birth import Birth
from sim_vmm.devices.errors import ImportFailed, StateNotRepresentable
from sim_vmm.devices.virtio.transport import VirtioTransport
from sim_vmm.devices.virtio_nic import PAIRS_MAX, VirtioNic
from sim_vmm.devices.virtio_nic.control import pairs_command, tables_command
from sim_vmm.devices.virtio_nic.layout import FEATURE_MRG_RXBUF
from sim_vmm.devices.virtio_nic.receive_filter import ADDRESSES_MAX
from sim_vmm.drivers.virtio_net import RX_BUFFERS, TX_BUFFERS
from sim_vmm.machine import newest
from sim_vmm.payloads import PciVirtioV3, PciVirtioVionaV1, Promisc, Schema
from sim_vmm.virtqueue import DRIVER_STATE
from tests.devices import replaced
from tests.nics import MAC, PATH, VECTOR, Rig, export, frame, moved, probed
from tests.test_virtio_nic import MODES, MULTICAST, OLD, OTHER, flows

QUEUES = Schema("pci-virtio", 3)


# The same guest goes on


def go_on(rig: Rig, first: int) -> None:
    """Both directions work, from sequence number `first` on."""
    said = len(rig.said)
    assert rig.driver.send(frame(first))
    assert rig.said[said:] == [frame(first)]
    assert rig.driver.pci.take_interrupt()
    assert rig.driver.reclaim() == 1
    rig.hear(frame(first + 1), frame(first + 2))
    assert rig.driver.poll() == [frame(first + 1), frame(first + 2)]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_guest_goes_on_through_many_moves(mode: dict[str, Any]) -> None:
    rig = probed(**mode)
    for turn in range(6):
        go_on(rig, 10 * turn)
        rig = moved(rig)
    go_on(rig, 100)


def test_a_nic_born_on_an_old_release_moves_too() -> None:
    rig = probed(birth=OLD)
    go_on(rig, 1)
    go_on(moved(rig, birth=OLD), 10)


def rings_go_on(mutate: Callable[[Rig], None] = lambda _rig: None) -> None:
    """Upstream's #1135: the rings restarted at 0 over live memory."""
    rig = probed()
    for number in range(5):
        assert rig.driver.send(frame(number))
        rig.hear(frame(10 + number))
        assert rig.driver.receive() == [frame(10 + number)]
    assert rig.driver.reclaim() == 1
    new = moved(rig)
    mutate(new)
    go_on(new, 20)
    assert new.said == [*(frame(number) for number in range(5)), frame(20)]


def filters_go_on() -> None:
    rig = probed()
    assert rig.driver.set_filters(1 << 5, (OTHER,), (MULTICAST,))
    new = moved(rig)
    new.hear(frame(1, to=OTHER), frame(2, to=MULTICAST), frame(3, to=b"\xff" * 6), frame(4))
    assert new.driver.receive() == [frame(1, to=OTHER), frame(2, to=MULTICAST), frame(4)]


def headers_go_on() -> None:
    """Those of modern frames are longer than the ones of a link that was told nothing."""
    go_on(moved(probed()), 1)


def pairs_go_on() -> None:
    new = moved(probed(pairs=3))
    new.hear(*flows(9))
    used = [new.nic.virtio.queues[2 * pair].used_idx for pair in range(PAIRS_MAX)]
    assert all(used[:3])
    assert sum(used) == 9
    assert sorted(new.driver.receive()) == sorted(flows(9))
    assert new.driver.command(pairs_command(2))


def pins_go_on() -> None:
    """Upstream's #727."""
    rig = probed()
    rig.hear(frame(1))
    new = moved(rig)
    assert new.interrupts.lines["nic"]
    assert new.driver.poll() == [frame(1)]
    assert not new.interrupts.lines["nic"]


SCENARIOS = [rings_go_on, filters_go_on, headers_go_on, pairs_go_on, pins_go_on]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_an_import_builds_anew_works(scenario: Callable[[], None]) -> None:
    scenario()


def _links_of_a_new_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that takes the registers over and does not tell the link."""
    take = VirtioNic._take

    def forgetful(nic: VirtioNic, arrived: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(VirtioNic, "_program_link", lambda _nic: None)
            take(nic, arrived)

    monkeypatch.setattr(VirtioNic, "_take", forgetful)


def _transports_of_a_new_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that takes the registers over, and neither starts the rings nor drives the pin."""
    take = VirtioTransport.take

    def forgetful(transport: VirtioTransport, payload: PciVirtioV3) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(VirtioTransport, "_derive", lambda _transport: None)
            take(transport, payload)

    monkeypatch.setattr(VirtioTransport, "take", forgetful)


def _rings_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """What upstream did: the rings run, from their beginning."""
    take = VirtioTransport.take

    def forgetful(transport: VirtioTransport, payload: PciVirtioV3) -> None:
        take(transport, payload)
        for running in transport._running.values():
            running.available_index = running.used_index = 0

    monkeypatch.setattr(VirtioTransport, "take", forgetful)


@pytest.mark.parametrize(
    ("mutate", "scenario"),
    [
        (_links_of_a_new_device, filters_go_on),
        (_links_of_a_new_device, headers_go_on),
        (_links_of_a_new_device, pairs_go_on),
        (_transports_of_a_new_device, rings_go_on),
        (_transports_of_a_new_device, pins_go_on),
        (_rings_from_zero, rings_go_on),
    ],
)
def test_an_import_that_forgets_to_is_noticed(
    mutate: Callable[[pytest.MonkeyPatch], None], scenario: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        scenario()


def test_an_export_right_after_the_import_sees_nothing_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the tests above run the device."""
    rig = probed(legacy=True)
    rig.driver.set_filters(1)
    _links_of_a_new_device(monkeypatch)
    _transports_of_a_new_device(monkeypatch)
    assert export(moved(rig).nic) == export(rig.nic)


# In flight


def test_frames_that_were_given_without_notice_go_out_on_the_new_host() -> None:
    rig = probed()
    for number in range(TX_BUFFERS):
        assert rig.driver.send(frame(number), notify=False)
    new = moved(rig)
    assert new.said == []
    assert new.driver.outstanding() == TX_BUFFERS
    new.nic.poll()
    assert new.said == [frame(number) for number in range(TX_BUFFERS)]
    assert new.driver.reclaim() == TX_BUFFERS


def test_a_command_in_flight_is_carried_out_on_the_new_host() -> None:
    rig = probed()
    rig.driver.submit_command(tables_command((OTHER,), ()), notify=False)
    new = moved(rig)
    assert new.driver.take_answer() is None
    new.nic.poll()
    assert new.driver.take_answer() == 0
    new.hear(frame(1, to=OTHER))
    assert new.driver.receive() == [frame(1, to=OTHER)]


def test_frames_that_waited_at_the_old_host_are_lost_and_none_comes_twice() -> None:
    rig = probed()
    rig.hear(*(frame(number) for number in range(RX_BUFFERS + 3)))
    new = moved(rig)
    assert new.driver.receive() == [frame(number) for number in range(RX_BUFFERS)]
    new.hear(frame(99))
    assert new.driver.receive() == [frame(99)]


def test_a_nic_that_goes_on_where_it_was_loses_nothing() -> None:
    rig = probed()
    rig.hear(*(frame(number) for number in range(RX_BUFFERS + 3)))
    rig.nic.quiesce()
    export(rig.nic)
    received = rig.driver.receive()
    rig.hear()
    assert received + rig.driver.receive() == [frame(number) for number in range(RX_BUFFERS + 3)]


@pytest.mark.parametrize("masked", [False, True])
def test_an_interrupt_that_nobody_has_taken_comes_on_the_new_host(masked: bool) -> None:
    rig = probed(vector=VECTOR)
    if masked:
        rig.driver.pci.mask_queues(PATH, masked=True)
    rig.hear(frame(1))
    new = moved(rig)
    if masked:
        assert not new.vcpus[0].pending()
        new.driver.pci.mask_queues(PATH, masked=False)
    assert new.driver.poll() == [frame(1)]
    assert new.driver.poll() == []


def test_a_broken_device_is_broken_on_the_new_host_until_it_is_reset() -> None:
    rig = probed()
    rig.driver.set_filters(1)
    rig.nic.virtio.need_reset()
    new = moved(rig)
    assert new.driver.pci.needs_reset
    new.hear(frame(1))
    assert new.driver.receive() == []
    new.driver.probe(PATH)
    go_on(new, 1)


# Rings that wrap


def aged(rig: Rig, index: int) -> Rig:
    """A move, with rings that are `index` (a multiple of their size) buffers older than they were."""
    new = Rig.make(said=rig.said)
    new.memory.view[:] = rig.memory.view
    virtio, *others = export(rig.nic)
    assert isinstance(virtio, PciVirtioV3)
    queues = tuple(
        attrs.evolve(queue, avail_cur_idx=queue.avail_cur_idx + index, used_idx=queue.used_idx + index)
        for queue in virtio.queues.queues
    )
    for number in range(3):
        queue = new.driver.pci.queue(number)
        for ring in (queue.addresses.available, queue.addresses.used):
            old = int.from_bytes(new.memory.read(ring + 2, 2), "little")
            new.memory.write(ring + 2, (old + index).to_bytes(2, "little"))
        first, free, seen = DRIVER_STATE.unpack(new.memory.read(queue.state, DRIVER_STATE.size))
        new.memory.write(queue.state, DRIVER_STATE.pack(first, free, seen + index))
    new.nic.import_([attrs.evolve(virtio, queues=attrs.evolve(virtio.queues, queues=queues)), *others])
    return new


def test_rings_go_on_across_the_wrap_of_their_indices() -> None:
    rig = aged(probed(), 0x1_0000 - 32)
    for turn in range(24):
        go_on(rig, 10 * turn)
        rig = moved(rig)
    used = [queue.used_idx for queue in rig.nic.virtio.queues[:2]]
    assert used == [16, 0x1_0000 - 8]
    for turn in range(24, 40):
        go_on(rig, 10 * turn)
        rig = moved(rig)
    assert [queue.used_idx for queue in rig.nic.virtio.queues[:2]] == [48, 8]


# Any work, moved at any time

ACTIONS = ("send", "send quietly", "notify", "hear", "poll", "receive", "reclaim", "mask", "unmask", "move")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["pin", "msix", "legacy", "small buffers"]),
    st.lists(st.sampled_from(ACTIONS), max_size=60),
)
def test_streams_that_move_at_any_time_lose_and_repeat_nothing(mode: str, actions: list[str]) -> None:
    small = {"features": FEATURE_MRG_RXBUF, "receive_bytes": 40}
    options: dict[str, dict[str, Any]] = {
        "msix": {"vector": VECTOR},
        "legacy": {"legacy": True},
        "small buffers": small,
    }
    rig = probed(**options.get(mode, {}))
    sent: list[bytes] = []
    heard: list[bytes] = []
    received: list[bytes] = []
    acknowledged = 0
    for number, action in enumerate([*actions, "unmask", "poll", "receive", "poll", "receive", "reclaim"]):
        match action:
            case "send" | "send quietly":
                acknowledged += rig.driver.reclaim()
                if rig.driver.send(frame(number), notify=action == "send"):
                    sent.append(frame(number))
            case "notify":
                rig.driver.notify()
            case "hear":
                heard.append(frame(number, length=60 + number))
                rig.hear(heard[-1])
            case "poll":
                rig.nic.poll()
            case "receive":
                received += rig.driver.receive()
            case "reclaim":
                acknowledged += rig.driver.reclaim()
            case "mask" | "unmask" if mode == "msix":
                rig.driver.pci.mask_queues(PATH, masked=action == "mask")
            case "move":
                rig = moved(rig)
        assert rig.said[:acknowledged] == sent[:acknowledged]
    assert rig.said == sent
    assert acknowledged == len(sent)
    places = [heard.index(raw) for raw in received]
    assert places == sorted(set(places)), "a frame has come twice or out of order"
    if "move" not in actions:
        assert received == heard


# What travels, and what is refused


def test_filters_travel_only_if_the_guest_has_set_some() -> None:
    rig = probed()
    place = rig.nic.places()[2]
    assert place.problem(None) is None
    assert place.problem(newest(place)) is None
    rig.driver.set_filters(2)
    lost = rig.nic.places()[2].problem(None)
    assert isinstance(lost, StateNotRepresentable)
    assert (lost.kind, lost.version, lost.field, lost.have) == ("pci-virtio-viona", None, "promisc", "all_multi")
    rig.driver.set_filters(0)
    assert rig.nic.places()[2].problem(None) is None


def test_without_a_payload_the_filters_are_as_at_birth() -> None:
    rig = probed()
    new = Rig.make(said=rig.said)
    new.memory.view[:] = rig.memory.view
    new.nic.import_(export(rig.nic)[:2])
    new.hear(frame(1), frame(2, to=OTHER))
    assert new.driver.receive() == [frame(1)]


@pytest.mark.parametrize(
    ("mode", "carriers"),
    [
        ({"birth": OLD}, {1, 2, 3}),
        ({"legacy": True}, {1, 2, 3}),
        ({}, {2, 3}),
        ({"pairs": 3}, {2, 3}),
    ],
)
def test_which_versions_carry_the_queues_depends_on_how_they_are_driven(
    mode: dict[str, Any], carriers: set[int]
) -> None:
    rig = probed(**mode)
    place = rig.nic.places()[0]
    assert {schema.version for schema in place.schemas if place.problem(schema) is None} == carriers


def test_queues_that_were_once_used_take_the_newest_version() -> None:
    rig = probed(pairs=3)
    rig.driver.probe(PATH)
    place = rig.nic.places()[0]
    assert {schema.version for schema in place.schemas if place.problem(schema) is None} == {3}
    new = moved(rig)
    assert (len(new.nic.virtio.queues), export(new.nic)) == (3, export(rig.nic))
    go_on(new, 1)
    new.driver.probe(PATH, pairs=2)
    go_on(new, 10)


VIONA = "pci-virtio-viona"


@pytest.mark.parametrize(
    ("kind", "path", "value", "problem"),
    [
        ("pci-virtio", "queues.len", 2, "2; queues come in pairs, one or all 11, and one more for control"),
        ("pci-virtio", "queues.len", 22, "22; queues come in pairs"),
        ("pci-virtio", "queues.queues[4].is_control", True, "the last queue in use, and no other"),
        ("pci-virtio", "queues.queues[22].is_control", False, "the last queue in use, and no other"),
        ("pci-virtio", "device.negotiated_features", 1 << 23, "does not offer"),
        (VIONA, "filter", 0x40, "unknown bits 0x40"),
        (VIONA, "filter", 1, "filter 0x1 makes it all"),
        (VIONA, "promisc", Promisc.ALL_MULTI, "all_multi; filter 0x0 makes it none"),
        (VIONA, "unicast_mac_filters", (b"12345",), "5 bytes; an Ethernet address has 6"),
        (VIONA, "unicast_mac_filters", (MAC, MULTICAST), "01:00:5e:00:00:01 belongs into the other list"),
        (VIONA, "multicast_mac_filters", (OTHER,), "02:00:00:00:00:07 belongs into the other list"),
        (VIONA, "multicast_mac_filters", (MULTICAST,) * (ADDRESSES_MAX + 1), "65 addresses; this NIC holds 64"),
    ],
)
def test_what_no_driver_can_have_done_is_refused_and_changes_nothing(
    kind: str, path: str, value: object, problem: str
) -> None:
    rig = probed(pairs=3)
    payloads = [
        replaced(payload, path, value) if payload.SCHEMA.kind == kind else payload for payload in export(rig.nic)
    ]
    new = Rig.make()
    before = export(new.nic)
    with pytest.raises(ImportFailed) as caught:
        new.nic.import_(payloads)
    assert (caught.value.device, caught.value.kind) == ("nic", kind)
    assert problem in caught.value.problem
    assert export(new.nic) == before


def test_state_that_shows_more_than_the_birth_is_refused() -> None:
    rig = probed()
    rig.driver.set_filters(1)
    new = Rig.make(birth=Birth(release="r1", shows=frozenset()))
    with pytest.raises(ImportFailed, match=r"msix\.count: 24; this device has 4"):
        new.nic.import_(export(rig.nic))


def test_filters_for_a_nic_without_filters_are_refused() -> None:
    rig = probed(birth=OLD)
    virtio, pci, viona = export(rig.nic)
    assert isinstance(viona, PciVirtioVionaV1)
    with pytest.raises(ImportFailed, match="was born without receive filters"):
        Rig.make(birth=OLD).nic.import_([virtio, pci, attrs.evolve(viona, filter=1, promisc=Promisc.ALL)])
