"""A bench for devices: RAM, interrupts, a bus, and whatever devices a test puts on it.  To a driver it is a machine."""

from collections.abc import Sequence
from typing import Self

from sim_vmm.bus import Bus
from sim_vmm.devices.base import Device
from sim_vmm.devices.vcpu import InterruptController, Vcpu
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import Payload
from sim_vmm.platform import Platform

MIB = 1 << 20


class Bench:
    """Close it, or use it as a context manager."""

    def __init__(self, *devices: Device, memory_bytes: int = 4 * MIB) -> None:
        self.memory = GuestMemory.create(memory_bytes)
        self.interrupts = InterruptController(cpus=1)
        self.devices: Sequence[Device] = (*devices, *self.interrupts.vcpus)
        platform = Platform(self.memory, self.interrupts)
        for device in self.devices:
            device.attach(platform)
        self.bus = Bus(self.devices)

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        return self.interrupts.vcpus

    def poll(self) -> None:
        for device in self.devices:
            device.poll()

    def export(self) -> list[tuple[Payload, ...]]:
        return [device.export([schemas[0] for schemas in device.exports()]) for device in self.devices]

    def move_to(self, other: "Bench") -> None:
        """What a migration does: RAM, then the state of every device, into a bench with devices of the same kinds."""
        other.memory.view[:] = self.memory.view
        for device, payloads in zip(other.devices, self.export(), strict=True):
            device.import_(payloads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()
