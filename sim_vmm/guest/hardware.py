"""How programs find devices and drive them: `Disk`, `Nic` and `Console` over the real drivers.

A program looks at the PCI configuration space of every slot, as a kernel would.  Of the disks that it can write to, it
takes a virtio disk before an NVMe disk, then the one with the most blocks; then the first.
"""

import struct
from typing import Final

import attrs

from sim_vmm.bus import config_address
from sim_vmm.devices.nvme.layout import Status
from sim_vmm.devices.pci_config import REVISION
from sim_vmm.devices.virtio_disk import SECTOR_BYTES, STATUS_OK
from sim_vmm.drivers import DRIVER_AREA_BYTES, DRIVERS_MAX, driver_area, driver_vector
from sim_vmm.drivers.fw_cfg import FwCfgDriver
from sim_vmm.drivers.nvme import ENTRIES_MAX, NvmeDriver
from sim_vmm.drivers.uart import UartDriver
from sim_vmm.drivers.virtio_blk import DATA_BYTES, VirtioBlkDriver
from sim_vmm.drivers.virtio_net import VirtioNetDriver
from sim_vmm.guest.layout import SystemLayout
from sim_vmm.guest.peripherals import NO_SLOT, Chosen, Completion, Disk, Nic, Peripherals
from sim_vmm.guest.program import GuestDoesNotFit
from sim_vmm.machine import MIB, Machine
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.spec import PciPath

CLASS_VIRTIO_DISK: Final = 0x010000
CLASS_NVME: Final = 0x010802
CLASS_NIC: Final = 0x020000


@attrs.frozen
class Slot:
    """PCI device `index`, in key order: where it is and what class of device it says it is (24 bits)."""

    index: int
    path: PciPath
    class_code: int


def slots(machine: Machine) -> list[Slot]:
    """The PCI devices that have a driver's memory and vectors."""
    return [_slot(machine, index, path) for index, path in enumerate(machine.pci_paths.values()) if index < DRIVERS_MAX]


def _slot(machine: Machine, index: int, path: PciPath) -> Slot:
    return Slot(index, path, machine.bus.read(config_address(path) + REVISION, 4) >> 8)


def check_room(machine: Machine, layout: SystemLayout) -> None:
    """Raises GuestDoesNotFit if drivers and the pages that look used would overlap."""
    drivers_end = driver_area(0) + len(machine.pci_paths) * DRIVER_AREA_BYTES
    if drivers_end > layout.filled.start * PAGE_SIZE:
        megabytes = machine.memory.page_count * PAGE_SIZE / MIB
        raise GuestDoesNotFit(
            f"{megabytes:g} MiB of RAM: the drivers of {len(machine.pci_paths)} devices need {drivers_end / MIB:g} MiB "
            "in the first two thirds of it"
        )


def probe_peripherals(machine: Machine, layout: SystemLayout) -> Chosen:
    """Set up the console, every disk and every NIC, look at the firmware configuration, and choose.

    Raises:
        GuestDoesNotFit: too little RAM for the drivers.
        DriverFailed, NvmeFailed: a device does not do what it should.
    """
    check_room(machine, layout)
    UartDriver(machine.bus).probe()
    FwCfgDriver(machine).files()
    found = slots(machine)
    writable = []
    for slot in found:
        if slot.class_code in DISKS:
            disk = DISKS[slot.class_code](machine, slot.index)
            disk.probe(slot.path)
            if disk.is_writable:
                writable.append((list(DISKS).index(slot.class_code), -disk.blocks, slot.index))
        elif slot.class_code == CLASS_NIC:
            NicAdapter(machine, slot.index).probe(slot.path)
    nics = [slot.index for slot in found if slot.class_code == CLASS_NIC]
    return Chosen(disk=min(writable)[2] if writable else NO_SLOT, nic=nics[0] if nics else NO_SLOT)


def open_peripherals(machine: Machine, chosen: Chosen) -> Peripherals:
    """The devices chosen at boot, be it in another process."""
    return Peripherals(
        disk=None if chosen.disk == NO_SLOT else disk_in(machine, chosen.disk),
        nic=None if chosen.nic == NO_SLOT else NicAdapter(machine, chosen.nic),
        console=UartDriver(machine.bus),
    )


def open_all(machine: Machine) -> tuple[list[Disk], list[Nic]]:
    """Every disk, read-only ones too, and every NIC."""
    found = slots(machine)
    disks = [DISKS[slot.class_code](machine, slot.index) for slot in found if slot.class_code in DISKS]
    return list(disks), [NicAdapter(machine, slot.index) for slot in found if slot.class_code == CLASS_NIC]


def disk_in(machine: Machine, index: int) -> Disk:
    """The disk in a slot, whose driver has been set up."""
    slot = _slot(machine, index, list(machine.pci_paths.values())[index])
    return DISKS[slot.class_code](machine, index)


class VirtioDiskAdapter:
    """A `Disk` over virtio-block."""

    def __init__(self, machine: Machine, index: int) -> None:
        self._driver = VirtioBlkDriver(machine, driver_area(index))
        self._vector = driver_vector(index)

    def probe(self, path: PciPath) -> None:
        self._driver.probe(path, vector=self._vector)

    @property
    def is_writable(self) -> bool:
        return not self._driver.is_read_only and self.block_size <= DATA_BYTES and self.blocks > 0

    @property
    def blocks(self) -> int:
        return self._driver.sectors * SECTOR_BYTES // self.block_size

    @property
    def block_size(self) -> int:
        return self._driver.block_size

    def submit_read(self, block: int, token: int) -> bool:
        return self._driver.submit_read(self._sector(block), self.block_size, token)

    def submit_write(self, block: int, data: bytes, token: int) -> bool:
        return self._driver.submit_write(self._sector(block), data, token)

    def submit_flush(self, token: int) -> bool:
        return self._driver.submit_flush(token)

    def poll(self) -> list[Completion]:
        return [Completion(done.token, done.status == STATUS_OK, done.data) for done in self._driver.poll()]

    def _sector(self, block: int) -> int:
        return block * self.block_size // SECTOR_BYTES


class NvmeAdapter:
    """A `Disk` over NVMe.

    The memory that the driver leaves to us begins with a page of `_REQUEST`s by command id; then each page is the data
    of one request.
    """

    _REQUEST: Final = struct.Struct("<QIHH")
    """Token, bytes that it reads, its page, whether it is in use."""
    _PAGES: Final = 32

    def __init__(self, machine: Machine, index: int) -> None:
        self._driver = NvmeDriver(machine, driver_area(index))
        self._memory = machine.memory
        self._vcpu = machine.vcpus[0]
        self._vector = driver_vector(index)

    def probe(self, path: PciPath) -> None:
        self._driver.probe(path, vector=self._vector)
        self._memory.write(self._driver.data.start, bytes(PAGE_SIZE))

    @property
    def is_writable(self) -> bool:
        """NVMe does not say that a disk is read-only, other than by refusing to write."""
        return 0 < self.block_size <= PAGE_SIZE and self.blocks > 0

    @property
    def blocks(self) -> int:
        return self._driver.blocks

    @property
    def block_size(self) -> int:
        return self._driver.block_size

    def submit_read(self, block: int, token: int) -> bool:
        page = self._free_page()
        if page is None:
            return False
        return self._submitted(self._driver.submit_read(block, 1, self._gpa(page)), token, page, self.block_size)

    def submit_write(self, block: int, data: bytes, token: int) -> bool:
        page = self._free_page()
        if page is None:
            return False
        self._memory.write(self._gpa(page), data)
        return self._submitted(self._driver.submit_write(block, 1, self._gpa(page)), token, page, 0)

    def submit_flush(self, token: int) -> bool:
        page = self._free_page()
        return page is not None and self._submitted(self._driver.submit_flush(), token, page, 0)

    def poll(self) -> list[Completion]:
        self._vcpu.take(self._vector)
        if not self._vcpu.take(self._vector + 1):
            return []
        return [self._completion(done.command_id, done.status is Status.SUCCESS) for done in self._driver.completions()]

    def _completion(self, command_id: int, is_done: bool) -> Completion:
        token, length, page, _ = self._request(command_id)
        self._memory.write(self._request_gpa(command_id), self._REQUEST.pack(token, length, page, 0))
        return Completion(token, is_done, self._memory.read(self._gpa(page), length))

    def _submitted(self, command_id: int | None, token: int, page: int, length: int) -> bool:
        if command_id is not None:
            self._memory.write(self._request_gpa(command_id), self._REQUEST.pack(token, length, page, 1))
        return command_id is not None

    def _free_page(self) -> int | None:
        requests = [self._request(command_id) for command_id in range(ENTRIES_MAX)]
        taken = {page for _, _, page, in_use in requests if in_use}
        return next((page for page in range(self._PAGES) if page not in taken), None)

    def _request(self, command_id: int) -> tuple[int, int, int, int]:
        raw = self._memory.read(self._request_gpa(command_id), self._REQUEST.size)
        token, length, page, in_use = self._REQUEST.unpack(raw)
        return token, length, page, in_use

    def _request_gpa(self, command_id: int) -> int:
        return self._driver.data.start + command_id * self._REQUEST.size

    def _gpa(self, page: int) -> int:
        return self._driver.data.start + (1 + page) * PAGE_SIZE


class NicAdapter:
    """A `Nic` over virtio-net."""

    def __init__(self, machine: Machine, index: int) -> None:
        self._driver = VirtioNetDriver(machine, driver_area(index))
        self._vector = driver_vector(index)

    def probe(self, path: PciPath) -> None:
        self._driver.probe(path, vector=self._vector)

    @property
    def mac(self) -> bytes:
        return self._driver.mac

    def send(self, frame: bytes) -> bool:
        return self._driver.send(frame)

    def poll(self) -> list[bytes]:
        if not self._driver.pci.take_interrupt():
            return []
        self._driver.reclaim()
        return self._driver.receive()


#: Makes the `Disk` of a slot by the class that the device says it is; the better ones for a ledger first.
DISKS: Final[dict[int, type[VirtioDiskAdapter] | type[NvmeAdapter]]] = {
    CLASS_VIRTIO_DISK: VirtioDiskAdapter,
    CLASS_NVME: NvmeAdapter,
}
