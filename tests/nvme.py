"""A guest's view of one NVMe controller, for tests: RAM, a bus, interrupts, and a disk whose power can be cut."""

from typing import Any, Self

import attrs

from sim_vmm.bus import Bus
from sim_vmm.devices.base import Device
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.nvme.layout import DOORBELLS, Completion
from sim_vmm.devices.pci import mmio_base
from sim_vmm.devices.vcpu import InterruptController, Vcpu
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import NvmeCtrlV2, Payload
from sim_vmm.platform import Platform
from sim_vmm.spec import PciPath

PATH = PciPath(0, 16, 0)
SERIAL = b"a serial number 1234"
BASE = 0x1_0000
RAM_BYTES = 1 << 19
REGISTERS = mmio_base(PATH)
BLOCK = 512
BLOCKS = 512


class Disk:
    """`data` is what the backend has, `medium` what would be left of it after a power cut."""

    block_size = BLOCK

    def __init__(self, data: bytes = bytes(BLOCK * BLOCKS), *, readonly: bool = False) -> None:
        self.readonly = readonly
        self.data = bytearray(data)
        self.medium = bytes(data)
        self.broken = False

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        self._check()
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._check()
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._check()
        self.medium = bytes(self.data)

    def _check(self) -> None:
        if self.broken:
            raise OSError("the disk is broken")


class CountingBus(Bus):
    """Counts the doorbells that are rung."""

    rung = 0

    def write(self, address: int, size: int, value: int) -> None:
        self.rung += DOORBELLS <= address - REGISTERS < 2 * DOORBELLS
        super().write(address, size, value)


@attrs.define
class Rig:
    """A machine with one controller and nothing else."""

    memory: GuestMemory
    disk: Disk
    nvme: Nvme
    interrupts: InterruptController
    bus: CountingBus

    @classmethod
    def make(cls, *, disk: Disk | None = None, ram_bytes: int = RAM_BYTES, **options: Any) -> Self:
        memory = GuestMemory.create(ram_bytes)
        disk = Disk() if disk is None else disk
        nvme = Nvme("nvme", PATH, SERIAL, backend=disk, **({"has_write_cache": True} | options))
        interrupts = InterruptController(1)
        for device in (nvme, *interrupts.vcpus):
            device.attach(Platform(memory, interrupts))
        return cls(memory, disk, nvme, interrupts, CountingBus([nvme]))

    @property
    def driver(self) -> NvmeDriver:
        """A new object each time, as a fresh process would make it."""
        return NvmeDriver(self, BASE)

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        return self.interrupts.vcpus

    @property
    def state(self) -> NvmeCtrlV2:
        payload = export(self.nvme)[0]
        assert isinstance(payload, NvmeCtrlV2)
        return payload

    @property
    def pin(self) -> bool:
        return self.interrupts.lines.get("nvme", False)

    def register(self, offset: int, size: int = 4) -> int:
        return self.bus.read(REGISTERS + offset, size)

    def set_register(self, offset: int, value: int, size: int = 4) -> None:
        self.bus.write(REGISTERS + offset, size, value)

    def drain(self) -> list[Completion]:
        """Let the controller and the driver work until no command is outstanding."""
        found = self.driver.completions()
        for _ in range(1000):
            if not self.driver.outstanding:
                return found
            self.nvme.poll()
            found += self.driver.completions()
        raise AssertionError(f"{self.driver.outstanding} commands are never completed")

    def __del__(self) -> None:
        self.memory.close()


def probed(*, probe: dict[str, Any] | None = None, **options: Any) -> Rig:
    """A rig whose guest has set its controller up."""
    rig = Rig.make(**options)
    rig.driver.probe(PATH, **(probe or {}))
    return rig


def moved(rig: Rig, **options: Any) -> Rig:
    """A new machine that has taken over the RAM, the state and the disk of `rig`, which is paused for good."""
    rig.nvme.quiesce()
    disk = Disk(bytes(rig.disk.data), readonly=rig.disk.readonly)
    same = {"has_write_cache": rig.nvme.has_write_cache}
    new = Rig.make(disk=disk, ram_bytes=len(rig.memory.view), **(same | options))
    new.nvme.commands_per_turn = rig.nvme.commands_per_turn
    new.memory.view[:] = rig.memory.view
    for old_vcpu, new_vcpu in zip(rig.interrupts.vcpus, new.interrupts.vcpus, strict=True):
        new_vcpu.import_(export(old_vcpu))
    new.nvme.import_(export(rig.nvme))
    return new


def export(device: Device) -> tuple[Payload, ...]:
    return device.export([schemas[0] for schemas in device.exports()])
