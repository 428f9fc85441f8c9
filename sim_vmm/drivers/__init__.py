"""The guest's drivers: the other side of the devices, as a guest kernel has it.

A driver reaches its device through the bus and guest RAM only, and keeps no state of its own: what it must remember
lies in guest RAM at an address that it is given.  So a driver object can be made anew at any time, in any process that
has the machine, and goes on.

    RAM      from `DRIVER_AREAS` on, `DRIVER_AREA_BYTES` for each PCI device, in key order (`Machine.pci_paths`)
    vectors  from `FIRST_DRIVER_VECTOR` on, `VECTORS_PER_DRIVER` for each, in the same order
"""

from typing import Final, Protocol

from sim_vmm.bus import Bus
from sim_vmm.devices.vcpu import Vcpu
from sim_vmm.memory import GuestMemory

DRIVER_AREAS: Final = 0x10_0000
DRIVER_AREA_BYTES: Final = 0x4_0000
FIRST_DRIVER_VECTOR: Final = 0x30
VECTORS_PER_DRIVER: Final = 2
#: How many devices have vectors of their own.
DRIVERS_MAX: Final = (0x100 - FIRST_DRIVER_VECTOR) // VECTORS_PER_DRIVER


class GuestView(Protocol):
    """What a guest has: RAM, a bus, processors.  A `sim_vmm.machine.Machine` is one."""

    @property
    def memory(self) -> GuestMemory: ...

    @property
    def bus(self) -> Bus: ...

    @property
    def vcpus(self) -> tuple[Vcpu, ...]: ...


class DriverFailed(Exception):
    """A device that a driver cannot use: it is not there, or does not do what its interface says."""


def driver_area(index: int) -> int:
    """The guest address of the memory of the driver of PCI device `index`, counted in key order."""
    return DRIVER_AREAS + index * DRIVER_AREA_BYTES


def driver_vector(index: int) -> int:
    """The first interrupt vector of that driver; ValueError if they have run out."""
    if not 0 <= index < DRIVERS_MAX:
        raise ValueError(f"device {index}: interrupt vectors are there for {DRIVERS_MAX} devices")
    return FIRST_DRIVER_VECTOR + index * VECTORS_PER_DRIVER
