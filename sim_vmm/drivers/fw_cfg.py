"""The guest's driver for QEMU's firmware configuration: byte by byte through ports, or by DMA."""

import struct
from typing import Final

import attrs

from sim_vmm.devices.fw_cfg import (
    DMA_ACCESS,
    DMA_ERROR,
    DMA_READ,
    DMA_SELECT,
    PORT_DATA,
    PORT_DMA_HIGH,
    PORT_DMA_LOW,
    PORT_SELECTOR,
    SELECTOR_FILE_DIR,
)
from sim_vmm.drivers import DriverFailed, GuestView
from sim_vmm.payloads.directory import FILE_NAME_BYTES

_COUNT: Final = struct.Struct(">I")
_FILE: Final = struct.Struct(f">IHH{FILE_NAME_BYTES}s")


@attrs.frozen
class File:
    """A file of the directory; `size` in bytes."""

    name: str
    size: int
    selector: int


@attrs.frozen
class FwCfgDriver:
    """The driver of the one such device that a machine has."""

    machine: GuestView

    def select(self, selector: int) -> None:
        self.machine.bus.port_write(PORT_SELECTOR, 2, selector)

    def read(self, length: int) -> bytes:
        """The next bytes of what is selected."""
        return bytes(self.machine.bus.port_read(PORT_DATA, 1) for _ in range(length))

    def files(self) -> list[File]:
        """The directory."""
        self.select(SELECTOR_FILE_DIR)
        (count,) = _COUNT.unpack(self.read(_COUNT.size))
        found = []
        for _ in range(count):
            size, selector, _, name = _FILE.unpack(self.read(_FILE.size))
            found.append(File(name.rstrip(b"\0").decode(), size, selector))
        return found

    def read_file(self, name: str) -> bytes:
        """Raises DriverFailed if there is no such file."""
        file = next((file for file in self.files() if file.name == name), None)
        if file is None:
            raise DriverFailed(f"fw_cfg has no file {name!r}")
        self.select(file.selector)
        return self.read(file.size)

    def read_dma(self, selector: int, gpa: int, length: int, *, scratch: int) -> None:
        """Copy the first `length` bytes of an entry to guest address `gpa`; `scratch` is 16 bytes for the access.

        Raises:
            DriverFailed: the device could not.
        """
        memory, bus = self.machine.memory, self.machine.bus
        memory.write(scratch, DMA_ACCESS.pack(selector << 16 | DMA_SELECT | DMA_READ, length, gpa))
        for port, half in ((PORT_DMA_HIGH, scratch >> 32), (PORT_DMA_LOW, scratch & 0xFFFF_FFFF)):
            bus.port_write(port, 4, int.from_bytes(half.to_bytes(4, "big"), "little"))
        if int.from_bytes(memory.read(scratch, 4), "big") & DMA_ERROR:
            raise DriverFailed(f"fw_cfg could not copy {length} bytes to {gpa:#x}")
