"""Guest RAM: where it lies, how it is written, what of it is dirty."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sim_vmm.memory import HIGH_RAM_BASE, LOW_RAM_MAX, PAGE_SIZE, GuestAddressError, GuestMemory, RamRegion, ram_layout

MIB = 1 << 20
GIB = 1 << 30
LOW_PAGES = LOW_RAM_MAX // PAGE_SIZE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(MIB) as memory:
        yield memory


@pytest.fixture
def split() -> Iterator[GuestMemory]:
    """A machine with RAM on both sides of the hole."""
    with GuestMemory.create(5 * GIB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("memory_bytes", "layout"),
    [
        (PAGE_SIZE, (RamRegion(0, PAGE_SIZE),)),
        (3 * GIB, (RamRegion(0, 3 * GIB),)),
        (3 * GIB + PAGE_SIZE, (RamRegion(0, 3 * GIB), RamRegion(4 * GIB, PAGE_SIZE))),
        (128 * GIB, (RamRegion(0, 3 * GIB), RamRegion(4 * GIB, 125 * GIB))),
    ],
)
def test_ram_beyond_three_gib_goes_on_above_the_hole(memory_bytes: int, layout: tuple[RamRegion, ...]) -> None:
    assert ram_layout(memory_bytes) == layout


@pytest.mark.parametrize("memory_bytes", [0, -PAGE_SIZE, PAGE_SIZE + 1])
def test_ram_that_is_not_whole_pages_is_refused(memory_bytes: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 4096"):
        GuestMemory.create(memory_bytes)


@pytest.mark.parametrize(
    ("gpa", "page"),
    [
        (0, 0),
        (4095, 0),
        (4096, 1),
        (3 * GIB - 1, LOW_PAGES - 1),
        (4 * GIB, LOW_PAGES),
        (6 * GIB - 1, 5 * GIB // 4096 - 1),
    ],
)
def test_addresses_and_pages_correspond(split: GuestMemory, gpa: int, page: int) -> None:
    assert split.page_of(gpa) == page
    assert split.pages_of(np.array([gpa])).tolist() == [page]
    assert split.gpa_of(page) == gpa // PAGE_SIZE * PAGE_SIZE


@pytest.mark.parametrize("gpa", [-1, 3 * GIB, 4 * GIB - 1, 6 * GIB, 1 << 60])
def test_an_address_that_is_not_ram_is_refused_by_name(split: GuestMemory, gpa: int) -> None:
    for refused in (
        lambda: split.page_of(gpa),
        lambda: split.pages_of(np.array([0, gpa])),
        lambda: split.read(gpa, 1),
        lambda: split.write(gpa, b"x"),
    ):
        with pytest.raises(GuestAddressError, match=f"guest address {gpa:#x} are not RAM; RAM is at 0x0-0xbfffffff"):
            refused()
    assert split.dirty.count == 0


def test_a_write_into_the_hole_writes_nothing(split: GuestMemory) -> None:
    with pytest.raises(GuestAddressError):
        split.write(LOW_RAM_MAX - 2, b"abcd")
    assert split.read(LOW_RAM_MAX - 2, 2) == b"\0\0"


@pytest.mark.parametrize("page", [-1, 256])
def test_a_page_outside_the_machine_is_refused(memory: GuestMemory, page: int) -> None:
    with pytest.raises(GuestAddressError, match="has pages 0 to 255"):
        memory.gpa_of(page)
    with pytest.raises(GuestAddressError, match="has pages 0 to 255"):
        memory.write_pages(np.array([0, page]), np.ones((2, PAGE_SIZE), dtype=np.uint8))
    assert memory.dirty.count == 0


def test_what_is_written_is_read_and_dirty(split: GuestMemory) -> None:
    split.write(HIGH_RAM_BASE + 4090, b"across pages")
    assert split.read(HIGH_RAM_BASE + 4088, 14) == b"\0\0across pages"
    assert split.dirty.dirty_pages().tolist() == [LOW_PAGES, LOW_PAGES + 1]


def test_an_empty_write_makes_nothing_dirty(memory: GuestMemory) -> None:
    memory.write(100, b"")
    assert memory.dirty.count == 0


def test_whole_pages_are_written_at_once(memory: GuestMemory) -> None:
    values = np.arange(2 * PAGE_SIZE, dtype=np.uint64).astype(np.uint8).reshape(2, PAGE_SIZE)
    memory.write_pages(np.array([7, 3]), values)
    assert memory.read(3 * PAGE_SIZE, PAGE_SIZE) == values[1].tobytes()
    assert memory.dirty.dirty_pages().tolist() == [3, 7]


def test_a_migration_receives_unwatched_and_then_marks(memory: GuestMemory) -> None:
    memory.view[5 * PAGE_SIZE : 5 * PAGE_SIZE + 3] = b"abc"
    memory.pages[6] = 1
    assert memory.read(5 * PAGE_SIZE, 3) == b"abc"
    assert memory.dirty.count == 0
    memory.mark_dirty(np.array([5, 6]))
    assert memory.dirty.dirty_pages().tolist() == [5, 6]


def test_a_huge_machine_costs_only_what_it_touches() -> None:
    with GuestMemory.create(128 * GIB) as memory:
        memory.write(100 * GIB, b"x")
        assert memory.dirty.begin_round() == 1
        assert memory.dirty.take(256).tolist() == [memory.page_of(100 * GIB)]
        blocks_of_512 = os.fstat(memory._file).st_blocks
        assert blocks_of_512 * 512 <= 4 * MIB


def test_closing_gives_everything_back_and_may_be_repeated() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    memory = GuestMemory.create(MIB)
    memory.snapshot()
    memory.close()
    memory.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(ValueError, match="closed"):
        memory.write(0, b"x")


def test_closing_leaves_borrowed_pages_readable() -> None:
    memory = GuestMemory.create(MIB)
    memory.write(0, b"x")
    borrowed = memory.pages
    memory.close()
    assert borrowed[0, 0] == ord("x")
