"""What all virtio drivers share: finding the registers, negotiation, queues, interrupts (VIRTIO 1.2 §3.1, §4.1).

The driver follows the device's capabilities to its modern interface; a device that shows none, or a driver told to be
legacy, is driven through the legacy ports.  Everything else is the same for both.

    base + 0x0000    state: `_State`, then for each queue where it is (`_QUEUE`) and a `DriverQueue`'s state
    base + 0x1000    the rings, each in one piece and page-aligned, as the legacy layout wants it
    `buffers`        from the page behind the last ring on: for the driver above

MSI-X entry 0 is for changes of the configuration and has the interrupt vector `vector`, entry 1 is for all queues and
has the next.  Without a vector the pin is used.
"""

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from sim_vmm.devices.pci_config import VENDOR_ID
from sim_vmm.devices.vcpu import PIN_VECTOR
from sim_vmm.devices.virtio import (
    FEATURE_VERSION_1,
    NO_VECTOR,
    STATUS_ACK,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    legacy,
    modern,
)
from sim_vmm.devices.virtio.status import ISR_CONFIG, ISR_QUEUE, VENDOR
from sim_vmm.drivers import DRIVER_AREA_BYTES, DriverFailed, GuestView
from sim_vmm.drivers.pci import PciSlot
from sim_vmm.integers import U32_MAX
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.spec import PciPath
from sim_vmm.virtqueue import DriverQueue, QueueAddresses, legacy_addresses, used_bytes

_MAGIC: Final = 0x6F69_7472_6976_2101
_QUEUE: Final = struct.Struct("<QII")
_QUEUE_RECORD_BYTES: Final = 32
_QUEUES: Final = 0x100
_RINGS: Final = 0x1000
QUEUES_MAX: Final = (_RINGS - _QUEUES) // _QUEUE_RECORD_BYTES

ENTRY_CONFIG: Final = 0
ENTRY_QUEUES: Final = 1
MSIX_ENTRIES: Final = 2


@attrs.define(kw_only=True)
class _State:
    """As it lies in RAM, eight bytes each.  The addresses are those of the modern interface's regions, or all ports."""

    magic: int = _MAGIC
    is_modern: int
    features: int
    common: int
    isr: int
    config: int
    notify: int
    notify_multiplier: int
    queue_count: int
    vector: int
    buffers: int = 0


_STATE_FIELDS: Final = tuple(field.name for field in attrs.fields(_State))
_STATE: Final = struct.Struct(f"<{len(_STATE_FIELDS)}Q")


class VirtioPciDriver:
    """The driver's side of one transport, with its memory at guest address `base`, a multiple of the page size."""

    def __init__(self, machine: GuestView, base: int) -> None:
        self.memory = machine.memory
        self.base = base
        self._bus = machine.bus
        self._vcpu = machine.vcpus[0]

    # Setting up

    def probe(
        self,
        path: PciPath,
        *,
        features: int,
        queue_sizes: Sequence[int],
        vector: int | None = None,
        legacy: bool = False,
    ) -> None:
        """Reset the device at `path`, agree on those of `features` that it offers, set up its queues, be DRIVER_OK.

        `queue_sizes` are the sizes wanted, by queue; larger ones are cut to what the device has, and over the legacy
        interface each has the device's size.  Queues beyond the list stay unused.

        Raises:
            DriverFailed: there is no virtio device, it refuses what a driver may expect, or the queues do not fit.
        """
        slot = PciSlot(self._bus, path)
        if slot.read(VENDOR_ID, 2) != VENDOR:
            raise DriverFailed(f"there is no virtio device at {path}")
        slot.set_up(vector, MSIX_ENTRIES)
        capabilities = slot.vendor_capabilities()
        is_modern = bool(capabilities) and not legacy
        self._store(self._find_registers(slot, capabilities, is_modern=is_modern, vector=vector))
        self._write_status(0)
        self._write_status(STATUS_ACK | STATUS_DRIVER)
        agreed = features & self._offered()
        if is_modern:
            agreed |= FEATURE_VERSION_1
        self._accept(agreed)
        self._store(attrs.evolve(self._load(), features=agreed))
        if is_modern:
            self._write_status(STATUS_ACK | STATUS_DRIVER | STATUS_FEATURES_OK)
            if not self.status & STATUS_FEATURES_OK:
                self._write_status(STATUS_FAILED)
                raise DriverFailed(f"the device at {path} refuses features {agreed:#x}")
        self.set_up_queues(queue_sizes)
        self._write_status(self.status | STATUS_DRIVER_OK)

    def set_up_queues(self, sizes: Sequence[int]) -> None:
        """Place and enable queues 0, 1, ..., with one interrupt vector for all of them; a size of 0 leaves one out."""
        if len(sizes) > QUEUES_MAX:
            raise DriverFailed(f"{len(sizes)} queues; there is room for the state of {QUEUES_MAX}")
        state = self._load()
        gpa = self.base + _RINGS
        has_vector = state.vector != 0
        self._write_config_vector(ENTRY_CONFIG if has_vector else NO_VECTOR)
        for number, wanted in enumerate(sizes):
            if wanted == 0:
                continue
            size = self._select(number, wanted)
            where = legacy_addresses(gpa, size)
            end = where.used + used_bytes(size)
            if end > self.base + DRIVER_AREA_BYTES:
                raise DriverFailed(f"queue {number} of {size} entries does not fit into the driver's memory")
            self.memory.write(self._record(number), _QUEUE.pack(gpa, size, 0))
            self.queue(number).reset()
            self._enable_queue(where, ENTRY_QUEUES if has_vector else NO_VECTOR)
            gpa = -(-end // PAGE_SIZE) * PAGE_SIZE
        self._store(attrs.evolve(state, queue_count=len(sizes), buffers=gpa))

    # Using the device

    @property
    def is_probed(self) -> bool:
        return self._load().magic == _MAGIC

    @property
    def is_modern(self) -> bool:
        return bool(self._load().is_modern)

    @property
    def features(self) -> int:
        """The features agreed on."""
        return self._load().features

    @property
    def buffers(self) -> range:
        """The guest addresses that are left to the driver above."""
        return range(self._load().buffers, self.base + DRIVER_AREA_BYTES)

    @property
    def status(self) -> int:
        state = self._load()
        if state.is_modern:
            return self._bus.read(state.common + modern.DEVICE_STATUS, 1)
        return self._bus.port_read(state.common + legacy.STATUS, 1)

    @property
    def needs_reset(self) -> bool:
        """The device has met a ring that it cannot follow; `probe` again."""
        return bool(self.status & STATUS_NEEDS_RESET)

    def queue(self, number: int) -> DriverQueue:
        """The driver's side of queue `number`, which `set_up_queues` has placed."""
        gpa, size, _ = _QUEUE.unpack(self.memory.read(self._record(number), _QUEUE.size))
        return DriverQueue(self.memory, legacy_addresses(gpa, size), self._record(number) + _QUEUE.size)

    def notify(self, number: int) -> None:
        """Tell the device that there are new buffers in queue `number`."""
        state = self._load()
        if state.is_modern:
            self._bus.write(state.notify + number * state.notify_multiplier, 2, number)
        else:
            self._bus.port_write(state.common + legacy.QUEUE_NOTIFY, 2, number)

    def take_interrupt(self) -> bool:
        """Take the interrupt of this device's queues, if it is pending; that of the configuration is taken with it."""
        vector = self._load().vector
        if vector:
            self._vcpu.take(vector + ENTRY_CONFIG)
            return self._vcpu.take(vector + ENTRY_QUEUES)
        return PIN_VECTOR in self._vcpu.pending() and bool(self.read_isr() & ISR_QUEUE)

    def take_config_interrupt(self) -> bool:
        """Take the interrupt of the configuration alone, if it is pending; over the pin, that of the queues with it."""
        vector = self._load().vector
        if vector:
            return self._vcpu.take(vector + ENTRY_CONFIG)
        return PIN_VECTOR in self._vcpu.pending() and bool(self.read_isr() & ISR_CONFIG)

    def read_isr(self) -> int:
        """The interrupt causes (1 queue, 2 configuration); reading clears them."""
        state = self._load()
        return self._bus.read(state.isr, 1) if state.is_modern else self._bus.port_read(state.isr, 1)

    def mask_queues(self, path: PciPath, *, masked: bool) -> None:
        """Mask or unmask the interrupt of the queues in the MSI-X table of the device at `path`."""
        PciSlot(self._bus, path).mask(ENTRY_QUEUES, masked=masked)

    def read_config(self, offset: int, size: int) -> int:
        """A field of the device's own configuration."""
        state = self._load()
        if not state.is_modern:
            return self._bus.port_read(state.config + offset, size)
        width = min(size, 4)
        parts = self._read_parts(state, offset, width, size // width)
        return sum(part << 8 * width * number for number, part in enumerate(parts))

    def read_config_bytes(self, offset: int, count: int) -> bytes:
        """A field of `count` single bytes, as an address is: each is read alone (§4.1.3.1)."""
        state = self._load()
        if not state.is_modern:
            return bytes(self._bus.port_read(state.config + offset + at, 1) for at in range(count))
        return bytes(self._read_parts(state, offset, 1, count))

    def _read_parts(self, state: _State, offset: int, width: int, count: int) -> list[int]:
        """`count` numbers of `width` bytes, again until no change came between two of them (§4.1.3.1)."""
        bus, generation = self._bus, state.common + modern.CONFIG_GENERATION
        while True:
            before = bus.read(generation, 1)
            parts = [bus.read(state.config + offset + width * number, width) for number in range(count)]
            if before == bus.read(generation, 1):
                return parts

    def write_config(self, offset: int, size: int, value: int) -> None:
        state = self._load()
        (self._bus.write if state.is_modern else self._bus.port_write)(state.config + offset, size, value)

    # Registers

    def _offered(self) -> int:
        state = self._load()
        if not state.is_modern:
            return self._bus.port_read(state.common + legacy.HOST_FEATURES, 4)
        offered = 0
        for window in (0, 1):
            self._bus.write(state.common + modern.DEVICE_FEATURE_SELECT, 4, window)
            offered |= self._bus.read(state.common + modern.DEVICE_FEATURE, 4) << 32 * window
        return offered

    def _accept(self, features: int) -> None:
        state = self._load()
        if not state.is_modern:
            self._bus.port_write(state.common + legacy.GUEST_FEATURES, 4, features & U32_MAX)
            return
        for window in (0, 1):
            self._bus.write(state.common + modern.DRIVER_FEATURE_SELECT, 4, window)
            self._bus.write(state.common + modern.DRIVER_FEATURE, 4, features >> 32 * window & U32_MAX)

    def _write_status(self, status: int) -> None:
        state = self._load()
        if state.is_modern:
            self._bus.write(state.common + modern.DEVICE_STATUS, 1, status)
        else:
            self._bus.port_write(state.common + legacy.STATUS, 1, status)

    def _write_config_vector(self, entry: int) -> None:
        state = self._load()
        if state.is_modern:
            self._bus.write(state.common + modern.CONFIG_VECTOR, 2, entry)
        elif state.vector:
            self._bus.port_write(state.common + legacy.CONFIG_VECTOR, 2, entry)

    def _select(self, number: int, wanted: int) -> int:
        """Select queue `number` and settle its size."""
        state = self._load()
        if not state.is_modern:
            self._bus.port_write(state.common + legacy.QUEUE_SELECT, 2, number)
            size = self._bus.port_read(state.common + legacy.QUEUE_SIZE, 2)
        else:
            self._bus.write(state.common + modern.QUEUE_SELECT, 2, number)
            if wanted < self._bus.read(state.common + modern.QUEUE_SIZE, 2):
                self._bus.write(state.common + modern.QUEUE_SIZE, 2, wanted)
            size = self._bus.read(state.common + modern.QUEUE_SIZE, 2)
        if size == 0:
            raise DriverFailed(f"the device has no queue {number}")
        return size

    def _enable_queue(self, where: QueueAddresses, entry: int) -> None:
        """Place the selected queue at `where`, with MSI-X entry `entry`, and enable it."""
        state = self._load()
        if not state.is_modern:
            if state.vector:
                self._bus.port_write(state.common + legacy.QUEUE_VECTOR, 2, entry)
            self._bus.port_write(state.common + legacy.QUEUE_PFN, 4, where.descriptors >> legacy.PAGE_SHIFT)
            return
        for register, gpa in (
            (modern.QUEUE_DESCRIPTORS, where.descriptors),
            (modern.QUEUE_AVAILABLE, where.available),
            (modern.QUEUE_USED, where.used),
        ):
            self._bus.write(state.common + register, 4, gpa & U32_MAX)
            self._bus.write(state.common + register + 4, 4, gpa >> 32)
        self._bus.write(state.common + modern.QUEUE_VECTOR, 2, entry)
        self._bus.write(state.common + modern.QUEUE_ENABLE, 2, 1)

    def _find_registers(
        self, slot: PciSlot, capabilities: dict[int, int], *, is_modern: bool, vector: int | None
    ) -> _State:
        if not is_modern:
            ports = slot.bar(legacy.PORT_BAR)
            header = legacy.HEADER_BYTES if vector is None else legacy.HEADER_BYTES_MSIX
            places = {"common": ports, "isr": ports + legacy.ISR, "config": ports + header, "notify": ports}
            multiplier = 0
        else:
            places = {}
            for name, kind in (
                ("common", modern.CAP_COMMON),
                ("isr", modern.CAP_ISR),
                ("config", modern.CAP_DEVICE),
                ("notify", modern.CAP_NOTIFY),
            ):
                bar = slot.read(capabilities[kind] + 4, 1)
                places[name] = slot.bar(bar) + slot.read(capabilities[kind] + 8, 4)
            multiplier = slot.read(capabilities[modern.CAP_NOTIFY] + 16, 4)
        return _State(
            is_modern=is_modern,
            features=0,
            notify_multiplier=multiplier,
            queue_count=0,
            vector=0 if vector is None else vector,
            **places,
        )

    # Memory

    def _record(self, number: int) -> int:
        return self.base + _QUEUES + number * _QUEUE_RECORD_BYTES

    def _load(self) -> _State:
        fields = _STATE.unpack(self.memory.read(self.base, _STATE.size))
        return _State(**dict(zip(_STATE_FIELDS, fields, strict=True)))

    def _store(self, state: _State) -> None:
        self.memory.write(self.base, _STATE.pack(*attrs.astuple(state)))
