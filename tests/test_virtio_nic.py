"""A virtio NIC, driven by a guest's driver over guest RAM: frames out and in, the control queue, receive filters."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_vmm.birth import Birth, Interface
from sim_vmm.devices.virtio_nic import PAIRS_MAX
from sim_vmm.devices.virtio_nic.control import (
    COMMAND_BYTES_MAX,
    Settings,
    obey,
    pairs_command,
    switch_command,
    tables_command,
)
from sim_vmm.devices.virtio_nic.layout import (
    FEATURE_CTRL_RX,
    FEATURE_CTRL_RX_EXTRA,
    FEATURE_MQ,
    FEATURE_MRG_RXBUF,
    FILTER_FEATURES,
    frame_to_send,
    with_checksum,
)
from sim_vmm.devices.virtio_nic.nic import FRAMES_AT_ONCE, WAITING_FRAMES_MAX
from sim_vmm.devices.virtio_nic.receive_filter import ADDRESSES_MAX, NO_FILTERS, ReceiveFilter, promisc_of
from sim_vmm.drivers import DriverFailed
from sim_vmm.drivers.virtio_net import BUFFER_BYTES, RX_BUFFERS, TX_BUFFERS
from sim_vmm.payloads import PciVirtioVionaV1, Promisc
from sim_vmm.virtqueue import Segment
from sim_vmm.wire import BROADCAST, FRAME_BYTES_MAX
from tests.nics import BASE, MAC, NEIGHBOUR, PATH, VECTOR, Rig, frame, probed

MODES: list[dict[str, Any]] = [
    {},
    {"vector": VECTOR},
    {"legacy": True},
    {"legacy": True, "vector": VECTOR},
    {"pairs": 3},
    {"features": FEATURE_MRG_RXBUF, "receive_bytes": 128},
    {"legacy": True, "features": FEATURE_MRG_RXBUF, "receive_bytes": 128},
]
OLD = Birth(release="r1", shows=frozenset())

MULTICAST = b"\x01\0\x5e\0\0\1"
OTHER_MULTICAST = b"\x01\0\x5e\0\0\2"
OTHER = b"\x02\0\0\0\0\7"


# Frames


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_frames_go_out_and_come_in(mode: dict[str, Any]) -> None:
    rig = probed(**mode)
    assert rig.driver.mac == MAC
    assert rig.driver.link_is_up
    assert rig.driver.send(frame(1, length=1514))
    assert rig.driver.send(frame(2))
    assert rig.said == [frame(1, length=1514), frame(2)]
    assert rig.driver.outstanding() == 1  # the first buffer was taken back for the second frame
    assert rig.driver.pci.take_interrupt()
    assert rig.driver.reclaim() == 1
    assert rig.driver.poll() == []
    rig.hear(frame(3, length=1514), frame(4))
    assert rig.driver.poll() == [frame(3, length=1514), frame(4)]
    assert rig.driver.poll() == []
    assert (rig.nic.counters.sent, rig.nic.counters.received) == (2, 2)


def test_before_the_driver_is_ready_nothing_comes_in() -> None:
    rig = Rig.make()
    rig.hear(frame(1))
    rig.driver.probe(PATH)
    rig.hear()
    assert rig.driver.receive() == []
    assert rig.nic.counters.not_ready == 1


def test_frames_wait_for_buffers_and_no_more_than_so_many() -> None:
    rig = probed()
    count = RX_BUFFERS + WAITING_FRAMES_MAX + 5
    rig.hear(*(frame(number) for number in range(count)))
    assert rig.nic.counters.overrun == 5 + RX_BUFFERS  # all were taken from the wire before any was delivered
    received: list[bytes] = []
    while found := rig.driver.receive():
        received += found
    assert received == [frame(number) for number in range(WAITING_FRAMES_MAX)]


def test_a_notification_sends_so_many_frames_and_the_next_poll_the_others() -> None:
    rig = probed(pairs=1, entries=256)
    rig.driver.pci.queue(1)
    for number in range(TX_BUFFERS):
        assert rig.driver.send(frame(number), notify=False)
    assert not rig.driver.send(frame(99))
    queue = rig.driver.pci.queue(1)
    at = rig.driver.pci.buffers.stop - 4096
    rig.memory.write(at, bytes(12) + frame(50))
    for _ in range(FRAMES_AT_ONCE):
        assert queue.add([Segment(at, 72)], []) is not None
    rig.driver.notify()
    assert len(rig.said) == FRAMES_AT_ONCE
    rig.nic.poll()
    assert len(rig.said) == FRAMES_AT_ONCE + TX_BUFFERS
    assert rig.said[:TX_BUFFERS] == [frame(number) for number in range(TX_BUFFERS)]


def test_a_frame_too_long_for_the_buffers_is_dropped_and_the_buffer_stays() -> None:
    rig = probed(receive_bytes=100)
    rig.hear(frame(1, length=200), frame(2, length=88))
    assert rig.driver.receive() == [frame(2, length=88)]
    assert rig.nic.counters.too_long == 1


def test_a_frame_waits_until_it_finds_enough_small_buffers() -> None:
    rig = probed(features=FEATURE_MRG_RXBUF, receive_bytes=128)
    rig.hear(frame(1, length=1500), frame(2, length=1500))  # 12 of 16 buffers each
    assert rig.driver.receive() == [frame(1, length=1500)]
    assert rig.driver.receive() == [frame(2, length=1500)]
    assert rig.nic.counters.too_long == 0


def test_a_frame_longer_than_all_small_buffers_of_a_full_ring_is_dropped() -> None:
    rig = probed(features=FEATURE_MRG_RXBUF, receive_bytes=128, entries=16)
    rig.hear(frame(1, length=3000), frame(2))
    assert rig.driver.receive() == [frame(2)]
    assert rig.nic.counters.too_long == 1


@pytest.mark.parametrize("length", [0, 13, FRAME_BYTES_MAX + 1])
def test_what_is_no_frame_does_not_come_in(length: int) -> None:
    rig = probed()
    rig.hear(bytes(length))
    assert rig.driver.receive() == []
    assert rig.nic.counters.malformed == 1


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (bytes(11), b""),
        (bytes(12), bytes(13)),
        (bytes([0, 1]) + bytes(10), bytes(60)),  # segmentation, which was not offered
        (struct.pack("<BBHHHHH", 1, 0, 0, 0, 50, 9, 0), bytes(60)),  # a checksum outside the frame
    ],
)
def test_what_is_no_frame_does_not_go_out_and_its_buffer_comes_back(header: bytes, body: bytes) -> None:
    rig = probed()
    at = rig.driver.pci.buffers.stop - 4096
    rig.memory.write(at, header + body)
    queue = rig.driver.pci.queue(1)
    queue.add([Segment(at, len(header + body))], [])
    rig.driver.notify()
    assert rig.said == []
    assert queue.take_used() == (0, 0)
    assert rig.nic.counters.malformed == 1


def test_a_frame_of_gigabytes_is_not_even_read() -> None:
    rig = probed()
    rig.driver.pci.queue(1).add([Segment(BASE, 1 << 18)] * 30, [])
    rig.driver.notify()
    assert rig.nic.counters.malformed == 1
    assert not rig.driver.pci.needs_reset


def test_a_buffer_outside_ram_breaks_the_device_until_it_is_reset() -> None:
    rig = probed(vector=VECTOR)
    rig.driver.pci.queue(1).add([Segment(1 << 40, 100)], [])
    rig.driver.notify()
    assert rig.driver.pci.needs_reset
    assert rig.driver.pci.take_config_interrupt()
    rig.hear(frame(1))
    assert rig.driver.receive() == []
    rig.driver.probe(PATH)
    rig.hear(frame(2))
    assert rig.driver.receive() == [frame(2)]


def test_a_checksum_that_the_driver_left_to_the_device_is_put_in() -> None:
    """The example of RFC 1071 §3: the sum of these words is ddf2."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert with_checksum(b"\xaa" * 14 + b"\0\0" + data, 14, 0) == b"\xaa" * 14 + b"\x22\x0d" + data
    assert with_checksum(b"\0\0\1", 0, 0) == b"\xfe\xff\1"  # an odd byte counts as if a zero followed
    assert frame_to_send(struct.pack("<BBHHHH", 1, 0, 0, 0, 0, 0), b"\0\0\1") == b"\xfe\xff\1"


def test_a_masked_interrupt_is_pending_and_comes_with_the_unmasking() -> None:
    rig = probed(vector=VECTOR)
    rig.driver.pci.mask_queues(PATH, masked=True)
    rig.hear(frame(1))
    assert rig.driver.poll() == []
    rig.driver.pci.mask_queues(PATH, masked=False)
    assert rig.driver.poll() == [frame(1)]


# Pairs


def flows(count: int) -> list[bytes]:
    """Frames of so many senders."""
    return [frame(number, source=bytes([2, 0, 0, 0, 0, number])) for number in range(count)]


def test_several_pairs_share_the_senders_and_keep_the_order_of_each() -> None:
    rig = probed(pairs=3)
    sent = [frame(10 * turn + n, source=bytes([2, 0, 0, 0, 0, n])) for turn in range(3) for n in range(8)]
    rig.hear(*sent)
    used = [rig.nic.virtio.queues[2 * pair].used_idx for pair in range(PAIRS_MAX)]
    assert sum(used) == len(sent)
    assert all(used[:3])
    received = rig.driver.receive()
    for source in {raw[6:12] for raw in sent}:
        assert [raw for raw in received if raw[6:12] == source] == [raw for raw in sent if raw[6:12] == source]
    for pair in range(3):
        assert rig.driver.send(frame(pair), pair=pair)
    assert rig.said == [frame(pair) for pair in range(3)]


def test_pairs_that_were_not_asked_for_do_not_run_though_they_are_set_up() -> None:
    rig = probed(pairs=3)
    assert rig.driver.command(pairs_command(1))
    assert [queue.live for queue in rig.nic.virtio.queues] == [True] * 2 + [False] * 20 + [True]
    rig.driver.send(frame(1), pair=2)
    rig.nic.poll()
    assert rig.said == []
    rig.hear(*flows(8))
    assert len(rig.driver.receive()) == 8
    assert rig.nic.virtio.queues[2].used_idx == 0
    assert rig.driver.command(pairs_command(3))
    rig.nic.poll()
    assert rig.said == [frame(1)]


@pytest.mark.parametrize("pairs", [0, 4, PAIRS_MAX, PAIRS_MAX + 1, 0xFFFF])
def test_pairs_that_are_not_set_up_or_not_there_cannot_be_run(pairs: int) -> None:
    rig = probed(pairs=3)
    assert not rig.driver.command(pairs_command(pairs))
    assert rig.nic.link.pairs == 3


def test_a_reset_leaves_one_pair_and_no_filters() -> None:
    rig = probed(pairs=3)
    rig.driver.set_filters(1)
    rig.driver.probe(PATH)
    assert len(rig.nic.virtio.queues) == 3
    assert (rig.nic.link.pairs, rig.nic.link.receive_filter.switches) == (1, 0)
    rig.hear(frame(1, to=OTHER), frame(2))
    assert rig.driver.receive() == [frame(2)]


# Birth


def test_a_nic_born_before_filters_pairs_and_the_modern_interface_has_none_of_them() -> None:
    rig = probed(birth=OLD)
    assert not rig.driver.pci.is_modern
    assert not rig.driver.set_filters()
    assert not rig.driver.command(tables_command((), ()))
    assert rig.driver.send(frame(1))
    assert rig.said == [frame(1)]
    with pytest.raises(DriverFailed, match="the device has no queue 3"):
        probed(birth=OLD, pairs=2)


def test_filters_are_offered_by_birth_alone() -> None:
    rig = probed(birth=Birth(release="r5", shows=frozenset(Interface) - {Interface.MAC_FILTERS}))
    assert rig.driver.pci.is_modern
    assert not rig.driver.set_filters()
    assert rig.driver.pci.features & FILTER_FEATURES == 0


# Control

ALL_CONTROL = FEATURE_CTRL_RX | FEATURE_CTRL_RX_EXTRA | FEATURE_MQ
FRESH = Settings(NO_FILTERS, 1)


def filters(switches: int = 0, unicast: tuple[bytes, ...] = (), multicast: tuple[bytes, ...] = ()) -> PciVirtioVionaV1:
    return PciVirtioVionaV1(
        promisc=promisc_of(switches),
        filter=switches,
        unicast_mac_filters=unicast,
        multicast_mac_filters=multicast,
    )


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (b"\0\0\1", Settings(filters(1), 1)),
        (b"\0\1\1", Settings(filters(2), 1)),
        (b"\0\2\1", Settings(filters(4), 1)),
        (b"\0\3\1", Settings(filters(8), 1)),
        (b"\0\4\1", Settings(filters(16), 1)),
        (b"\0\5\1", Settings(filters(32), 1)),
        (b"\0\5\0", FRESH),
        (b"\1\0" + bytes(8), FRESH),
        (b"\1\0\1\0\0\0" + OTHER + b"\1\0\0\0" + MULTICAST, Settings(filters(0, (OTHER,), (MULTICAST,)), 1)),
        (tables_command((OTHER,) * ADDRESSES_MAX, ()), Settings(filters(0, (OTHER,) * ADDRESSES_MAX), 1)),
        (b"\4\0\3\0", Settings(NO_FILTERS, 3)),
        (b"", None),
        (b"\0", None),
        (b"\0\0", None),
        (b"\0\0\2", None),
        (b"\0\0\1\0", None),
        (b"\0\6\1", None),
        (b"\1\0", None),
        (b"\1\0" + bytes(7), None),
        (b"\1\0" + bytes(9), None),
        (b"\1\0\2\0\0\0" + OTHER + bytes(4), None),
        (b"\1\0\xff\xff\xff\xff" + bytes(100), None),
        (tables_command((OTHER,) * (ADDRESSES_MAX + 1), ()), None),
        (tables_command((MULTICAST,), ()), None),
        (tables_command((), (OTHER,)), None),
        (b"\1\1" + OTHER, None),  # another address of our own
        (b"\2\0\1\0", None),  # VLANs
        (b"\4\0\0\0", None),
        (b"\4\0\x0c\0", None),
        (b"\4\0\1", None),
        (b"\4\1\1\0", None),
    ],
)
def test_a_control_command_does_what_the_standard_says(command: bytes, wanted: Settings | None) -> None:
    assert obey(command, FRESH, ALL_CONTROL) == wanted


@pytest.mark.parametrize(
    ("command", "feature"),
    [
        (switch_command(0, True), FEATURE_CTRL_RX),
        (switch_command(5, True), FEATURE_CTRL_RX_EXTRA),
        (tables_command((), ()), FEATURE_CTRL_RX),
        (pairs_command(1), FEATURE_MQ),
    ],
)
def test_a_command_that_was_not_agreed_on_is_refused(command: bytes, feature: int) -> None:
    assert obey(command, FRESH, feature) is not None
    assert obey(command, FRESH, ALL_CONTROL & ~feature) is None


def test_the_longest_right_command_is_read_and_longer_ones_are_refused() -> None:
    rig = probed()
    full = tables_command((OTHER,) * ADDRESSES_MAX, (MULTICAST,) * ADDRESSES_MAX)
    assert len(full) == COMMAND_BYTES_MAX
    assert rig.driver.command(full)
    assert not rig.driver.command(full + b"\0")
    rig.driver.pci.queue(2).add([Segment(BASE, 1 << 18)] * 20, [Segment(BASE + 0x3_0000, 1)])
    rig.driver.pci.notify(2)
    assert rig.memory.read(BASE + 0x3_0000, 1) == b"\1"


@pytest.mark.parametrize(
    ("readable", "writable"),
    [([Segment(BASE, 1)], [Segment(BASE, 1)]), ([Segment(BASE, 3)], []), ([], [Segment(BASE, 1)])],
)
def test_what_is_no_command_breaks_the_device(readable: list[Segment], writable: list[Segment]) -> None:
    rig = probed()
    rig.driver.pci.queue(2).add(readable, writable)
    rig.driver.pci.notify(2)
    assert rig.driver.pci.needs_reset


# Filters

ALL = {MAC, BROADCAST, MULTICAST, OTHER_MULTICAST, OTHER}


@pytest.mark.parametrize(
    ("set_to", "received"),
    [
        (filters(), {MAC, BROADCAST}),
        (filters(1), ALL),
        (filters(2), {MAC, BROADCAST, MULTICAST, OTHER_MULTICAST}),
        (filters(4), {MAC, BROADCAST, OTHER}),
        (filters(8, (), (MULTICAST,)), {MAC, BROADCAST}),
        (filters(16, (OTHER,)), {BROADCAST}),
        (filters(32), {MAC}),
        (filters(0b111000), set()),
        (filters(0b111001), ALL),
        (filters(0b001010, (), (MULTICAST,)), {MAC, BROADCAST}),
        (filters(0, (OTHER,)), {MAC, BROADCAST, OTHER}),
        (filters(0, (), (MULTICAST,)), {MAC, BROADCAST, MULTICAST}),
    ],
)
def test_the_guest_gets_the_frames_that_its_filters_let_through(set_to: PciVirtioVionaV1, received: set[bytes]) -> None:
    rig = probed()
    assert rig.driver.set_filters(set_to.filter, set_to.unicast_mac_filters, set_to.multicast_mac_filters)
    rig.hear(*(frame(1, to=address) for address in sorted(ALL)))
    assert {raw[:6] for raw in rig.driver.receive()} == received
    assert rig.nic.counters.filtered == len(ALL) - len(received)


@pytest.mark.parametrize(
    ("switches", "promisc"),
    [
        (0, Promisc.NONE),
        (1, Promisc.ALL),
        (2, Promisc.ALL_MULTI),
        (4, Promisc.ALL),
        (6, Promisc.ALL),
        (56, Promisc.NONE),
    ],
)
def test_the_link_lets_through_what_the_switches_want(switches: int, promisc: Promisc) -> None:
    assert promisc_of(switches) is promisc


def wanted(destination: bytes, state: PciVirtioVionaV1) -> bool:
    """A model of its own: by class of the destination, what says no, what says all, and what says this one."""
    promisc, all_multi, all_uni, no_multi, no_uni, no_broadcast = (state.filter >> bit & 1 for bit in range(6))
    if destination == b"\xff" * 6:
        none, every, these = no_broadcast, 1, set()
    elif destination[0] % 2 == 1:
        none, every, these = no_multi, all_multi, set(state.multicast_mac_filters)
    else:
        none, every, these = no_uni, all_uni, {MAC, *state.unicast_mac_filters}
    return bool(promisc or (not none and (every or destination in these)))


unicast = st.sampled_from([MAC, OTHER, NEIGHBOUR])
multicast = st.sampled_from([MULTICAST, OTHER_MULTICAST, BROADCAST])
some_filters = st.builds(
    filters,
    st.integers(0, 63),
    st.lists(unicast, max_size=3).map(tuple),
    st.lists(multicast, max_size=3).map(tuple),
)


@given(some_filters, st.one_of(unicast, multicast, st.binary(min_size=6, max_size=6)))
def test_any_filter_does_as_the_model(state: PciVirtioVionaV1, destination: bytes) -> None:
    assert ReceiveFilter.of(MAC, state).accepts(destination) == wanted(destination, state)


@settings(max_examples=40, deadline=None)
@given(some_filters, st.lists(st.one_of(unicast, multicast), max_size=RX_BUFFERS))
def test_any_filter_that_a_driver_sets_lets_through_what_the_model_does(
    state: PciVirtioVionaV1, destinations: list[bytes]
) -> None:
    rig = probed()
    assert rig.driver.set_filters(state.filter, state.unicast_mac_filters, state.multicast_mac_filters)
    frames = [frame(number, to=to) for number, to in enumerate(destinations)]
    rig.hear(*frames)
    assert rig.driver.receive() == [raw for raw in frames if wanted(raw[:6], state)]


def test_a_frame_longer_than_a_drivers_buffer_is_a_bug_of_its_user() -> None:
    rig = probed()
    with pytest.raises(ValueError, match=f"a buffer has room for {BUFFER_BYTES - 12}"):
        rig.driver.send(bytes(BUFFER_BYTES))
