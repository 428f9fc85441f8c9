"""Each fault does what it says, and what the daemons make of it: who has the machine in the end, and who said what."""

import pytest

from migrate.faults.explore import Experiment
from migrate.faults.plan import (
    Action,
    AtByte,
    AtMessage,
    AtTime,
    AtWrite,
    ClockJump,
    Cut,
    Delay,
    DiskFull,
    Duplicate,
    End,
    ExportFailure,
    Fault,
    FlipBit,
    Freeze,
    HalfOpen,
    Hang,
    ImportFailure,
    InPhase,
    InRound,
    Jitter,
    Kill,
    Lie,
    Moment,
    OneWay,
    Plan,
    PowerLoss,
    Replay,
    Reset,
    Slice,
    Stall,
    SyncError,
    Throttle,
    Trigger,
    Truncate,
    Untruth,
)
from migrate.protocol.messages import Role
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)

AT_DEVICES = AtMessage(message="DeviceState", side=Role.SOURCE)
AT_READY = AtMessage(message="Ready", side=Role.TARGET)
AT_COMMIT = AtMessage(message="Commit", side=Role.SOURCE)
COMMIT_ARRIVED = AtMessage(message="Commit", side=Role.SOURCE, moment=Moment.RECEIVED)
IN_ROUND_2 = InRound(round=2)
BEFORE_C = AtWrite(side=Role.SOURCE)
AFTER_R = AtWrite(side=Role.TARGET, moment=Moment.AFTER)

MOVED = ["source: migrated", "target: migrated"]
UNREACHABLE = ["target: TransportLost"] * 2


def published(*words: str) -> list[str]:
    """What both sides publish, in whatever order."""
    return list(words)


CASES: list[tuple[Trigger, Action, str, list[str]]] = [
    (IN_ROUND_2, Reset(), "target", published("target: TransportLost", "source: TransportLost", *MOVED)),
    (IN_ROUND_2, End(), "target", published("source: TransportLost", "target: TransportLost", *MOVED)),
    (IN_ROUND_2, Cut(for_s=2.0), "target", MOVED),
    (
        IN_ROUND_2,
        Cut(for_s=40.0),
        "source",
        published("source: DeadlineExpired", *["target: DeadlineExpired", *UNREACHABLE]),
    ),
    (IN_ROUND_2, HalfOpen(), "target", published("source: DeadlineExpired", "target: DeadlineExpired", *MOVED)),
    (AT_READY, OneWay(side=Role.TARGET), "target", published("source: DeadlineExpired", "target: PeerFailed", *MOVED)),
    (AT_READY, Stall(side=Role.TARGET, for_s=5.0), "target", MOVED),
    (IN_ROUND_2, Throttle(bytes_per_s=1e4), "target", published("source: NotConverging", "target: PeerFailed", *MOVED)),
    (AT_DEVICES, Slice(bytes=1), "target", MOVED),
    (AT_DEVICES, FlipBit(bit=300), "target", published("target: RemoteProtocolError", "source: PeerFailed", *MOVED)),
    (AT_DEVICES, Truncate(bytes=20), "target", published("source: TransportLost", "target: TransportLost", *MOVED)),
    (AT_DEVICES, Duplicate(), "target", published("target: RemoteProtocolError", "source: PeerFailed", *MOVED)),
    (AT_COMMIT, Kill(side=Role.SOURCE), "target", published("source: migrated", "target: migrated")),
    (BEFORE_C, Kill(side=Role.SOURCE), "target", published("source: Refused", "target: TransportLost", *MOVED)),
    (
        AFTER_R,
        Kill(side=Role.TARGET),
        "source",
        published("source: TransportLost", "source: Refused", "target: Restarted"),
    ),
    (
        COMMIT_ARRIVED,
        PowerLoss(side=Role.TARGET),
        "source",
        published("source: HandoffInDoubt", "target: ImageLost", "source: PeerFailed"),
    ),
    (BEFORE_C, DiskFull(side=Role.SOURCE), "target", published("source: JournalFailed", "target: PeerFailed", *MOVED)),
    (BEFORE_C, SyncError(side=Role.SOURCE), "target", published("source: JournalFailed", "target: PeerFailed", *MOVED)),
    (IN_ROUND_2, ExportFailure(), "target", published("source: DeviceStateError", "target: PeerFailed", *MOVED)),
    (IN_ROUND_2, ImportFailure(), "target", published("target: DeviceStateError", "source: PeerFailed", *MOVED)),
    (IN_ROUND_2, ClockJump(side=Role.TARGET, seconds=-5.0), "target", MOVED),
    (IN_ROUND_2, Freeze(side=Role.TARGET, for_s=3.0), "target", MOVED),
    (IN_ROUND_2, Delay(side=Role.TARGET, seconds=3.0), "target", MOVED),
    (AT_DEVICES, Jitter(side=Role.SOURCE, seconds=3.0), "target", MOVED),
    (
        AT_COMMIT,
        Jitter(side=Role.SOURCE, seconds=1000.0),
        "target",
        published("target: migrated", "source: HandoffInDoubt", "source: migrated"),
    ),
    (
        IN_ROUND_2,
        Hang(side=Role.TARGET),
        "target",
        published("source: DeadlineExpired", "target: PeerFailed", *MOVED),
    ),
    (
        AT_READY,
        Lie(what=Untruth.WRONG_MESSAGE),
        "target",
        published("source: RemoteProtocolError", "target: PeerFailed", *MOVED),
    ),
]


@pytest.mark.parametrize(
    ("when", "do", "owner", "words"), CASES, ids=[f"{type(case[1]).__name__} at {case[0]}" for case in CASES]
)
def test_a_fault_does_what_it_says(when: Trigger, do: Action, owner: str, words: list[str]) -> None:
    tried = EXPERIMENT.run(Plan(faults=(Fault(when=when, do=do),)))
    assert tried.violations == ()
    assert (tried.fired, tried.owner) == (1, owner)
    assert sorted(tried.published) == sorted(words)


@pytest.mark.parametrize("byte", [1, 5, 100, 15_000, 40_000, 80_000])
def test_a_connection_can_be_cut_at_a_byte(byte: int) -> None:
    tried = EXPERIMENT.run(Plan(faults=(Fault(when=AtByte(side=Role.SOURCE, byte=byte), do=End()),)))
    assert tried.violations == ()
    assert (tried.fired, tried.owner) == (1, "target")
    assert tried.published[-2:] == tuple(MOVED)


def test_a_fault_can_strike_at_a_time_and_in_a_phase() -> None:
    plan = Plan(
        faults=(
            Fault(when=AtTime(seconds=0.0002), do=Reset()),
            Fault(when=InPhase(phase="pause", side=Role.SOURCE), do=Kill(side=Role.TARGET)),
        )
    )
    tried = EXPERIMENT.run(plan)
    assert tried.violations == ()
    assert tried.fired == 2


def test_a_replay_needs_an_older_connection_on_which_the_same_was_said() -> None:
    for number, owner in ((1, "target"), (2, "target")):
        again = Fault(when=AtMessage(message="Accept", side=Role.TARGET, number=number), do=Replay())
        tried = EXPERIMENT.run(Plan(faults=(Fault(when=IN_ROUND_2, do=Reset()), again)))
        assert tried.violations == ()
        assert (tried.fired, tried.owner) == (number, owner)


REPLAYED = [("RamPages", 4), ("TimeOfDay", 2), ("ServerState", 2)]
"""From which number on they are of the second attempt, if the first ends just before it is prepared."""


@pytest.mark.parametrize(("message", "number"), REPLAYED, ids=[message for message, _ in REPLAYED])
def test_state_of_an_earlier_attempt_is_not_taken_for_that_of_this_one(message: str, number: int) -> None:
    """Every frame of it is whole, and in its place; found by pairs, and what the transcript is for."""
    ended = Fault(when=AtMessage(message="Prepare", side=Role.SOURCE), do=Reset())
    again = Fault(when=AtMessage(message=message, side=Role.SOURCE, number=number), do=Replay())
    tried = EXPERIMENT.run(Plan(faults=(ended, again)))
    assert tried.violations == ()
    assert (tried.fired, tried.owner) == (2, "target")
    assert {"target: RemoteProtocolError", "source: PeerFailed"} < set(tried.published)
    assert sorted(tried.published[-2:]) == sorted(MOVED)


def test_a_fault_that_never_comes_up_does_nothing() -> None:
    late = Fault(when=AtMessage(message="Ready", side=Role.TARGET, number=9), do=Reset())
    tried = EXPERIMENT.run(Plan(faults=(late,)))
    assert (tried.fired, tried.owner, tried.violations) == (0, "target", ())


def test_what_was_not_synced_is_there_after_kill_9_and_gone_after_a_loss_of_power() -> None:
    """In the middle of the source's sync of C(2), on the way to Commit."""
    in_sync = AtTime(seconds=0.0026)
    for action, holds in ((Kill(side=Role.SOURCE), True), (PowerLoss(side=Role.SOURCE), False)):
        plan = Plan(faults=(Fault(when=in_sync, do=action),))
        trace = "\n".join(EXPERIMENT.trace(plan))
        assert "writes C(2)" not in trace
        assert ("sends Commit(2)" in trace) is holds
        assert EXPERIMENT.run(plan).violations == ()


def test_a_target_that_cannot_note_that_the_source_goes_on_asks_again() -> None:
    """Found by random plans: it had left the record R(2), and the machine, to nobody."""
    plan = Plan(
        faults=(
            Fault(when=AFTER_R, do=DiskFull(side=Role.TARGET)),
            Fault(when=BEFORE_C, do=SyncError(side=Role.SOURCE, times=4)),
        )
    )
    tried = EXPERIMENT.run(plan)
    assert tried.violations == ()
    assert (tried.fired, tried.owner) == (2, "source")
    assert "sends Inquire(2)" in "\n".join(EXPERIMENT.trace(plan))
