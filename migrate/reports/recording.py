"""Records a simulated migration as a timeline.

The recorder stands before the injector as the world's hooks, and in the place of its audits, so the world does nothing
for it that it would not do anyway; a run that nobody records pays nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from migrate.daemon.outcome import AttemptOutcome
from migrate.engine.attempt import Attempt as EngineAttempt
from migrate.errors import MigrationError
from migrate.faults.explore import Experiment
from migrate.faults.injection import Injector
from migrate.faults.plan import Fault, Plan
from migrate.faults.words import fault_words, side_of
from migrate.protocol.messages import Failure, Message, Role
from migrate.rehearsal.result import attempts_of
from migrate.reports.timeline import SOURCE, TARGET, WORLD, Attempt, Event, Kind, Timeline, in_order
from migrate.reports.words import SILENT, kind_and_facts, told_words
from migrate.simulation.audits import CHECKS, Audits
from migrate.simulation.hooks import Hooks
from migrate.simulation.link import SimulatedLink
from migrate.simulation.node import Life, Node
from migrate.simulation.world import Result, World
from sim_vmm.machine import Machine


@attrs.frozen(kw_only=True)
class Recorded:
    """A simulated migration: what came of it, and how."""

    result: Result
    fired: tuple[Fault, ...]
    timeline: Timeline


def record(experiment: Experiment, plan: Plan) -> Recorded:
    """Run `plan`, and note all that happens; the one more migration in the end only if that violates an audit."""
    recorded = _record(experiment, plan, once_more=False)
    if not recorded.result.violations:
        whole = _record(experiment, plan, once_more=True)
        return whole if whole.result.violations else recorded
    return recorded


def _record(experiment: Experiment, plan: Plan, *, once_more: bool) -> Recorded:
    recorder = Recorder(Injector(plan))
    with experiment.world(recorder, once_more=once_more, traced=True) as world:
        recorder.watch(world)
        result = world.run()
        names = {SOURCE: world.source.name, TARGET: world.target.name}
    timeline = Timeline(
        names=names,
        events=in_order(_without_last_calm(recorder.events)),
        attempts=recorder.attempts(),
        owner=result.owner,
        outcome=outcome_of(result.published),
        planned=tuple(map(fault_words, plan.faults)),
        checks=CHECKS,
        violations=tuple((found.check, found.message) for found in result.violations),
    )
    return Recorded(result=result, fired=tuple(recorder.injector.fired), timeline=timeline)


@attrs.define(eq=False)
class Recorder(Hooks):
    """Notes what passes, then lets the injector strike; what it kills has happened before it died."""

    injector: Injector
    events: list[Event] = attrs.field(factory=list)
    outcomes: dict[str, list[dict[str, Any]]] = attrs.field(factory=lambda: {SOURCE: [], TARGET: []})
    _world: World | None = None
    _sending_since: dict[SimulatedLink, tuple[int, int]] = attrs.field(factory=dict)

    def watch(self, world: World) -> None:
        """Before it runs."""
        self._world = world
        world.audits = NotingAudits(
            time=world.time, keeps_ledger=world.audits.keeps_ledger, recorder=self, source=world.source.name
        )
        self.injector.on_strike = self._struck

    def attempts(self) -> tuple[Attempt, ...]:
        first_ns = min((event.at_ns for event in self.events), default=0)
        return tuple(
            Attempt.of(document, None if started_ns is None else started_ns - first_ns)
            for document, started_ns in attempts_of(self.outcomes[SOURCE], self.outcomes[TARGET])
        )

    def note(self, side: str, kind: Kind, text: str, **facts: Any) -> None:
        assert self._world is not None, "a world is watched"
        self.events.append(Event(at_ns=self._world.scheduler.now_ns, side=side, kind=kind, text=text, **facts))

    def ended(self, life: Life, attempt: EngineAttempt, error: MigrationError | None) -> None:
        """A daemon publishes what came of an attempt; times of its host become times of the world."""
        outcome = AttemptOutcome(attempt=attempt, error=error).as_json()
        outcome["started_ns"] -= life.node.clock_offset_ns
        self.outcomes[life.side.value].append(outcome)
        told = outcome["outcome"] if error is None else f"{outcome['outcome']}: {error}"
        self.note(life.side.value, Kind.ENDS, told)

    def _struck(self, fault: Fault) -> None:
        self.note(side_of(fault), Kind.FAULT, fault_words(fault))

    # Hooks

    def begin(self, world: World) -> None:
        self.injector.begin(world)

    def sending(self, link: SimulatedLink, message: Message, data: bytes) -> bytes:
        data = self.injector.sending(link, message, data)
        self._sending_since[link] = (link.life.world.scheduler.now_ns, len(data))
        return data

    def sent(self, link: SimulatedLink, message: Message) -> None:
        since_ns, size = self._sending_since.pop(link)
        name = type(message).__name__
        self.events.append(
            Event(
                at_ns=since_ns,
                side=link.side,
                kind=Kind.SENDS,
                text=name,
                message=name,
                size=size,
                connection=link.connection.number,
            )
        )
        self.injector.sent(link, message)

    def received(self, link: SimulatedLink, message: Message) -> None:
        name = type(message).__name__
        self.note(link.side, Kind.RECEIVES, name, message=name, connection=link.connection.number)
        self.injector.received(link, message)

    def entering(self, life: Life, side: Role, phase: str) -> None:
        self.note(side.value, Kind.PHASE, phase)
        self.injector.entering(life, side, phase)

    def writing(self, life: Life) -> None:
        self.injector.writing(life)

    def written(self, life: Life) -> None:
        self.note(life.side.value, Kind.WRITES, str(life.journal.record))
        self.injector.written(life)

    def taking(self, life: Life) -> None:
        self.injector.taking(life)

    def taken(self, life: Life) -> None:
        self.injector.taken(life)

    def exporting(self, life: Life) -> None:
        self.injector.exporting(life)

    def importing(self, life: Life) -> None:
        self.injector.importing(life)

    def told(self, life: Life, event: str, facts: Mapping[str, Any]) -> None:
        if event != "phase" and event not in SILENT:  # an engine's phase has a hook of its own
            kind, kept = kind_and_facts(event, facts)
            self.note(life.side.value, kind, told_words(event, facts), facts=kept)

    def hears_failure(self, link: SimulatedLink, failure: Failure) -> None:
        self.note(link.side, Kind.RECEIVES, "Failure", message="Failure", connection=link.connection.number)

    def begins(self, node: Node) -> None:
        self.note(node.role.value, Kind.BEGINS, "starts" if node.lives == 1 else "starts again")

    def dies(self, node: Node, *, power: bool) -> None:
        self.note(node.role.value, Kind.DIES, "loses power" if power else "dies")

    def calms(self) -> None:
        self.note(WORLD, Kind.CALM, "all is well from here on")


@attrs.define(kw_only=True)
class NotingAudits(Audits):
    """The audits of a world, and what they see of its guest."""

    recorder: Recorder
    source: str

    def started(self, node: str, machine: Machine, *, from_image: bool) -> None:
        how = "the guest runs" if from_image else "the guest boots from its disks"
        self.recorder.note(self._side(node), Kind.RUNS, how)
        super().started(node, machine, from_image=from_image)

    def stopped(self, node: str, machine: Machine) -> None:
        if self._running.get(node) is machine:
            self.recorder.note(self._side(node), Kind.RESTS, "the guest is paused")
        super().stopped(node, machine)

    def note_outcome(self, life: Life, attempt: EngineAttempt, error: MigrationError | None) -> None:
        self.recorder.ended(life, attempt, error)
        super().note_outcome(life, attempt, error)

    def _side(self, node: str) -> str:
        return SOURCE if node == self.source else TARGET


def outcome_of(published: Sequence[str]) -> str:
    """The last word of the target, or of the source if the target said nothing; "nothing" if nobody said any."""
    last = {side: outcome for side, _, outcome in (word.partition(": ") for word in published)}
    return last.get(TARGET) or last.get(SOURCE) or "nothing"


def _without_last_calm(events: list[Event]) -> list[Event]:
    """That all is well from some time on says nothing of a run that is over by then."""
    return events[:-1] if events and events[-1].kind is Kind.CALM else events
