"""What happened in one migration, as plain values: the material of the pages, the trace and the text.

A timeline is a list of events in order of time, each of one side, on one axis that begins with the first of them.  It
is filled from a simulated world (`recording`) or from what two daemons told (`told`), and whoever draws it cannot tell
which.  What it shows is derived here: phases, messages on their way, and what struck.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs

NS_PER_MS: Final = 1_000_000

SOURCE, TARGET, WORLD = "source", "target", "world"
SIDES: Final = (SOURCE, TARGET)


class Kind(StrEnum):
    """What an event is.  `FAULT` is of the plan; everything else is what the two sides did."""

    BEGINS = "begins"  # a process
    DIES = "dies"
    PHASE = "phase"  # an engine enters it
    SENDS = "sends"
    RECEIVES = "receives"
    WRITES = "writes"  # a record, and it is durable
    RUNS = "runs"  # the guest
    RESTS = "rests"
    ROUND = "round"  # of RAM is over
    TELLS = "tells"
    ENDS = "ends"  # an attempt, with its outcome
    FAULT = "fault"
    CALM = "calm"  # from here on nothing goes wrong


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        at_ns: since the beginning of the timeline.
        side: "source" or "target"; "world" for what concerns both.
        text: in words, for people.
        phase: that the side was in, "" before the first.
        connection: on which something was said, from 0; None for everything else.
        message: its kind, for what was said.
        size: of that message, in bytes; 0 where nobody knows.
        facts: of a round, its `pages`, `bytes` and `dirtied_pages`.
    """

    at_ns: int
    side: str
    kind: Kind
    text: str
    phase: str = ""
    connection: int | None = None
    message: str = ""
    size: int = 0
    facts: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Span:
    """A phase of one side, from when it is entered until it is left, by whatever way."""

    side: str
    name: str
    start_ns: int
    end_ns: int


@attrs.frozen(kw_only=True)
class Flight:
    """A message on its way; `received_ns` is None if the peer's engine never saw it."""

    side: str
    message: str
    size: int
    sent_ns: int
    received_ns: int | None
    connection: int


@attrs.frozen(kw_only=True)
class Round:
    """One pass over the dirty pages, as in `--json` of a rehearsal; see `migrate.engine.rounds`."""

    number: int
    pages: int
    zero_pages: int
    bytes: int
    duration_ms: float
    dirtied_pages: int
    throttle: float = 0.0

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Round":
        """From an entry of `rounds`, which may say more than is shown."""
        return cls(**{field.name: document[field.name] for field in attrs.fields(cls) if field.name in document})


@attrs.frozen(kw_only=True)
class Step:
    """An entry of the downtime ledger.  `start_ms` since the source's attempt began."""

    side: str
    step: str
    start_ms: float
    duration_ms: float

    @property
    def end_ms(self) -> float:
        return self.start_ms + self.duration_ms


@attrs.frozen(kw_only=True)
class Wait:
    """What the guest waited for, from its last step on the source on: a part of the `blackout` of the ledger."""

    step: str
    ms: float


@attrs.frozen(kw_only=True)
class Attempt:
    """One attempt, as both sides saw it together.

    `start_ns` is where the axis of its steps begins, if it is known.  `waits` are one after the other; if the guest was
    not seen to stop, or to go on, there are none.
    """

    outcome: str
    error: str
    rounds: tuple[Round, ...]
    steps: tuple[Step, ...]
    total_ms: float | None
    downtime_ms: float | None
    start_ns: int | None = None
    waits: tuple[Wait, ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any], start_ns: int | None = None) -> "Attempt":
        """From an entry of `attempts` in the result of a rehearsal."""
        error, ledger = document["error"], document["ledger"]
        told = "" if error is None else f"{error['class']} on the {error['side']}: {error['message']}"
        return cls(
            outcome=document["outcome"],
            error=told,
            rounds=tuple(Round.of(round_) for round_ in document["rounds"]),
            steps=tuple(Step(**step) for step in ledger["steps"]),
            total_ms=ledger["total_ms"],
            downtime_ms=ledger["downtime_ms"],
            start_ns=start_ns,
            waits=tuple(Wait(**part) for part in (ledger["blackout"] or {"parts": ()})["parts"]),
        )

    def blackout(self) -> tuple[Step, ...]:
        """The steps from the pause on, in order of time; none if the source never paused."""
        pause = next((step for step in self.steps if step.step == "pause"), None)
        return () if pause is None else tuple(step for step in self.steps if step.start_ms >= pause.start_ms)


@attrs.frozen(kw_only=True)
class Timeline:
    """One migration, from its beginning to its end.

    Attributes:
        names: what the nodes are called.
        events: in order of time.
        attempts: in order of time.
        planned: the faults that were to strike, in words.
        checks: names of the audits that looked at it.
        violations: what they found: check and message.
    """

    names: Mapping[str, str]
    events: tuple[Event, ...]
    attempts: tuple[Attempt, ...] = ()
    owner: str = ""
    outcome: str = ""
    planned: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    violations: tuple[tuple[str, str], ...] = ()

    def name(self, side: str) -> str:
        return self.names.get(side, side)

    @property
    def faults(self) -> tuple[Event, ...]:
        """What has struck."""
        return tuple(event for event in self.events if event.kind is Kind.FAULT)

    def phases(self) -> tuple[Span, ...]:
        """A phase lasts until the next, or until its attempt ends, or its process."""
        return tuple(_phases(self.events))

    def flights(self) -> tuple[Flight, ...]:
        return flights_of(self.events)


def in_order(events: Sequence[Event]) -> tuple[Event, ...]:
    """By time, from 0 on, each with the phase that its side is then in."""
    ordered = sorted(events, key=lambda event: event.at_ns)  # stable: what is simultaneous stays as it was told
    first_ns = ordered[0].at_ns if ordered else 0
    phases: dict[str, str] = {}
    placed = []
    for event in ordered:
        if event.kind is Kind.PHASE:
            phases[event.side] = event.text
        placed.append(attrs.evolve(event, at_ns=event.at_ns - first_ns, phase=phases.get(event.side, "")))
        if event.kind in (Kind.ENDS, Kind.DIES):
            phases.pop(event.side, None)
    return tuple(placed)


def _phases(events: Sequence[Event]) -> Iterator[Span]:
    current: dict[str, Event] = {}
    for event in events:
        if event.kind not in (Kind.PHASE, Kind.ENDS, Kind.DIES):
            continue
        entered = current.pop(event.side, None)
        if entered is not None:
            yield Span(side=entered.side, name=entered.text, start_ns=entered.at_ns, end_ns=event.at_ns)
        if event.kind is Kind.PHASE:
            current[event.side] = event
    last_ns = events[-1].at_ns if events else 0
    for entered in current.values():
        yield Span(side=entered.side, name=entered.text, start_ns=entered.at_ns, end_ns=last_ns)


def flights_of(events: Sequence[Event]) -> tuple[Flight, ...]:
    """What was sent, in that order, each with when it was received.

    A connection keeps order, so what is received is the first of its kind on that connection that has not been; what
    was sent before that is lost.
    """
    flights: list[Flight] = []
    under_way: dict[tuple[int, str], list[int]] = {}
    for event in events:
        if event.connection is None:
            continue
        if event.kind is Kind.SENDS:
            under_way.setdefault((event.connection, event.side), []).append(len(flights))
            flights.append(
                Flight(
                    side=event.side,
                    message=event.message,
                    size=event.size,
                    sent_ns=event.at_ns,
                    received_ns=None,
                    connection=event.connection,
                )
            )
        elif event.kind is Kind.RECEIVES:
            sender = TARGET if event.side == SOURCE else SOURCE
            waiting = under_way.get((event.connection, sender), [])
            place = next((place for place, at in enumerate(waiting) if flights[at].message == event.message), None)
            if place is not None:
                at = waiting[place]
                flights[at] = attrs.evolve(flights[at], received_ns=event.at_ns)
                del waiting[: place + 1]
    return tuple(flights)
