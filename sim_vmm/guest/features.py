"""A guest that uses everything that its machine shows it, to find out what that ties the machine to.

`features` drives every device through its newest interface and sets what can be set: virtio's modern interface, several
pairs of NIC queues and then fewer, receive filters, doorbell buffers.  `features:legacy` is a guest from before all
that: it drives virtio through the legacy interface and uses nothing that came later.  Both leave the directory of the
firmware configuration half read, and do some I/O at every step.
"""

from contextlib import suppress
from typing import ClassVar, Final, Self

import attrs

from sim_vmm.devices.fw_cfg import SELECTOR_FILE_DIR
from sim_vmm.devices.virtio_nic.layout import FEATURE_CTRL_RX
from sim_vmm.drivers import DRIVER_AREA_BYTES, DriverFailed, driver_area, driver_vector
from sim_vmm.drivers.fw_cfg import FwCfgDriver
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.drivers.uart import UartDriver
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.drivers.virtio_net import VirtioNetDriver
from sim_vmm.guest.hardware import CLASS_NIC, CLASS_NVME, CLASS_VIRTIO_DISK, DISKS, Slot, slots
from sim_vmm.guest.program import GuestDoesNotFit, beat, read_heartbeat, require_running
from sim_vmm.machine import MIB, Machine
from sim_vmm.memory import PAGE_SIZE, GuestMemory

MAGIC: Final = int.from_bytes(b"features", "little")
MAGIC_LEGACY: Final = int.from_bytes(b"featlega", "little")

#: An IPv6 multicast address and a second unicast one.
MULTICAST: Final = b"\x33\x33\0\0\0\1"
UNICAST: Final = b"\xa8\x40\x25\xff\0\1"
#: To everybody, of an EtherType for experiments (IEEE 802).
BROADCAST: Final = b"\xff" * 6
ETHERTYPE: Final = b"\x88\xb5"
FRAME_BYTES_MIN: Final = 60


@attrs.frozen(kw_only=True)
class FeaturesGuest:
    """`is_legacy` is `features:legacy`."""

    name: ClassVar[str] = "features"
    is_legacy: bool = False

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        heartbeat = read_heartbeat(memory)
        if heartbeat is None or heartbeat.magic not in (MAGIC, MAGIC_LEGACY):
            return None
        return cls(is_legacy=heartbeat.magic == MAGIC_LEGACY)

    @classmethod
    def parse(cls, arguments: str) -> Self:
        """`legacy` of `features:legacy`, or nothing.

        Raises:
            ValueError: it is neither.
        """
        if arguments not in ("", "legacy"):
            raise ValueError(f"features:{arguments}: expected features or features:legacy")
        return cls(is_legacy=arguments == "legacy")

    def boot(self, machine: Machine) -> None:
        end = driver_area(0) + len(machine.pci_paths) * DRIVER_AREA_BYTES
        if end > len(machine.memory.view):
            raise GuestDoesNotFit(f"the drivers of {len(machine.pci_paths)} devices need {end / MIB:g} MiB of RAM")
        UartDriver(machine.bus).probe()
        firmware = FwCfgDriver(machine)
        firmware.select(SELECTOR_FILE_DIR)
        firmware.read(4)
        for slot in slots(machine):
            if slot.class_code == CLASS_VIRTIO_DISK:
                driver = VirtioBlkDriver(machine, driver_area(slot.index))
                driver.probe(slot.path, vector=driver_vector(slot.index), legacy=self.is_legacy)
            elif slot.class_code == CLASS_NVME:
                self._set_up_nvme(machine, slot)
            elif slot.class_code == CLASS_NIC:
                self._set_up_nic(machine, slot)
        beat(machine, self._magic, 0)

    def step(self, machine: Machine) -> None:
        """A block to every disk, a frame to every NIC, a dot to the console."""
        require_running(machine)
        heartbeat = read_heartbeat(machine.memory)
        assert heartbeat is not None, "it was booted"
        for slot in slots(machine):
            if slot.class_code in (CLASS_VIRTIO_DISK, CLASS_NVME):
                disk = DISKS[slot.class_code](machine, slot.index)
                disk.poll()
                if disk.is_writable:
                    block = heartbeat.steps % disk.blocks
                    disk.submit_write(block, heartbeat.steps.to_bytes(8, "little").ljust(disk.block_size, b"\0"), 1)
            elif slot.class_code == CLASS_NIC:
                nic = VirtioNetDriver(machine, driver_area(slot.index))
                nic.receive()
                nic.send((BROADCAST + nic.mac + ETHERTYPE).ljust(FRAME_BYTES_MIN, b"\0"))
        UartDriver(machine.bus).write(b".")
        beat(machine, self._magic, heartbeat.steps + 1)

    @property
    def _magic(self) -> int:
        return MAGIC_LEGACY if self.is_legacy else MAGIC

    def _set_up_nvme(self, machine: Machine, slot: Slot) -> None:
        driver = NvmeDriver(machine, driver_area(slot.index))
        driver.probe(slot.path, vector=driver_vector(slot.index), doorbell_buffers=not self.is_legacy)
        machine.memory.write(driver.data.start, bytes(PAGE_SIZE))  # as a `Disk` wants it

    def _set_up_nic(self, machine: Machine, slot: Slot) -> None:
        """Several pairs and then one again, as a driver that was told to: the NIC remembers that there were more."""
        driver, vector = VirtioNetDriver(machine, driver_area(slot.index)), driver_vector(slot.index)
        if self.is_legacy:
            driver.probe(slot.path, vector=vector, legacy=True, features=0)
            return
        with suppress(DriverFailed):  # if it has not so many
            driver.probe(slot.path, vector=vector, pairs=2)
        driver.probe(slot.path, vector=vector)
        if driver.pci.features & FEATURE_CTRL_RX:
            driver.set_filters(unicast=(UNICAST,), multicast=(MULTICAST,))
