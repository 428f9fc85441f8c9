"""One plan of faults on real daemons, played to its end and judged.

The plan means what it means in the simulation, and what comes of it is told in the same words: `RealTried.outcome` is
that of `migrate.faults.explore.Tried`.  The audits know nothing of the plan.  Those of the machine are in `case.py` and
`audit.py`; here are the ones of what the daemons publish.

A source that still has the machine in the end is asked for it once more, by a target on a line where nothing goes
wrong: whatever failed before, that retry has to bring an identical machine.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from migrate.daemon.launching import Launcher
from migrate.daemon.lives import SIDES, Event, Life, Side
from migrate.daemon.pair import PairResult
from migrate.daemon.supervisor import Daemons, Stuck, Supervisor, supervising
from migrate.engine.handoff import Holding
from migrate.faults.plan import Fault, Plan
from migrate.faults.words import fault_words, side_of
from migrate.rehearsal.audit import DEVICES_AND_MEMORY, FAILED_EARLY, Evidence
from migrate.rehearsal.case import Case, promises_broken
from migrate.rehearsal.injection import RealInjector
from migrate.rehearsal.leftovers import Leftovers
from migrate.simulation.audits import (
    AT_REST,
    ERRORS_SAY_WHERE,
    NO_BUG,
    NOTHING_EARLY,
    NOTHING_LOST,
    ONE_IN_THE_END,
    ONE_RUNNER,
    STALE_IMAGE,
    Violation,
)
from sim_vmm.spec import Spec

NOTHING_LEFT: Final = "nothing left"
IDENTICAL: Final = "identical machine"
RETRIES: Final = 2
"""As in the simulation: how often a target tries again by itself."""

Timeline = list[tuple[int, str, str]]
"""ns of the host's monotonic clock, who ("source", "target", "world"), what."""


@attrs.frozen(kw_only=True)
class RealTried:
    """What came of one plan.  `retried` says whether a source that kept the machine was asked for it once more."""

    plan: Plan
    owner: str
    published: tuple[str, ...]
    fired: tuple[Fault, ...]
    violations: tuple[Violation, ...]
    timeline: Timeline = attrs.field(repr=False)
    retried: bool = False

    @property
    def outcome(self) -> str:
        last = next((word for word in reversed(self.published) if word.startswith("target")), "target: nothing")
        return f"{self.owner} has it; {last}"


@attrs.frozen(kw_only=True)
class RealWorld:
    """Where and how plans are played: over as many connections as a plan says, if `target` says nothing else.

    `spec` is that of the machine as it is born, as `spec_file` and `source` say; a source that goes on is told
    `as_source` only.  `pace` real seconds are one of the plan's, and of the daemons' deadlines.  Without `fences` the
    storage has none, as in a simulation without one.  `states` and `storage` are directories, if not below that of the
    play.  With `asks_again` a source that kept the machine is asked for it once more.
    """

    spec: Spec
    spec_file: Path
    source: tuple[str, ...] = ("--guest", "ledger")
    as_source: tuple[str, ...] = ()
    target: tuple[str, ...] = ("--retries", str(RETRIES))
    both: tuple[str, ...] = ()
    pace: float = 1.0
    fences: bool = False
    states: Path | None = None
    storage: Path | None = None
    asks_again: bool = True
    has_hub_apart: bool = False
    after_s: float = 0.0
    watch: Callable[[Event], None] | None = None

    async def play(self, plan: Plan, directory: Path, launcher: Callable[[Any], Launcher]) -> "Played":
        """Below `directory`, which is empty.

        Raises:
            PlanError: what cannot be done to real daemons.
            NotStarted: the source could not begin.
        """
        injector = RealInjector(plan, self._tell)
        daemons = Daemons(
            directory=directory,
            storage=self.storage or directory / "disks",
            states=self.states,
            source=(str(self.spec_file), *self.source),
            as_source=self.as_source,
            target=(*self.target, *(() if "--streams" in self.target else ("--streams", str(plan.streams)))),
            both=(*self.both, *(() if self.fences else ("--unfenced",))),
            pace=self.pace,
            has_hub_apart=self.has_hub_apart,
        )
        promises: list[str] = []

        def on_death(side: Side) -> None:
            promises.extend(self._promises_broken(supervisor, side))

        violations: list[Violation] = []
        async with supervising(daemons, injector, on_death, launcher, self.watch) as supervisor:
            try:
                await supervisor.play()
            except Stuck:
                violations.append(Violation(AT_REST, "nobody is at rest, though all has been well for long"))
            published = published_by(supervisor.lives)
            owner = _owner(supervisor)
            retried = self.asks_again and not violations and owner == "source"
            if retried:
                violations += await _retry(supervisor)
            await supervisor.end(self.after_s)
        case = Case(
            lives=tuple(supervisor.lives),
            heard=tuple(supervisor.heard),
            promises=tuple(promises),
            states={side: daemons.state(side) for side in SIDES},
            leftovers=Leftovers(left=daemons.left, storage=daemons.storage, wire=None),
            wire=daemons.wire,
            spec=self.spec,
        )
        tried = RealTried(
            plan=plan,
            owner=owner,
            published=published,
            fired=tuple(injector.fired),
            violations=tuple(violations),
            timeline=supervisor.timeline(),
            retried=retried,
        )
        return Played(tried=tried, case=case, daemons=daemons)

    def _tell(self, fault: Fault) -> None:
        """What has struck, as an event beside those of the daemons."""
        if self.watch is not None:
            event = {"event": "fault", "side": side_of(fault), "at_ns": time.monotonic_ns()}
            self.watch({**event, "fault": fault_words(fault)})

    def _promises_broken(self, supervisor: Supervisor, side: Side) -> Iterator[str]:
        """What a killed process had acknowledged to the guest's readers and is not on the disk.

        Once the guest has been booted again, older RAM may promise what that boot has overwritten.
        """
        life = supervisor.now(side)
        if life is None or any(one.told("started again") for one in supervisor.lives):
            return
        if life.told("guest runs") or "after write R" in life.points():
            daemons = supervisor.daemons
            leftovers = Leftovers(left=daemons.left, storage=daemons.storage, wire=None)
            yield from promises_broken(daemons.state(side) / "ram", leftovers, self.spec)


@attrs.frozen(kw_only=True)
class Played:
    """A plan that was played, and everything there is to judge it by."""

    tried: RealTried
    case: Case
    daemons: Daemons

    def pair(self) -> PairResult:
        """What all processes told, as if there had been one of each side; the exit codes are those of the last ones."""
        told: dict[str, list[Event]] = {side: [] for side in SIDES}
        codes: dict[str, int] = {}
        for life in self.case.lives:
            told[life.side] += life.events
            codes[life.side] = life.exit_code or 0
        return PairResult(source=told["source"], target=told["target"], exit_codes=codes)

    def judged(self) -> RealTried:
        """After this the directory of the play may be removed.  It takes a while, in which nobody else should wait."""
        left = (Violation(NOTHING_LEFT, f"{path} is left") for path in _left_behind(self.daemons))
        return attrs.evolve(self.tried, violations=(*self.tried.violations, *judged(self.case), *left))


def published_by(lives: list[Life]) -> tuple[str, ...]:
    """What the daemons have told of their attempts, in order: `side: migrated`, or the error's class."""
    ended = [event for life in lives for event in life.all("attempt ended")]
    return tuple(
        f"{event['side']}: {event['raised'] or 'migrated'}" for event in sorted(ended, key=lambda event: event["at_ns"])
    )


def _owner(supervisor: Supervisor) -> str:
    owners = [side for side in SIDES if (kept := supervisor.kept(side)) and kept.record.holding is Holding.OWNER]
    return owners[0] if len(owners) == 1 else "nobody"


async def _retry(supervisor: Supervisor) -> list[Violation]:
    """One more target, on a line where nothing goes wrong."""
    supervisor.tell("once more")
    before = len(supervisor.lives)
    target = await supervisor.start("target")
    try:
        await supervisor.until(lambda: target.is_over or (target.told("running") and supervisor.is_at_rest()))
    except Stuck:
        return [Violation(AT_REST, "a retry on a line that is well does not come to an end")]
    if target.is_over or not target.told("running"):
        return [
            Violation(IDENTICAL, f"a retry on a line that is well failed: {published_by(supervisor.lives[before:])}")
        ]
    return []


def judged(case: Case) -> Iterator[Violation]:
    """Whatever happened to processes and links, this must not have."""
    for check, objecting in checks_of(case).items():
        for objections in objecting:
            yield from (Violation(check, message) for message in objections())


def checks_of(case: Case) -> dict[str, tuple[Callable[[], Iterator[str]], ...]]:
    """By the names of the simulation's audits, as far as they are the same."""
    return {
        ONE_RUNNER: (case.overlaps, case.wire_objections),
        STALE_IMAGE: (case.used_images,),
        NOTHING_LOST: (lambda: iter(case.promises), case.ledger_objections),
        ONE_IN_THE_END: (case.ownership_objections,),
        IDENTICAL: (lambda: not_identical(case.lives),),
        NOTHING_EARLY: (lambda: told_early(case.lives),),
        ERRORS_SAY_WHERE: (lambda: homeless_errors(case.lives),),
        NOTHING_LEFT: (case.leftover_objections,),
        NO_BUG: (case.crashes,),
    }


def not_identical(lives: tuple[Life, ...]) -> Iterator[str]:
    """What a target ran has to be what its source gave away, unless it had to boot it."""
    arrived = [life for life in lives if life.side == "target" and life.told("image") and not life.told("guest boots")]
    given = [life for life in lives if life.side == "source" and life.told("image")]
    if arrived and given:
        pair = PairResult(source=given[-1].events, target=arrived[-1].events, exit_codes={})
        for check in DEVICES_AND_MEMORY:
            yield from check(Evidence(pair=pair, expected_spec=""))


def told_early(lives: tuple[Life, ...]) -> Iterator[str]:
    for life in lives:
        if life.side == "source":
            pair = PairResult(source=life.events, target=[], exit_codes={})
            yield from FAILED_EARLY(Evidence(pair=pair, expected_spec=""))


def homeless_errors(lives: tuple[Life, ...]) -> Iterator[str]:
    """Every error names the phase and the side where it arose."""
    for life in lives:
        for event in life.all("attempt ended"):
            error = event["error"]
            if error is not None and not (event["phase"] and error["side"] in SIDES and error["message"]):
                yield f"the {life.side} published {error} of phase {event['phase']!r}"


def _left_behind(daemons: Daemons) -> Iterator[Path]:
    """Sockets and temporary files that nobody needs any more."""
    for path in sorted(daemons.directory.rglob("*")):
        if path.is_socket() or path.name.endswith((".new", ".tmp")):
            yield path
