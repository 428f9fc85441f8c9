"""A host's bandwidth is shared by turns, in virtual time: what each migration sends, and when."""

from typing import Final

import pytest
import trio
from trio.testing import MockClock

from migrate.daemon.host.bandwidth import SharedBandwidth

RATE: Final = 1000.0


async def sender(shared: SharedBandwidth, sizes: list[int], sent: list[int]) -> None:
    """Sends for ever, batches of these sizes in turn."""
    while True:
        for size in sizes:
            sent.append(size)
            await shared.spend(size)


@pytest.mark.parametrize("count", [1, 3, 100])
async def test_all_together_keep_to_the_rate_and_no_migration_gets_more_than_another(
    autojump_clock: MockClock, count: int
) -> None:
    shared = SharedBandwidth(RATE)
    sent: list[list[int]] = [[] for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for mine in sent:
            nursery.start_soon(sender, shared, [10], mine)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    totals = [sum(mine) for mine in sent]
    assert max(totals) - min(totals) <= 10, "one batch at most"
    assert sum(totals) == pytest.approx(20 * RATE, rel=0.06)


async def test_a_migration_of_large_batches_does_not_starve_one_of_small_ones(autojump_clock: MockClock) -> None:
    shared = SharedBandwidth(RATE)
    large: list[int] = []
    small: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender, shared, [100], large)
        nursery.start_soon(sender, shared, [1], small)
        await trio.sleep(20.2)
        nursery.cancel_scope.cancel()
    assert abs(len(large) - len(small)) <= 1, "they have taken turns"


async def test_a_paused_machine_does_not_wait_and_the_others_wait_for_what_it_has_sent(
    autojump_clock: MockClock,
) -> None:
    shared = SharedBandwidth(RATE)
    began = trio.current_time()
    shared.count(5000)
    assert trio.current_time() == began
    await shared.spend(1000)
    assert trio.current_time() - began == pytest.approx(6.0)


@pytest.mark.parametrize(("then", "seconds"), [(None, 1.0), (10 * RATE, 1.9), (RATE / 2, 19.0)])
async def test_another_rate_holds_at_once_for_those_who_wait(
    autojump_clock: MockClock, then: float | None, seconds: float
) -> None:
    """10,000 bytes, of which 1,000 have had their time when the rate changes."""
    shared = SharedBandwidth(RATE)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.spend, 10_000)
        await trio.sleep(1)
        shared.set_rate(then)
    assert trio.current_time() - began == pytest.approx(seconds)


async def test_without_a_cap_nobody_waits(autojump_clock: MockClock) -> None:
    shared = SharedBandwidth()
    began = trio.current_time()
    for _ in range(10):
        await shared.spend(1 << 40)
    assert trio.current_time() == began
