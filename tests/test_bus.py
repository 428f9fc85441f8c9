"""The bus: whoever has the address answers, and nobody is all ones."""

from collections.abc import Iterator

import attrs
import pytest

from sim_vmm.bus import Bus, config_address
from sim_vmm.devices.base import Device
from sim_vmm.devices.pci import EMPTY_BAR, PciDevice, PciFunction
from sim_vmm.devices.pci_config import BAR_0, COMMAND, INTERRUPT_LINE, STATUS
from sim_vmm.drivers import DriverFailed
from sim_vmm.drivers.pci import PciSlot
from sim_vmm.payloads import Bar, BarKind
from sim_vmm.spec import PciPath
from tests.bench import Bench

PATHS = (PciPath(0, 4, 0), PciPath(0, 4, 3))
PORTS, MSIX, WIDE = 0, 1, 2
BARS = (
    Bar(BarKind.PIO, 0x100, 0),
    Bar(BarKind.MMIO, 0x1000, 0),
    Bar(BarKind.MMIO64, 0x4000, 0),
    EMPTY_BAR,
    EMPTY_BAR,
    EMPTY_BAR,
)


class Echo(PciDevice):
    """Remembers what was done to it."""

    kind = "echo"

    def __init__(self, key: str, path: PciPath, *, ports: int = 0x100) -> None:
        super().__init__(key)
        bars = (attrs.evolve(BARS[PORTS], size=ports), *BARS[1:])
        self.pci = PciFunction(key, bars, vectors=3, path=path, msix_bar=MSIX)
        self.seen: list[tuple[int, int, int, int]] = []

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        return bar << 16 | offset | 1 << 60

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.seen.append((bar, offset, size, value))


class Beeper(Device):
    kind = "beeper"
    ports = (range(0x61, 0x62),)
    sound = 0

    def port_read(self, port: int, size: int) -> int:
        return self.sound

    def port_write(self, port: int, size: int, value: int) -> None:
        self.sound = value


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench(Echo("a", PATHS[0]), Echo("b", PATHS[1]), Beeper("beeper")) as made:
        yield made


@pytest.fixture
def bus(bench: Bench) -> Bus:
    return bench.bus


def echo(bench: Bench, number: int = 0) -> Echo:
    device = bench.devices[number]
    assert isinstance(device, Echo)
    return device


def test_where_nobody_answers_reads_are_all_ones_and_writes_are_lost(bus: Bus) -> None:
    assert bus.read(0xD000_0000, 4) == 0xFFFF_FFFF
    assert bus.port_read(0x1234, 2) == 0xFFFF
    assert bus.read(config_address(PciPath(0, 5, 0)), 4) == 0xFFFF_FFFF
    bus.write(0xD000_0000, 8, 1)
    bus.port_write(0x1234, 1, 1)
    bus.write(config_address(PciPath(0, 5, 0)) + COMMAND, 2, 7)


def test_fixed_ports_answer_always(bus: Bus) -> None:
    bus.port_write(0x61, 1, 0x1FF)
    assert bus.port_read(0x61, 1) == 0xFF


def test_a_bar_answers_where_the_guest_has_placed_it(bench: Bench, bus: Bus) -> None:
    for path in PATHS:
        PciSlot(bus, path).set_up(None, 0)
    addresses = [PciSlot(bus, path).bar(WIDE) for path in PATHS]
    assert addresses[0] != addresses[1]
    bus.write(addresses[1] + 0x3FF8, 8, 2**63)
    assert echo(bench, 1).seen == [(WIDE, 0x3FF8, 8, 2**63)]
    assert echo(bench, 0).seen == []
    assert bus.read(addresses[0] + 4, 4) == WIDE << 16 | 4
    ports = [PciSlot(bus, path).bar(PORTS) for path in PATHS]
    assert ports[0] // 0x100 != ports[1] // 0x100
    bus.port_write(ports[1] + 3, 1, 9)
    assert echo(bench, 1).seen[1:] == [(PORTS, 3, 1, 9)]


def test_a_function_answers_only_while_it_decodes(bench: Bench, bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[0])
    slot.set_up(None, 0)
    address, ports = slot.bar(WIDE), slot.bar(PORTS)
    slot.write(COMMAND, 2, 0x1)
    assert bus.read(address, 1) == 0xFF
    assert bus.port_read(ports, 1) == 0
    slot.write(COMMAND, 2, 0x2)
    assert bus.read(address, 1) == 0
    assert bus.port_read(ports, 1) == 0xFF


def test_a_moved_bar_leaves_its_old_place(bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[0])
    slot.set_up(None, 0)
    old = slot.bar(WIDE)
    slot.write(BAR_0 + 4 * WIDE, 4, 0xC080_0123)
    slot.write(BAR_0 + 4 * WIDE + 4, 4, 0x7)
    assert slot.bar(WIDE) == 0x7_C080_0000
    assert bus.read(0x7_C080_0008, 2) == 8
    assert bus.read(old, 2) == 0xFFFF


def test_of_two_bars_in_one_place_the_first_device_answers(bench: Bench, bus: Bus) -> None:
    for path in PATHS:
        PciSlot(bus, path).set_up(None, 0)
        PciSlot(bus, path).write(BAR_0 + 4 * WIDE, 4, 0xC080_0000)
    bus.write(0xC080_0000, 1, 1)
    assert (len(echo(bench, 0).seen), len(echo(bench, 1).seen)) == (1, 0)


def test_all_ones_in_a_bar_show_its_size(bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[0])
    sizes = []
    for bar in (PORTS, MSIX, WIDE, WIDE + 1, 5):
        slot.write(BAR_0 + 4 * bar, 4, 0xFFFF_FFFF)
        sizes.append(slot.read(BAR_0 + 4 * bar, 4))
    assert sizes == [0xFF01, 0xFFFF_F000, 0xFFFF_C004, 0xFFFF_FFFF, 0]


def test_configuration_space_keeps_what_is_writable(bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[1])
    identity = slot.read(0, 8) & 0xFFFF_FFFF
    slot.write(0, 4, 0)
    assert slot.read(0, 4) == identity == 0xFFFF_01DE
    slot.write(COMMAND, 2, 0xFFFF)
    assert slot.read(COMMAND, 2) == 0x0407
    slot.write(INTERRUPT_LINE, 1, 11)
    assert slot.read(INTERRUPT_LINE, 2) == 0x010B
    assert slot.read(STATUS, 2) == 0x10
    assert slot.read(0x100, 4) == 0


def test_messages_come_with_the_vector_of_their_table_entry(bench: Bench, bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[0])
    slot.set_up(0x50, 2)
    echo(bench).pci.raise_vector(1)
    assert bench.vcpus[0].pending() == [0x51]
    slot.mask(0, masked=True)
    echo(bench).pci.raise_vector(0)
    echo(bench).pci.raise_vector(2)  # never set up: masked since reset
    assert bench.vcpus[0].pending() == [0x51]
    table = slot.bar(MSIX)
    assert bus.read(table + 0x800, 8) == 0b101
    assert bus.read(table + 12, 4) == 1
    slot.mask(0, masked=False)
    assert bench.vcpus[0].pending() == [0x51, 0x50]
    assert bus.read(table + 0x800, 8) == 0b100


def test_a_masked_function_holds_all_its_messages_back(bench: Bench, bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[0])
    slot.set_up(0x50, 2)
    slot.write(0x42, 2, 0xC000)
    echo(bench).pci.raise_vector(0)
    echo(bench).pci.raise_vector(1)
    assert bench.vcpus[0].pending() == []
    slot.write(0x42, 2, 0x8000)
    assert bench.vcpus[0].pending() == [0x51, 0x50]


def test_the_pin_is_silent_while_messages_are_on_or_it_is_disabled(bench: Bench, bus: Bus) -> None:
    slot = PciSlot(bus, PATHS[0])
    slot.set_up(None, 0)
    echo(bench).pci.set_pin(True)
    levels = [bench.interrupts.lines["a"]]
    for offset, value in ((COMMAND, 0x403), (COMMAND, 0x3), (0x42, 0x8000)):
        slot.write(offset, 2, value)
        levels.append(bench.interrupts.lines["a"])
        assert slot.read(STATUS, 2) & 8
    assert levels == [True, False, True, False]


def test_ports_run_out() -> None:
    devices = [Echo(str(number), PciPath(0, number, 0), ports=0x4000) for number in range(4)]
    with Bench(*devices) as bench:
        slots = [PciSlot(bench.bus, device.pci.path) for device in devices]
        for slot in slots[:3]:
            slot.place_bars()
        assert [slot.bar(PORTS) for slot in slots] == [0x4000, 0x8000, 0xC000, 0]
        with pytest.raises(DriverFailed, match="all ports are taken"):
            slots[3].place_bars()
