"""Split virtqueues in guest RAM: the layout of VIRTIO 1.2 §2.7, and both of its sides.

A queue of size n is three areas that driver and device share:

    descriptors   n × { le64 addr, le32 len, le16 flags, le16 next }
    available     le16 flags, le16 idx, n × le16 head, le16 used_event        written by the driver
    used          le16 flags, le16 idx, n × { le32 id, le32 len }, le16 avail_event        written by the device

Indices run freely modulo 65536; the slot is the index modulo n.  What a side has to remember beside the shared areas is
little: the device its position in the available ring and its used index (they travel in the transport's payload), the
driver a list of free descriptors and the last used index it has seen (`DriverQueue` keeps these in guest RAM too, since
a guest has nowhere else to keep anything).
"""

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from sim_vmm.integers import U16_MAX
from sim_vmm.memory import GuestAddressError, GuestMemory

DESCRIPTOR: Final = struct.Struct("<QIHH")
USED_ELEMENT: Final = struct.Struct("<II")
_U16: Final = struct.Struct("<H")

DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

RING_HEADER_BYTES: Final = 4


class QueueBroken(Exception):
    """The driver wrote something that no device can follow; the device then needs a reset (VIRTIO 1.2 §2.1.2)."""


@attrs.frozen
class Segment:
    """A piece of guest RAM that a descriptor names."""

    gpa: int
    length: int


@attrs.frozen
class Chain:
    """One buffer: what the device may read, then what it may write.  `head` names it when it is given back."""

    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]

    @property
    def readable_bytes(self) -> int:
        return sum(segment.length for segment in self.readable)

    @property
    def writable_bytes(self) -> int:
        return sum(segment.length for segment in self.writable)


@attrs.frozen
class QueueAddresses:
    """Where the three areas of a queue of `size` entries lie, as guest-physical addresses."""

    size: int
    descriptors: int
    available: int
    used: int


def descriptor_bytes(size: int) -> int:
    return DESCRIPTOR.size * size


def available_bytes(size: int) -> int:
    return RING_HEADER_BYTES + 2 * size + 2


def used_bytes(size: int) -> int:
    return RING_HEADER_BYTES + USED_ELEMENT.size * size + 2


def legacy_addresses(base: int, size: int) -> QueueAddresses:
    """The fixed layout of the legacy interface: the used ring begins at the next 4096 bytes (VIRTIO 1.2 §2.7.2)."""
    available = base + descriptor_bytes(size)
    used = -(-(available + available_bytes(size)) // 4096) * 4096
    return QueueAddresses(size, base, available, used)


@attrs.define
class DeviceQueue:
    """The device's side.  `available_index` and `used_index` are registers of the device."""

    memory: GuestMemory
    addresses: QueueAddresses
    available_index: int = 0
    used_index: int = 0

    def pop(self) -> Chain | None:
        """The next buffer that the driver has made available, or None.

        Raises:
            QueueBroken: a ring outside RAM, a head or link outside the table, a loop, a readable descriptor after a
                writable one, or more available than the queue holds.
        """
        waiting = (self._u16(self.addresses.available + 2) - self.available_index) & U16_MAX
        if waiting == 0:
            return None
        if waiting > self.addresses.size:
            raise QueueBroken(f"{waiting} buffers are available in a queue of {self.addresses.size}")
        slot = self.available_index % self.addresses.size
        head = self._u16(self.addresses.available + RING_HEADER_BYTES + 2 * slot)
        chain = self._chain(head)
        self.available_index = (self.available_index + 1) & U16_MAX
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a buffer back, `written` bytes of its writable part filled: element first, then the index."""
        slot = self.used_index % self.addresses.size
        element = self.addresses.used + RING_HEADER_BYTES + USED_ELEMENT.size * slot
        self._write(element, USED_ELEMENT.pack(chain.head, written))
        self.used_index = (self.used_index + 1) & U16_MAX
        self._write(self.addresses.used + 2, _U16.pack(self.used_index))

    def wants_interrupt(self) -> bool:
        return not self._u16(self.addresses.available) & AVAIL_F_NO_INTERRUPT

    def read(self, chain: Chain) -> bytes:
        """Everything that the device may read of `chain`."""
        return b"".join(self._read(segment.gpa, segment.length) for segment in chain.readable)

    def write(self, chain: Chain, data: bytes, offset: int = 0) -> int:
        """Put `data` into the writable part of `chain` from `offset` on; returns how much of it fitted."""
        done = 0
        for segment in chain.writable:
            if offset >= segment.length:
                offset -= segment.length
                continue
            piece = data[done : done + segment.length - offset]
            self._write(segment.gpa + offset, piece)
            done += len(piece)
            offset = 0
        return done

    def _chain(self, head: int) -> Chain:
        readable: list[Segment] = []
        writable: list[Segment] = []
        index = head
        for _ in range(self.addresses.size):
            if index >= self.addresses.size:
                raise QueueBroken(f"descriptor {index} of a queue of {self.addresses.size}")
            raw = self._read(self.addresses.descriptors + DESCRIPTOR.size * index, DESCRIPTOR.size)
            gpa, length, flags, following = DESCRIPTOR.unpack(raw)
            if flags & DESC_F_INDIRECT:
                raise QueueBroken(f"descriptor {index} is indirect, which was not negotiated")
            if flags & DESC_F_WRITE:
                writable.append(Segment(gpa, length))
            elif writable:
                raise QueueBroken(f"descriptor {index} is readable after a writable one")
            else:
                readable.append(Segment(gpa, length))
            if not flags & DESC_F_NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            index = following
        raise QueueBroken(f"the chain from descriptor {head} is a loop")

    def _u16(self, gpa: int) -> int:
        (value,) = _U16.unpack(self._read(gpa, 2))
        return int(value)

    def _read(self, gpa: int, length: int) -> bytes:
        try:
            return self.memory.read(gpa, length)
        except GuestAddressError as error:
            raise QueueBroken(str(error)) from error

    def _write(self, gpa: int, data: bytes) -> None:
        try:
            self.memory.write(gpa, data)
        except GuestAddressError as error:
            raise QueueBroken(str(error)) from error


#: What a driver remembers of a queue, in guest RAM: first free descriptor, free descriptors, used index seen.
DRIVER_STATE: Final = struct.Struct("<HHH")


@attrs.frozen
class DriverQueue:
    """The driver's side; it has no state of its own: `state` is the guest address of its `DRIVER_STATE`."""

    memory: GuestMemory
    addresses: QueueAddresses
    state: int

    def reset(self) -> None:
        """Zero the shared areas and chain all descriptors into the free list."""
        where, size = self.addresses, self.addresses.size
        self.memory.write(where.available, bytes(available_bytes(size)))
        self.memory.write(where.used, bytes(used_bytes(size)))
        table = b"".join(DESCRIPTOR.pack(0, 0, 0, (index + 1) % size) for index in range(size))
        self.memory.write(where.descriptors, table)
        self._save(0, size, 0)

    @property
    def free(self) -> int:
        """Descriptors that are not in use."""
        return self._load()[1]

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment]) -> int | None:
        """Make a buffer available; returns the head that names it, or None if there are too few descriptors."""
        segments = [(segment, 0) for segment in readable] + [(segment, DESC_F_WRITE) for segment in writable]
        first, free, seen = self._load()
        if not segments or len(segments) > free:
            return None
        index = first
        for position, (segment, flags) in enumerate(segments):
            following = self._next(index)
            more = DESC_F_NEXT if position < len(segments) - 1 else 0
            raw = DESCRIPTOR.pack(segment.gpa, segment.length, flags | more, following)
            self.memory.write(self.addresses.descriptors + DESCRIPTOR.size * index, raw)
            index = following
        self._save(index, free - len(segments), seen)
        available = self._u16(self.addresses.available + 2)
        slot = self.addresses.available + RING_HEADER_BYTES + 2 * (available % self.addresses.size)
        self.memory.write(slot, _U16.pack(first))
        self.memory.write(self.addresses.available + 2, _U16.pack((available + 1) & U16_MAX))
        return first

    def take_used(self) -> tuple[int, int] | None:
        """The next buffer that the device has given back: its head and how many bytes were written, or None."""
        first, free, seen = self._load()
        if seen == self._u16(self.addresses.used + 2):
            return None
        slot = self.addresses.used + RING_HEADER_BYTES + USED_ELEMENT.size * (seen % self.addresses.size)
        head, written = USED_ELEMENT.unpack(self.memory.read(slot, USED_ELEMENT.size))
        count, last = self._chain_length(head)
        raw = bytearray(self.memory.read(self.addresses.descriptors + DESCRIPTOR.size * last, DESCRIPTOR.size))
        gpa, length, _, _ = DESCRIPTOR.unpack(raw)
        self.memory.write(self.addresses.descriptors + DESCRIPTOR.size * last, DESCRIPTOR.pack(gpa, length, 0, first))
        self._save(head, free + count, (seen + 1) & U16_MAX)
        return head, written

    def _chain_length(self, head: int) -> tuple[int, int]:
        """How many descriptors the chain from `head` has, and its last."""
        count, index = 1, head
        while self._flags(index) & DESC_F_NEXT:
            index = self._next(index)
            count += 1
        return count, index

    def _descriptor(self, index: int) -> tuple[int, int, int, int]:
        raw = self.memory.read(self.addresses.descriptors + DESCRIPTOR.size * index, DESCRIPTOR.size)
        gpa, length, flags, following = DESCRIPTOR.unpack(raw)
        return gpa, length, flags, following

    def _flags(self, index: int) -> int:
        return self._descriptor(index)[2]

    def _next(self, index: int) -> int:
        return self._descriptor(index)[3]

    def _u16(self, gpa: int) -> int:
        (value,) = _U16.unpack(self.memory.read(gpa, 2))
        return int(value)

    def _load(self) -> tuple[int, int, int]:
        first, free, seen = DRIVER_STATE.unpack(self.memory.read(self.state, DRIVER_STATE.size))
        return first, free, seen

    def _save(self, first: int, free: int, seen: int) -> None:
        self.memory.write(self.state, DRIVER_STATE.pack(first, free, seen))
