"""The clock port of the daemons."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from migrate.daemon.clock import TrioClock

TIMES = 50
"""In which order those have their turn who are due at once is a matter of chance."""


async def test_whoever_is_due_has_a_turn_before_a_sleep_of_nothing_is_over(mock_clock: MockClock) -> None:
    turns: list[int] = []

    async def wake(number: int) -> None:
        await trio.sleep(1)
        turns.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(TIMES):
            nursery.start_soon(wake, number)
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
            await TrioClock().sleep(0)
            assert turns[-1:] == [number]


async def test_a_sleep_lasts_as_long_as_it_is_told(autojump_clock: MockClock) -> None:
    clock, began = TrioClock(), trio.current_time()
    await clock.sleep(0.25)
    assert trio.current_time() - began == 0.25
