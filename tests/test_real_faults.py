"""Faults on real daemons: two processes over TCP, shared disks and a network, with a proxy and a supervisor between.

The same plans are played in the simulation and on real daemons, and have to come to the same outcome.  Then the line
alone is struck, at very many bytes of very many attempts: nothing may be believed that was not said.  Whoever dies is
in test_kills.py, at every point there is; the kills here are those of plans.

Plans that wait for deadlines are played along with others, on time that runs `PACE` times as fast as the plan's.
"""

import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import attrs
import pytest
import trio

from migrate.cli.exploring import simulated
from migrate.cli.specs import read
from migrate.daemon.birth import born
from migrate.daemon.launching import ForkLauncher, Launcher
from migrate.daemon.lives import Life
from migrate.faults.explore import Experiment, Tried
from migrate.faults.plan import (
    ACTIONS,
    TRIGGERS,
    AtByte,
    AtMessage,
    AtTake,
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
    PlanError,
    PowerLoss,
    Replay,
    Reset,
    Slice,
    Stall,
    StorageOutage,
    SyncError,
    Throttle,
    Truncate,
    Untruth,
)
from migrate.protocol.messages import Role
from migrate.rehearsal.injection import require_possible
from migrate.rehearsal.real import Played, RealTried, RealWorld, homeless_errors, not_identical, told_early
from migrate.simulation.remembering import remembering
from tests.commands import zygote
from tests.killing import SMALL_MACHINE
from tests.striking import Frame, Series, Stroke, all_of, strokes, undisturbed

SHARES: Final = 4
SHARE: Final = pytest.mark.parametrize("share", range(SHARES))
SOAK: Final = bool(os.environ.get("MIGRATE_SOAK"))
SOME: Final = pytest.mark.parametrize("share", range(SHARES if SOAK else 1))
"""`make soak` cuts and flips at four times as many bytes: 204 cuts and 252 flips in each direction."""
PACE: Final = 0.2

T = TypeVar("T")
S, D = Role.SOURCE, Role.TARGET
BEFORE, AFTER, RECEIVED = Moment.BEFORE, Moment.AFTER, Moment.RECEIVED


def at(message: str, side: Role, number: int = 1, moment: Moment = BEFORE, stream: int = 0) -> AtMessage:
    return AtMessage(message=message, side=side, number=number, moment=moment, stream=stream)


def plan(*faults: tuple[Any, Any], streams: int = 1) -> Plan:
    return Plan(faults=tuple(Fault(when=when, do=do) for when, do in faults), streams=streams)


over_two: Final = partial(plan, streams=2)


# The same plans, simulated and real

PATIENT_PLANS: Final = {
    "half-open in the first round": plan((at("RoundEnd", S), HalfOpen())),
    "one-way, the source is not heard": plan((at("Paused", S), OneWay(side=S))),
    "one-way, the target is not heard": plan((at("Ready", D), OneWay(side=D))),
    "a stall beyond the deadline": plan((at("DeviceState", S), Stall(side=S))),
    "a trickle": plan((at("RamPages", S), Throttle())),
    "the target is frozen beyond the deadline": plan((InPhase(phase="handoff", side=D), Freeze(side=D))),
    "the target hangs": plan((InPhase(phase="devices", side=D), Hang(side=D))),
    "the source hangs in the handoff": plan((at("Ready", D, moment=RECEIVED), Hang(side=S))),
    "a half-open stream": over_two((at("RoundEnd", S, stream=1), HalfOpen())),
    "a stream that is never heard of": over_two((at("Attach", D, stream=1), OneWay(side=D))),
}
"""They wait for deadlines."""
PLANS: Final = PATIENT_PLANS | {
    "nothing": plan(),
    "a short stall": plan((at("Ready", D), Stall(side=D, for_s=2.0))),
    "cut in the RAM": plan((at("RamPages", S), Cut())),
    "cut at the commit": plan((at("Commit", S), Cut())),
    "the source sleeps when the target comes": plan((AtTime(seconds=0.0), Freeze(side=S, for_s=3.0))),
    "end after the verdict": plan((at("Accept", D, moment=AFTER), End())),
    "reset before the commit": plan((at("Commit", S), Reset())),
    "reset after the commit": plan((at("Owned", D), Reset())),
    "reset at a byte of the preamble": plan((AtByte(side=S, byte=3000), Reset())),
    "end at a byte of the target": plan((AtByte(side=D, byte=100), End())),
    "the preamble byte by byte": plan((at("Preamble", S), Slice())),
    "a hello cut short": plan((at("Hello", D), Truncate())),
    "a bit of a page": plan((at("RamPages", S), FlipBit(bit=-60))),
    "a bit of the promise": plan((at("Ready", D), FlipBit(bit=70))),
    "paused twice": plan((at("Paused", S), Duplicate())),
    "a promise of an older connection": plan((at("Prepare", S), Reset()), (at("Accept", D, number=2), Replay())),
    "the first word of an older connection": plan((at("Prepare", S), Reset()), (at("Paused", S, number=2), Replay())),
    "a message out of turn": plan((at("RoundStored", D), Lie())),
    "a version that nobody knows": plan((at("Accept", D), Lie(what=Untruth.UNKNOWN_VERSION))),
    "a device too many": plan((at("DevicesEnd", S), Lie(what=Untruth.WRONG_COUNT))),
    "a preamble that is too large": plan((at("Preamble", S), Lie(what=Untruth.OVERSIZE))),
    "RAM that is not there": plan((at("RamPages", S), Lie(what=Untruth.BAD_EXTENTS))),
    "late words of the source": plan((at("RoundEnd", S), Delay(side=S))),
    "an unsteady line to the source": plan((at("RoundEnd", S), Jitter(side=D, seconds=0.5, seed=3))),
    "the source dies before the commit is said": plan((at("Commit", S), Kill(side=S))),
    "the source dies before C is written, for good": plan((AtWrite(side=S), Kill(side=S, restart_s=None))),
    "the source dies before N is written": plan((AtWrite(side=S, number=2), Kill(side=S))),
    "the source dies when it hears Owned": plan((at("Owned", D, moment=RECEIVED), Kill(side=S))),
    "the target dies in the RAM, for good": plan((InPhase(phase="ram", side=D), Kill(side=D, restart_s=None))),
    "the target dies in the second round": plan((InRound(round=2), Kill(side=D))),
    "the target dies when R is written": plan((AtWrite(side=D, moment=AFTER), Kill(side=D))),
    "the target dies before its promise": plan((at("Ready", D), Kill(side=D))),
    "the target dies when O is written": plan((AtWrite(side=D, number=2, moment=AFTER), Kill(side=D))),
    "the source is frozen for a while": plan((at("RoundStored", D, moment=RECEIVED), Freeze(side=S, for_s=12.0))),
    "the source's clock is set forward": plan((InPhase(phase="time data", side=S), ClockJump(side=S))),
    "the target's clock is set back": plan((InPhase(phase="preamble", side=D), ClockJump(side=D, seconds=-3600.0))),
    "the target's disk is full": plan((InPhase(phase="handoff", side=D), DiskFull(side=D))),
    "the source's disk is full, and stays so": plan((InPhase(phase="ram", side=S), DiskFull(side=S, times=99))),
    "the source's disk cannot sync C": plan((AtWrite(side=S), SyncError(side=S))),
    "the target's disk cannot sync": plan((InPhase(phase="handoff", side=D), SyncError(side=D, times=3))),
    "an export that fails": plan((InPhase(phase="ram", side=S), ExportFailure())),
    "exports that fail": plan((InPhase(phase="ram", side=S), ExportFailure(times=9))),
    "an import that fails": plan((InPhase(phase="ram", side=D), ImportFailure())),
    "imports that fail": plan((InPhase(phase="ram", side=D), ImportFailure(times=9))),
    "the source dies, and the target is cut off when it asks": plan(
        (at("Commit", S), Kill(side=S)), (at("Inquire", D), Reset())
    ),
    "a bit of the first attempt, the end of the second": plan(
        (at("DeviceState", S), FlipBit(bit=-1)), (at("Accept", D, number=2), End())
    ),
    "nothing, over two connections": over_two(),
    "nothing, over three connections": plan(streams=3),
    "a stream's first word cut short": over_two((at("Attach", D, stream=1), Truncate())),
    "a stream is reset before its first batch": over_two((at("RamPages", S, stream=1), Reset())),
    "a stream ends after the first round": over_two((at("RoundEnd", S, moment=AFTER, stream=1), End())),
    "reset at a byte of a stream": over_two((AtByte(side=S, byte=200, stream=1), Reset())),
    "a bit of a page on a stream": over_two((at("RamPages", S, stream=1), FlipBit(bit=-60))),
    "a round that ends twice on a stream": over_two((at("RoundEnd", S, stream=1), Duplicate())),
    "another end of a round on a stream": over_two((at("RoundEnd", S, stream=1), Lie(what=Untruth.WRONG_COUNT))),
    "a message out of turn on a stream": over_two((at("RamPages", S, stream=1), Lie())),
    "a stream of an older connection": over_two(
        (at("Prepare", S), Reset()), (at("Attach", D, number=2, stream=1), Replay())
    ),
    "the last of three streams is cut off": plan((at("RoundEnd", S, stream=2), Reset()), streams=3),
    "the source dies before it ends a round on a stream": over_two((at("RoundEnd", S, stream=1), Kill(side=S))),
    "the target dies when a stream has ended a round": over_two(
        (at("RoundEnd", S, moment=RECEIVED, stream=1), Kill(side=D))
    ),
    "late words of a stream": over_two((at("Attach", D, stream=1), Delay(side=S))),
    "the line is reset while there are streams": over_two((InPhase(phase="devices", side=D), Reset())),
}


@pytest.fixture(scope="module")
def asked() -> Iterator[socket.socket]:
    with zygote() as asked:
        yield asked


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    file = tmp_path_factory.mktemp("spec") / "machine.json"
    file.write_text(json.dumps(SMALL_MACHINE))
    return Experiment(spec=simulated(born(read(file, None).spec, None)))


def with_launcher(asked: socket.socket, do: Callable[[Launcher], Awaitable[T]]) -> T:
    """What comes of `do`, which is given somebody who starts processes."""

    async def main() -> T:
        async with trio.open_nursery() as nursery:
            result = await do(ForkLauncher(nursery, asked))
            nursery.cancel_scope.cancel()
        return result

    return trio.run(main)


async def play_all(launcher: Launcher, names: list[str], below: Path) -> dict[str, Played]:
    """Patient plans along with each other, the rest one by one: there are other processes for that."""
    played: dict[str, Played] = {}
    turn = trio.Lock()
    spec_file = below / "machine.json"
    spec_file.write_text(json.dumps(SMALL_MACHINE))
    spec = born(read(spec_file, None).spec, None)
    world = RealWorld(spec=spec, spec_file=spec_file, pace=PACE, has_hub_apart=True)

    async def play(number: int, name: str) -> None:
        directory = below / str(number)
        directory.mkdir()
        async with nullcontext() if name in PATIENT_PLANS else turn:
            played[name] = await world.play(PLANS[name], directory, lambda _: launcher)

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(names):
            nursery.start_soon(play, number, name)
    return played


def told(real: RealTried) -> str:
    began_ns = real.timeline[0][0]
    return "\n".join(f"{(at_ns - began_ns) / 1e6:9.1f} ms {who} {what}" for at_ns, who, what in real.timeline)


def novel() -> list[str]:
    """The plans with a trigger or an action, on the first connection or on another, that no plan before had."""
    found, seen = [], set[tuple[type, bool]]()
    for name, plan in PLANS.items():
        parts = {
            (type(part), getattr(fault.when, "stream", 0) > 0)
            for fault in plan.faults
            for part in (fault.when, fault.do)
        }
        if not plan.faults or parts - seen:
            found.append(name)
        seen |= parts
    return found


@SHARE
def test_a_plan_comes_to_the_same_outcome_simulated_and_real(
    asked: socket.socket, experiment: Experiment, share: int
) -> None:
    """`make soak` plays them all."""
    names = (list(PLANS) if SOAK else novel())[share::SHARES]
    with TemporaryDirectory(prefix="real-") as below:
        for name, played in with_launcher(asked, partial(play_all, names=names, below=Path(below))).items():
            real = played.judged()
            assert not real.violations, f"{name}: {real.violations}\n{told(real)}"
            with remembering():
                assert_same(name, real, attrs.evolve(experiment, streams=PLANS[name].streams).run(PLANS[name]))


def assert_same(name: str, real: RealTried, simulated: Tried) -> None:
    came = f"{name}: {real.published} on real daemons, {simulated.published} simulated\n{told(real)}"
    assert real.outcome == simulated.outcome, came
    assert len(real.fired) == simulated.fired == len(PLANS[name].faults), came


def test_there_are_plans_of_everything_that_can_strike() -> None:
    faults = [fault for plan in PLANS.values() for fault in plan.faults]
    assert set(TRIGGERS.values()) - {type(fault.when) for fault in faults} == {AtTake}  # there is no fence here
    refused: set[type] = {PowerLoss, StorageOutage}
    assert set(ACTIONS.values()) - {type(fault.do) for fault in faults} == refused
    assert len(novel()) >= 30


def test_what_cannot_be_done_to_a_real_host_is_refused_by_name() -> None:
    dark = plan((at("Hello", D), Reset()), (AtWrite(side=S), PowerLoss(side=S)))
    with pytest.raises(PlanError, match=r"fault 2: power-loss cannot be done to a real host: .*; say kill"):
        require_possible(dark)
    with pytest.raises(PlanError, match=r"fault 1: storage-outage cannot be done to a directory .*--fence"):
        require_possible(plan((AtTime(seconds=1.0), StorageOutage(side=S))))


# Strokes


@pytest.fixture(scope="module")
def layout(asked: socket.socket) -> list[Frame]:
    return with_launcher(asked, undisturbed)


def struck(asked: socket.socket, left: list[Stroke]) -> Series:
    return with_launcher(asked, partial(all_of, left=left))


@SOME
@pytest.mark.parametrize("side", Role, ids=str)
def test_a_line_that_is_cut_at_any_byte_fails_an_attempt_by_name_and_the_next_one_moves_the_machine(
    asked: socket.socket, layout: list[Frame], side: Role, share: int
) -> None:
    series = struck(asked, strokes(layout, side, 51, ("end", "reset"), f"cut {side} {share}"))
    assert not series.objections
    assert len(series.ends) == 51


@SOME
@pytest.mark.parametrize("side", Role, ids=str)
def test_no_flipped_bit_is_believed(asked: socket.socket, layout: list[Frame], side: Role, share: int) -> None:
    series = struck(asked, strokes(layout, side, 63, ("flip",), f"flip {side} {share}"))
    assert not series.objections
    assert len(series.ends) == 63


# What judges


def life_of(side: Any, *events: dict[str, Any]) -> Life:
    life = Life(side, os.getpid(), -1, -1, lambda: None)
    life.events += [{"side": side, "at_ns": number, **event} for number, event in enumerate(events)]
    life.note_status(signal.SIGKILL)
    return life


IMAGE: Final = {
    "ram": "aa",
    "ram_bytes": 4096,
    "devices": {"com1": "bb"},
    "console": {"digest": "cc"},
}


@pytest.mark.parametrize(
    ("after", "objects"),
    [
        (IMAGE, []),
        (IMAGE | {"ram": "ab"}, ["ram: aa on the source, ab on the target"]),
        (IMAGE | {"devices": {"com1": "b"}}, ["the state of device 'com1' differs between source and target"]),
        (IMAGE | {"devices": {}}, ["the state of device 'com1' differs between source and target"]),
    ],
)
def test_a_machine_that_is_not_the_one_that_was_given_away_is_found(after: dict[str, Any], objects: list[str]) -> None:
    source, target = (
        life_of(side, {"event": "image", "image": image}) for side, image in (("source", IMAGE), ("target", after))
    )
    assert list(not_identical((source, target))) == objects
    booted = life_of("target", {"event": "guest boots"}, {"event": "image", "image": after})
    assert list(not_identical((source, booted))) == []


@pytest.mark.parametrize(
    ("phase", "side", "message", "is_fine"),
    [
        ("ram", "source", "it broke", True),
        ("", "source", "it broke", False),
        ("ram", "", "it broke", False),
        ("ram", "source", "", False),
    ],
)
def test_an_error_that_does_not_say_where_it_arose_is_found(phase: str, side: str, message: str, is_fine: bool) -> None:
    error = {"class": "TransportLost", "message": message, "side": side}
    life = life_of("target", {"event": "attempt ended", "outcome": "failed", "phase": phase, "error": error})
    assert (list(homeless_errors((life,))) == []) is is_fine


@pytest.mark.parametrize("is_back", [True, False])
def test_a_failure_that_is_told_before_the_source_runs_again_is_found(is_back: bool) -> None:
    back = [{"event": "rolled back", "phase": "devices"}] if is_back else []
    ended = {"event": "attempt ended", "outcome": "failed"}
    life = life_of("source", {"event": "phase", "phase": "pause"}, *back, ended)
    assert (list(told_early((life,))) == []) is is_back
