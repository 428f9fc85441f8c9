"""Light RAM is as good as the real one, and no trace is left in it of the machine that had it before."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.light_memory import KEPT_BYTES, LightDirtyPages, LightMemory
from sim_vmm.memory import PAGE_SIZE, GuestAddressError, GuestMemory
from tests.test_dirty import PAGES, DirtyPagesModel

SIZE = 64 * PAGE_SIZE


class LightDirtyPagesModel(DirtyPagesModel):
    def __init__(self) -> None:
        super().__init__()
        self.real = LightDirtyPages(PAGES)


TestLightDirtyPages = LightDirtyPagesModel.TestCase


@given(writes=st.lists(st.tuples(st.integers(-8, SIZE + 8), st.binary(max_size=2 * PAGE_SIZE)), max_size=8))
def test_what_is_written_is_where_it_is_in_real_ram(writes: list[tuple[int, bytes]]) -> None:
    with LightMemory.lend(SIZE) as light, GuestMemory.create(SIZE) as real:
        for gpa, data in writes:
            outcomes = []
            for memory in (light, real):
                try:
                    memory.write(gpa, data)
                    outcomes.append(memory.read(gpa, len(data)))
                except GuestAddressError as error:
                    outcomes.append(str(error).encode())
            assert outcomes[0] == outcomes[1]
        assert light.view == real.view
        assert light.dirty.dirty_pages().tolist() == real.dirty.dirty_pages().tolist()
        content = bytearray(SIZE)
        for found in light.data_ranges():
            content[found.start : found.stop] = light.view[found.start : found.stop]
        assert content == real.view


def test_ram_is_lent_again_as_if_it_were_new() -> None:
    first = LightMemory.lend(SIZE)
    first.write(PAGE_SIZE - 1, b"two")
    first.dirty.begin_round()
    first.dirty.take(1)
    first.pages[KEPT_BYTES // PAGE_SIZE - 1] = 7
    first.close()
    with LightMemory.lend(SIZE) as second:
        assert second is first
        assert not np.any(second.pages)
        second.dirty.restore()
        assert second.dirty.count == 0


def test_ram_with_content_where_no_guest_writes_is_seen_and_not_lent_again() -> None:
    memory = LightMemory.lend(SIZE)
    memory.pages[KEPT_BYTES // PAGE_SIZE + 3, 5] = 1
    assert [data.start for data in memory.data_ranges()] == [0, KEPT_BYTES + 3 * PAGE_SIZE]
    memory.close()
    with LightMemory.lend(SIZE) as other:
        assert other is not memory
        assert not np.any(other.pages)


def test_ram_that_was_given_back_cannot_be_used() -> None:
    memory = LightMemory.lend(SIZE)
    memory.close()
    with pytest.raises(ValueError, match="this guest RAM is closed"):
        memory.read(0, 1)
    with pytest.raises(ValueError, match="this guest RAM is closed"):
        memory.write(0, b"late")


def test_a_forked_process_has_ram_of_its_own() -> None:
    LightMemory.lend(SIZE).close()
    child = os.fork()
    if child == 0:
        try:
            LightMemory.lend(SIZE).write(0, b"the child's")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with LightMemory.lend(SIZE) as memory:
        assert not np.any(memory.pages)
