"""The same guest code goes on after a migration: every device of one machine, driven through its real interface.

"Must show 1".  A scenario is guest code cut in two.  What the second half finds must be what is written here, and be
the same on a machine that never moved, on one that moved in between, and on one that moved twice: no guest can tell.
The machine is born on r6 and moves through the bytes of its payloads, over disks in files.

The devices' own tests have the mutations: each derived state taken away in turn (test_virtio_disk.py,
test_virtio_nic_moves.py, test_nvme_moves.py, test_guest_ports.py, test_vcpu.py, test_rtc.py).
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from sim_vmm.console import BUFFER_SIZE
from sim_vmm.devices.nvme.layout import Status
from sim_vmm.devices.rtc import DAY, HOUR, MINUTE, PORT_DATA, PORT_INDEX, SECOND
from sim_vmm.devices.uart import ENABLE_TRANSMITTER_EMPTY
from sim_vmm.devices.vcpu import PIN_VECTOR
from sim_vmm.devices.virtio_disk import REQUESTS_AT_ONCE
from sim_vmm.drivers import driver_area, driver_vector
from sim_vmm.drivers.fw_cfg import FwCfgDriver
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.drivers.uart import UartDriver
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.drivers.virtio_net import VirtioNetDriver
from sim_vmm.machine import Machine
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.components import Component, FileStorageBackend, MigrationFailureInjector, NvmeDisk, Pvpanic
from sim_vmm.wire import BROADCAST, SequencedFrame
from tests.ledgers import MS, VIRTIO, House

COMPONENTS: Final[Mapping[str, Component]] = {
    **VIRTIO,
    "fast": NvmeDisk(SpecKey.parse("fast-disk"), PciPath(0, 17, 0), b"fast".ljust(20, b"\0"), True),
    "fast-disk": FileStorageBackend("/none", False, 512, None),
    "pvpanic": Pvpanic(True),
    "injector": MigrationFailureInjector(0, 0),
}
#: The slots of the PCI devices, in key order.
DATA, FAST, NIC = 0, 1, 2
OTHERS: Final = bytes.fromhex("a84025000002")
MINE: Final = bytes.fromhex("a84025abcdef")
COM1_PORTS: Final = 0x3F8
WRAP: Final = 65_530


@attrs.define
class Guest:
    """Guest code's view of the machine, wherever it is now; drivers are made anew at each use."""

    machine: Machine
    house: House

    @property
    def disk(self) -> VirtioBlkDriver:
        return VirtioBlkDriver(self.machine, driver_area(DATA))

    @property
    def fast(self) -> NvmeDriver:
        return NvmeDriver(self.machine, driver_area(FAST))

    @property
    def nic(self) -> VirtioNetDriver:
        return VirtioNetDriver(self.machine, driver_area(NIC))

    @property
    def firmware(self) -> FwCfgDriver:
        return FwCfgDriver(self.machine)

    def path(self, slot: int) -> PciPath:
        return list(self.machine.pci_paths.values())[slot]

    def hear(self, *frames: bytes) -> None:
        """Frames from a neighbour on the network."""
        self.machine.poll()
        for frame in frames:
            self.house.hub.carry(frame)
        self.machine.poll()


def frame(number: int, destination: bytes = BROADCAST) -> bytes:
    return SequencedFrame(destination=destination, source=OTHERS, sequence=number, uptime_ns=number).encode()


def numbers(frames: list[bytes]) -> list[int | None]:
    parsed = (SequencedFrame.parse(raw) for raw in frames)
    return [None if found is None else found.sequence for found in parsed]


def written(number: int) -> bytes:
    return bytes([number]) * 512


# Requests in flight


def disk_requests_in_flight(guest: Guest) -> None:
    guest.disk.probe(guest.path(DATA), vector=driver_vector(DATA))
    for number in range(14):
        guest.disk.submit_write(number, written(number + 1), token=number, notify=False)
    guest.disk.notify()


def disk_requests_come_back(guest: Guest) -> Any:
    found = [[done.token for done in guest.disk.poll()]]
    guest.machine.poll()
    found.append([done.token for done in guest.disk.poll()])
    guest.disk.submit_read(13, 512, token=99)
    return found, [(done.token, done.data == written(14)) for done in guest.disk.poll()], guest.disk.outstanding


def nvme_commands_in_flight(guest: Guest) -> None:
    """Small queues, so that the phase tag has turned; a completion nobody has taken; doorbell buffers in use."""
    guest.fast.probe(guest.path(FAST), vector=driver_vector(FAST), sq_entries=8, cq_entries=4)
    data = guest.fast.data.start
    for number in range(5):
        guest.machine.memory.write(data, written(number + 1))
        guest.fast.submit_write(number, 1, data)
        guest.fast.take_interrupt()
        guest.fast.completions()
    guest.machine.memory.write(data, written(6))
    guest.fast.submit_write(5, 1, data)


def nvme_commands_come_back(guest: Guest) -> Any:
    found = [guest.fast.uses_doorbell_buffers, guest.fast.outstanding, guest.fast.take_interrupt()]
    done = guest.fast.completions()
    data = guest.fast.data.start
    read = []
    for number in range(6):
        guest.fast.submit_read(number, 1, data)
        guest.machine.poll()
        done += guest.fast.completions()
        read.append(guest.machine.memory.read(data, 512) == written(number + 1))
    return found, [completion.status for completion in done], read


def nic_frames_in_flight(guest: Guest) -> None:
    """Frames in the ring of which the NIC has not been told, and one that has come in that nobody has looked at."""
    guest.nic.probe(guest.path(NIC), vector=driver_vector(NIC))
    guest.hear(frame(7, MINE))
    for number in range(12):
        guest.nic.send(frame(100 + number), notify=False)


def nic_frames_come_back(guest: Guest) -> Any:
    guest.machine.poll()
    came_in = numbers(guest.nic.poll())
    sent = guest.nic.reclaim()
    guest.nic.send(frame(112))
    guest.hear(frame(8, MINE))
    on_the_wire = [number for number in map(_sequence, guest.house.heard) if number >= 100]
    return came_in, sent, on_the_wire, guest.nic.reclaim(), numbers(guest.nic.poll())


def _sequence(line: str) -> int:
    number: int = json.loads(line)["sequence"]
    return number


# Ring indices across 65,536


def disk_rings_before_the_wrap(guest: Guest) -> None:
    guest.disk.probe(guest.path(DATA), vector=driver_vector(DATA))
    _set_indices(guest, "data", guest.disk, 0)
    for number in range(3):
        guest.disk.submit_write(number, written(1), token=number)
    assert [done.token for done in guest.disk.poll()] == [0, 1, 2]


def disk_rings_past_the_wrap(guest: Guest) -> Any:
    tokens = []
    for number in range(10):
        guest.disk.submit_read(number % 3, 512, token=number)
        tokens += [done.token for done in guest.disk.poll()]
    used = guest.disk.pci.queue(0).addresses.used
    return tokens, guest.machine.memory.read(used + 2, 2)


def nic_rings_before_the_wrap(guest: Guest) -> None:
    """Only the transmit ring: the receive ring has buffers in it from the beginning."""
    guest.nic.probe(guest.path(NIC), vector=driver_vector(NIC))
    _set_indices(guest, "nic", guest.nic, 1)
    for number in range(3):
        guest.nic.send(frame(number))


def nic_rings_past_the_wrap(guest: Guest) -> Any:
    reclaimed = guest.nic.reclaim()
    for number in range(3, 13):
        assert guest.nic.send(frame(number))
    used = guest.nic.pci.queue(1).addresses.used
    return reclaimed, guest.nic.reclaim(), guest.machine.memory.read(used + 2, 2)


def _set_indices(guest: Guest, key: str, driver: VirtioBlkDriver | VirtioNetDriver, number: int) -> None:
    """As if both sides had exchanged so many buffers already."""
    device: Any = guest.machine.devices[key]
    device.virtio.set_ring_indices(number, WRAP, WRAP)
    queue = driver.pci.queue(number)
    for where in (queue.addresses.available + 2, queue.addresses.used + 2, queue.state + 4):
        guest.machine.memory.write(where, WRAP.to_bytes(2, "little"))


# Interrupts


def an_interrupt_nobody_has_taken(guest: Guest) -> None:
    guest.disk.probe(guest.path(DATA), vector=driver_vector(DATA))
    guest.disk.submit_flush(1)


def it_is_taken_once(guest: Guest) -> Any:
    vcpu = guest.machine.vcpus[0]
    return vcpu.pending() == [driver_vector(DATA) + 1], vcpu.take_interrupt() is not None, vcpu.take_interrupt()


def a_masked_interrupt(guest: Guest) -> None:
    guest.nic.probe(guest.path(NIC), vector=driver_vector(NIC))
    guest.nic.pci.mask_queues(guest.path(NIC), masked=True)
    guest.hear(frame(1, MINE))


def it_comes_with_the_unmasking(guest: Guest) -> Any:
    before = guest.nic.poll(), guest.machine.vcpus[0].pending()
    guest.nic.pci.mask_queues(guest.path(NIC), masked=False)
    return before, numbers(guest.nic.poll()), guest.machine.vcpus[0].pending()


def a_pin_that_is_up(guest: Guest) -> None:
    guest.disk.probe(guest.path(DATA))
    guest.disk.submit_flush(1)


def it_is_down_when_the_cause_is_read(guest: Guest) -> Any:
    vcpu = guest.machine.vcpus[0]
    before = vcpu.pending()
    return before, [done.token for done in guest.disk.poll()], vcpu.pending()


# Settings


def filters_are_set(guest: Guest) -> None:
    guest.nic.probe(guest.path(NIC), vector=driver_vector(NIC))
    guest.nic.set_filters(switches=0b100000, multicast=(b"\x33\x33\0\0\0\1",))


def filters_let_through_what_they_did(guest: Guest) -> Any:
    guest.hear(frame(1), frame(2, MINE), frame(3, b"\x33\x33\0\0\0\1"), frame(4, b"\x33\x33\0\0\0\2"), frame(5, OTHERS))
    return numbers(guest.nic.poll())


# Ports


def a_console_with_history(guest: Guest) -> None:
    """More than both of its buffers hold, and the interrupt of a transmitter that is empty."""
    uart = UartDriver(guest.machine.bus)
    uart.probe()
    guest.machine.console.append(b"x" * (2 * BUFFER_SIZE))
    uart.write(b"before\n")
    guest.machine.bus.port_write(COM1_PORTS + 1, 1, ENABLE_TRANSMITTER_EMPTY)


def the_console_goes_on(guest: Guest) -> Any:
    pending = guest.machine.vcpus[0].pending()
    cause = guest.machine.bus.port_read(COM1_PORTS + 2, 1)
    UartDriver(guest.machine.bus).write(b"after\n")
    console = guest.machine.console
    return pending, cause, console.total_bytes - 2 * BUFFER_SIZE, console.read(most_recent=16).data


def a_file_half_read(guest: Guest) -> None:
    firmware = guest.firmware
    firmware.select(next(file.selector for file in firmware.files() if file.name == "etc/e820"))
    firmware.read(5)


def the_file_is_read_on(guest: Guest) -> Any:
    rest = guest.firmware.read(7)
    return rest == guest.firmware.read_file("etc/e820")[5:12], [file.name for file in guest.firmware.files()] != []


def a_clock_register_selected(guest: Guest) -> None:
    guest.machine.bus.port_write(PORT_INDEX, 1, 0x40)
    guest.machine.bus.port_write(PORT_DATA, 1, 0xA7)


def the_clock_goes_on(guest: Guest) -> Any:
    bus = guest.machine.bus
    cmos = bus.port_read(PORT_DATA, 1)
    shown = []
    for register in (DAY, HOUR, MINUTE, SECOND):
        bus.port_write(PORT_INDEX, 1, register)
        shown.append(bus.port_read(PORT_DATA, 1))
    now = datetime.fromtimestamp(guest.house.clock.wall_ns() // 10**9, UTC)
    return cmos, shown == [int(str(value), 16) for value in (now.day, now.hour, now.minute, now.second)]


def registers_in_use(guest: Guest) -> None:
    for number, vcpu in enumerate(guest.machine.vcpus):
        vcpu.registers["r8"] = 2**64 - 1 - number


def registers_are_as_they_were(guest: Guest) -> Any:
    return [vcpu.registers["r8"] for vcpu in guest.machine.vcpus]


Half = Callable[[Guest], Any]

SCENARIOS: Final[list[tuple[Half, Half, Any]]] = [
    (
        disk_requests_in_flight,
        disk_requests_come_back,
        ([list(range(REQUESTS_AT_ONCE)), list(range(REQUESTS_AT_ONCE, 14))], [(99, True)], ()),
    ),
    (nvme_commands_in_flight, nvme_commands_come_back, ([True, 1, True], [Status.SUCCESS] * 7, [True] * 6)),
    (nic_frames_in_flight, nic_frames_come_back, ([7], 12, list(range(100, 113)), 1, [8])),
    (disk_rings_before_the_wrap, disk_rings_past_the_wrap, (list(range(10)), b"\x07\0")),
    (nic_rings_before_the_wrap, nic_rings_past_the_wrap, (1, 1, b"\x07\0")),
    (an_interrupt_nobody_has_taken, it_is_taken_once, (True, True, None)),
    (a_masked_interrupt, it_comes_with_the_unmasking, (([], []), [1], [])),
    (a_pin_that_is_up, it_is_down_when_the_cause_is_read, ([PIN_VECTOR], [1], [])),
    (filters_are_set, filters_let_through_what_they_did, [2, 3]),
    (a_console_with_history, the_console_goes_on, ([PIN_VECTOR], 0x02, 13, b"xxxbefore\nafter\n")),
    (a_file_half_read, the_file_is_read_on, (True, True)),
    (a_clock_register_selected, the_clock_goes_on, (0xA7, True)),
    (registers_in_use, registers_are_as_they_were, [2**64 - 1, 2**64 - 2]),
]


@pytest.mark.parametrize("moves", [0, 1, 2], ids=["never moved", "moved", "moved twice"])
@pytest.mark.parametrize(
    ("first", "second", "expected"), SCENARIOS, ids=[scenario[0].__name__ for scenario in SCENARIOS]
)
def test_the_guest_goes_on(tmp_path: Path, first: Half, second: Half, expected: Any, moves: int) -> None:
    house = House(tmp_path, COMPONENTS)
    machine = house.machine()
    machine.start()
    first(Guest(machine, house))
    for _ in range(moves):
        machine = house.moved(machine, away_ms=2500)
    house.clock.advance(2500 * (2 - moves) * MS)
    assert second(Guest(machine, house)) == expected
    house.close()


def test_every_device_with_state_has_its_scenarios(tmp_path: Path) -> None:
    house = House(tmp_path, COMPONENTS)
    machine = house.machine()
    with_state = {state.key for state in machine.preflight() if state.payloads}
    assert with_state == {
        *("data", "fast", "nic", "com1", "qemu-fwcfg", "pci-piix3-lpc", "vcpu-0", "vcpu-1"),
        "injector",  # its payload is empty: it counts for its process
    }
    house.close()
