"""The guest's virtio-block driver: requests that are submitted now and completed some time, in any order.

Beside what `VirtioPciDriver` keeps in RAM, each of `SLOTS` slots holds one request: who waits for it (`token`, any
number that its submitter wants back), the head that names it in the ring, the header, the status byte, and up to 4096
bytes.

    slot + 0x000     `_SLOT`: head, in use or not, type, length of the data, token
    slot + 0x040     the header of the request          slot + 0x060     the status byte
    slot + 0x080     what get-id returns                slot + 0x1000    data
"""

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from sim_vmm.devices.virtio_disk import (
    CONFIG_BLOCK_SIZE,
    CONFIG_CAPACITY,
    FEATURE_BLOCK_SIZE,
    FEATURE_FLUSH,
    FEATURE_READ_ONLY,
    ID_BYTES,
    QUEUE,
    REQUEST_HEADER,
    TYPE_FLUSH,
    TYPE_GET_ID,
    TYPE_IN,
    TYPE_OUT,
)
from sim_vmm.drivers import GuestView
from sim_vmm.drivers.virtio_pci import VirtioPciDriver
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.spec import PciPath
from sim_vmm.virtqueue import Segment

SLOTS: Final = 16
SLOT_BYTES: Final = 0x2000
DATA_BYTES: Final = PAGE_SIZE
#: Enough for a request of three descriptors in every slot.
QUEUE_ENTRIES: Final = 64

_SLOT: Final = struct.Struct("<HBBIQ")
_HEADER: Final = 0x40
_STATUS: Final = 0x60
_ID: Final = 0x80
_DATA: Final = 0x1000
STATUS_UNTOUCHED: Final = 0xFF


@attrs.frozen(kw_only=True)
class Completion:
    """A request that is done: its type, the submitter's token, the device's status (0 is success), what was read."""

    kind: int
    token: int
    status: int
    data: bytes


@attrs.define
class _Slot:
    head: int = 0
    in_use: int = 0
    kind: int = 0
    length: int = 0
    token: int = 0


class VirtioBlkDriver:
    """The driver of one disk, with its memory at guest address `base`, a multiple of the page size."""

    def __init__(self, machine: GuestView, base: int) -> None:
        self.pci = VirtioPciDriver(machine, base)
        self._memory = machine.memory

    def probe(
        self, path: PciPath, *, vector: int | None = None, legacy: bool = False, entries: int = QUEUE_ENTRIES
    ) -> None:
        """Set up the disk at `path`, as `VirtioPciDriver.probe`; requests outstanding are forgotten.

        Raises:
            DriverFailed: as `VirtioPciDriver.probe`.
        """
        self.pci.probe(
            path,
            features=FEATURE_READ_ONLY | FEATURE_BLOCK_SIZE | FEATURE_FLUSH,
            queue_sizes=[entries],
            vector=vector,
            legacy=legacy,
        )
        for number in range(SLOTS):
            self._store(number, _Slot())

    @property
    def sectors(self) -> int:
        """The capacity in sectors of 512 bytes."""
        return self.pci.read_config(CONFIG_CAPACITY, 8)

    @property
    def block_size(self) -> int:
        return self.pci.read_config(CONFIG_BLOCK_SIZE, 4)

    @property
    def is_read_only(self) -> bool:
        return bool(self.pci.features & FEATURE_READ_ONLY)

    @property
    def outstanding(self) -> tuple[int, ...]:
        """The tokens of the requests that have been submitted and not been completed, by slot."""
        return tuple(slot.token for slot in map(self._load, range(SLOTS)) if slot.in_use)

    def submit_read(self, sector: int, length: int, token: int = 0, *, notify: bool = True) -> bool:
        """Read `length` bytes from `sector` on, at most 4096; False if there is no free slot or descriptor."""
        return self._submit(TYPE_IN, sector, length, token, b"", notify=notify)

    def submit_write(self, sector: int, data: bytes, token: int = 0, *, notify: bool = True) -> bool:
        """Write `data`, at most 4096 bytes, from `sector` on."""
        return self._submit(TYPE_OUT, sector, len(data), token, data, notify=notify)

    def submit_flush(self, token: int = 0, *, notify: bool = True) -> bool:
        """Have all completed writes be durable."""
        return self._submit(TYPE_FLUSH, 0, 0, token, b"", notify=notify)

    def submit_get_id(self, token: int = 0, *, notify: bool = True) -> bool:
        """Ask for the disk's id, 20 bytes."""
        return self._submit(TYPE_GET_ID, 0, ID_BYTES, token, b"", notify=notify)

    def submit_other(self, kind: int, token: int = 0, *, notify: bool = True) -> bool:
        """A request of a type that the device may not know, without data."""
        return self._submit(kind, 0, 0, token, b"", notify=notify)

    def notify(self) -> None:
        """Tell the device of requests that were submitted without notice."""
        self.pci.notify(QUEUE)

    def poll(self) -> list[Completion]:
        """What has been completed, if the disk has interrupted since the last call; else nothing."""
        return list(self.completions()) if self.pci.take_interrupt() else []

    def completions(self) -> Iterator[Completion]:
        """What has been completed, in the device's order, whether or not it has interrupted."""
        queue = self.pci.queue(QUEUE)
        while (used := queue.take_used()) is not None:
            head, _ = used
            number, slot = next(
                (n, s) for n, s in enumerate(map(self._load, range(SLOTS))) if s.in_use and s.head == head
            )
            self._store(number, attrs.evolve(slot, in_use=0))
            at = self._at(number)
            status = self._memory.read(at + _STATUS, 1)[0]
            source = {TYPE_IN: at + _DATA, TYPE_GET_ID: at + _ID}.get(slot.kind)
            data = b"" if source is None else self._memory.read(source, slot.length)
            yield Completion(kind=slot.kind, token=slot.token, status=status, data=data)

    def _submit(self, kind: int, sector: int, length: int, token: int, data: bytes, *, notify: bool) -> bool:
        if length > DATA_BYTES:
            raise ValueError(f"{length} bytes; a request has {DATA_BYTES} at most")
        number = next((number for number in range(SLOTS) if not self._load(number).in_use), None)
        if number is None:
            return False
        at = self._at(number)
        self._memory.write(at + _HEADER, REQUEST_HEADER.pack(kind, 0, sector))
        self._memory.write(at + _STATUS, bytes([STATUS_UNTOUCHED]))
        readable = [Segment(at + _HEADER, REQUEST_HEADER.size)]
        writable = []
        if kind == TYPE_OUT:
            self._memory.write(at + _DATA, data)
            readable.append(Segment(at + _DATA, length))
        elif length:
            writable.append(Segment(at + (_ID if kind == TYPE_GET_ID else _DATA), length))
        head = self.pci.queue(QUEUE).add(readable, [*writable, Segment(at + _STATUS, 1)])
        if head is None:
            return False
        self._store(number, _Slot(head, 1, kind, length, token))
        if notify:
            self.notify()
        return True

    def _at(self, number: int) -> int:
        return self.pci.buffers.start + number * SLOT_BYTES

    def _load(self, number: int) -> _Slot:
        return _Slot(*_SLOT.unpack(self._memory.read(self._at(number), _SLOT.size)))

    def _store(self, number: int, slot: _Slot) -> None:
        self._memory.write(self._at(number), _SLOT.pack(*attrs.astuple(slot)))
