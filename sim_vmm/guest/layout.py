"""RAM that looks used, as after the boot of a real system: without it there would be nothing to migrate.

It lies at the end of RAM, in the order of pages:

    filled         a quarter of RAM, at most 256 MiB, of pseudo-random pages: the booted system
    zeroed         a sixteenth of that, of pages that were touched and are zero
    working set    a sixteenth of RAM, at most 16 MiB, which programs write to
"""

from typing import Final

import attrs
import numpy as np

from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE, GuestMemory

FILLED_PAGES_MAX: Final = 65536  # 256 MiB
WORKING_SET_PAGES_MAX: Final = 4096  # 16 MiB
FILL_CHUNK_PAGES: Final = 1024


@attrs.frozen
class SystemLayout:
    """The pages that look used in a machine of `page_count` pages, of which there must be at least 256 (1 MiB)."""

    page_count: int

    @property
    def working_set(self) -> range:
        return range(self.page_count - min(self.page_count // 16, WORKING_SET_PAGES_MAX), self.page_count)

    @property
    def zeroed(self) -> range:
        return range(self.working_set.start - self._filled_count // 16, self.working_set.start)

    @property
    def filled(self) -> range:
        return range(self.zeroed.start - self._filled_count, self.zeroed.start)

    @property
    def _filled_count(self) -> int:
        return min(self.page_count // 4, FILLED_PAGES_MAX)


def fill_system(machine: Machine, seed: int) -> SystemLayout:
    """Make RAM look used; the same seed gives the same content."""
    memory = machine.memory
    layout = SystemLayout(memory.page_count)
    generator = np.random.Generator(np.random.SFC64(seed))
    for first in range(layout.filled.start, layout.filled.stop, FILL_CHUNK_PAGES):
        pages = np.arange(first, min(first + FILL_CHUNK_PAGES, layout.filled.stop))
        words = generator.integers(1, 1 << 64, size=(len(pages), PAGE_SIZE // 8), dtype=np.uint64)
        memory.write_pages(pages, words.view(np.uint8))
    zero_pages(memory, layout.zeroed)
    return layout


def zero_pages(memory: GuestMemory, pages: range) -> None:
    """Touch pages without leaving anything in them."""
    memory.write_pages(np.array(pages, dtype=np.int64), np.zeros((len(pages), PAGE_SIZE), dtype=np.uint8))
