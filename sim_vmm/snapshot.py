"""RAM as it was at one instant, readable while the guest goes on writing.

Copy on write by page: before the first write to a page after arming, `save()` keeps its old content.  A page is read
from what was saved, else from RAM, where it is unchanged.  Nothing is copied at arming, so arming costs nothing.

The digest describes content, not storage: a hole, a page of zeros that was written and one never touched are alike.
It is xxh3-128 over the blocks of 256 pages (1 MiB) that hold a non-zero page, in ascending order: first the number of
non-zero pages and their page indices as u64, little-endian, then the pages' content.

Only writes through `GuestMemory.write` and `write_pages` are seen; a migration that receives into the mapping
is not, and takes no snapshot meanwhile.
"""

import errno
import os
from collections.abc import Callable, Generator
from typing import Any, Final, Self

import numpy as np
import numpy.ma  # by np.unique at its first use, for 20 ms: that would be the guest's first step after a move
import numpy.typing as npt
import xxhash

PAGE_SIZE: Final = 4096
#: Pages hashed between two yields: 1 MiB, a tenth of a millisecond.
DIGEST_BLOCK_PAGES: Final = 256

#: Whole pages: shape (n, 4096), uint8.
Pages = npt.NDArray[np.uint8]


def nonzero_pages(pages: Pages) -> npt.NDArray[np.bool_]:
    """For each row of `pages`, shape (n, 4096), C-contiguous: does it hold a byte other than zero?"""
    words = pages.view(np.uint64)
    nonzero: npt.NDArray[np.bool_] = words[:, 0] != 0  # settles nearly every page that is not zero
    candidates = np.flatnonzero(~nonzero)
    if candidates.size:
        nonzero[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) != 0
    return nonzero


class Snapshot:
    """RAM at the instant of making this object.  Close it, or use it as a context manager."""

    def __init__(self, pages: Pages, file: int, on_close: Callable[[], None]) -> None:
        """`pages` is the mapping of all of `file`; `on_close` is called once, when `save` is not needed any more."""
        self._pages: Pages | None = pages
        self._file = file
        self._on_close = on_close
        self._saved: dict[int, Pages] = {}
        self._is_saved: npt.NDArray[np.bool_] = np.zeros(len(pages), dtype=np.bool_)

    def save(self, pages: npt.NDArray[Any]) -> None:
        """Keep the present content of `pages` (indices), unless it is kept already: they are about to be written."""
        first_writes = np.unique(pages[~self._is_saved[pages]])
        for page, content in zip(first_writes.tolist(), self._ram[first_writes], strict=True):
            self._saved[page] = content
        self._is_saved[first_writes] = True

    def read(self, page: int) -> bytes:
        """The 4096 bytes that `page` held.

        Raises:
            IndexError: the machine has no such page.
        """
        ram = self._ram
        if not 0 <= page < len(ram):
            raise IndexError(f"page {page}: the machine has pages 0 to {len(ram) - 1}")
        return bytes(self._saved.get(page, ram[page]).data)

    def digest_steps(self) -> Generator[None, None, str]:
        """Compute the digest, yielding after each MiB of data so that other work can be done; returns 32 hex digits.

        Raises:
            ValueError: the snapshot was closed meanwhile.
        """
        digest = xxhash.xxh3_128()
        block_bytes = DIGEST_BLOCK_PAGES * PAGE_SIZE
        offset = 0
        while (data := self._next_data(offset)) is not None:
            block = data // block_bytes
            first = block * DIGEST_BLOCK_PAGES
            content = self._block(first)
            nonzero = np.flatnonzero(nonzero_pages(content))
            if nonzero.size:
                digest.update(np.array([nonzero.size, *(nonzero + first)], dtype="<u8").data)
                digest.update((content if nonzero.size == len(content) else content[nonzero]).data)
            offset = (block + 1) * block_bytes
            yield
        return str(digest.hexdigest())

    def digest(self) -> str:
        """The digest in one go: 32 hex digits.

        Raises:
            ValueError: the snapshot is closed.
        """
        steps = self.digest_steps()
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                return str(finished.value)

    def close(self) -> None:
        """Stop keeping old pages and forget those kept."""
        if self._pages is None:
            return
        self._pages = None
        self._saved.clear()
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _ram(self) -> Pages:
        if self._pages is None:
            raise ValueError("this snapshot of guest RAM is closed")
        return self._pages

    def _next_data(self, offset: int) -> int | None:
        """The first byte from `offset` that is not in a hole.  Holes only shrink, so none of our data is in one.

        It may be zero: file systems call more than what was written data, and some all of the file.
        """
        if offset >= self._ram.size:
            return None
        try:
            return os.lseek(self._file, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def _block(self, first: int) -> Pages:
        """The pages of the digest block from page `first` as they were."""
        ram = self._ram[first : first + DIGEST_BLOCK_PAGES]
        saved = np.flatnonzero(self._is_saved[first : first + DIGEST_BLOCK_PAGES]).tolist()
        if not saved:
            return ram
        content = ram.copy()
        for row in saved:
            content[row] = self._saved[first + row]
        return content
