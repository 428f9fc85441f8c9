"""Which guest pages still have to be sent.

A page is dirty from the moment the guest writes it until an attempt to migrate has taken it.  An attempt works in
rounds: `begin_round()` fixes the pages of the round, `take()` hands them out as in flight, `acknowledge()` notes that
the target has stored what was in flight.  A page that the guest writes after it was taken is dirty again and waits for
the next round; one written while it waits to be taken is sent once, with its newest content, because whoever takes a
page reads it afterwards.

A target that stored pages may still be lost, and the next attempt may go to another one.  So acknowledged pages are
remembered as sent until the attempt ends: `restore()` makes everything taken in it dirty again, `settle()` forgets it
(protocol-phases §5, "Accumulated map").

Invariant: dirty | in_flight | sent covers every page whose content the target of a new attempt would lack.  It holds
from birth, when RAM is all zero and a fresh target lacks nothing: "dirty since ever" is all content.

Elsewhere: when to stop copying and pause the guest (migrate.engine), who marks pages (memory.py).
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Page indices, 64-bit; page flags.
PageIndices = npt.NDArray[np.int64]
PageFlags = npt.NDArray[np.bool_]

#: 128 MiB of RAM, the chunk of protocol-phases §4: a machine of 128 GiB has 1024 of them.
BLOCK_BITS: Final = 15
BLOCK_PAGES: Final = 1 << BLOCK_BITS


_NO_PAGES: Final[PageIndices] = np.empty(0, dtype=np.int64)


class PageSet:
    """A set of pages that costs nothing where it is empty: one flag a page, one a block of `BLOCK_PAGES`.

    A block's flag may stay set after its last page has left; it is never clear while a page is in the block.  `pop`
    takes a block apart and keeps the rest of it in a queue: who pops adds nothing until the set is empty or cleared.
    """

    def __init__(self, page_count: int) -> None:
        block_count = -(-page_count // BLOCK_PAGES)
        self._flags: PageFlags = np.zeros((block_count, BLOCK_PAGES), dtype=np.bool_)
        self._flat: PageFlags = self._flags.reshape(-1)
        self._occupied: PageFlags = np.zeros(block_count, dtype=np.bool_)
        self._queue = _NO_PAGES

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(self._flags[block])) for block in self._blocks())

    def add(self, pages: npt.NDArray[Any]) -> None:
        self._flat[pages] = True
        self._occupied[pages >> BLOCK_BITS] = True

    def add_range(self, first: int, end: int) -> None:
        """Add pages `first` to `end`, `end` excluded."""
        self._flat[first:end] = True
        self._occupied[first // BLOCK_PAGES : -(-end // BLOCK_PAGES)] = True

    def discard(self, pages: PageIndices) -> None:
        self._flat[pages] = False

    def update(self, other: "PageSet") -> None:
        for block in other._blocks():
            self._flags[block] |= other._flags[block]
            self._occupied[block] = True

    def clear(self) -> None:
        for block in self._blocks():
            self._flags[block] = False
        self._occupied[:] = False
        self._queue = _NO_PAGES

    def pop(self, limit: int) -> PageIndices:
        """Remove and return the lowest pages, ascending, up to `limit`; an empty array if the set is empty."""
        popped: list[PageIndices] = []
        wanted = limit
        while wanted > 0:
            if self._queue.size == 0:
                self._queue = self._pop_block()
            if self._queue.size == 0:
                break
            popped.append(self._queue[:wanted])
            self._queue = self._queue[wanted:]
            wanted -= popped[-1].size
        return popped[0] if len(popped) == 1 else np.concatenate([_NO_PAGES, *popped])

    def _pop_block(self) -> PageIndices:
        """Remove and return the pages of the lowest occupied block, ascending; an empty array if the set is empty."""
        for block in self._blocks():
            pages: PageIndices = self._flags[block].nonzero()[0]
            self._flags[block] = False
            self._occupied[block] = False
            if pages.size:
                return pages.astype(np.int64, copy=False) + block * BLOCK_PAGES
        return _NO_PAGES

    def pages(self) -> PageIndices:
        """All pages of the set, ascending."""
        found = [self._flags[block].nonzero()[0] + block * BLOCK_PAGES for block in self._blocks()]
        return np.concatenate([_NO_PAGES, *found])

    def _blocks(self) -> list[int]:
        blocks: list[int] = self._occupied.nonzero()[0].tolist()
        return blocks


class DirtyPages:
    """The dirty pages of a machine of `page_count` pages, and those that an attempt has taken.  See the module.

    `page_set` makes the sets that they are kept in.
    """

    def __init__(self, page_count: int, page_set: Callable[[int], PageSet] = PageSet) -> None:
        self._page_count = page_count
        self._dirty = page_set(page_count)
        self._pending = page_set(page_count)
        self._in_flight = page_set(page_count)
        self._sent = page_set(page_count)

    @property
    def count(self) -> int:
        """Pages dirty now, those of the current round that are not taken yet included."""
        return len(self._dirty)

    def mark(self, pages: npt.NDArray[Any]) -> None:
        """The guest wrote `pages` (indices of any integer type, any order, repeats allowed).

        Raises:
            IndexError: a page outside the machine; nothing is marked.
        """
        if pages.size == 0:
            return
        lowest, highest = int(pages.min()), int(pages.max())
        if lowest < 0 or highest >= self._page_count:
            raise IndexError(
                f"pages {lowest} to {highest} to mark dirty: the machine has pages 0 to {self._page_count - 1}"
            )
        self._dirty.add(pages)

    def mark_range(self, first: int, end: int) -> None:
        """The guest wrote pages `first` to `end`, `end` excluded.

        Raises:
            IndexError: a page outside the machine; nothing is marked.
        """
        if not 0 <= first <= end <= self._page_count:
            raise IndexError(
                f"pages {first} to {end - 1} to mark dirty: the machine has pages 0 to {self._page_count - 1}"
            )
        if first < end:
            self._dirty.add_range(first, end)

    def begin_round(self) -> int:
        """Fix the pages of the next round to those dirty now, and say how many they are."""
        self._pending.clear()
        self._pending.update(self._dirty)
        return len(self._pending)

    def take(self, limit: int) -> PageIndices:
        """Up to `limit` pages of this round, ascending, now in flight; an empty array when the round is over.

        Their content must be read after this call: a write from here on makes a page dirty again.
        """
        taken = self._pending.pop(limit)
        if taken.size:
            self._dirty.discard(taken)
            self._in_flight.add(taken)
        return taken

    def acknowledge(self) -> None:
        """The target has stored everything in flight: in flight -> sent."""
        self._sent.update(self._in_flight)
        self._in_flight.clear()

    def restore(self) -> None:
        """The attempt failed: in flight and sent -> dirty.  The next attempt, to whatever target, sends them too."""
        self._dirty.update(self._in_flight)
        self._dirty.update(self._sent)
        self.settle()

    def settle(self) -> None:
        """The attempt is over and its pages are not ours to send again: forget what was in flight and sent."""
        self._in_flight.clear()
        self._sent.clear()
        self._pending.clear()

    def covered_pages(self) -> PageIndices:
        """All pages that the next attempt would send if this one failed now, or none was under way; for audits."""
        return np.unique(np.concatenate([pages.pages() for pages in (self._dirty, self._in_flight, self._sent)]))

    def dirty_pages(self) -> PageIndices:
        """All dirty pages, ascending, for audits; migrations use `take`."""
        return self._dirty.pages()
