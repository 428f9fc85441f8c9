"""The dirty guest: a rate, a working set, hot and cold, and nothing made up for after an absence."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from sim_vmm.clock import ManualClock
from sim_vmm.guest import DirtyGuest, GuestDoesNotFit, guest_in, make_guest
from sim_vmm.guest.dirty import STEP_NS_MAX, STEP_WRITES_MAX, DirtyState, pages_written, splitmix64
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE
from tests.machines import COM1, MIB, make_machine

MS = 10**6


@pytest.fixture
def host() -> ManualClock:
    return ManualClock(monotonic=10**9, wall=10**18)


@pytest.fixture
def machine(host: ManualClock) -> Iterator[Machine]:
    with make_machine(COM1, host_clock=host) as made:
        yield made


def run(machine: Machine, host: ManualClock, steps: int, every_ns: int = 5 * MS) -> None:
    for _ in range(steps):
        host.advance(every_ns)
        guest_in(machine.memory).step(machine)


def state_of(machine: Machine) -> DirtyState:
    state = DirtyState.load(machine.memory)
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("text", "rate", "working_set"),
    [
        ("dirty:200M,64M", 200 * MIB, 64 * MIB),
        ("dirty:5000p,64M", 5000 * PAGE_SIZE, 64 * MIB),
        ("dirty:1.5G,1048576", 3 * 512 * MIB, MIB),
        ("dirty:0,4K", 0, 4096),
        ("dirty:5p", 5 * PAGE_SIZE, 16 * MIB),
        ("dirty", 100 * MIB, 16 * MIB),
        ("dirty:2Kp,1G", 2048 * PAGE_SIZE, 1024 * MIB),
    ],
)
def test_rate_and_working_set_are_read(text: str, rate: int, working_set: int) -> None:
    assert make_guest(text) == DirtyGuest(rate=rate, working_set=working_set)


@pytest.mark.parametrize("arguments", [":200M,", ":,64M", ":,", ":200M,0", ":fast,64M", ":-1,4K", ":1M,2M,3M"])
def test_other_arguments_are_refused_with_an_example(arguments: str) -> None:
    with pytest.raises(ValueError, match="expected dirty:RATE,WORKING_SET, such as dirty:200M,64M"):
        make_guest(f"dirty{arguments}")


def test_a_working_set_larger_than_ram_is_refused(machine: Machine) -> None:
    with pytest.raises(GuestDoesNotFit, match="4194304 bytes in a machine with room for 4128768"):
        make_guest("dirty:1M,4M").boot(machine)


def test_the_rate_is_kept_to_the_fraction_of_a_page(machine: Machine, host: ManualClock) -> None:
    make_guest("dirty:1000000,1M").boot(machine)
    machine.start()
    run(machine, host, steps=200)
    assert state_of(machine).writes == 1_000_000 // PAGE_SIZE
    run(machine, host, steps=3000, every_ns=MS // 3)
    assert state_of(machine).writes == 1_999_999 // PAGE_SIZE


def test_what_was_not_written_during_an_absence_is_not_made_up_for(machine: Machine, host: ManualClock) -> None:
    make_guest("dirty:1000p,1M").boot(machine)
    machine.start()
    run(machine, host, steps=10)
    assert state_of(machine).writes == 50
    machine.pause()
    host.advance(10_000 * MS)
    machine.resume()
    run(machine, host, steps=1)
    assert state_of(machine).writes == 50 + 1000 * STEP_NS_MAX // 10**9
    run(machine, host, steps=10)
    assert state_of(machine).writes == 120


def test_what_its_host_kept_it_from_writing_is_not_made_up_for(machine: Machine, host: ManualClock) -> None:
    make_guest("dirty:1000p,1M").boot(machine)
    machine.start()
    for _ in range(50):  # 5 ms awake, 5 ms asleep
        host.advance(5 * MS)
        machine.stolen_ns += 5 * MS
        run(machine, host, steps=1)
    assert state_of(machine).writes == 250
    machine.stolen_ns = 3 * MS  # another host, which counts for itself
    run(machine, host, steps=2)
    assert state_of(machine).writes == 260


def test_a_rate_beyond_all_hosts_is_cut(machine: Machine, host: ManualClock) -> None:
    make_guest("dirty:100G,1M").boot(machine)
    machine.start()
    run(machine, host, steps=2)
    assert state_of(machine).writes == 2 * STEP_WRITES_MAX


def test_only_the_working_set_gets_dirty_and_every_page_changes_as_a_whole(machine: Machine, host: ManualClock) -> None:
    make_guest("dirty:20M,1M").boot(machine)
    machine.start()
    before = machine.memory.pages.copy()
    machine.memory.dirty.begin_round()
    machine.memory.dirty.take(1 << 20)
    run(machine, host, steps=20)
    dirty = machine.memory.dirty.dirty_pages()
    assert set(dirty.tolist()) - {1} <= set(range(1024 - 256, 1024))
    assert len(dirty) > 100
    changed = (machine.memory.pages != before).mean(axis=1)
    assert changed[dirty[1:]].min() > 0.9


def test_four_fifths_of_the_writes_go_to_a_fifth_of_the_set() -> None:
    pages = pages_written(1000, 0, 100_000)
    assert 0.79 < np.count_nonzero(pages < 200) / 100_000 < 0.81
    assert set(pages.tolist()) == set(range(1000))
    hot, cold = Counter(pages[pages < 200].tolist()), Counter(pages[pages >= 200].tolist())
    assert max(hot.values()) < 1.5 * min(hot.values())
    assert max(cold.values()) < 8 * min(cold.values())


@pytest.mark.parametrize("set_pages", [1, 2, 3, 5])
def test_the_smallest_sets_are_written_too(set_pages: int) -> None:
    assert set(pages_written(set_pages, 7, 1000).tolist()) == set(range(set_pages))


def test_the_words_are_those_of_the_published_generator() -> None:
    words = splitmix64(np.array([0], dtype=np.uint64))
    assert int(words[0]) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0


def test_a_run_cut_in_two_is_the_run(host: ManualClock) -> None:
    contents = []
    for cuts in ([40], [13, 1, 26]):
        with make_machine(COM1, host_clock=ManualClock(monotonic=10**9)) as machine:
            clock = machine.clock._host
            assert isinstance(clock, ManualClock)
            make_guest("dirty:30M,1M").boot(machine)
            machine.start()
            for steps in cuts:
                run(machine, clock, steps)
                machine.pause()
                machine.resume()
            contents.append(bytes(machine.memory.view))
    assert contents[0] == contents[1]


def test_a_page_that_missed_its_last_write_is_found(machine: Machine, host: ManualClock) -> None:
    guest = make_guest("dirty:30M,1M")
    assert isinstance(guest, DirtyGuest)
    guest.boot(machine)
    machine.start()
    assert guest.stale_pages(machine.memory) == []
    run(machine, host, steps=20)
    assert guest.stale_pages(machine.memory) == []
    state = state_of(machine)
    recent = sorted({768 + page for page in pages_written(256, state.writes - 40, 40).tolist()})
    for page in recent[:2]:
        machine.memory.write(page * PAGE_SIZE, bytes(16))
    assert guest.stale_pages(machine.memory) == recent[:2]


def test_a_page_that_lost_its_first_content_is_found_while_all_writes_are_known(machine: Machine) -> None:
    guest = make_guest("dirty:30M,1M")
    assert isinstance(guest, DirtyGuest)
    guest.boot(machine)
    machine.memory.write(770 * PAGE_SIZE, bytes(8))
    assert guest.stale_pages(machine.memory) == [770]


def test_the_program_is_found_in_ram_with_what_it_was_booted_with(machine: Machine) -> None:
    make_guest("dirty:5000p,64K").boot(machine)
    assert guest_in(machine.memory) == DirtyGuest(rate=5000 * PAGE_SIZE, working_set=65536)
