"""Very many attempts of one pair of real daemons, each of which is struck once at a byte of what one side says.

An attempt that fails leaves the source running, so the same pair is good for the next one; a stroke that falls behind
the commit ends in a machine that has moved, and the next is for another pair.  A *stroke* is a frame of a conversation
and a place in it; what follows the frame as raw bytes is part of it.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import attrs

from migrate.cli.specs import read
from migrate.daemon.launching import Launcher
from migrate.daemon.lives import SIDES, Life, Side
from migrate.daemon.proxy import Passing
from migrate.daemon.supervisor import Daemons, Supervisor, supervising
from migrate.faults.data import flip
from migrate.protocol.messages import RamContent, Role
from migrate.rehearsal.case import Case
from migrate.rehearsal.leftovers import Leftovers
from migrate.rehearsal.real import judged
from tests.killing import SMALL_MACHINE

PACE: Final = 0.05
"""Of the daemons' deadlines and pauses: whoever waits for bytes that never come gives up after 1.5 s."""
ATTEMPTS: Final = ("--retries", "100000")


@attrs.frozen
class Frame:
    """The `number`-th message of a kind that `side` says in an attempt, and how many bytes it has."""

    side: Role
    kind: str
    number: int
    length: int


@attrs.frozen
class Stroke:
    """`how` is "end", "reset" or "flip"; `place` is where in the frame, from 0 to 1; `bit` is of that byte."""

    how: str
    frame: Frame
    place: float
    bit: int = 0

    async def strike(self, passing: Passing) -> None:
        byte = int(self.place * len(passing.data))
        if self.how == "flip":
            passing.data = flip(passing.data, 8 * byte + self.bit)
            return
        await passing.direction.deliver(passing.data[:byte])
        if self.how == "end":
            await passing.connection.finish()
        else:
            passing.connection.reset()


def strokes(layout: Sequence[Frame], side: Role, count: int, hows: Sequence[str], seed: str) -> list[Stroke]:
    """At random bytes of what `side` says: of three in four each byte is as likely, of the others each frame."""
    random = Random(seed)
    mine = [frame for frame in layout if frame.side is side]
    weights = [frame.length for frame in mine]
    drawn = []
    for index in range(count):
        frame = random.choice(mine) if index % 4 == 3 else random.choices(mine, weights)[0]
        drawn.append(Stroke(random.choice(hows), frame, random.random(), random.randrange(8)))
    return drawn


@attrs.define(eq=False)
class Striker:
    """Strikes the next stroke at the next attempt; see `migrate.daemon.supervisor.Faults`.

    `layout` is what passed in the last attempt; `struck` are the strokes that were, with the number of the attempt.
    """

    left: list[Stroke]
    layout: list[Frame] = attrs.field(factory=list)
    struck: list[tuple[int, Stroke]] = attrs.field(factory=list)
    attempts: int = 0
    _aim: Stroke | None = None
    _said: Counter[tuple[Role, str]] = attrs.field(factory=Counter)
    _reads: bool = False

    def begin(self, supervisor: Supervisor) -> None:
        """Nothing strikes by itself."""

    async def asked(self, side: Side, at: str, name: str) -> dict[str, Any]:
        return {}

    async def before(self, passing: Passing) -> None:
        if passing.kind == "Hello":
            self.attempts += 1
            self.layout, self._aim = [], self.left[0] if self.left else None
            self._said.clear()
        elif passing.kind == "Inquire":  # a handoff is settled
            self._aim = None
        self._said[passing.side, passing.kind] += 1
        here = (passing.side, passing.kind, self._said[passing.side, passing.kind])
        aim = self._aim
        is_here = aim is not None and (aim.frame.side, aim.frame.kind, aim.frame.number) == here
        if isinstance(passing.message, RamContent) and (is_here or self._reads):
            await passing.gather()
        self.layout.append(Frame(*here, len(passing.data)))
        if aim is not None and is_here:
            self.struck.append((self.attempts, self.left.pop(0)))
            self._aim = None
            await aim.strike(passing)

    async def after(self, passing: Passing) -> None:
        pass

    def byte_awaited(self, side: Role, stream: int) -> int | None:
        return None

    async def at_byte(self, passing: Passing) -> None:
        raise AssertionError("no byte is awaited")


@attrs.frozen
class Series:
    """What came of strokes: how the attempt that each struck ended for the target, and all there is to object to."""

    ends: list[tuple[Stroke, str]]
    objections: list[str]
    layout: list[Frame]


async def undisturbed(launcher: Launcher) -> list[Frame]:
    """What passes in an attempt that nobody disturbs."""
    striker = Striker([])
    striker._reads = True
    series = await one_pair(launcher, striker)
    assert not series.objections, series.objections
    return series.layout


async def all_of(launcher: Launcher, left: Sequence[Stroke]) -> Series:
    """Strike everything, with as many pairs as it takes."""
    striker, ends, objections = Striker(list(left)), [], []
    while striker.left:
        series = await one_pair(launcher, striker)
        ends += series.ends
        objections += series.objections
        assert not objections, objections
    return Series(ends, objections, striker.layout)


async def one_pair(launcher: Launcher, striker: Striker) -> Series:
    """Strike until the machine has moved; the attempt after the last stroke is left alone."""
    striker.struck, striker.attempts = [], 0
    with TemporaryDirectory(prefix="strike-") as name:
        directory = Path(name)
        spec_file = directory / "machine.json"
        spec_file.write_text(json.dumps(SMALL_MACHINE))
        daemons = Daemons(
            directory=directory,
            storage=directory / "disks",
            source=(str(spec_file), "--guest", "ledger"),
            target=ATTEMPTS,
            both=("--unfenced",),
            pace=PACE,
            have_failpoints=False,
            has_hub_apart=True,
        )
        async with supervising(daemons, striker, _nobody_dies, lambda _: launcher) as supervisor:
            await strike_all(supervisor)
            await supervisor.end()
        case = Case(
            lives=tuple(supervisor.lives),
            heard=tuple(supervisor.heard),
            promises=(),
            states={side: daemons.state(side) for side in SIDES},
            leftovers=Leftovers(left=daemons.left, storage=daemons.storage, wire=None),
            wire=daemons.wire,
            spec=read(spec_file, None).spec,
        )
        objections = [f"{violation.check}: {violation.message}" for violation in judged(case)]
    ended = [
        event["outcome"] for life in supervisor.lives if life.side == "target" for event in life.all("attempt ended")
    ]
    ends = [(stroke, ended[attempt - 1]) for attempt, stroke in striker.struck]
    objections += [f"{stroke} was not noticed" for stroke, outcome in ends if not is_noticed(stroke, outcome)]
    return Series(ends, objections, striker.layout)


def is_noticed(stroke: Stroke, outcome: str) -> bool:
    """An attempt that was struck has failed, or has moved a machine, which has been compared with what was given away.

    The latter can only be where the target has been given the machine already.
    """
    return outcome == "failed" or (outcome == "migrated" and stroke.frame.kind in ("Commit", "Owned", "Released"))


async def strike_all(supervisor: Supervisor) -> None:
    source = await supervisor.start("source")
    await supervisor.until(lambda: source.told("listening"))
    target = await supervisor.start("target")
    while not supervisor.is_at_rest():
        seen = len(target.events)
        await supervisor.until(_something_new(supervisor, target, seen))
        if target.is_over and not supervisor.is_at_rest():  # it came while the source was busy with the end of another
            target = await supervisor.start("target")


def _something_new(supervisor: Supervisor, target: Life, seen: int) -> Callable[[], bool]:
    return lambda: len(target.events) > seen or target.is_over or supervisor.is_at_rest()


def _nobody_dies(side: Side) -> None:
    raise AssertionError(f"the {side} was killed")
