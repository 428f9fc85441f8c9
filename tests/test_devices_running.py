"""Devices run on after they have moved.

Derived state is tested by running the device after the import: exporting again right away would see nothing wrong.
"""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.devices.blob import BlobBackend, decode_blob
from sim_vmm.devices.errors import (
    InjectedFailure,
)
from sim_vmm.devices.failure_injector import FailureInjector, InjectionCounters
from sim_vmm.devices.fw_cfg import FwCfg
from sim_vmm.devices.uart import CAUSE_RECEIVED, ENABLE_RECEIVED, ENABLE_TRANSMITTER_EMPTY, NO_CAUSE, Uart
from sim_vmm.devices.virtio_nic import (
    BROADCAST,
    FILTER_ALL_MULTICAST,
    FILTER_NO_BROADCAST,
    FILTER_PROMISC,
    queue_shapes,
)
from tests.devices import (
    ENTRIES,
    MAC,
    blob,
    booted,
    disk,
    export,
    fw_cfg,
    moved,
    nic,
    replaced,
    uart,
)


def test_a_moved_disk_answers_kicks_and_addresses() -> None:
    source = booted(disk)
    source.virtio.kick(0)
    target = moved(source, disk)
    assert target.pci.bar_at(source.pci.address_of_bar(2)) == 2
    assert target.virtio.kick(0)
    assert target.virtio.queues[0].used_idx == 2
    assert not disk().virtio.kick(0)


def test_ring_indices_wrap_at_16_bits() -> None:
    device = booted(disk)
    device.virtio.set_ring_indices(0, 0xFFFF, 0xFFFF)
    assert device.virtio.kick(0)
    assert (device.virtio.queues[0].avail_cur_idx, device.virtio.queues[0].used_idx) == (0, 0)


def test_a_pending_interrupt_of_a_moved_disk_is_delivered_on_unmasking() -> None:
    source = booted(disk)
    source.pci.mask_vector(1)
    source.virtio.kick(0)
    target = moved(source, disk)
    assert target.pci.unmask_vector(1)
    assert not target.pci.unmask_vector(1)


def test_the_interrupt_pin_of_a_moved_disk_has_its_level() -> None:
    """Upstream's #727."""
    source = disk()
    source.virtio.configure(0)  # queues, but neither MSI-X nor a disabled pin
    source.virtio.kick(0)
    target = moved(source, disk)
    assert target.pci.pin.asserted
    assert target.virtio.read_isr() == 1
    assert not target.pci.pin.asserted
    target.virtio.change_config()
    assert target.pci.pin.asserted
    assert target.virtio.read_isr() == 2


def test_the_rings_of_a_moved_nic_go_on_where_they_were() -> None:
    """Upstream's #1135: the kernel's rings restarted at 0 over live memory."""
    source = booted(nic)
    for _ in range(5):
        source.transmit(pair=1)
    target = moved(source, nic)
    assert target.transmit(pair=1)
    assert target.virtio.queues[3].used_idx == 6
    assert target.link.rings[3] == (6, 6)
    assert target.link.pairs == 2
    assert target.link.features == source.link.features != 0


def test_a_nic_that_uses_fewer_pairs_than_ever_goes_on_with_those() -> None:
    source = booted(nic)
    source.virtio.use_queues(queue_shapes(1))
    source.virtio.configure(0)
    target = moved(source, nic)
    assert target.link.pairs == 1
    assert not target.transmit(pair=1)
    assert target.transmit(pair=0)


MULTICAST = b"\x01\0\x5e\0\0\1"
OTHER = b"\x02\0\0\0\0\7"


@pytest.mark.parametrize(
    ("filters", "received"),
    [
        ({"filter_bits": 0}, {MAC, BROADCAST}),
        ({"filter_bits": FILTER_NO_BROADCAST}, {MAC}),
        ({"filter_bits": FILTER_ALL_MULTICAST}, {MAC, BROADCAST, MULTICAST}),
        ({"filter_bits": FILTER_PROMISC}, {MAC, BROADCAST, MULTICAST, OTHER}),
        ({"filter_bits": 0, "unicast": (OTHER,)}, {MAC, BROADCAST, OTHER}),
        ({"filter_bits": 0, "multicast": (MULTICAST,)}, {MAC, BROADCAST, MULTICAST}),
    ],
)
def test_a_moved_nic_receives_what_it_did(filters: dict[str, Any], received: set[bytes]) -> None:
    source = booted(nic)
    source.set_filters(**filters)
    target = moved(source, nic)
    assert {address for address in (MAC, BROADCAST, MULTICAST, OTHER) if target.receive(address)} == received


def test_a_moved_serial_port_interrupts_and_prints() -> None:
    printed: list[bytes] = []
    source = booted(uart)
    source.receive(ord("q"))
    target = moved(source, lambda: Uart("com2", printed.append))
    assert target.pin.asserted
    assert target.read_cause() == CAUSE_RECEIVED
    assert target.read_received() == ord("q")
    assert not target.pin.asserted
    target.transmit(b"still here")
    assert printed == [b"still here"]


def test_a_settled_transmitter_interrupt_stays_settled_after_a_move() -> None:
    source = uart()
    source.enable_interrupts(ENABLE_TRANSMITTER_EMPTY | ENABLE_RECEIVED)
    assert moved(source, uart).pin.asserted
    source.read_cause()
    target = moved(source, uart)
    assert target.read_cause() == NO_CAUSE
    target.transmit(b"x")
    assert target.pin.asserted


def test_a_byte_too_many_is_lost_and_the_guest_is_told() -> None:
    device = booted(uart)
    device.receive(1)
    device.receive(2)
    assert device.read_received() == 1
    assert device.read_received() == 0


def test_a_half_read_directory_is_read_on_as_it_was() -> None:
    source = fw_cfg()
    source.select(0x19)
    first = source.read(20)
    whole = source.read_file("file-dir")
    assert int.from_bytes(whole[:4], "big") == 2
    assert whole[12:64].rstrip(b"\0") == b"etc/e820"
    source.select(0x19)
    source.read(20)
    target = moved(source, lambda: FwCfg(ENTRIES[:1]))
    assert first + target.read(len(whole) - 20) == whole
    assert target.read(3) == b"\0\0\0"


def test_the_guest_goes_on_seeing_the_tables_it_booted_with() -> None:
    newer = attrs.evolve(ENTRIES[1], bytes=b"what the new host would say")
    target = moved(fw_cfg(), lambda: FwCfg([ENTRIES[0], newer]))
    assert target.read_file("etc/e820") == b"memory map"
    assert target.read_file("etc/ramfb") == bytes(28)
    with pytest.raises(KeyError, match="no entry 'etc/new'"):
        target.read_file("etc/new")


def test_a_selection_of_an_entry_that_no_longer_exists_is_cleared() -> None:
    source = fw_cfg()
    source.select(0x20)
    (payload,) = export(source)
    target = fw_cfg()
    target.import_([replaced(payload, "entries", ENTRIES[:1])])
    assert target.read(4) == bytes(4)
    assert export(target)[0].selected is None  # type: ignore[union-attr]


def test_a_written_blob_travels() -> None:
    source = blob()
    source.write(10, b"hello")
    assert moved(source, blob).read(9, 7) == b"\0hello\0"


def test_a_blob_refuses_what_lies_outside_or_is_read_only() -> None:
    with pytest.raises(ValueError, match="bytes 99 to 100 of blob 'blob': it has 100"):
        blob().write(99, b"ab")
    with pytest.raises(ValueError, match="read-only"):
        BlobBackend("blob", b"abc", readonly=True).write(0, b"x")


@pytest.mark.parametrize("text", ["a", "ab", "ab==\n", "a-_=", "ab==cd==", "aa=", "ab==", "é"])
def test_base64_that_no_encoder_makes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not standard base64"):
        decode_blob(text)


def test_a_failure_injector_fails_the_first_few_times_across_machines() -> None:
    counters = InjectionCounters()

    def make() -> FailureInjector:
        return FailureInjector("injector", counters, fail_exports=2, fail_imports=1)

    for nth in (1, 2):
        with pytest.raises(InjectedFailure, match=f"injected failure {nth} of 2 on export"):
            make().begin_export()
    source = make()
    source.begin_export()
    with pytest.raises(InjectedFailure, match="injected failure 1 of 1 on import"):
        make().import_(export(source))
    make().import_(export(source))


@given(st.lists(st.sampled_from(["kick", "transmit", "receive", "read"]), max_size=30), st.integers(0, 30))
def test_a_move_at_any_moment_is_invisible_to_the_guest(actions: list[str], moment: int) -> None:
    """The same work on devices that move in the middle and on devices that stay ends in the same state."""
    makes: list[Callable[[], Any]] = [disk, nic, uart]
    staying = [booted(make) for make in makes]
    moving = [booted(make) for make in makes]
    for index, action in enumerate([*actions, "kick"]):
        if index == min(moment, len(actions)):
            moving = [moved(device, make) for device, make in zip(moving, makes, strict=True)]
        for a_disk, a_nic, a_uart in (staying, moving):
            match action:
                case "kick":
                    a_disk.virtio.kick(0)
                case "transmit":
                    a_nic.transmit()
                case "receive":
                    a_uart.receive(65)
                    a_nic.receive(BROADCAST)
                case "read":
                    a_uart.read_received()
    assert [export(device) for device in moving] == [export(device) for device in staying]
    assert moving[2].pin == staying[2].pin
    assert moving[1].link == staying[1].link
