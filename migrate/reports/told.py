"""A timeline of what two daemons told: of a rehearsal, or of the event files of two daemons on one host."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from migrate.rehearsal.result import views_of
from migrate.reports.timeline import SOURCE, TARGET, Attempt, Event, Kind, Timeline, in_order
from migrate.reports.words import SILENT, kind_and_facts, shortened, told_words

Told = dict[str, Any]

#: Events that say nothing of a timeline, or what another event says as well.
UNSAID: Final = SILENT | {"image", "no fence", "running", "attempt"}
POINTS: Final = {
    **{f"after write {holding}": (Kind.WRITES, str(holding)) for holding in ("O", "C", "R", "N")},
    "after take": (Kind.TELLS, "has taken the storage's register"),
}
SAID: Final = {
    "guest runs": (Kind.RUNS, "the guest runs"),
    "guest rests": (Kind.RESTS, "the guest is paused"),
    "guest boots": (Kind.TELLS, "the guest boots"),
    "ended": (Kind.DIES, "the process ends"),
    "died": (Kind.DIES, "dies"),  # said by whoever watches the processes
}


def timeline_of(document: Mapping[str, Any], events: Sequence[Told], *, planned: Sequence[str] = ()) -> Timeline:
    """Of a rehearsal with this result, whose daemons told these events; `planned` are the faults that were to strike.

    Whoever lets them strike tells an event `fault` of each that did, with its `side` ("world" if it is the link's) and
    in words as `fault`, and `died` of a process that has ended without a word.
    """
    ordered = sorted(events, key=lambda told: int(told["at_ns"]))
    shown = list(_events(ordered))
    first_ns = min((event.at_ns for event in shown), default=0)
    ended = {
        side: [told for told in ordered if told["event"] == "attempt ended" and told["side"] == side]
        for side in (SOURCE, TARGET)
    }
    audit = document["audit"]
    return Timeline(
        names={SOURCE: "source", TARGET: "target"},
        events=in_order(shown),
        attempts=tuple(
            Attempt.of(attempt, None if source is None else source["started_ns"] - first_ns)
            for attempt, (source, _) in zip(document["attempts"], views_of(ended[SOURCE], ended[TARGET]), strict=True)
        ),
        owner=document["owner"],
        outcome=document["outcome"],
        planned=tuple(planned),
        checks=tuple(audit["checks"]),
        violations=tuple((found["check"], found["message"]) for found in audit["violations"]),
    )


def _events(ordered: Sequence[Told]) -> Iterator[Event]:
    """A conversation begins with a Hello: on the target when it is sent, on the source when that one is received.

    Each of its streams is a connection of its own.
    """
    begun, at_source = -1, -1
    connections: dict[tuple[int, int], int] = {}
    for told in ordered:
        side, name = told["side"], told["event"]
        if name in ("sends", "receives"):
            if told["name"] == "Hello":
                begun += side == TARGET
                at_source = begun if side == SOURCE else at_source
            connection = max(at_source if side == SOURCE else begun, 0), told.get("stream", 0)
            yield Event(
                at_ns=told["at_ns"],
                side=side,
                kind=Kind(name),
                text=told["name"],
                message=told["name"],
                size=told["bytes"],
                connection=connections.setdefault(connection, len(connections)),
            )
            continue
        if name == "fault":
            yield Event(at_ns=told["at_ns"], side=side, kind=Kind.FAULT, text=told["fault"])
            continue
        meaning = _meaning(name, told)
        if meaning is not None:
            kind, text = meaning
            _, facts = kind_and_facts(name, told)
            yield Event(at_ns=told["at_ns"], side=side, kind=kind, text=text, facts=facts)


def _meaning(name: str, told: Told) -> tuple[Kind, str] | None:
    match name:
        case "point":
            return POINTS.get(told["name"])
        case "phase":
            return Kind.PHASE, told["phase"]
        case "listening":
            return Kind.BEGINS, "listens"
        case "attempt ended":
            error = told["error"]
            message = "" if error is None else f": {error['message']}"
            return Kind.ENDS, shortened(told["outcome"] + message)
        case _ if name in UNSAID:
            return None
        case _ if name in SAID:
            return SAID[name]
        case _:
            facts = {key: value for key, value in told.items() if key not in ("event", "side", "at_ns")}
            kind, _ = kind_and_facts(name, facts)
            return kind, told_words(name, facts)
