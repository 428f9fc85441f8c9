"""A guest that is slowed down: how much of the time it sleeps, and that it gets everything back."""

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from migrate.daemon.guests import STEP_EVERY_S, GuestRunner
from migrate.engine.ports import Pace
from migrate.engine.source import slowdown
from migrate.engine.throttle import Rest
from sim_vmm.clock import NS_PER_S
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import make_guest
from sim_vmm.guest.dirty import DirtyState
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from tests.machines import COM1, make_spec

SHARES = [0.2, 0.3, 0.5, 0.75, 0.9, 0.99]
RATE = 1000  # pages a second


def asleep(rest: Rest, elapsed: list[int]) -> float:
    """The share of the time for which a guest sleeps that is asked after each of these."""
    slept, is_asleep = 0, False
    for elapsed_ns in elapsed:
        slept += elapsed_ns * is_asleep
        is_asleep = rest.is_due(elapsed_ns, was_awake=not is_asleep)
    return slept / sum(elapsed)


@given(share=st.sampled_from(SHARES), elapsed=st.lists(st.integers(4_000_000, 9_000_000), min_size=1, max_size=20))
def test_a_guest_sleeps_for_its_share_of_the_time_however_long_its_steps_are(share: float, elapsed: list[int]) -> None:
    assert asleep(Rest(share=share), elapsed * (1500 // len(elapsed))) == pytest.approx(share, abs=0.02)


def test_a_small_share_is_a_step_left_out_now_and_then() -> None:
    rest, seen, is_asleep = Rest(share=0.2), [], False
    for _ in range(12):
        is_asleep = rest.is_due(5_000_000, was_awake=not is_asleep)
        seen.append(is_asleep)
    assert "".join("z" if is_asleep else "." for is_asleep in seen) == ".z....z....z"


def test_without_a_share_nothing_is_owed_any_more() -> None:
    rest = Rest(share=0.99)
    assert rest.is_due(5_000_000, was_awake=True)
    rest.share = 0.0
    assert not rest.is_due(5_000_000, was_awake=False)
    assert not rest.is_due(5_000_000, was_awake=True)


# The daemon's guest, on trio's clock


class TrioHostClock:
    def monotonic_ns(self) -> int:
        return round(trio.current_time() * NS_PER_S)

    def wall_ns(self) -> int:
        return self.monotonic_ns()


@attrs.define
class Guest:
    runner: GuestRunner
    machine: Machine

    @property
    def writes(self) -> int:
        state = DirtyState.load(self.machine.memory)
        assert state is not None
        return state.writes


@pytest.fixture
async def guest(nursery: trio.Nursery) -> AsyncIterator[Guest]:
    with Machine.create(make_spec(COM1), host_clock=TrioHostClock(), counters=InjectionCounters()) as machine:
        runner = GuestRunner(machine, make_guest(f"dirty:{RATE}p,1M"), nursery)
        await runner.start_over()
        yield Guest(runner, machine)
        await runner.stop()


async def in_a_second(guest: Guest, seconds: float = 10.0) -> float:
    before = guest.writes
    await trio.sleep(seconds)
    return (guest.writes - before) / seconds


@pytest.mark.parametrize("share", SHARES)
async def test_a_throttled_guest_does_so_much_less(guest: Guest, autojump_clock: MockClock, share: float) -> None:
    assert await in_a_second(guest, 2.0) == pytest.approx(RATE, rel=0.01)
    guest.runner.throttle(share)
    assert await in_a_second(guest) == pytest.approx(RATE * (1 - share), rel=0.05, abs=5)
    guest.runner.throttle(0.0)
    assert await in_a_second(guest, 2.0) == pytest.approx(RATE, rel=0.01)


async def test_its_clock_goes_on_and_its_steps_tell_how_slow_it_was(guest: Guest, autojump_clock: MockClock) -> None:
    await trio.sleep(1.0)
    before, uptime = guest.runner.pace, guest.machine.clock.uptime_ns()
    guest.runner.throttle(0.6)
    await trio.sleep(10.0)
    after = guest.runner.pace
    assert slowdown(before, after) == pytest.approx(0.6, abs=0.01)
    assert guest.machine.clock.uptime_ns() - uptime == pytest.approx(10 * NS_PER_S, rel=0.001)
    assert guest.machine.stolen_ns == pytest.approx(6 * NS_PER_S, rel=0.01)


async def test_a_sleeping_guest_can_be_paused_and_wakes_at_once(guest: Guest, autojump_clock: MockClock) -> None:
    guest.runner.throttle(0.99)
    await trio.sleep(1.0)
    before = trio.current_time()
    await guest.runner.pause()
    assert trio.current_time() == before
    assert guest.machine.state is MachineState.PAUSED
    await guest.runner.resume()
    guest.runner.throttle(0.0)
    await trio.sleep(3 * STEP_EVERY_S)
    writes = guest.writes
    await trio.sleep(3 * STEP_EVERY_S)
    assert guest.writes - writes == pytest.approx(RATE * 3 * STEP_EVERY_S, abs=6)


SLOWDOWNS: list[tuple[str, Pace, Pace, float | None]] = [
    ("as before", Pace(work=200, running_ns=10**9), Pace(work=400, running_ns=2 * 10**9), 0.0),
    ("half as fast", Pace(work=200, running_ns=10**9), Pace(work=300, running_ns=2 * 10**9), 0.5),
    ("faster", Pace(work=200, running_ns=10**9), Pace(work=500, running_ns=2 * 10**9), -0.5),
    ("too short a time before", Pace(work=9, running_ns=45 * 10**6), Pace(work=500, running_ns=2 * 10**9), None),
    ("no time at all", Pace(work=200, running_ns=10**9), Pace(work=200, running_ns=10**9), None),
    ("nothing done before", Pace(work=0, running_ns=10**9), Pace(work=200, running_ns=2 * 10**9), None),
]


@pytest.mark.parametrize(("began", "ended", "share"), [row[1:] for row in SLOWDOWNS], ids=[row[0] for row in SLOWDOWNS])
def test_what_copying_cost_the_guest_is_told_by_what_it_did_before(
    began: Pace, ended: Pace, share: float | None
) -> None:
    found = slowdown(began, ended)
    assert found == (None if share is None else pytest.approx(share))
