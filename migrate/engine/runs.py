"""Sets of guest pages as a message carries them: runs of consecutive page frames, eight bytes each.

A page frame is a guest-physical address over 4096.  A run is its first frame and a count, two big-endian u32, so RAM up
to 16 TiB can be named; runs ascend and do not overlap.  A MiB of consecutive pages is one run; a MiB of scattered pages
is 256 runs, 2 KiB, and numpy reads and writes them at once: as extents, one object each, they cost several times what
moving their contents costs.
"""

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from migrate.errors import RemoteProtocolError
from sim_vmm.memory import PAGE_SIZE, GuestAddressError, GuestMemory

PageIndices = npt.NDArray[np.int64]

WORD: Final = np.dtype(">u4")
ONE_RUN: Final = struct.Struct("!II")
RUN_BYTES: Final = ONE_RUN.size
NO_PAGES: Final[PageIndices] = np.empty(0, dtype=np.int64)


def is_one_run(pages: PageIndices) -> bool:
    """Whether ascending page numbers have no gap."""
    return pages.size > 0 and int(pages[-1]) - int(pages[0]) + 1 == pages.size


def pack(memory: GuestMemory, pages: PageIndices) -> bytes:
    """The runs of ascending page numbers."""
    if not pages.size:
        return b""
    if is_one_run(pages):
        first, last = (memory.gpa_of(int(page)) // PAGE_SIZE for page in (pages[0], pages[-1]))
        if last - first + 1 == pages.size:  # else the hole of the devices lies between them
            return ONE_RUN.pack(first, pages.size)
    frames = memory.gpas_of(pages) // PAGE_SIZE
    starts = np.flatnonzero(np.diff(frames, prepend=-2) != 1)
    runs = np.empty((starts.size, 2), dtype=WORD)
    runs[:, 0] = frames[starts]
    runs[:, 1] = np.diff(starts, append=frames.size)
    return runs.tobytes()


def unpack(memory: GuestMemory, runs: bytes, what: str, pages_max: int) -> PageIndices:
    """The page numbers of `runs`, ascending.

    Raises:
        RemoteProtocolError: half a run, an empty one, one that does not lie above the one before, more than `pages_max`
            pages, or one that is not RAM.
    """
    if not runs:
        return NO_PAGES
    if len(runs) % RUN_BYTES:
        raise RemoteProtocolError(f"{what} of a RAM batch: {len(runs)} bytes are no whole runs of {RUN_BYTES}")
    if len(runs) == RUN_BYTES:
        first, count = ONE_RUN.unpack(runs)
        one = _one_run(memory, first, count, pages_max)
        if one is not None:
            return one
    table = np.frombuffer(runs, dtype=WORD).reshape(-1, 2).astype(np.int64)
    firsts, counts = table[:, 0], table[:, 1]
    total = int(counts.sum())
    if total > pages_max:
        raise RemoteProtocolError(f"{what} of a RAM batch: {total} pages; at most {pages_max} are allowed")
    bad = np.flatnonzero((counts == 0) | (firsts < np.append(0, (firsts + counts)[:-1])))
    if bad.size:
        first, count = table[bad[0]].tolist()
        raise RemoteProtocolError(
            f"{what} of a RAM batch: the run of {count} pages at {first * PAGE_SIZE:#x} is empty, or does not lie "
            "above the one before"
        )
    return _ram_pages(memory, firsts, counts, total, what)


def _one_run(memory: GuestMemory, first: int, count: int, pages_max: int) -> PageIndices | None:
    """Most batches are one run, which needs no arrays to be judged; None if anything is wrong with it."""
    try:
        begin, end = memory.page_of(first * PAGE_SIZE), memory.page_of((first + count - 1) * PAGE_SIZE) + 1
    except GuestAddressError:
        return None
    return np.arange(begin, end, dtype=np.int64) if 0 < count == end - begin <= pages_max else None


def _ram_pages(memory: GuestMemory, firsts: PageIndices, counts: PageIndices, total: int, what: str) -> PageIndices:
    try:
        begins = memory.pages_of(firsts * PAGE_SIZE)
        ends = memory.pages_of((firsts + counts - 1) * PAGE_SIZE)
    except GuestAddressError as error:
        raise RemoteProtocolError(f"{what} of a RAM batch: {error}") from None
    across = np.flatnonzero(ends - begins + 1 != counts)
    if across.size:
        first, count = int(firsts[across[0]]), int(counts[across[0]])
        raise RemoteProtocolError(
            f"{what} of a RAM batch: {first * PAGE_SIZE:#x} + {count * PAGE_SIZE:#x} spans a hole"
        )
    before = np.append(0, np.cumsum(counts)[:-1])
    return np.repeat(begins - before, counts) + np.arange(total, dtype=np.int64)
