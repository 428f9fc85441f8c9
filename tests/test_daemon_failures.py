"""Connections that end, and daemons that fall silent, at every message of the exchange: real daemons, real sockets.

Every failure before the commit must leave what these tests look for afterwards: the source's guest runs again and did
so before anybody was told, every page will be sent again, the target holds nothing, and a retry moves all of the
machine.  After the commit nothing may be undone: the two daemons settle over a new connection, and never do both run.
"""

from collections.abc import Callable
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from migrate.daemon.outcome import Cancelling, Outcome
from migrate.daemon.source import SourceDaemon
from migrate.daemon.target import TargetDaemon
from migrate.engine.handoff import Holding
from migrate.engine.target import Arrived
from migrate.errors import MigrationCancelled, Refused
from migrate.protocol.conversation import Phase
from migrate.protocol.messages import (
    Accept,
    Commit,
    Declined,
    DevicesEnd,
    DeviceState,
    Hello,
    Inquire,
    Message,
    Owned,
    Paused,
    Preamble,
    Prepare,
    RamPages,
    Ready,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    TimeOfDay,
    Welcome,
)
from sim_vmm.lifecycle import MachineState
from sim_vmm.spec import Spec
from sim_vmm.spec.components import MigrationFailureInjector
from tests.daemons import (
    Ending,
    Fault,
    Neighbourhood,
    Source,
    Target,
    assert_identical,
    connected,
    everything,
    half,
    nothing,
    open_files,
    play_target,
    time_passes,
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
    (S, RamPages, 1, "ram"),
    (S, RoundEnd, 1, "ram"),
    (T, RoundStored, 1, "ram"),
    (S, Paused, 1, "ram"),
    (S, RamPages, 2, "last ram"),
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


#: The message is lost, torn, or the last that arrives; only a `Ready` that arrives lets the source commit.
CUTS: Final = [
    (*row, passes)
    for row in BEFORE_COMMIT
    for passes in (nothing, half, everything)
    if not (row[1] is Ready and passes is everything)
]
CUT_IDS: Final = [f"{sender}-{kind.__name__}-{number}-{passes.__name__}" for sender, kind, number, _, passes in CUTS]


async def assert_undone(neighbours: Neighbourhood, source: Source, target: Target, files_before: int) -> None:
    """Nothing is left of the attempt, the source went on before it said so, and a retry moves the machine whole."""
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.FAILED]
    assert target.hypervisor.kept == []
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

    retry = neighbours.target(source.port, owner="retry")
    assert await retry.daemon.migrate_in() is not None
    await assert_identical(source, retry)
    assert neighbours.owners_in_turn[:1] == ["source"]
    assert neighbours.owners_in_turn in (["source"], ["source", "retry"])


def assert_names_phase_and_side(source: Source, target: Target, phase: str) -> None:
    """Both reports say where it ended; the target's phase is known exactly, as it waits for each message."""
    facts = target.daemon.attempts[0].as_json()
    assert facts["phase"] == phase
    assert facts["error"]["side"] in ("source", "target")
    for attempt in source.daemon.attempts:
        if attempt.outcome is Outcome.FAILED:
            assert attempt.as_json()["error"]["side"] in ("source", "target")
            assert attempt.as_json()["phase"] in SOURCE_PHASES


@pytest.mark.parametrize(("sender", "kind", "number", "phase", "passes"), CUTS, ids=CUT_IDS)
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
    neighbourhood: Neighbourhood,
    nursery: trio.Nursery,
    clock: MockClock,
    sender: Role,
    kind: type[Message],
    number: int,
    phase: str,
    passes: Passes,
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, passes, Ending.SILENCE, number))
    files_before = open_files()
    target = neighbourhood.target(tap.port)
    nursery.start_soon(target.daemon.migrate_in)
    await until(lambda: tap.faults[0].fired and phases_of(target)[-1] == phase)
    await time_passes(clock, lambda: target.daemon.attempts and open_files() == files_before)
    assert_names_phase_and_side(source, target, phase)
    assert target.daemon.attempts[0].as_json()["error"]["class"] == "DeadlineExpired"
    assert all(attempt.as_json()["error"]["class"] == "DeadlineExpired" for attempt in source.daemon.attempts[:1])
    await assert_undone(neighbourhood, source, target, files_before)


#: From the target's promise on: the message, and what passes of it.
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
    neighbourhood: Neighbourhood,
    nursery: trio.Nursery,
    clock: MockClock,
    sender: Role,
    kind: type[Message],
    passes: Passes,
    ending: Ending,
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, passes, ending))
    target = neighbourhood.target(tap.port)
    arrivals: list[Arrived | None] = []

    async def migrate_in() -> None:
        arrived = await target.daemon.migrate_in()
        arrivals.append(arrived)
        if arrived is not None and not arrived.settled:
            await target.tell()

    nursery.start_soon(migrate_in)
    await until(lambda: tap.faults[0].fired and source.journal.record.holding is not Holding.OWNER)
    if ending is Ending.SILENCE:
        await time_passes(clock, lambda: arrivals and source.daemon.over.is_set())
    await until(lambda: arrivals and source.daemon.over.is_set())

    assert target.daemon.attempts[-1].outcome is Outcome.MIGRATED
    assert source.daemon.attempts[-1].outcome is Outcome.MIGRATED
    assert str(source.journal.record) == "N(2)"
    assert str(target.journal.record) == "O(2)"
    assert source.machine.state is MachineState.PAUSED
    await until(lambda: neighbourhood.executed_by.count("target") > 2)
    assert neighbourhood.owners_in_turn == ["source", "target"]
    await assert_identical(source, target)


async def test_a_handoff_whose_settling_is_cut_too_is_settled_in_the_end(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    lost = [
        Fault(S, Commit, nothing, Ending.CLOSE),
        Fault(T, Inquire, nothing, Ending.RESET),
        Fault(T, Inquire, everything, Ending.CLOSE),
        Fault(S, Commit, half, Ending.RESET),
        Fault(T, Owned, nothing, Ending.CLOSE),
        Fault(T, Inquire, half, Ending.CLOSE),
    ]
    tap = await neighbourhood.tap(source.port, *lost)
    target = neighbourhood.target(tap.port)
    arrived = await target.daemon.migrate_in()
    assert arrived is not None
    assert not arrived.settled
    await target.tell()
    assert all(fault.fired for fault in lost)
    assert str(source.journal.record) == "N(2)"
    assert str(target.journal.record) == "O(2)"
    await until(lambda: neighbourhood.executed_by.count("target") > 2)
    assert neighbourhood.owners_in_turn == ["source", "target"]
    await assert_identical(source, target)


async def test_while_the_handoff_is_in_doubt_nobody_runs_and_other_targets_are_refused(
    neighbourhood: Neighbourhood, nursery: trio.Nursery
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(S, Commit, nothing, Ending.PARTED))
    first = neighbourhood.target(tap.port)
    nursery.start_soon(first.daemon.migrate_in)
    await until(lambda: source.told_of("attempt ended") and "still in doubt" in names_of(first))
    assert source.daemon.attempts[0].outcome is Outcome.IN_DOUBT
    assert source.told_of("attempt ended")[0].state is MachineState.PAUSED
    assert [machine.state for machine in first.hypervisor.kept] == [MachineState.MIGRATING]

    other = neighbourhood.target(source.port, owner="other", retries=3)
    assert await other.daemon.migrate_in() is None
    (refused,) = other.daemon.attempts
    assert isinstance(refused.error, Refused)
    assert [(reason.component, reason.field) for reason in refused.error.reasons] == [("machine", "ownership")]
    executed = len(neighbourhood.executed_by)
    await trio.sleep(0.05)
    assert len(neighbourhood.executed_by) == executed
    assert source.machine.state is MachineState.PAUSED
    assert source.daemon.cancel_attempt() is Cancelling.NOTHING_TO_CANCEL
    assert first.daemon.cancel_attempt() is Cancelling.TOO_LATE

    tap.is_open = True
    await until(source.daemon.over.is_set)
    await until(lambda: neighbourhood.executed_by.count("target") > 2)
    assert neighbourhood.owners_in_turn == ["source", "target"]
    await assert_identical(source, first)


async def test_a_target_that_comes_back_for_a_machine_that_the_source_kept_discards_its_image_and_may_retry(
    neighbourhood: Neighbourhood, nursery: trio.Nursery
) -> None:
    source = await neighbourhood.source()
    tap = await neighbourhood.tap(source.port, Fault(T, Ready, nothing, Ending.PARTED))
    target = neighbourhood.target(tap.port, retries=1)
    nursery.start_soon(target.daemon.migrate_in)
    await until(lambda: "still in doubt" in names_of(target))
    await until(lambda: source.told_of("attempt ended"))
    was = source.sequence
    await until(lambda: source.sequence > was + 1)

    tap.is_open = True
    await until(lambda: len(target.daemon.attempts) == 2)
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.FAILED, Outcome.MIGRATED]
    assert str(target.journal.record) == "O(3)"
    assert len(target.hypervisor.kept) == 1
    assert neighbourhood.owners_in_turn in (["source"], ["source", "target"])
    await assert_identical(source, target)


def failing(**times: int) -> Spec:
    return make_spec(
        {**EVERY_DEVICE, "injector": MigrationFailureInjector(**{"fail_exports": 0, "fail_imports": 0, **times})}
    )


@pytest.mark.parametrize(("side", "times"), [("source", {"fail_exports": 2}), ("target", {"fail_imports": 2})])
async def test_devices_that_fail_twice_cost_two_attempts_and_the_third_moves_the_machine_whole(
    neighbourhood: Neighbourhood, side: str, times: dict[str, int]
) -> None:
    source = await neighbourhood.source(failing(**times))
    target = neighbourhood.target(source.port, retries=2)
    assert await target.daemon.migrate_in() is not None
    await until(source.daemon.over.is_set)
    for daemon in (source.daemon, target.daemon):
        assert [attempt.outcome for attempt in daemon.attempts] == [Outcome.FAILED, Outcome.FAILED, Outcome.MIGRATED]
        for attempt in daemon.attempts[:2]:
            facts = attempt.as_json()
            assert (facts["phase"], facts["error"]["side"]) == ("devices", side)
            assert facts["error"]["class"] == "DeviceStateError"
            assert "injector" in facts["error"]["message"]
    assert [told.state for told in source.told_of("attempt ended")] == ["running", "running", "paused"]
    pages = [attempt.attempt.rounds[0].pages for attempt in source.daemon.attempts]
    assert pages == sorted(pages), "the first round of a retry holds every page that was ever written"
    assert len(target.hypervisor.kept) == 1
    assert neighbourhood.owners_in_turn in (["source"], ["source", "target"])
    await assert_identical(source, target)


async def test_one_attempt_that_fails_without_retries_leaves_the_target_empty(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source(failing(fail_exports=1))
    files_before = open_files()
    target = neighbourhood.target(source.port)
    assert await target.daemon.migrate_in() is None
    await assert_undone(neighbourhood, source, target, files_before)


@pytest.mark.parametrize("side", [S, T])
@pytest.mark.parametrize("kind", [Accept, RoundStored, DeviceState, Prepare], ids=lambda kind: kind.__name__)
async def test_a_cancelled_attempt_is_undone_and_the_peer_hears_who_ended_it(
    neighbourhood: Neighbourhood, side: Role, kind: type[Message]
) -> None:
    """Cancelled while a message is on its way, so that one side is waiting and the other about to speak."""
    source = await neighbourhood.source()
    daemons: dict[Role, SourceDaemon | TargetDaemon] = {S: source.daemon}

    def cancel(data: bytes) -> bytes:
        assert daemons[side].cancel_attempt() is Cancelling.CANCELLED
        return data

    sender = T if kind in (Accept, RoundStored) else S
    tap = await neighbourhood.tap(source.port, Fault(sender, kind, cancel, Ending.NONE))
    files_before = open_files()
    target = neighbourhood.target(tap.port, retries=5)
    daemons[T] = target.daemon
    if side is S:
        target.daemon.retries = 0
    assert await target.daemon.migrate_in() is None
    await until(lambda: source.told_of("attempt ended"))
    for attempt in (source.daemon.attempts[0], target.daemon.attempts[0]):
        error = attempt.as_json()["error"]
        assert (error["class"], error["side"]) == ("MigrationCancelled", side)
        assert "cancelled on the " + side in error["message"]
    await assert_undone(neighbourhood, source, target, files_before)


async def test_a_target_that_is_cancelled_while_it_connects_does_not_migrate(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    target = neighbourhood.target(source.port, retries=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.daemon.migrate_in)
        await until(lambda: "attempt" in names_of(target))
        assert target.daemon.cancel_attempt() is Cancelling.CANCELLED
    (attempt,) = target.daemon.attempts
    assert isinstance(attempt.error, MigrationCancelled)
    assert source.machine.state is MachineState.RUNNING


async def test_a_target_that_stops_reading_runs_into_the_frame_deadline_of_the_source(
    neighbourhood: Neighbourhood, clock: MockClock
) -> None:
    """The kernel accepts some MiB for a peer that is gone; what does not fit must not wait for ever."""
    source = await neighbourhood.source(make_spec(EVERY_DEVICE, memory_mb=64))
    wire = await connected(source.port)
    async with wire.stream:
        await play_target(wire, Phase.RAM)
        await until(lambda: "ram" in [told.event["phase"] for told in source.told_of("phase")])
        await time_passes(clock, lambda: source.told_of("attempt ended"))
        (attempt,) = source.daemon.attempts
        facts = attempt.as_json()
        assert (facts["phase"], facts["error"]["class"]) == ("ram", "DeadlineExpired")
        assert source.told_of("attempt ended")[0].state is MachineState.RUNNING
    retry = neighbourhood.target(source.port)
    assert await retry.daemon.migrate_in() is not None
    await assert_identical(source, retry)


async def test_a_target_that_declines_after_the_commit_gives_the_machine_back(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source()
    wire = await connected(source.port)
    async with wire.stream:
        await play_target(wire, Phase.OWNED)
        assert source.machine.state is MachineState.PAUSED
        await wire.say(Declined(generation=2))
        assert isinstance(await wire.hear(), Released)
    await until(lambda: source.told_of("attempt ended"))
    assert source.daemon.attempts[0].as_json()["error"]["class"] == "Declined"
    assert source.told_of("attempt ended")[0].state is MachineState.RUNNING
    assert str(source.journal.record) == "O(2)"
    retry = neighbourhood.target(source.port)
    assert await retry.daemon.migrate_in() is not None
    assert str(retry.journal.record) == "O(3)"
    await assert_identical(source, retry)


def phases_of(target: Target) -> list[str]:
    return [event["phase"] for event in target.told if event["event"] == "phase"]


def names_of(target: Target) -> list[str]:
    return [event["event"] for event in target.told]
