"""QEMU's firmware configuration device: named pieces of data that firmware and guest read (device-payloads §6).

The entries are made at the machine's birth (`birth_entries`) and travel with it; an import replaces those of the new
host, so that the guest goes on seeing the tables it booted with (#667, #706).

The guest selects an entry and reads it byte after byte.  The directory of files is made when it is selected and
stays as it was then until another selection.  A selection of an entry that no longer exists is cleared on import.

It does so at ports (select, data), or has a piece copied to RAM by writing the address of an access structure to the
DMA port, big-endian like the structure itself; writing the lower half begins the copy.

Derived, and rebuilt on import: the entries by selector.
"""

import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar, Final
from uuid import UUID

import attrs

from sim_vmm.birth import Birth
from sim_vmm.devices.base import Arrived, Device, Refuse, refusal
from sim_vmm.memory import GuestAddressError, ram_layout
from sim_vmm.payloads import FwCfgEntry, FwCfgSelected, FwCfgValueKind, Payload, QemuFwCfgV2, Schema
from sim_vmm.payloads.directory import FILE_NAME_BYTES, SELECTOR_FIRST_FILE, SELECTOR_INVALID, content_of
from sim_vmm.spec import SmbiosType1, Spec
from sim_vmm.spec.components import BootSettings, NvmeDisk, VirtioDisk

KEY: Final = "qemu-fwcfg"

SELECTOR_SIGNATURE: Final = 0x0000
SELECTOR_ID: Final = 0x0001
SELECTOR_CPU_COUNT: Final = 0x0005
SELECTOR_FILE_DIR: Final = 0x0019
E820_RAM: Final = 1

PORTS: Final = range(0x510, 0x51C)
PORT_SELECTOR: Final = 0x510
PORT_DATA: Final = 0x511
PORT_DMA_HIGH: Final = 0x514
PORT_DMA_LOW: Final = 0x518
#: The access structure: control, length, address; control has these bits, and a selector in its upper half.
DMA_ACCESS: Final = struct.Struct(">IIQ")
DMA_ERROR: Final = 1 << 0
DMA_READ: Final = 1 << 1
DMA_SKIP: Final = 1 << 2
DMA_SELECT: Final = 1 << 3
DMA_WRITE: Final = 1 << 4
DMA_CHUNK_BYTES: Final = 65536


class FwCfg(Device):
    kind: ClassVar[str] = "qemu_fwcfg"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((QemuFwCfgV2.SCHEMA,),)
    ports = (PORTS,)

    def __init__(self, entries: Iterable[FwCfgEntry]) -> None:
        super().__init__(KEY)
        self._dma_addr = 0
        self._entries = tuple(entries)
        self._selected: FwCfgSelected | None = None
        self._by_selector: dict[int, FwCfgEntry] = {}
        self._derive()
        self.note_birth()

    @property
    def entries(self) -> tuple[FwCfgEntry, ...]:
        return self._entries

    def port_read(self, port: int, size: int) -> int:
        """The guest reads data; the other ports read as zero."""
        return int.from_bytes(self.read(size), "little") if port == PORT_DATA else 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """The guest selects an entry, or gives one half of the address of a DMA access."""
        match port, size:
            case 0x510, 2:
                self.select(value)
            case 0x514, 4:
                self._dma_addr = int.from_bytes(value.to_bytes(4, "little"), "big") << 32
            case 0x518, 4:
                access = self._dma_addr | int.from_bytes(value.to_bytes(4, "little"), "big")
                self._dma_addr = 0
                self._dma(access)
            case _:
                pass

    def _dma(self, access: int) -> None:
        """Do the access whose structure is at guest address `access`, and put its outcome there."""
        memory = self.platform.memory
        try:
            control, length, gpa = DMA_ACCESS.unpack(memory.read(access, DMA_ACCESS.size))
            if control & DMA_SELECT:
                self.select(control >> 16)
            outcome = DMA_ERROR if control & DMA_WRITE else 0
            for start in range(0, length if control & (DMA_READ | DMA_SKIP) else 0, DMA_CHUNK_BYTES):
                data = self.read(min(DMA_CHUNK_BYTES, length - start))
                if control & DMA_READ:
                    memory.write(gpa + start, data)
        except GuestAddressError:
            outcome = DMA_ERROR
        with suppress(GuestAddressError):
            memory.write(access, struct.pack(">I", outcome))

    def select(self, selector: int) -> None:
        """The guest selects an entry; a selector that is none selects nothing."""
        entry = self._by_selector.get(selector)
        if entry is None:
            self._selected = None
            return
        cached = content_of(entry, self._entries) if entry.kind is FwCfgValueKind.FILE_DIR else None
        self._selected = FwCfgSelected(selector=selector, offset=0, cached_value=cached)

    def read(self, length: int) -> bytes:
        """The guest reads `length` bytes of the selected entry; beyond its end, and with none selected, zeros."""
        selected = self._selected
        if selected is None:
            return bytes(length)
        content = selected.cached_value
        if content is None:
            content = content_of(self._by_selector[selected.selector], self._entries)
        data = content[selected.offset : selected.offset + length]
        self._selected = attrs.evolve(selected, offset=min(selected.offset + length, len(content)))
        return data.ljust(length, b"\0")

    def read_file(self, name: str) -> bytes:
        """What a guest does to read a file of the directory; KeyError if there is none of this name."""
        entry = next((entry for entry in self._entries if entry.name == name), None)
        if entry is None:
            raise KeyError(f"fw_cfg has no entry {name!r}")
        self.select(entry.selector)
        return self.read(len(content_of(entry, self._entries)))

    def _derive(self) -> None:
        self._by_selector = {entry.selector: entry for entry in self._entries}

    def _payloads(self) -> tuple[Payload, ...]:
        return (QemuFwCfgV2(dma_addr=self._dma_addr, selected=self._selected, entries=self._entries),)

    def _take(self, arrived: Arrived) -> None:
        payload = arrived.of(QemuFwCfgV2)
        _check_entries(payload.entries, refusal(self.key, payload.SCHEMA))
        self._dma_addr = payload.dma_addr
        self._entries = payload.entries
        self._derive()
        selected = payload.selected
        self._selected = selected if selected is not None and selected.selector in self._by_selector else None


def _check_entries(entries: tuple[FwCfgEntry, ...], refuse: Refuse) -> None:
    selectors: set[int] = set()
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"entries[{index}]"
        if entry.selector == SELECTOR_INVALID:
            raise refuse(f"{where}.selector", f"{SELECTOR_INVALID:#x}, which selects nothing")
        if entry.selector in selectors:
            raise refuse(f"{where}.selector", f"{entry.selector:#x} occurs twice")
        if entry.name in names:
            raise refuse(f"{where}.name", f"{entry.name!r} occurs twice")
        if len(entry.name.encode()) >= FILE_NAME_BYTES:
            raise refuse(f"{where}.name", f"{len(entry.name.encode())} bytes; at most {FILE_NAME_BYTES - 1} fit")
        if entry.kind is not FwCfgValueKind.BYTES and entry.bytes:
            raise refuse(
                f"{where}.bytes", f"{len(entry.bytes)} bytes; an entry of kind {entry.kind} has none of its own"
            )
        selectors.add(entry.selector)
        names.add(entry.name)


def birth_entries(spec: Spec, memory_bytes: int, birth: Birth) -> tuple[FwCfgEntry, ...]:
    """What a machine is born with: signature, interface, CPU count, directory, SMBIOS, maybe boot order and memory map.

    `birth.vm_id` is shown to the guest as the system's UUID, and as its serial number unless the spec has SMBIOS
    (instance-specs §2).
    """
    data = (
        (SELECTOR_SIGNATURE, "signature", b"QEMU"),
        (SELECTOR_ID, "id", struct.pack("<I", 0b11)),  # the traditional interface and DMA
        (SELECTOR_CPU_COUNT, "nb-cpus", struct.pack("<H", spec.board.cpus)),
    )
    files = [("etc/smbios/smbios-tables", _smbios_type_1(spec.smbios, birth.vm_id))]
    if birth.fw_cfg_tables:
        files = [("bootorder", _boot_order(spec)), ("etc/e820", _e820(memory_bytes)), *files]
    return (
        *(FwCfgEntry(selector=s, name=name, kind=FwCfgValueKind.BYTES, bytes=value) for s, name, value in data),
        FwCfgEntry(selector=SELECTOR_FILE_DIR, name="file-dir", kind=FwCfgValueKind.FILE_DIR, bytes=b""),
        *(
            FwCfgEntry(selector=SELECTOR_FIRST_FILE + index, name=name, kind=FwCfgValueKind.BYTES, bytes=value)
            for index, (name, value) in enumerate(files)
        ),
    )


def _boot_order(spec: Spec) -> bytes:
    """OpenFirmware paths of the disks in boot order, one a line."""
    lines = []
    for _, settings in spec.of_kind(BootSettings):
        for key in settings.order:
            disk = spec.components[key]
            assert isinstance(disk, VirtioDisk | NvmeDisk)
            kind = "scsi" if isinstance(disk, VirtioDisk) else "pci8086,5845"
            lines.append(f"/pci@i0cf8/{kind}@{disk.pci_path.device:x},{disk.pci_path.function:x}")
    return "".join(f"{line}\n" for line in lines).encode() + b"\0"


def _e820(memory_bytes: int) -> bytes:
    """Little-endian: address, length and type of each region of RAM."""
    return b"".join(struct.pack("<QQI", region.gpa, region.length, E820_RAM) for region in ram_layout(memory_bytes))


def _smbios_type_1(smbios: SmbiosType1 | None, vm_id: UUID) -> bytes:
    """An SMBIOS "System Information" structure (type 1) with the strings that it numbers behind it."""
    if smbios is None:
        smbios = SmbiosType1(manufacturer="Oxide", product_name="OxVM", serial_number=str(vm_id), version=0)
    texts = (smbios.manufacturer, smbios.product_name, str(smbios.version), smbios.serial_number)
    strings = b"".join(text.encode() + b"\0" for text in texts if text)
    numbers = iter(range(1, len(texts) + 1))
    references = (next(numbers) if text else 0 for text in texts)
    length = 27
    power_switch = 6
    body = struct.pack("<BBHBBBB16sBBB", 1, length, 0x0100, *references, vm_id.bytes_le, power_switch, 0, 0)
    return body + (strings or b"\0") + b"\0"
