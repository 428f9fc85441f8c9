"""Virtual time: order, timers, and what death and a freeze do to a node's tasks."""

import pytest

from migrate.simulation.scheduler import Killed, Scheduler, Signal, Wait


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


def test_tasks_run_in_the_order_in_which_they_became_ready(scheduler: Scheduler) -> None:
    seen: list[str] = []

    async def sleeper(name: str, ns: int) -> None:
        seen.append(f"{name} begins")
        await scheduler.sleep(ns)
        seen.append(f"{name} at {scheduler.now_ns}")

    for name, ns in (("a", 20), ("b", 10), ("c", 20)):
        scheduler.spawn(name, sleeper(name, ns))
    assert scheduler.run(100)
    assert seen == ["a begins", "b begins", "c begins", "b at 10", "a at 20", "c at 20"]


def test_time_passes_only_while_nobody_can_run_and_not_for_a_limit_that_was_not_needed(scheduler: Scheduler) -> None:
    signal = Signal(scheduler)
    came: list[tuple[bool, int]] = []

    async def waiter() -> None:
        came.append((await Wait(signal, until_ns=1_000_000), scheduler.now_ns))

    scheduler.spawn("a", waiter())
    scheduler.at(7, signal.give)
    assert scheduler.run(100)
    assert came == [(True, 7)]
    assert scheduler.now_ns == 7


def test_a_wait_ends_when_its_time_is_up(scheduler: Scheduler) -> None:
    came: list[tuple[bool, int]] = []

    async def waiter() -> None:
        came.append((await Wait(Signal(scheduler), until_ns=9), scheduler.now_ns))

    scheduler.spawn("a", waiter())
    assert scheduler.run(100)
    assert came == [(False, 9)]


def test_a_signal_is_not_remembered(scheduler: Scheduler) -> None:
    signal = Signal(scheduler)
    signal.give()

    async def waiter() -> None:
        await Wait(signal)
        raise AssertionError("nobody gives it again")

    scheduler.spawn("a", waiter())
    assert scheduler.run(100)
    scheduler.kill("a")


def test_who_is_killed_does_nothing_more_and_the_others_go_on(scheduler: Scheduler) -> None:
    seen: list[str] = []

    async def sleeper(name: str) -> None:
        await scheduler.sleep(10)
        seen.append(name)

    scheduler.spawn("dead", sleeper("dead"))
    scheduler.spawn("alive", sleeper("alive"))
    scheduler.at(5, lambda: scheduler.kill("dead"))
    assert scheduler.run(100)
    assert seen == ["alive"]


def test_what_a_dead_task_does_on_its_way_out_fails_at_the_ports(scheduler: Scheduler) -> None:
    seen: list[str] = []
    alive = True

    async def port() -> None:
        if not alive:
            raise Killed
        await scheduler.sleep(10)

    async def careful() -> None:
        try:
            await port()
        finally:
            await port()
            seen.append("a farewell")

    def kill() -> None:
        nonlocal alive
        alive = False
        scheduler.kill("a")

    scheduler.spawn("a", careful())
    scheduler.at(5, kill)
    assert scheduler.run(100)
    assert seen == []


def test_a_task_can_end_its_own_process(scheduler: Scheduler) -> None:
    seen: list[str] = []

    async def suicidal() -> None:
        scheduler.kill("a")
        seen.append("killed")
        raise Killed

    async def sibling() -> None:
        await scheduler.sleep(1)
        seen.append("sibling")

    scheduler.spawn("a", sibling())
    scheduler.spawn("a", suicidal())
    assert scheduler.run(100)
    assert seen == ["killed"]


def test_who_is_frozen_goes_on_when_thawed_and_finds_that_time_has_passed(scheduler: Scheduler) -> None:
    seen: list[int] = []

    async def sleeper() -> None:
        await scheduler.sleep(10)
        seen.append(scheduler.now_ns)

    scheduler.spawn("a", sleeper())
    scheduler.at(5, lambda: scheduler.freeze("a"))
    scheduler.at(500, lambda: scheduler.thaw("a"))
    assert scheduler.run(100)
    assert seen == [500]


def test_who_never_comes_to_rest_is_noticed(scheduler: Scheduler) -> None:
    async def for_ever() -> None:
        while True:
            await scheduler.sleep(1)

    scheduler.spawn("a", for_ever())
    assert not scheduler.run(50)
    scheduler.kill("a")
