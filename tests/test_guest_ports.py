"""The guest's drivers of devices at fixed ports: the console, and the firmware configuration."""

import pytest

from sim_vmm.devices.fw_cfg import FwCfg
from sim_vmm.devices.uart import ENABLE_TRANSMITTER_EMPTY, Uart
from sim_vmm.drivers import DriverFailed
from sim_vmm.drivers.fw_cfg import File, FwCfgDriver
from sim_vmm.drivers.uart import UartDriver
from tests.bench import Bench
from tests.devices import ENTRIES


def test_what_is_written_to_the_serial_port_comes_out() -> None:
    printed: list[bytes] = []
    with Bench(Uart("com1", printed.append)) as bench:
        driver = UartDriver(bench.bus)
        driver.probe()
        driver.write(b"hello\n")
        assert b"".join(printed) == b"hello\n"


def test_a_byte_comes_in_and_interrupts() -> None:
    uart = Uart("com2", lambda _data: None, range(0x2F8, 0x300))
    with Bench(uart) as bench:
        driver = UartDriver(bench.bus, 0x2F8)
        driver.probe()
        assert driver.receive() is None
        uart.receive(ord("q"))
        assert bench.interrupts.lines == {"com2": True}
        assert driver.receive() == ord("q")
        assert bench.interrupts.lines == {"com2": False}


def test_the_line_of_a_moved_serial_port_has_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> bool:
        with Bench(Uart("com1", lambda _data: None)) as here, Bench(Uart("com1", lambda _data: None)) as there:
            here.bus.port_write(0x3F9, 1, ENABLE_TRANSMITTER_EMPTY)
            here.move_to(there)
            return bool(there.vcpus[0].pending())

    assert moved()
    derive = Uart._derive
    monkeypatch.setattr(Uart, "_derive", lambda self: derive(self) if self._intr_enable == 0 else None)
    assert not moved()


def test_the_divisor_is_behind_the_latch() -> None:
    with Bench(Uart("com1", lambda _data: None)) as bench:
        bus = bench.bus
        bus.port_write(0x3FB, 1, 0x83)
        bus.port_write(0x3F8, 1, 12)
        bus.port_write(0x3F9, 1, 1)
        assert [bus.port_read(0x3F8, 1), bus.port_read(0x3F9, 1)] == [12, 1]
        bus.port_write(0x3FB, 1, 0x03)
        assert bus.port_read(0x3F9, 1) == 0
        for register, value in ((4, 0x0B), (7, 0x5A), (3, 0x1B)):
            bus.port_write(0x3F8 + register, 1, value)
            assert bus.port_read(0x3F8 + register, 1) == value
        assert bus.port_read(0x3FE, 1) == 0xB0
        assert bus.port_read(0x3FA, 1) == 1


def test_an_overrun_is_told_once() -> None:
    uart = Uart("com1", lambda _data: None)
    with Bench(uart) as bench:
        uart.receive(1)
        uart.receive(2)
        assert [bench.bus.port_read(0x3FD, 1) for _ in range(2)] == [0x63, 0x61]


def test_the_files_of_fw_cfg_are_listed_and_read() -> None:
    with Bench(FwCfg(ENTRIES)) as bench:
        driver = FwCfgDriver(bench)
        assert driver.files() == [File("etc/e820", 10, 0x20), File("etc/ramfb", 28, 0x21)]
        assert driver.read_file("etc/e820") == b"memory map"
        with pytest.raises(DriverFailed, match="no file 'etc/none'"):
            driver.read_file("etc/none")


def test_fw_cfg_copies_to_ram_by_itself() -> None:
    with Bench(FwCfg(ENTRIES)) as bench:
        driver = FwCfgDriver(bench)
        driver.read_dma(0x20, 0x5000, 12, scratch=0x4000)
        assert bench.memory.read(0x5000, 12) == b"memory map\0\0"
        with pytest.raises(DriverFailed, match="could not copy 8 bytes to 0x3fffffc"):
            driver.read_dma(0x20, 0x3FF_FFFC, 8, scratch=0x4000)


def test_a_half_read_file_is_read_on_after_a_move() -> None:
    with Bench(FwCfg(ENTRIES)) as here, Bench(FwCfg(ENTRIES)) as there:
        driver = FwCfgDriver(here)
        driver.select(0x20)
        assert driver.read(3) == b"mem"
        here.move_to(there)
        assert FwCfgDriver(there).read(7) == b"ory map"
