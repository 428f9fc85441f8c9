"""How the guest reaches devices: memory addresses and ports, led to whoever answers there.

Three kinds of answerers:

- configuration space of PCI functions, 4096 bytes for each from `CONFIG_SPACE` on (PCI Express §7.2.2; we show it to
  every guest, as it needs no address register that would have to travel),
- the BARs of PCI functions, where the guest has placed them and while it lets them decode,
- devices at fixed ports.

Like hardware, a bus raises no errors: where nobody answers, reads give all ones and writes are lost.  An access to two
BARs that the guest has placed over each other goes to the device that comes first in key order.

Derived, and built anew whenever a function says that its decoding has changed (on import too): the routes.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

import attrs

from sim_vmm.devices.base import Device
from sim_vmm.devices.pci import PciDevice
from sim_vmm.devices.pci_config import config_read, config_write
from sim_vmm.payloads import BarKind
from sim_vmm.spec import PciPath

CONFIG_SPACE: Final = 0xE000_0000
CONFIG_SPACE_BYTES: Final = 256 << 20
FUNCTION_BYTES: Final = 4096


def config_address(path: PciPath) -> int:
    """The memory address of the configuration space of the function at `path`."""
    return CONFIG_SPACE + (path.bus << 20 | path.device << 15 | path.function << 12)


@attrs.frozen
class Route:
    """The addresses behind BAR `bar` of `device`; `bar` is None for fixed ports."""

    addresses: range
    device: Device
    bar: int | None


@attrs.define
class Routes:
    """Routes by address; later ones do not displace earlier ones."""

    _starts: list[int] = attrs.field(factory=list)
    _routes: list[Route] = attrs.field(factory=list)

    def add(self, route: Route) -> None:
        place = bisect_right(self._starts, route.addresses.start)
        below = self._routes[place - 1].addresses.stop if place else 0
        above = self._starts[place] if place < len(self._starts) else route.addresses.stop
        if below <= route.addresses.start and route.addresses.stop <= above:
            self._starts.insert(place, route.addresses.start)
            self._routes.insert(place, route)

    def at(self, address: int) -> Route | None:
        place = bisect_right(self._starts, address)
        if place and address in self._routes[place - 1].addresses:
            return self._routes[place - 1]
        return None


class Bus:
    """The bus of the machine that has `devices`, in key order."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._devices: Final = tuple(devices)
        self._functions: Final = {device.pci.path: device for device in self._devices if isinstance(device, PciDevice)}
        self._memory = Routes()
        self._ports = Routes()
        self._stale = True
        for function in self._functions.values():
            function.pci.decoding_changed = self._changed

    @property
    def functions(self) -> tuple[PciPath, ...]:
        """Where PCI functions are: what firmware finds by looking at every place of every bus."""
        return tuple(self._functions)

    def read(self, address: int, size: int) -> int:
        """The guest reads `size` bytes (1, 2, 4 or 8) of device memory at guest-physical `address`, little-endian."""
        if CONFIG_SPACE <= address < CONFIG_SPACE + CONFIG_SPACE_BYTES:
            function = self._function_at(address)
            return _ones(size) if function is None else config_read(function.pci, address % FUNCTION_BYTES, size)
        return self._read(self._routes()[0].at(address), address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """The guest writes `size` bytes of device memory."""
        if CONFIG_SPACE <= address < CONFIG_SPACE + CONFIG_SPACE_BYTES:
            function = self._function_at(address)
            if function is not None:
                config_write(function.pci, address % FUNCTION_BYTES, size, value)
            return
        self._write(self._routes()[0].at(address), address, size, value)

    def port_read(self, port: int, size: int) -> int:
        """The guest reads `size` bytes (1, 2 or 4) from `port`."""
        return self._read(self._routes()[1].at(port), port, size)

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest writes `size` bytes to `port`."""
        self._write(self._routes()[1].at(port), port, size, value)

    def _read(self, route: Route | None, address: int, size: int) -> int:
        match route:
            case None:
                return _ones(size)
            case Route(_, device, None):
                value = device.port_read(address, size)
            case Route(addresses, PciDevice() as device, bar) if bar == device.pci.msix_bar:
                value = device.pci.msix_read(address - addresses.start, size)
            case Route(addresses, device, bar):
                assert bar is not None
                value = device.bar_read(bar, address - addresses.start, size)
        return value & _ones(size)

    def _write(self, route: Route | None, address: int, size: int, value: int) -> None:
        value &= _ones(size)
        match route:
            case None:
                return
            case Route(_, device, None):
                device.port_write(address, size, value)
            case Route(addresses, PciDevice() as device, bar) if bar == device.pci.msix_bar:
                device.pci.msix_write(address - addresses.start, size, value)
            case Route(addresses, device, bar):
                assert bar is not None
                device.bar_write(bar, address - addresses.start, size, value)

    def _function_at(self, address: int) -> PciDevice | None:
        number = (address - CONFIG_SPACE) // FUNCTION_BYTES
        return self._functions.get(PciPath(number >> 8, number >> 3 & 31, number & 7))

    def _changed(self) -> None:
        self._stale = True

    def _routes(self) -> tuple[Routes, Routes]:
        """The routes through memory and through ports."""
        if self._stale:
            self._memory, self._ports = Routes(), Routes()
            for device in self._devices:
                for ports in device.ports:
                    self._ports.add(Route(ports, device, None))
                if isinstance(device, PciDevice):
                    for bar, addresses in device.pci.answers().items():
                        is_ports = device.pci.bars[bar].kind is BarKind.PIO
                        (self._ports if is_ports else self._memory).add(Route(addresses, device, bar))
            self._stale = False
        return self._memory, self._ports


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1
