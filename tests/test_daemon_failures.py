"""Connections that end, and daemons that fall silent, at every message of the exchange: real daemons, real sockets.

Every failure before the commit must leave what these tests look for afterwards: the source's guest runs again and did
so before anybody was told, every page will be sent again, the target holds nothing, and a retry moves the machine whole.
After the commit nothing may be undone: the two daemons settle over a new connection, and never do both run.
"""

from collections.abc import Callable
from typing import Final

import pytest
import trio

from migrate.daemon.outcome import Outcome
from migrate.engine.handoff import Holding, Record
from migrate.protocol.messages import (
    Accept,
    Commit,
    DevicesEnd,
    DeviceState,
    Hello,
    Message,
    Owned,
    Paused,
    Preamble,
    Prepare,
    RamBatch,
    Ready,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    TimeOfDay,
    Welcome,
)
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.lifecycle import MachineState
from sim_vmm.spec.components import MigrationFailureInjector
from tests.daemons import (
    IMPATIENT,
    PATIENT,
    Ending,
    Fault,
    Neighbourhood,
    Source,
    Target,
    assert_identical,
    everything,
    half,
    nothing,
    open_files,
    until,
)
from tests.machines import EVERY_DEVICE, make_spec

S, T = Role.SOURCE, Role.TARGET
Passes = Callable[[bytes], bytes]

#: Every message up to the promise, which of its kind, and where the target stands while it waits for what comes next.
BEFORE_COMMIT: Final[list[tuple[Role, type[Message], int, str]]] = [
    (T, Hello, 1, "hello"),
    (S, Welcome, 1, "hello"),
    (S, Preamble, 1, "preamble"),
    (T, Accept, 1, "ram"),
    (S, RamBatch, 1, "ram"),
    (S, RamBatch, 2, "ram"),
    (S, RoundEnd, 1, "ram"),
    (T, RoundStored, 1, "ram"),
    (S, Paused, 1, "ram"),
    (S, RoundEnd, 2, "last ram"),
    (S, TimeOfDay, 1, "time data"),
    (S, DeviceState, 1, "devices"),
    (S, DeviceState, 5, "devices"),
    (S, DevicesEnd, 1, "devices"),
    (S, ServerState, 1, "server state"),
    (S, Prepare, 1, "handoff"),
    (T, Ready, 1, "handoff"),
]
SOURCE_PHASES: Final = {
    *("hello", "preamble", "verdict", "ram", "pause", "last ram", "time data", "devices", "server state", "handoff")
}
each_message_before_commit = pytest.mark.parametrize(
    ("sender", "kind", "number", "phase"),
    BEFORE_COMMIT,
    ids=[f"{sender}-{kind.__name__}-{number}" for sender, kind, number, _ in BEFORE_COMMIT],
)


async def assert_undone(neighbours: Neighbourhood, source: Source, target: Target, files_before: int) -> None:
    """Nothing is left of the attempt, the source went on before it said so, and a retry moves the machine whole."""
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.FAILED]
    assert not target.keeps_a_machine
    assert target.hypervisor.runner is None
    assert target.journal.record.holding is Holding.NOT_OWNER

    await until(lambda: len(source.told_of("attempt ended")) == len(source.told_of("attempt")))
    await until(lambda: open_files() == files_before)
    assert source.journal.record.holding is Holding.OWNER
    assert source.machine.state is MachineState.RUNNING
    for told in source.told_of("attempt ended"):
        assert told.state is MachineState.RUNNING
        assert told.event["phase"] in SOURCE_PHASES
        assert told.event["outcome"] in ("failed", "refused")  # refused: a target came back for an image that is dead
    names = [told.name for told in source.told]
    if "pause" in [told.event.get("phase") for told in source.told]:
        assert "rolled back" in names[: names.index("attempt ended")]
    was = source.sequence
    await until(lambda: source.sequence > was + 1)

    source.daemon.deadlines = PATIENT
    retry = neighbours.target(source.port, owner="retry")
    assert await retry.daemon.migrate_in() is not None
    await assert_identical(source, retry)
    assert neighbours.owners_in_turn[:1] == ["source"]
    assert neighbours.owners_in_turn in (["source"], ["source", "retry"])


def assert_names_phase_and_side(source: Source, target: Target, phase: str) -> None:
    """Both reports say where it ended; the target's phase is known exactly, as it waits for one message after another."""
    facts = target.daemon.attempts[0].as_json()
    assert facts["phase"] == phase
    assert facts["error"]["side"] in ("source", "target")
    for attempt in source.daemon.attempts:
        if attempt.outcome is Outcome.FAILED:
            assert attempt.as_json()["error"]["side"] in ("source", "target")
            assert attempt.as_json()["phase"] in SOURCE_PHASES


@each_message_before_commit
@pytest.mark.parametrize("passes", [nothing, half, everything])
@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET])
async def test_a_connection_lost_before_the_commit_costs_the_guest_nothing(
    neighbourhood: Neighbourhood,
    sender: Role,
    kind: type[Message],
    number: int,
    phase: str,
    passes: Passes,
    ending: Ending,
) -> None:
    if kind is Ready and passes is everything:
        pytest.skip("the source commits: see below")
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, passes, ending, number))
    files_before = open_files()
    target = neighbourhood.target(tap.port)
    assert await target.daemon.migrate_in() is None
    assert tap.faults[0].fired
    if passes is not everything:
        assert_names_phase_and_side(source, target, phase)
    await assert_undone(neighbourhood, source, target, files_before)


@each_message_before_commit
@pytest.mark.parametrize("passes", [nothing, half])
async def test_silence_before_the_commit_ends_by_deadline_on_both_sides(
    neighbourhood: Neighbourhood, sender: Role, kind: type[Message], number: int, phase: str, passes: Passes
) -> None:
    source = await neighbourhood.source(deadlines=IMPATIENT)
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, passes, Ending.SILENCE, number))
    files_before = open_files()
    target = neighbourhood.target(tap.port, deadlines=IMPATIENT)
    assert await target.daemon.migrate_in() is None
    assert tap.faults[0].fired
    assert_names_phase_and_side(source, target, phase)
    assert target.daemon.attempts[0].as_json()["error"]["class"] == "DeadlineExpired"
    assert all(
        attempt.as_json()["error"]["class"] == "DeadlineExpired"
        for attempt in source.daemon.attempts
        if attempt.outcome is Outcome.FAILED
    )
    await assert_undone(neighbourhood, source, target, files_before)


#: From the target's promise on: the message, what passes of it, and whether the target learns that all is settled.
FROM_COMMIT_ON: Final[list[tuple[Role, type[Message], Passes]]] = [
    (T, Ready, everything),
    (S, Commit, nothing),
    (S, Commit, half),
    (S, Commit, everything),
    (T, Owned, nothing),
    (T, Owned, half),
    (T, Owned, everything),
    (S, Released, nothing),
    (S, Released, half),
    (S, Released, everything),
]


@pytest.mark.parametrize(
    ("sender", "kind", "passes"),
    FROM_COMMIT_ON,
    ids=[f"{sender}-{kind.__name__}-{passes.__name__}" for sender, kind, passes in FROM_COMMIT_ON],
)
@pytest.mark.parametrize("ending", [Ending.CLOSE, Ending.RESET, Ending.SILENCE])
async def test_a_connection_lost_from_the_commit_on_is_settled_over_a_new_one(
    neighbourhood: Neighbourhood, sender: Role, kind: type[Message], passes: Passes, ending: Ending
) -> None:
    deadlines = IMPATIENT if ending is Ending.SILENCE else PATIENT
    source = await neighbourhood.source(deadlines=deadlines)
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, passes, ending))
    target = neighbourhood.target(tap.port, deadlines=deadlines)

    arrived = await target.daemon.migrate_in()
    assert tap.faults[0].fired
    assert arrived is not None
    assert arrived.machine.state is MachineState.RUNNING
    if not arrived.settled and not source.daemon.handed_over.is_set():
        await target.daemon.keep_telling(arrived)
    await until(source.daemon.handed_over.is_set)

    assert target.daemon.attempts[-1].outcome is Outcome.MIGRATED
    assert source.daemon.attempts[-1].outcome is Outcome.MIGRATED
    assert source.journal.record == Record(Holding.NOT_OWNER, 2)
    assert target.journal.record == Record(Holding.OWNER, 2)
    assert source.machine.state is MachineState.PAUSED
    await until(lambda: neighbourhood.executed_by.count("target") > 2)
    assert neighbourhood.owners_in_turn == ["source", "target"]
    await assert_identical(source, target)


async def test_while_the_handoff_is_in_doubt_nobody_runs_and_other_targets_are_refused(
    neighbourhood: Neighbourhood, nursery: trio.Nursery
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(S, Commit, nothing, Ending.CLOSE))
    first = neighbourhood.target(tap.port)
    tap.source_port = 0  # nobody gets through any more, once this connection is cut
    with trio.CancelScope() as scope:
        ...
    del scope
    tap.source_port = source.port
    nursery.start_soon(first.daemon.migrate_in)
    await until(lambda: tap.faults[0].fired)
    tap.source_port = 0
    await until(lambda: source.told_of("attempt ended"))
