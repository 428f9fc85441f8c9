"""Dirty pages: rounds, failures, and the invariant against a model of sets."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sim_vmm.dirty import BLOCK_PAGES, DirtyPages

PAGES = 3 * BLOCK_PAGES - 7


def mark(dirty: DirtyPages, *pages: int) -> None:
    dirty.mark(np.array(pages))


def take_all(dirty: DirtyPages) -> list[int]:
    dirty.begin_round()
    return [int(page) for page in dirty.take(PAGES)]


def test_pages_are_taken_in_ascending_order_and_once() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, BLOCK_PAGES + 1, 5, PAGES - 1, 5, 0)
    assert dirty.count == 4
    assert dirty.begin_round() == 4
    assert dirty.take(3).tolist() == [0, 5, BLOCK_PAGES + 1]
    assert dirty.take(3).tolist() == [PAGES - 1]
    assert dirty.take(3).tolist() == []
    assert dirty.count == 0


def test_a_page_written_after_the_round_began_waits_for_the_next() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, 1, 3)
    dirty.begin_round()
    mark(dirty, 2)
    assert dirty.take(10).tolist() == [1, 3]
    assert take_all(dirty) == [2]


def test_a_page_written_again_before_it_is_taken_is_sent_once() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, 1)
    dirty.begin_round()
    mark(dirty, 1)
    assert dirty.take(10).tolist() == [1]
    assert take_all(dirty) == []


def test_a_page_written_after_it_is_taken_is_sent_again() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, 1)
    dirty.begin_round()
    dirty.take(10)
    mark(dirty, 1)
    assert take_all(dirty) == [1]


def test_a_failed_attempt_makes_every_page_it_took_dirty_again() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, 1, 2)
    take_all(dirty)
    dirty.acknowledge()
    mark(dirty, 3)
    take_all(dirty)
    dirty.restore()
    assert take_all(dirty) == [1, 2, 3]


def test_an_attempt_that_failed_in_the_middle_of_a_round_loses_nothing() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, *range(100))
    dirty.begin_round()
    dirty.take(10)
    dirty.restore()
    assert dirty.take(10).size == 0
    assert take_all(dirty) == list(range(100))


def test_after_a_success_nothing_is_remembered() -> None:
    dirty = DirtyPages(PAGES)
    mark(dirty, 1, 2)
    take_all(dirty)
    dirty.acknowledge()
    dirty.settle()
    dirty.restore()
    assert dirty.count == 0


def test_a_range_may_cross_blocks() -> None:
    dirty = DirtyPages(PAGES)
    dirty.mark_range(BLOCK_PAGES - 2, 2 * BLOCK_PAGES + 1)
    assert take_all(dirty) == list(range(BLOCK_PAGES - 2, 2 * BLOCK_PAGES + 1))


@pytest.mark.parametrize("page", [-1, PAGES])
def test_a_page_outside_the_machine_is_refused(page: int) -> None:
    dirty = DirtyPages(PAGES)
    with pytest.raises(IndexError, match=f"has pages 0 to {PAGES - 1}"):
        mark(dirty, page)
    with pytest.raises(IndexError, match=f"has pages 0 to {PAGES - 1}"):
        dirty.mark_range(min(page, 0), page + 1)
    assert dirty.count == 0


class DirtyPagesModel(RuleBasedStateMachine):
    """The same as sets.  `lacking` is what a fresh target would lack: everything ever written and not settled."""

    def __init__(self) -> None:
        super().__init__()
        self.real = DirtyPages(PAGES)
        self.dirty: set[int] = set()
        self.round: set[int] = set()
        self.in_flight: set[int] = set()
        self.sent: set[int] = set()
        self.lacking: set[int] = set()

    @rule(pages=st.lists(st.integers(0, PAGES - 1), max_size=8))
    def write(self, pages: list[int]) -> None:
        self.real.mark(np.array(pages, dtype=np.int64))
        self.dirty |= set(pages)
        self.lacking |= set(pages)

    @rule(first=st.integers(0, PAGES - 1), length=st.integers(0, 5))
    def write_range(self, first: int, length: int) -> None:
        pages = range(first, min(first + length, PAGES))
        self.real.mark_range(pages.start, pages.stop)
        self.dirty |= set(pages)
        self.lacking |= set(pages)

    @rule()
    def begin_round(self) -> None:
        self.round = set(self.dirty)
        assert self.real.begin_round() == len(self.round)

    @rule(limit=st.integers(0, 6))
    def take(self, limit: int) -> None:
        expected = sorted(self.round)[:limit]
        assert self.real.take(limit).tolist() == expected
        self.round -= set(expected)
        self.dirty -= set(expected)
        self.in_flight |= set(expected)

    @rule()
    def acknowledge(self) -> None:
        self.real.acknowledge()
        self.sent |= self.in_flight
        self.in_flight = set()

    @rule()
    def fail(self) -> None:
        self.real.restore()
        self.dirty |= self.in_flight | self.sent
        self.round, self.in_flight, self.sent = set(), set(), set()
        assert self.dirty == self.lacking

    @rule()
    def succeed(self) -> None:
        self.real.settle()
        self.round, self.in_flight, self.sent = set(), set(), set()
        self.lacking = set(self.dirty)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.real.dirty_pages().tolist() == sorted(self.dirty)
        assert self.real.count == len(self.dirty)
        assert self.dirty | self.in_flight | self.sent == self.lacking


TestDirtyPagesModel = DirtyPagesModel.TestCase
