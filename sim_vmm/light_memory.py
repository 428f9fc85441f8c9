"""Guest RAM for thousands of small machines: the real one's face and file, without what making it costs.

What is dear about RAM of a megabyte is not its bytes but asking the kernel for them, and page sets that are made for
terabytes.  So here its file is used again for the next machine, and a set of pages is one number, a bit for each page.
What becomes of a dirty page from round to round is decided by the real `DirtyPages`.

The lowest pages of a file stay in memory and are wiped.  Above them it has holes, and the kernel knows whether anybody
has ever written there: a file that has content above is not used again, and audits see it (`data_ranges`).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from sim_vmm.dirty import DirtyPages, PageIndices, PageSet
from sim_vmm.memory import PAGE_SIZE, GuestMemory, in_a_forked_process

KEPT_PAGES: Final = 16
KEPT_BYTES: Final = KEPT_PAGES * PAGE_SIZE
_WIPED: Final = bytes(KEPT_BYTES)
_PAGE_BITS: Final = PAGE_SIZE.bit_length() - 1


_PAGES: Final[dict[int, PageIndices]] = {}
_BITS: Final[dict[int, int]] = {}
"""Of the arrays in `_PAGES`, by their identity."""
_KNOWN_MAX: Final = 1 << 12


def pages_in(bits: int) -> PageIndices:
    """The numbers of the bits that are set, ascending; not to be written to."""
    pages = _PAGES.get(bits)
    if pages is None:
        if len(_PAGES) > _KNOWN_MAX:
            _PAGES.clear()
            _BITS.clear()
        found, left = [], bits
        while left:
            found.append((left & -left).bit_length() - 1)
            left &= left - 1
        pages = _PAGES[bits] = np.array(found, dtype=np.int64)
        pages.flags.writeable = False
        _BITS[id(pages)] = bits
    return pages


def bits_of(pages: npt.NDArray[Any]) -> int:
    bits = _BITS.get(id(pages))
    if bits is None:
        bits = 0
        for page in pages.tolist():
            bits |= 1 << page
    return bits


class BitSet(PageSet):
    """A `PageSet` in one number."""

    def __init__(self, page_count: int) -> None:
        self.bits = 0

    def __len__(self) -> int:
        return self.bits.bit_count()

    def add(self, pages: npt.NDArray[Any]) -> None:
        self.bits |= bits_of(pages)

    def add_range(self, first: int, end: int) -> None:
        self.bits |= (1 << end) - (1 << first)

    def discard(self, pages: PageIndices) -> None:
        self.bits &= ~bits_of(pages)

    def update(self, other: PageSet) -> None:
        assert isinstance(other, BitSet), "sets of one kind"
        self.bits |= other.bits

    def clear(self) -> None:
        self.bits = 0

    def pop(self, limit: int) -> PageIndices:
        popped = pages_in(self.bits)
        if popped.size > limit:
            popped = popped[:limit]
            self.bits &= ~bits_of(popped)
        else:
            self.bits = 0
        return popped

    def pages(self) -> PageIndices:
        return pages_in(self.bits)


class LightDirtyPages(DirtyPages):
    """The real rounds over sets in one number."""

    def __init__(self, page_count: int) -> None:
        made: list[BitSet] = []

        def make(page_count: int) -> BitSet:
            made.append(BitSet(page_count))
            return made[-1]

        super().__init__(page_count, make)
        self.dirty, self.pending, self.in_flight, self.sent = made

    def covered_pages(self) -> PageIndices:
        return pages_in(self.dirty.bits | self.in_flight.bits | self.sent.bits)

    def clear(self) -> None:
        """As at birth."""
        self.settle()
        self.dirty.bits = 0


class LightMemory(GuestMemory):
    """See the module; for more than `KEPT_PAGES` pages, none of them above the device hole.  Get it with `lend`."""

    def __init__(self, file: int, memory_bytes: int) -> None:
        self._sets = LightDirtyPages(memory_bytes // PAGE_SIZE)
        super().__init__(file, memory_bytes, self._sets)
        self._open_bytes = memory_bytes

    @classmethod
    def lend(cls, memory_bytes: int) -> Self:
        """RAM, all zero, nothing dirty, until it is closed."""
        free = _free[memory_bytes]
        if not free:
            return cls.create(memory_bytes)
        memory = free.pop()
        assert type(memory) is cls, "of one kind"
        memory._closed = False
        memory._open_bytes = memory_bytes
        return memory

    @property
    def is_open(self) -> bool:
        return not self._closed

    @property
    def sets(self) -> tuple[int, ...]:
        """Each in one number."""
        return tuple(
            pages.bits for pages in (self._sets.dirty, self._sets.pending, self._sets.in_flight, self._sets.sent)
        )

    @sets.setter
    def sets(self, bits: tuple[int, ...]) -> None:
        made = self._sets
        made.dirty.bits, made.pending.bits, made.in_flight.bits, made.sent.bits = bits

    def read(self, gpa: int, length: int) -> bytes:
        if 0 <= gpa <= gpa + length <= self._open_bytes:
            return bytes(self._view[gpa : gpa + length])
        return super().read(gpa, length)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        end = gpa + len(data)
        if 0 <= gpa < end <= self._open_bytes and self._snapshot is None:
            self._view[gpa:end] = data
            self._sets.dirty.bits |= (2 << (end - 1 >> _PAGE_BITS)) - (1 << (gpa >> _PAGE_BITS))
        else:
            super().write(gpa, data)

    def data_ranges(self) -> Iterator[range]:
        yield range(KEPT_BYTES)
        if self.has_content_above():
            above = (range(max(data.start, KEPT_BYTES), data.stop) for data in super().data_ranges())
            yield from (data for data in above if data)

    def close(self) -> None:
        if self._closed:
            return
        self._open_bytes = 0
        if self._snapshot is not None or self.has_content_above():
            super().close()
            return
        self._view[:KEPT_BYTES] = _WIPED
        self._sets.clear()
        self._closed = True
        _free[self.page_count * PAGE_SIZE].append(self)

    def has_content_above(self) -> bool:
        """Whether anybody has ever written there, by whatever way."""
        return not self.is_hole(KEPT_BYTES, self.page_count * PAGE_SIZE)


_free: Final[dict[int, list[LightMemory]]] = defaultdict(list)
"""What is not lent, by its size in bytes."""


def _forget() -> None:
    """Of a process and the one that it was forked from, each would find the other's writes in a shared mapping."""
    for memories in _free.values():
        for memory in memories:
            memory._closed = False
            GuestMemory.close(memory)
    _free.clear()


in_a_forked_process(_forget)
