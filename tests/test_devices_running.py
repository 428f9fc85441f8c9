"""Devices run on after they have moved.

Derived state is tested by running the device after the import: exporting again right away would see nothing wrong.
"""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_vmm.devices.blob import BlobBackend, decode_blob
from sim_vmm.devices.errors import (
    InjectedFailure,
)
from sim_vmm.devices.failure_injector import FailureInjector, InjectionCounters
from sim_vmm.devices.uart import CAUSE_RECEIVED, ENABLE_RECEIVED, ENABLE_TRANSMITTER_EMPTY, NO_CAUSE
from tests.devices import (
    ENTRIES,
    blob,
    booted,
    disk,
    export,
    fw_cfg,
    moved,
    nic,
    nvme,
    replaced,
    uart,
    use,
)


def test_a_moved_serial_port_interrupts_and_prints() -> None:
    printed: list[bytes] = []
    source = booted(uart)
    source.receive(ord("q"))
    target = moved(source, lambda: uart(printed.append))
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
    target = moved(source, lambda: fw_cfg(ENTRIES[:1]))
    assert first + target.read(len(whole) - 20) == whole
    assert target.read(3) == b"\0\0\0"


def test_the_guest_goes_on_seeing_the_tables_it_booted_with() -> None:
    newer = attrs.evolve(ENTRIES[1], bytes=b"what the new host would say")
    target = moved(fw_cfg(), lambda: fw_cfg([ENTRIES[0], newer]))
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


@given(st.lists(st.sampled_from(["disk", "nic", "nvme", "uart", "receive", "read"]), max_size=30), st.integers(0, 30))
@settings(max_examples=25)
def test_a_move_at_any_moment_is_invisible_to_the_guest(actions: list[str], moment: int) -> None:
    """The same work on devices that move in the middle and on devices that stay ends in the same state."""
    makes: dict[str, Callable[[], Any]] = {"disk": disk, "nic": nic, "nvme": nvme, "uart": uart}
    staying = {name: booted(make) for name, make in makes.items()}
    moving = {name: booted(make) for name, make in makes.items()}
    for index, action in enumerate([*actions, *makes]):
        if index == min(moment, len(actions)):
            moving = {name: moved(device, makes[name]) for name, device in moving.items()}
        for devices in (staying, moving):
            match action:
                case "receive":
                    devices["uart"].receive(65)
                case "read":
                    devices["uart"].read_received()
                case _:
                    use(devices[action])
    for name, device in moving.items():
        assert export(device) == export(staying[name])
        assert device.bench.memory.view == staying[name].bench.memory.view
        assert device.bench.interrupts.lines == staying[name].bench.interrupts.lines
