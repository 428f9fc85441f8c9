"""Snapshots: RAM stands still in them, and their digest is of content alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.memory import PAGE_SIZE, GuestMemory
from sim_vmm.snapshot import nonzero_pages

MIB = 1 << 20
PAGES = 600  # two whole digest blocks and a part
SIZE = PAGES * PAGE_SIZE

Writes = list[tuple[int, bytes]]
writes = st.lists(
    st.tuples(st.integers(0, SIZE - 10), st.sampled_from([b"\0", b"a", b"\0" * 10, b"guest data"])), max_size=12
)


def digest_of(memory: GuestMemory) -> str:
    with memory.snapshot() as snapshot:
        return snapshot.digest()


def apply(memory: GuestMemory, changes: Writes) -> None:
    for gpa, data in changes:
        memory.write(gpa, data)


@given(before=writes, meanwhile=st.lists(writes, max_size=4))
def test_a_digest_is_that_of_a_copy_whatever_the_guest_writes_meanwhile(
    before: Writes, meanwhile: list[Writes]
) -> None:
    with GuestMemory.create(SIZE) as memory, GuestMemory.create(SIZE) as copy:
        apply(memory, before)
        content = memory.pages.copy()
        copy.write_pages(np.arange(PAGES), content)  # every page touched: no holes
        with memory.snapshot() as snapshot:
            steps = snapshot.digest_steps()
            result = None
            pending = list(meanwhile)
            while result is None:
                if pending:
                    apply(memory, pending.pop())
                try:
                    next(steps)
                except StopIteration as finished:
                    result = finished.value
            for page in range(0, PAGES, 7):
                assert snapshot.read(page) == content[page].tobytes()
        assert result == digest_of(copy)


@pytest.mark.parametrize(
    "change",
    [(0, b"x"), (SIZE - 1, b"x"), (4096 * 256, b"\1"), (5000, b"\2")],
)
def test_one_byte_changes_the_digest(change: tuple[int, bytes]) -> None:
    with GuestMemory.create(SIZE) as memory:
        memory.write(5000, b"\1")
        before = digest_of(memory)
        memory.write(*change)
        assert digest_of(memory) != before


def test_content_moved_to_another_page_changes_the_digest() -> None:
    with GuestMemory.create(SIZE) as here, GuestMemory.create(SIZE) as there:
        here.write(0, b"x")
        there.write(4096, b"x")
        assert digest_of(here) != digest_of(there)


def test_bulk_writes_are_kept_out_as_well() -> None:
    with GuestMemory.create(SIZE) as memory:
        memory.write(3 * PAGE_SIZE, b"old")
        before = digest_of(memory)
        with memory.snapshot() as snapshot:
            memory.write_pages(np.array([3, 4, 3]), np.ones((3, PAGE_SIZE), dtype=np.uint8))
            memory.write_pages(np.array([3, 4]), np.zeros((2, PAGE_SIZE), dtype=np.uint8))
            assert snapshot.read(3)[:3] == b"old"
            assert snapshot.digest() == before


def test_the_digest_of_empty_ram_and_of_one_page_never_changes() -> None:
    """Frozen: two releases must compute the same, whatever their code."""
    with GuestMemory.create(SIZE) as memory:
        assert digest_of(memory) == "99aa06d3014798d86001c324468d497f"
        memory.write(300 * PAGE_SIZE, b"\1")
        assert digest_of(memory) == "5f96d1eeff070ab2fdd798d6b60f5299"


def test_digesting_yields_once_a_mib() -> None:
    with GuestMemory.create(4 * MIB) as memory:
        memory.write_pages(np.arange(1024), np.ones((1024, PAGE_SIZE), dtype=np.uint8))
        with memory.snapshot() as snapshot:
            assert len(list(snapshot.digest_steps())) == 4


def test_only_one_snapshot_is_armed_at_a_time() -> None:
    with GuestMemory.create(SIZE) as memory:
        with memory.snapshot(), pytest.raises(RuntimeError, match="close it before taking another"):
            memory.snapshot()
        memory.snapshot().close()


def test_a_closed_snapshot_is_refused() -> None:
    with GuestMemory.create(SIZE) as memory:
        snapshot = memory.snapshot()
        snapshot.close()
        with pytest.raises(ValueError, match="closed"):
            snapshot.digest()


@given(st.lists(st.sampled_from([-1, 0, 7, 8, 2048, 4095]), max_size=20))
def test_zero_pages_are_told_from_others_wherever_the_byte_is(positions: list[int]) -> None:
    pages = np.zeros((len(positions), PAGE_SIZE), dtype=np.uint8)
    for row, position in enumerate(positions):
        if position >= 0:
            pages[row, position] = 1
    assert nonzero_pages(pages).tolist() == [position >= 0 for position in positions]
