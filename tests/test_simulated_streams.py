"""RAM over several simulated connections: in which order they deliver, what strikes them, and what is told of them."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from migrate.engine.ram import MappedRam
from migrate.faults.explore import SMALL_BATCHES, Experiment, random_plan, single_plans
from migrate.faults.injection import Injector
from migrate.faults.plan import (
    Action,
    AtByte,
    AtMessage,
    End,
    Fault,
    FlipBit,
    HalfOpen,
    InPhase,
    Moment,
    Plan,
    Reset,
    Trigger,
    Truncate,
)
from migrate.protocol.messages import STREAMS_MAX, Message, RamPages, Role, RoundEnd
from migrate.simulation.fingerprint import fingerprint
from migrate.simulation.link import SimulatedLink
from migrate.simulation.network import ORDERS, Network, Pipe, Speed, latencies_ns
from migrate.simulation.remembering import remembering
from migrate.simulation.scheduler import NS_PER_S, Scheduler
from migrate.simulation.streams import StreamedLink
from migrate.simulation.world import CALM_NS, Result, World
from tests.test_simulation import go_round_the_loop, read_from_bytes
from tests.worlds import SPEC, run_world

EXPERIMENT = Experiment(spec=SPEC, streams=2)
SOURCE, TARGET = Role.SOURCE, Role.TARGET


def over_streams(plan: Plan, streams: int = 2) -> Result:
    return run_world(traced=True, once_more=True, hooks=Injector(plan), streams=streams, ram=SMALL_BATCHES)


@attrs.define(eq=False)
class Listening(Injector):
    """Notes what a target hears of a round, and on which connection."""

    heard: list[tuple[str, int]] = attrs.field(factory=list)

    def received(self, link: SimulatedLink, message: Message) -> None:
        if isinstance(message, RamPages | RoundEnd):
            self.heard.append((type(message).__name__, link.connection.stream))
        super().received(link, message)


def heard(seed: int, streams: int = 2) -> list[tuple[str, int]]:
    hooks = Listening(Plan(faults=(), seed=seed))
    assert run_world(hooks=hooks, streams=streams, ram=SMALL_BATCHES).violations == ()
    return hooks.heard


# Undisturbed


@pytest.mark.parametrize("streams", [2, 3, STREAMS_MAX])
@pytest.mark.parametrize("seed", range(ORDERS))
def test_a_machine_arrives_whole_over_several_connections_whatever_their_order(streams: int, seed: int) -> None:
    result = over_streams(Plan(faults=(), seed=seed), streams)
    assert (result.violations, result.owner) == ((), "target")
    said = [line.split(" ", 2)[2] for line in result.trace]
    assert len([line for line in said if line.startswith("sends Attach")]) == 2 * (streams - 1), "once more, as well"


def test_batches_come_over_all_connections_and_in_orders_that_differ_by_the_seed() -> None:
    orders = [heard(seed) for seed in range(ORDERS)]
    for order in orders:
        assert {stream for kind, stream in order if kind == "RamPages"} == {0, 1}
        assert order.count(("RoundEnd", 0)) == order.count(("RoundEnd", 1)) == 3
    firsts = {tuple(order[:6]) for order in orders}
    assert len(firsts) > 3
    assert {order[0][1] for order in orders} == {0, 1}, "the first to be heard is not always the same"
    before_the_end = [order[: order.index(("RoundEnd", 0))] for order in orders]
    assert any(("RoundEnd", 1) in early for early in before_the_end)
    assert any(("RoundEnd", 1) not in early for early in before_the_end)


def test_the_same_world_twice_gives_the_same_trace_and_another_seed_another() -> None:
    first, second, other = (over_streams(Plan(faults=(), seed=seed)) for seed in (4, 4, 5))
    assert first.trace_hash == second.trace_hash != other.trace_hash


@pytest.mark.parametrize("without", [read_from_bytes, go_round_the_loop])
def test_what_is_taken_for_speed_changes_nothing_but_the_time(
    without: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def results() -> list[Result]:
        with remembering():
            return [over_streams(plan) for plan in plans]

    plans = [Plan(faults=()), *(random_plan(seed, 2) for seed in range(40))]
    short = results()
    without(monkeypatch)
    for plan, one, other in zip(plans, short, results(), strict=True):
        assert attrs.evolve(one, steps=0) == attrs.evolve(other, steps=0), plan


def test_two_wires_take_half_the_time_of_one() -> None:
    """Of a round that is long enough for the latencies not to matter."""

    def ram_ns(streams: int) -> int:
        result = run_world(traced=True, streams=streams, ram=MappedRam(batch_pages=1), speed=Speed(bandwidth=1e6))
        at_ns = [int(line.split()[0]) for line in result.trace if "sends R" in line and line.endswith(" bytes")]
        (stored,) = [int(line.split()[0]) for line in result.trace if "sends RoundStored(0)" in line]
        return stored - at_ns[0]

    assert ram_ns(2) == pytest.approx(ram_ns(1) / 2, rel=0.15)


@pytest.mark.parametrize("count", [2, 3, STREAMS_MAX])
def test_latencies_follow_from_the_seed(count: int) -> None:
    ways = {latencies_ns(count, 100_000, seed) for seed in range(10 * ORDERS)}
    assert len(ways) == ORDERS
    for latencies in ways:
        assert min(latencies) == 100_000
        assert len(set(latencies)) == count


def test_there_is_news_of_a_stream_for_whoever_waits_for_its_conversation() -> None:
    network = Network(Scheduler(), Speed())
    first = network.connect()
    beside = network.connect_beside(first, 1, 5)
    assert network.newest is first
    assert all(beside.pipes[role].news is first.pipes[role].news for role in Role)
    assert {pipe.speed.latency_ns for pipe in beside.pipes.values()} == {5}


# Disturbed


def on_stream(message: str, side: Role, number: int = 1, moment: Moment = Moment.BEFORE) -> AtMessage:
    return AtMessage(message=message, side=side, number=number, moment=moment, stream=1)


LOSSES: list[tuple[Trigger, Action]] = [
    *((on_stream("Attach", TARGET), do) for do in (Reset(), End(), HalfOpen(), Truncate())),
    *((on_stream("RamPages", SOURCE, number), do) for number in (1, 2, 4) for do in (Reset(), End(), HalfOpen())),
    *((on_stream("RoundEnd", SOURCE, number), do) for number in (1, 3) for do in (Reset(), End(), Truncate())),
    (on_stream("RoundEnd", SOURCE, moment=Moment.AFTER), End()),
    (on_stream("RamPages", SOURCE, moment=Moment.RECEIVED), Reset()),
    (on_stream("RamPages", SOURCE), FlipBit(bit=-60)),
    (AtByte(side=SOURCE, byte=10_000, stream=1), Reset()),
]


@pytest.mark.parametrize(("when", "do"), LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_lost_stream_is_a_lost_link_and_the_next_attempt_moves_the_machine(
    when: Trigger, do: Action, seed: int
) -> None:
    tried = EXPERIMENT.run(Plan(faults=(Fault(when=when, do=do),), seed=seed))
    assert (tried.fired, tried.violations, tried.owner) == (1, (), "target")
    failed = [word for word in tried.published if not word.endswith("migrated")]
    assert {word.partition(":")[0] for word in failed} == {"source", "target"}, "both know of it"
    assert tried.published[-1] == "target: migrated"


def test_after_the_last_round_nobody_needs_a_stream_any_more() -> None:
    after = Fault(when=on_stream("RoundEnd", SOURCE, 3, Moment.RECEIVED), do=Reset())
    assert EXPERIMENT.run(Plan(faults=(after,))).published == ("source: migrated", "target: migrated")


def test_who_loses_a_stream_is_told_so_at_once() -> None:
    """Not when both have waited for the other to say why."""
    plan = Plan(faults=(Fault(when=on_stream("RamPages", SOURCE), do=Reset()),))
    published = [line for line in over_streams(plan).trace if " published: " in line]
    assert [line.split()[1] for line in published[:2]] == ["rack-7", "rack-3"]
    assert all(int(line.split()[0]) < 5.01 * NS_PER_S for line in published[:2])


def test_what_does_not_strike_at_a_connection_strikes_that_of_the_conversation() -> None:
    plan = Plan(faults=(Fault(when=InPhase(phase="ram", side=SOURCE), do=Reset()),))
    struck: list[tuple[bool, ...]] = []
    with EXPERIMENT.world(Injector(plan)) as world:
        look = lambda _: struck.append(  # noqa: E731
            tuple(any(pipe.was_reset for pipe in connection.pipes.values()) for connection in world.network.connections)
        )
        assert isinstance(world.hooks, Injector)
        world.hooks.on_rest = look
        world.run()
    assert struck[1][:2] == (True, False)


def test_single_faults_strike_every_word_of_both_connections() -> None:
    places: dict[int, set[tuple[str, str]]] = {0: set(), 1: set()}
    for plan in single_plans(EXPERIMENT):
        (fault,) = plan.faults
        if isinstance(fault.when, AtMessage):
            places[fault.when.stream].add((fault.when.message, fault.when.moment))
    assert places[1] == {(name, moment) for name in ("Attach", "RamPages", "RoundEnd") for moment in Moment}
    assert {name for name, _ in places[0]} > {"Streams", "RamPages", "RoundEnd", "Accept"}


def test_random_plans_strike_streams_if_there_are_any() -> None:
    def streams_struck(streams: int) -> set[int]:
        plans = (random_plan(seed, streams) for seed in range(300))
        return {
            fault.when.stream
            for plan in plans
            for fault in plan.faults
            if isinstance(fault.when, AtMessage | AtByte) and getattr(fault.when, "message", "") != "Attach"
        }

    assert streams_struck(1) == {0}
    assert streams_struck(3) == {0, 1, 2}


# What a world is

IN_A_ROUND_NS = 5 * NS_PER_S + 950_000
"""All of the first round is under way, the target waits for it, and the source for the receipt."""


def links_of(world: World) -> tuple[StreamedLink, SimulatedLink]:
    """The target's ends: the conversation's, and the stream's."""
    first, stream = world._ends["rack-7"]
    assert isinstance(first, StreamedLink)
    return first, stream


def end_a_round(world: World) -> None:
    first, stream = links_of(world)
    first.rules.heard(stream, RoundEnd(round=0, pages=1, zero_pages=0))


def pipe_of(world: World) -> Pipe:
    return links_of(world)[1].incoming


CHANGES: dict[str, Callable[[World], Any]] = {
    "whose turn it is": lambda world: links_of(world)[0].rules.turn(),
    "where the round has ended": end_a_round,
    "how many streams there are": lambda world: links_of(world)[0].rules.others.clear(),
    "what a stream has said": lambda world: links_of(world)[1].conversation.note(b"x"),
    "a stream that is severed": lambda world: setattr(pipe_of(world), "severed", True),
    "a stream that is slow": lambda world: setattr(pipe_of(world), "speed", Speed(bandwidth=5.0)),
    "what is on the wire of a stream": lambda world: setattr(pipe_of(world), "_wire_free_ns", 1 << 40),
    "the order of those to come": lambda world: setattr(world, "latencies_ns", (1, 2)),
    "how many are wanted": lambda world: setattr(links_of(world)[0].rules, "wanted", 3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_differs_of_streams_is_told(name: str) -> None:
    told: list[bytes] = []

    def look() -> None:
        told.append(fingerprint(world))
        CHANGES[name](world)
        told.append(fingerprint(world))
        world.calm()

    with EXPERIMENT.world(Injector(Plan(faults=()))) as world:
        world.scheduler.at(IN_A_ROUND_NS, look)
        world.run()
    before, after = told
    assert before != after


def test_orders_of_delivery_that_are_the_same_are_the_same_state() -> None:
    def told(seed: int) -> bytes:
        states: list[bytes] = []
        with EXPERIMENT.world(Injector(Plan(faults=(), seed=seed))) as world:
            world.scheduler.at(CALM_NS - 1, lambda: states.append(fingerprint(world)))
            world.run()
        return states[0]

    assert told(0) == told(ORDERS) != told(1)
