"""The simulated network and clock against closed forms, and the disk against what it promises."""

from collections.abc import Coroutine, Iterator
from itertools import product
from typing import Any

import pytest

from migrate.engine.handoff import NEVER_HAD, Holding, Record
from migrate.errors import JournalFailed, TransportLost
from migrate.simulation.disk import SYNC_NS, Debt
from migrate.simulation.network import Connection, Network, Pipe, Speed
from migrate.simulation.node import Life
from migrate.simulation.scheduler import NS_PER_S, Scheduler
from migrate.simulation.world import World
from tests.worlds import SPEC

# Pipes

ARRIVALS = sorted(product((0, 50_000, 10_000_000), (1e6, 1e9, 12.5e9), (1, 1000, 1_000_000)))


@pytest.mark.parametrize(("latency_ns", "bandwidth", "length"), ARRIVALS)
def test_data_arrives_after_the_time_on_the_wire_and_the_latency(
    latency_ns: int, bandwidth: float, length: int
) -> None:
    scheduler = Scheduler()
    pipe = Pipe(scheduler, Speed(latency_ns=latency_ns, bandwidth=bandwidth))
    pipe.put(bytes(length))
    pipe.put(bytes(length))
    times_ns: list[int] = []
    for count in (1, 2):
        while len(pipe.arrived) < count * length:
            scheduler._fire()
        times_ns.append(scheduler.now_ns)
    on_wire_ns = length * NS_PER_S / bandwidth
    assert times_ns == pytest.approx([latency_ns + on_wire_ns, latency_ns + 2 * on_wire_ns], abs=2)


@pytest.fixture
def connection() -> Connection:
    return Network(Scheduler(), Speed(latency_ns=1000, bandwidth=1e9)).connect()


def arrived(connection: Connection) -> tuple[bytes, bool, bool]:
    """What the target finds: data, whether that was all, whether the connection was reset."""
    (pipe, _) = connection.pipes.values()
    pipe.scheduler.run(1000)
    return bytes(pipe.arrived), pipe.is_over, pipe.was_reset


def test_an_end_comes_after_what_is_under_way(connection: Connection) -> None:
    (pipe, _) = connection.pipes.values()
    pipe.put(b"last words")
    connection.end()
    assert arrived(connection) == (b"last words", True, False)
    with pytest.raises(TransportLost):
        pipe.put(b"more")


def test_a_reset_loses_what_is_under_way(connection: Connection) -> None:
    (pipe, _) = connection.pipes.values()
    pipe.put(b"lost")
    connection.reset()
    assert arrived(connection) == (b"", False, True)


def test_a_severed_connection_says_nothing_to_anybody(connection: Connection) -> None:
    (pipe, _) = connection.pipes.values()
    pipe.put(b"lost")
    connection.sever()
    pipe.put(b"lost, too")
    pipe.end()
    assert arrived(connection) == (b"", False, False)


def test_what_is_held_arrives_later_and_in_order(connection: Connection) -> None:
    (pipe, _) = connection.pipes.values()
    pipe.put(b"one ")
    connection.hold(5_000_000)
    pipe.put(b"two")
    assert arrived(connection) == (b"one two", False, False)
    assert pipe.scheduler.now_ns >= 5_000_000


def test_in_pieces_the_same_bytes_arrive(connection: Connection) -> None:
    (pipe, _) = connection.pipes.values()
    pipe.piece_bytes = 1
    pipe.put(b"piecemeal")
    assert arrived(connection) == (b"piecemeal", False, False)


def test_while_the_network_is_cut_nobody_connects() -> None:
    network = Network(Scheduler(), Speed())
    network.cut(10)
    with pytest.raises(TransportLost, match="no route"):
        network.connect()
    network.heal()
    network.connect()


# The journal

READY = Record(Holding.READY, 2, peer="rack-3")


@pytest.fixture
def life() -> Iterator[Life]:
    with World(spec=SPEC) as world:
        yield world.target.begin()


def carry_out(life: Life, *steps: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        for step in steps:
            await step

    life.world.scheduler.spawn(life.node.name, main())
    life.world.scheduler.run(1000)


def test_a_record_counts_once_it_is_synced(life: Life) -> None:
    seen: list[Record] = []
    scheduler = life.world.scheduler
    scheduler.at(scheduler.now_ns + SYNC_NS // 2, lambda: seen.append(life.journal.record))
    carry_out(life, life.journal.write(READY, owes_answer=True))
    assert seen == [NEVER_HAD]
    assert life.journal.record == READY
    assert (life.journal.highest, life.journal.debts) == (2, (Debt(2, "rack-3"),))


@pytest.mark.parametrize(("power", "found"), [(False, READY), (True, NEVER_HAD)])
def test_who_dies_during_the_sync_finds_the_write_unless_the_power_went_too(
    life: Life, power: bool, found: Record
) -> None:
    world = life.world
    world.scheduler.at(world.scheduler.now_ns + SYNC_NS // 2, lambda: world.kill(world.target, power=power))
    carry_out(life, life.journal.write(READY))
    assert world.target.disk.content.record == found


@pytest.mark.parametrize("trouble", ["full", "failing_syncs"])
def test_a_write_that_fails_leaves_the_old_record_and_the_next_one_works(life: Life, trouble: str) -> None:
    setattr(life.node.disk, trouble, 1)
    failed: list[str] = []

    async def fails() -> None:
        try:
            await life.journal.write(READY)
        except JournalFailed as error:
            failed.append(str(error))

    carry_out(life, fails())
    assert len(failed) == 1
    assert life.journal.record == NEVER_HAD
    carry_out(life, life.journal.write(READY))
    assert life.journal.record == READY


def test_a_settled_debt_is_owed_no_more(life: Life) -> None:
    carry_out(life, life.journal.write(READY, owes_answer=True), life.journal.settle_debt(2, "rack-3"))
    assert life.journal.debts == ()


def test_numbers_are_never_given_twice(life: Life) -> None:
    numbers: list[int] = []

    async def draw() -> None:
        numbers.append(await life.journal.new_generation())

    carry_out(life, draw(), draw())
    life.world.kill(life.node)
    again = life.node.begin()

    async def draw_again() -> None:
        numbers.append(await again.journal.new_generation())

    carry_out(again, draw_again())
    assert numbers == [1, 2, 3]


# Rounds


@pytest.mark.parametrize("bandwidth", [1e8, 1e9, 1e10])
def test_a_round_takes_its_bytes_over_the_bandwidth(bandwidth: float) -> None:
    with World(spec=SPEC, traced=True, speed=Speed(bandwidth=bandwidth)) as world:
        result = world.run()
    rounds = [
        dict(fact.split("=", 1) for fact in line.split() if "=" in fact)
        for line in result.trace
        if " round number=" in line
    ]
    assert rounds
    for round_ in rounds:
        frame_bytes = int(round_["bytes"]) + 80
        assert float(round_["duration_ms"]) == pytest.approx(frame_bytes / bandwidth * 1e3, rel=0.01)
