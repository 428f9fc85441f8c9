"""Guest RAM: one sparse file, mapped once; in memory only, or at a path, where it outlives its process.

The guest sees *guest-physical addresses* (GPA): up to 3 GiB of RAM from address 0, the rest from 4 GiB, between them a
hole for devices (instance-specs §6, "RAM layout").  We count *pages*: the regions lie back to back in the file, and
page n is the n-th 4096 bytes of it.  Pages that nobody has touched are holes in the file: they read as zero and cost no
host memory, so a 128 GiB machine is free until it is used.

Without a path the file is a memfd and goes with the process.  With one, whatever was written is in the file at once,
however the process ends: the mapping is shared, so the kernel has it, and `open` finds it.  It is not made lasting: the
file outlives its process, not its host.  A guest that touches more than the file system has room for kills its process
(SIGBUS); nothing is set aside beforehand.

There are two ways to write, and they must not be confused:

- The guest and its devices write through `write()` and `write_pages()`.  These mark the pages dirty (dirty.py) and keep
  the old content for an armed snapshot (snapshot.py).
- A migration receives straight into `pages` or `view`, which nobody watches, and calls `mark_dirty()` for what it has
  stored: on the new host, too, "dirty since ever" must be all content (protocol-phases §5), or the machine could
  not migrate on.  `open` does the same for what it finds.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import attrs
import numpy as np
import numpy.typing as npt

from sim_vmm.dirty import DirtyPages, PageIndices
from sim_vmm.snapshot import PAGE_SIZE, Pages, Snapshot, nonzero_pages

__all__ = ["HIGH_RAM_BASE", "LOW_RAM_MAX", "PAGE_SIZE", "GuestAddressError", "GuestMemory", "RamRegion", "ram_layout"]

GIB: Final = 1 << 30
#: RAM below the device hole, in bytes, and the address at which RAM goes on above it.
LOW_RAM_MAX: Final = 3 * GIB
HIGH_RAM_BASE: Final = 4 * GIB
#: Pages looked at together when RAM is opened: 1 MiB, which stays in a cache.
SEARCH_PAGES: Final = 256


def in_a_forked_process(call: Callable[[], None]) -> None:
    """Have this called in every process that is forked from this one: mapped files are shared with it."""
    os.register_at_fork(after_in_child=call)


class GuestAddressError(Exception):
    """A guest-physical address or page that is not RAM."""


@attrs.frozen
class RamRegion:
    """`length` bytes of RAM from guest-physical address `gpa`; both are multiples of the page size."""

    gpa: int
    length: int

    @property
    def end(self) -> int:
        return self.gpa + self.length


def ram_layout(memory_bytes: int) -> tuple[RamRegion, ...]:
    """Where a machine of `memory_bytes` has its RAM (instance-specs §6): one region or two, ascending.

    Raises:
        ValueError: the size is not a positive multiple of the page size.
    """
    if memory_bytes <= 0 or memory_bytes % PAGE_SIZE:
        raise ValueError(f"{memory_bytes} bytes of guest RAM: expected a positive multiple of {PAGE_SIZE}")
    low = RamRegion(0, min(memory_bytes, LOW_RAM_MAX))
    if memory_bytes <= LOW_RAM_MAX:
        return (low,)
    return low, RamRegion(HIGH_RAM_BASE, memory_bytes - LOW_RAM_MAX)


class GuestMemory:
    """The RAM of one machine.  Make it with `create` or `open`; close it, or use it as a context manager."""

    def __init__(self, file: int, memory_bytes: int, dirty: DirtyPages | None = None) -> None:
        """Map `memory_bytes` of the open file descriptor `file`, which this object closes; `dirty` is its own.

        Raises:
            ValueError: the size is not a positive multiple of the page size.
            OSError: the file cannot be mapped.
        """
        self.layout: Final = ram_layout(memory_bytes)
        self._low_bytes: Final = self.layout[0].length
        self.page_count: Final = memory_bytes // PAGE_SIZE
        self.dirty: Final = DirtyPages(self.page_count) if dirty is None else dirty
        self._file = file
        self._mapping = mmap.mmap(file, memory_bytes)
        self._view = memoryview(self._mapping)
        self._pages: Pages = np.frombuffer(self._mapping, dtype=np.uint8).reshape(self.page_count, PAGE_SIZE)
        self._snapshot: Snapshot | None = None
        self._closed = False

    @classmethod
    def create(cls, memory_bytes: int, path: Path | None = None) -> Self:
        """New RAM, all zero, nothing dirty.

        With a `path` its file is there, for this user only.  A file that was there is removed; whoever has it mapped
        keeps it.

        Raises:
            ValueError: the size is not a positive multiple of the page size.
            OSError: the host gives no file of this size.
        """
        ram_layout(memory_bytes)  # refuse a bad size before there is anything to clean up
        if path is None:
            file = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        else:
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, memory_bytes)
            return cls(file, memory_bytes)
        except BaseException as error:
            os.close(file)
            if path is not None:
                path.unlink(missing_ok=True)
            if isinstance(error, OverflowError | MemoryError):  # a spec can ask for more than there are addresses
                raise OSError(errno.ENOMEM, f"this host has no {memory_bytes} bytes of guest RAM") from error
            raise

    @classmethod
    def open(cls, path: Path, memory_bytes: int) -> Self:
        """The RAM that was created at `path`, with its content; every page that is not all zero is dirty.

        Raises:
            ValueError: the size is not a positive multiple of the page size, or not that of the file.
            FileNotFoundError: there is none.
            OSError: the host does not give it.
        """
        ram_layout(memory_bytes)
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            if size != memory_bytes:
                raise ValueError(f"the guest RAM in {path} has {size} bytes, not {memory_bytes}")
            memory = cls(file, memory_bytes)
        except BaseException:
            os.close(file)
            raise
        try:
            memory._mark_content()
        except BaseException:
            memory.close()
            raise
        return memory

    @property
    def pages(self) -> Pages:
        """All of RAM, shape (page_count, 4096), uint8, writable, unwatched: see the module."""
        self._check_open()
        return self._pages

    @property
    def view(self) -> memoryview:
        """All of RAM as writable bytes, page 0 first, unwatched: see the module."""
        self._check_open()
        return self._view

    def page_of(self, gpa: int) -> int:
        """The page that holds the byte at `gpa`.

        Raises:
            GuestAddressError: there is no RAM at `gpa`.
        """
        return self._offset_of(gpa, 1) // PAGE_SIZE

    def gpa_of(self, page: int) -> int:
        """The guest-physical address of the first byte of `page`.

        Raises:
            GuestAddressError: the machine has no such page.
        """
        if not 0 <= page < self.page_count:
            raise self._no_page(page)
        gpa = page * PAGE_SIZE
        return gpa if gpa < LOW_RAM_MAX else gpa + HIGH_RAM_BASE - LOW_RAM_MAX

    def pages_of(self, gpas: npt.NDArray[Any]) -> PageIndices:
        """`page_of` for an array of addresses, with the same error."""
        page = gpas.astype(np.int64) // PAGE_SIZE
        result = np.full(page.shape, -1, dtype=np.int64)
        first = 0
        for region in self.layout:
            inside = (page >= region.gpa // PAGE_SIZE) & (page < region.end // PAGE_SIZE)
            result[inside] = page[inside] - region.gpa // PAGE_SIZE + first
            first += region.length // PAGE_SIZE
        if (result < 0).any():
            raise self._no_ram(int(gpas[result < 0][0]), 1)
        return result

    def gpas_of(self, pages: npt.NDArray[Any]) -> PageIndices:
        """`gpa_of` for an array of pages, with the same error."""
        outside = (pages < 0) | (pages >= self.page_count)
        if outside.any():
            raise self._no_page(int(pages[outside][0]))
        gpas = pages.astype(np.int64) * PAGE_SIZE
        gpas[gpas >= LOW_RAM_MAX] += HIGH_RAM_BASE - LOW_RAM_MAX
        return gpas

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes from `gpa`; page boundaries do not matter.

        Raises:
            GuestAddressError: a byte of the range is not RAM.
        """
        offset = self._offset_of(gpa, length)
        return bytes(self.view[offset : offset + length])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `gpa` as the guest or a device does; page boundaries do not matter.

        Raises:
            GuestAddressError: a byte of the range is not RAM; nothing is written.
        """
        length = len(data)
        offset = self._offset_of(gpa, length)
        if length == 0:
            return
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        if self._snapshot is not None:
            self._snapshot.save(np.arange(first, end))
        self.view[offset : offset + length] = data
        self.dirty.mark_range(first, end)

    def write_pages(self, page_indices: npt.NDArray[Any], values: npt.NDArray[np.uint8]) -> None:
        """Write whole pages as the guest does: `values`, shape (n, 4096), to the n pages of `page_indices`.

        Raises:
            GuestAddressError: a page outside the machine; nothing is written.
        """
        self.gpas_of(page_indices)
        if self._snapshot is not None:
            self._snapshot.save(page_indices)
        self.pages[page_indices] = values
        self.dirty.mark(page_indices)

    def data_ranges(self) -> Iterator[range]:
        """The bytes of `view` that are no holes: whole pages, ascending.

        All others are zero, and reading them would cost memory.  A file system may call all of the file data.
        """
        size, end = len(self.view), 0
        while end < size:
            try:
                data = os.lseek(self._file, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            # The blocks of a file system need not be pages.
            start = data // PAGE_SIZE * PAGE_SIZE
            end = -(-os.lseek(self._file, data, os.SEEK_HOLE) // PAGE_SIZE) * PAGE_SIZE
            yield range(start, end)

    def is_hole(self, begin: int, end: int) -> bool:
        """Whether nobody has touched the bytes `begin` to `end` of `view`: reading them would give zero."""
        try:
            return os.lseek(self._file, begin, os.SEEK_DATA) >= end
        except OSError as error:
            if error.errno == errno.ENXIO:
                return True
            raise

    def fill(self, begin: int, content: memoryview) -> None:
        """Store what a migration has received for the bytes from `begin` on of `view`: whole pages that are a hole.

        The same as a write to `view`, through the file: without the faults of a first touch, and without zeroing pages
        that are overwritten at once.

        Raises:
            OSError: the host has no room for them.
        """
        self._check_open()
        while content:
            count = os.pwrite(self._file, content, begin)
            content, begin = content[count:], begin + count

    def mark_dirty(self, pages: npt.NDArray[Any]) -> None:
        """Pages that a migration has received into `pages` or `view` are dirty: see the module.

        Raises:
            IndexError: a page outside the machine; nothing is marked.
        """
        self.dirty.mark(pages)

    def snapshot(self) -> Snapshot:
        """RAM as it is now, while the guest goes on writing; close it to stop keeping old pages.

        Raises:
            RuntimeError: another snapshot is armed.
        """
        if self._snapshot is not None:
            raise RuntimeError("a snapshot of this RAM is armed; close it before taking another")
        self._snapshot = Snapshot(self.pages, self._file, self._disarm)
        return self._snapshot

    def close(self) -> None:
        """Give the memory back.  Arrays and views still held elsewhere keep the mapping alive until they go."""
        if self._closed:
            return
        self._closed = True
        if self._snapshot is not None:
            self._snapshot.close()
        os.close(self._file)
        self._pages = np.empty((0, PAGE_SIZE), dtype=np.uint8)
        try:
            self._view.release()
            self._mapping.close()
        except BufferError:
            # Somebody still holds a view.  The mapping goes with the last of them, if it is not held here as well: this
            # object may stay for long, as a machine and its devices know each other.
            del self._mapping

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mark_content(self) -> None:
        for data in self.data_ranges():
            for first in range(data.start // PAGE_SIZE, data.stop // PAGE_SIZE, SEARCH_PAGES):
                content = self._pages[first : min(first + SEARCH_PAGES, data.stop // PAGE_SIZE)]
                self.dirty.mark(first + np.flatnonzero(nonzero_pages(content)))

    def _disarm(self) -> None:
        self._snapshot = None

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this guest RAM is closed")

    def _offset_of(self, gpa: int, length: int) -> int:
        """Where `length` bytes from `gpa` lie in the file."""
        if 0 <= gpa <= gpa + length <= self._low_bytes:
            return gpa
        offset = 0
        for region in self.layout:
            if region.gpa <= gpa <= gpa + length <= region.end:
                return offset + gpa - region.gpa
            offset += region.length
        raise self._no_ram(gpa, length)

    def _no_page(self, page: int) -> GuestAddressError:
        return GuestAddressError(f"page {page}: the machine has pages 0 to {self.page_count - 1}")

    def _no_ram(self, gpa: int, length: int) -> GuestAddressError:
        regions = ", ".join(f"{region.gpa:#x}-{region.end - 1:#x}" for region in self.layout)
        return GuestAddressError(f"{length} bytes at guest address {gpa:#x} are not RAM; RAM is at {regions}")
