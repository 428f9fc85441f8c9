"""How a guest finds a PCI function's registers and gives it addresses: what firmware does, the head of every driver.

Nothing is remembered here: all of it is in the function's own registers.
"""

from typing import Final

import attrs

from sim_vmm.bus import Bus, config_address
from sim_vmm.devices.pci import (
    BAR_COUNT,
    COMMAND_BUS_MASTER,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MEMORY,
    MSI_ADDRESS,
    MSIX_ENABLE,
    MSIX_ENTRY,
    MSIX_ENTRY_MASKED,
    mmio_base,
)
from sim_vmm.devices.pci_config import (
    BAR_0,
    BAR_IS_64_BIT,
    BAR_IS_PORTS,
    CAPABILITIES,
    CAPABILITY_MSIX,
    CAPABILITY_VENDOR,
    COMMAND,
    MSIX_CONTROL_OFFSET,
)
from sim_vmm.drivers import DriverFailed
from sim_vmm.integers import U32_MAX
from sim_vmm.spec import PciPath

#: Where port BARs are placed: the first free place of this range that is wide enough.
PORTS: Final = range(0x1000, 0x1_0000)
#: The halves of a table entry behind the address: the data, and the mask.
ENTRY_DATA: Final = 8
ENTRY_CONTROL: Final = 12


@attrs.frozen
class PciSlot:
    """The function at `path`, as the guest sees it through its configuration space."""

    bus: Bus
    path: PciPath

    def read(self, offset: int, size: int) -> int:
        return self.bus.read(config_address(self.path) + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bus.write(config_address(self.path) + offset, size, value)

    def set_up(self, vector: int | None, entries: int) -> None:
        """Place the BARs, let the function decode, and have its first `entries` MSI-X messages be `vector` and on.

        Without a vector MSI-X stays off and the pin is used.

        Raises:
            DriverFailed: there is no room for a BAR.
        """
        self.place_bars()
        pin = COMMAND_INTX_DISABLE if vector is not None else 0
        self.write(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | pin)
        if vector is not None:
            for entry in range(entries):
                self.bus.write(self._entry(entry), 8, MSI_ADDRESS)
                self.bus.write(self._entry(entry) + ENTRY_DATA, 8, vector + entry)
        self.write(self._msix() + MSIX_CONTROL_OFFSET, 2, MSIX_ENABLE if vector is not None else 0)

    def mask(self, entry: int, *, masked: bool) -> None:
        """Mask or unmask one MSI-X message; one that came while it was masked comes on unmasking."""
        self.bus.write(self._entry(entry) + ENTRY_CONTROL, 4, MSIX_ENTRY_MASKED * masked)

    def bar(self, index: int) -> int:
        """The address in BAR `index`."""
        low = self.read(BAR_0 + 4 * index, 4)
        if low & BAR_IS_PORTS:
            return low & ~0x3
        high = self.read(BAR_0 + 4 * index + 4, 4) if low & BAR_IS_64_BIT else 0
        return low & ~0xF | high << 32

    def place_bars(self) -> None:
        """Give every BAR an address: memory by the place of the function, ports where some are free."""
        memory = mmio_base(self.path)
        index = 0
        while index < BAR_COUNT:
            register = BAR_0 + 4 * index
            value = self.read(register, 4)
            size = self._size(register)
            if value & BAR_IS_PORTS and value == BAR_IS_PORTS:
                self.write(register, 4, self._free_ports(size))
            elif size and not value & BAR_IS_PORTS:
                memory = -(-memory // size) * size
                self.write(register, 4, memory)
                memory += size
            index += 2 if value & BAR_IS_64_BIT and not value & BAR_IS_PORTS else 1

    def vendor_capabilities(self) -> dict[int, int]:
        """Offsets of the vendor-specific capabilities, by their fourth byte, which in virtio's is their type."""
        return {self.read(at + 3, 1): at for number, at in self._capabilities() if number == CAPABILITY_VENDOR}

    def _capabilities(self) -> list[tuple[int, int]]:
        """Number and offset of each capability."""
        found = []
        offset = self.read(CAPABILITIES, 1)
        while offset:
            found.append((self.read(offset, 1), offset))
            offset = self.read(offset + 1, 1)
        return found

    def _msix(self) -> int:
        offset = next((at for number, at in self._capabilities() if number == CAPABILITY_MSIX), None)
        if offset is None:
            raise DriverFailed(f"the function at {self.path} has no MSI-X")
        return offset

    def _entry(self, entry: int) -> int:
        """The address of an entry of the MSI-X table."""
        table = self.read(self._msix() + 4, 4)
        return self.bar(table & 0x7) + (table & ~0x7) + MSIX_ENTRY.size * entry

    def _size(self, register: int) -> int:
        """How much a BAR shows: the lowest address bit that can be set.  Its address is kept."""
        kept = self.read(register, 4)
        self.write(register, 4, U32_MAX)
        value = self.read(register, 4)
        self.write(register, 4, kept)
        mask = value & ~0x3 if value & BAR_IS_PORTS else value & ~0xF
        return mask & -mask

    def _free_ports(self, size: int) -> int:
        """Ports that no function has, on whatever PCI bus: there is one range of ports for all."""
        taken = set()
        for path in self.bus.functions:
            other = PciSlot(self.bus, path)
            bars = (other.read(BAR_0 + 4 * bar, 4) for bar in range(BAR_COUNT))
            taken |= {(bar & ~0x3) // size for bar in bars if bar & BAR_IS_PORTS}
        for ports in range(-(-PORTS.start // size) * size, PORTS.stop, size):
            if ports // size not in taken:
                return ports
        raise DriverFailed("all ports are taken")
