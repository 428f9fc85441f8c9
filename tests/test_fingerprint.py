"""What a world is: worlds with the same fingerprint go on alike, and whatever differs is told."""

import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import attrs
import pytest

from migrate.engine.handoff import Holding, Record
from migrate.faults.explore import Experiment, first_faults, random_plan, single_plans
from migrate.faults.injection import Injector
from migrate.faults.plan import AtMessage, Fault, Plan, Reset
from migrate.protocol.messages import Role
from migrate.simulation.audits import Clocks
from migrate.simulation.fingerprint import fingerprint
from migrate.simulation.network import ORDERS
from migrate.simulation.remembering import remembering
from migrate.simulation.scheduler import Scheduler, Signal, Wait
from migrate.simulation.telling import Incomparable
from migrate.simulation.world import World
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)
STREAMED = Experiment(spec=SPEC, streams=2)
AFTER_A_RESET = Plan(faults=(Fault(when=AtMessage(message="RoundEnd", side=Role.SOURCE, number=2), do=Reset()),))


def rests_and_trace(plan: Plan, experiment: Experiment) -> tuple[list[tuple[bytes, int]], tuple[str, ...]]:
    """Each rest after the last fault, with the length of the trace there; and the whole trace."""
    rests: list[tuple[bytes, int]] = []

    def rest(world: World) -> None:
        if len(injector.fired) == len(plan.faults) and not world.is_concluded:
            with suppress(Incomparable):  # a source that holds a view of RAM, as its target has left it
                rests.append((fingerprint(world, injector.residue()), len(world.trace)))

    injector = Injector(plan, on_rest=rest)
    with experiment.world(injector, once_more=True, traced=True) as world:
        return rests, world.run().trace


@pytest.mark.parametrize("experiment", [EXPERIMENT, STREAMED], ids=["one connection", "two"])
def test_worlds_with_the_same_fingerprint_go_on_alike_to_the_last_line(experiment: Experiment) -> None:
    firsts = [Plan(faults=(fault,)) for fault in first_faults(experiment)[::12]]
    orders = ORDERS if experiment.streams > 1 else 1  # of which one is looked at
    drawn = (random_plan(seed * orders, experiment.streams) for seed in range(40))
    plans = [*list(single_plans(experiment))[::80], *firsts, *drawn]
    after: dict[bytes, dict[tuple[str, ...], Plan]] = defaultdict(dict)
    met = 0
    with remembering():
        for plan in plans:
            rests, trace = rests_and_trace(plan, experiment)
            for state, length in rests:
                met += 1
                after[state][trace[length:]] = plan
    for futures in after.values():
        assert len(futures) == 1, list(futures.values())
    assert met > 1.5 * len(after), "many worlds come to the same"


def at_rest(do: Callable[[World], Any], plan: Plan = AFTER_A_RESET) -> Any:
    """What `do` gives for a world that is about to try again."""
    given: list[Any] = []

    def rest(world: World) -> None:
        if injector.fired and not given:
            given.append(do(world))

    injector = Injector(plan, on_rest=rest)
    with EXPERIMENT.world(injector) as world:
        world.run()
    return given[0]


def set_record(world: World) -> None:
    disk = world.source.disk
    disk.content = attrs.evolve(disk.content, record=Record(Holding.OWNER, 77))


def set_device(world: World) -> None:
    device: Any = machine(world).devices["com1"]
    device.state = attrs.evolve(device.state, scratch=99)


def machine(world: World) -> Any:
    assert world.source.life is not None
    return world.source.life.machine


def guest(world: World) -> Any:
    assert world.source.life is not None
    return world.source.life.guest


def in_frame(world: World, name: str) -> Any:
    """The object of that type which the target's task holds in its innermost frames."""
    (task,) = world.scheduler.unfinished_tasks()
    coroutine: Any = task.coroutine
    while coroutine is not None:
        for value in coroutine.cr_frame.f_locals.values():
            if type(value).__name__ == name:
                return value
        coroutine = coroutine.cr_await
    raise AssertionError(name)


CHANGES: dict[str, Callable[[World], Any]] = {
    "a byte of RAM": lambda world: machine(world).memory.view.__setitem__(5000, 1),
    "a dirty page": lambda world: machine(world).memory.dirty.mark_range(12, 13),
    "the console": lambda world: machine(world).console.append(b"x"),
    "a device": set_device,
    "the machine's clock": lambda world: setattr(machine(world).clock, "_boot_hrtime", 1),
    "the guest's pace": lambda world: guest(world).throttle(0.5),
    "busy steps": lambda world: setattr(guest(world), "busy_steps", 3),
    "a record": set_record,
    "a disk that is full": lambda world: setattr(world.target.disk, "full", 1),
    "a wall clock": lambda world: world.target.jump(1),
    "the world's clock": lambda world: setattr(world.scheduler, "now_ns", world.scheduler.now_ns + 1),
    "a call to come": lambda world: world.scheduler.at(world.scheduler.now_ns + 5, world.link_back),
    "a node that is frozen": lambda world: world.scheduler.freeze("rack-3"),
    "a network that is cut": lambda world: world.network.cut(10),
    "the connection under way": lambda world: world.network.connections[-1].sever(),
    "who listens": lambda world: setattr(world, "_listening", None),
    "a daemon's own flag": lambda world: setattr(world._listening, "_busy", True),
    "how often the machine was started": lambda world: setattr(world.audits, "runs", 9),
    "what a task holds": lambda world: setattr(in_frame(world, "Attempt"), "phase", "ram"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_differs_is_told(name: str) -> None:
    def told(world: World) -> tuple[bytes, bytes]:
        before = fingerprint(world)
        CHANGES[name](world)
        return before, fingerprint(world)

    before, after = at_rest(told)
    assert before != after


def trace_more(world: World) -> None:
    world.trace.append("a line")
    world.audits.published.append("a word")
    world.scheduler.steps += 1
    world.source.lives += 1


def test_what_has_been_makes_no_difference() -> None:
    def told(world: World) -> tuple[bytes, bytes]:
        before = fingerprint(world)
        trace_more(world)
        return before, fingerprint(world)

    before, after = at_rest(told)
    assert before == after


def shift_clocks(world: World) -> None:
    """What the guest reads is another, and just as long in a message."""
    clock = machine(world).clock
    clock._boot_hrtime += 1_000_000_000
    clock._read_tsc += 1 << 40


def remember_clocks(world: World) -> None:
    world.audits._last_clocks = Clocks.of(machine(world), world.scheduler.now_ns)


def test_what_the_clocks_of_a_guest_that_runs_show_makes_no_difference_unless_somebody_remembers() -> None:
    def told(world: World) -> list[bytes]:
        prints = []
        shift_clocks(world)  # until its TSC takes eight bytes, that is told
        for do in (lambda _: None, shift_clocks, remember_clocks, shift_clocks):
            do(world)
            prints.append(fingerprint(world))
        return prints

    first, shifted, remembered, remembered_otherwise = at_rest(told)
    assert first == shifted
    assert len({first, remembered, remembered_otherwise}) == 3


def test_a_clock_that_is_short_in_a_message_is_told() -> None:
    def told(world: World) -> list[bytes]:
        prints = []
        for _ in range(3):
            machine(world).clock._read_tsc += 1 << 31
            prints.append(fingerprint(world))
        return prints

    short, longer, longest = at_rest(told)
    assert short != longer
    assert longer == longest


def test_of_instants_of_a_pipe_those_that_are_over_are_alike() -> None:
    def told(world: World) -> list[bytes]:
        pipe, now_ns = world.network.connections[-1].pipes[Role.SOURCE], world.scheduler.now_ns
        prints = []
        for free_ns in (0, now_ns - 7, now_ns, now_ns + 1):
            pipe._wire_free_ns = free_ns
            prints.append(fingerprint(world))
        return prints

    *over, to_come = at_rest(told)
    assert len(set(over)) == 1
    assert to_come != over[0]


# Values, code, and what cannot be told


async def walk(values: Iterable[int], scheduler: Scheduler) -> None:
    for _ in values:
        await Wait(Signal(scheduler))


async def count(limit: int, scheduler: Scheduler) -> None:
    number = 0
    while number < limit:
        number += 1
        await Wait(Signal(scheduler))


def suspended(walker: Callable[[], Awaitable[None]], times: int) -> Any:
    coroutine: Any = walker()
    for _ in range(times):
        coroutine.send(None)
    return coroutine


def test_a_task_is_told_by_where_it_stands_and_what_is_on_its_stack() -> None:
    """The place of an iterator is in no local: two that wait at the same instruction differ by it alone."""

    def told(world: World) -> list[bytes]:
        scheduler = Scheduler()
        made = [
            suspended(lambda: walk((7, 7, 7), scheduler), 1),
            suspended(lambda: walk((7, 7, 7), scheduler), 2),
            suspended(lambda: walk([7, 7, 7], scheduler), 2),
            suspended(lambda: walk(range(3), scheduler), 2),
            suspended(lambda: walk((7, 7, 7), scheduler), 0),
            suspended(lambda: count(5, scheduler), 2),
            suspended(lambda: count(5, scheduler), 3),
            suspended(lambda: walk((7, 7, 7), scheduler), 2),
        ]
        prints = [fingerprint(world, coroutine) for coroutine in made]
        for coroutine in made:
            coroutine.close()
        return prints

    *others, again = at_rest(told)
    assert len(set(others)) == len(others)
    assert again == others[1]


def test_who_refers_to_one_thing_twice_is_told_from_who_refers_to_two_that_are_alike() -> None:
    def told(world: World) -> tuple[list[bytes], list[bytes]]:
        shared: list[int] = []
        different = [fingerprint(world, [shared, shared]), fingerprint(world, [[], []])]
        return different, [fingerprint(world, {3, 1, 2}), fingerprint(world, {2, 3, 1})]

    (one, two), (same, again) = at_rest(told)
    assert one != two
    assert same == again


@pytest.mark.parametrize("it", [memoryview(b"x"), object(), sys.stdout, map(str, ())])
def test_what_it_does_not_know_is_not_passed_over(it: object) -> None:
    def told(world: World) -> None:
        for held in ([it], {it}, {1: it}, lambda: it):
            with pytest.raises(Incomparable, match=type(it).__name__):
                fingerprint(world, held)

    at_rest(told)
