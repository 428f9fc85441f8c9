"""A timeline in the Chrome trace format, which Perfetto and chrome://tracing open.

Processes are the nodes, threads are what a node is made of: its engine, its steps of the downtime ledger, its link, its
guest, its journal.  The format is that of the document "Trace Event Format": `ts` and `dur` are microseconds, a
complete event (`X`) has both, a flow goes from an `s` to the `f` of the same id, each within a slice of its thread, and
slices of one thread nest or stand apart.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from migrate.reports.timeline import SIDES, SOURCE, TARGET, WORLD, Event, Flight, Kind, Timeline

Json = dict[str, Any]

PROCESSES: Final = {SOURCE: 1, TARGET: 2}
ENGINE, STEPS, LINK, GUEST, JOURNAL = 1, 2, 3, 4, 5
THREADS: Final = {ENGINE: "engine", STEPS: "downtime ledger", LINK: "link", GUEST: "guest", JOURNAL: "journal"}
MESSAGE_US: Final = 1.0
"""How long a message is drawn; less if the next is close behind."""


def trace_of(timeline: Timeline) -> Json:
    """The whole document."""
    events = [
        *_spans(timeline),
        *_steps(timeline),
        *_messages(timeline),
        *_guests(timeline),
        *_instants(timeline),
        *_counters(timeline),
    ]
    events.sort(key=lambda event: (event["ts"], -event.get("dur", 0)))  # who encloses another comes first
    return {
        "traceEvents": [*_names(timeline), *events],
        "displayTimeUnit": "ms",
        "otherData": {
            "outcome": timeline.outcome,
            "owner": timeline.owner,
            "planned": list(timeline.planned),
            "violations": [f"{check}: {message}" for check, message in timeline.violations],
        },
    }


def _names(timeline: Timeline) -> Iterator[Json]:
    for side, pid in PROCESSES.items():
        name = timeline.name(side)
        yield _metadata("process_name", pid, {"name": name if name == side else f"{name} ({side})"})
        yield _metadata("process_sort_index", pid, {"sort_index": pid})
        for tid, thread in THREADS.items():
            yield {**_metadata("thread_name", pid, {"name": thread}), "tid": tid}
            yield {**_metadata("thread_sort_index", pid, {"sort_index": tid}), "tid": tid}


def _metadata(name: str, pid: int, arguments: Mapping[str, Any]) -> Json:
    return {"ph": "M", "name": name, "pid": pid, "tid": 0, "ts": 0, "args": dict(arguments)}


def _spans(timeline: Timeline) -> Iterator[Json]:
    for span in timeline.phases():
        yield _complete(span.side, ENGINE, span.name, "phase", span.start_ns, span.end_ns - span.start_ns)


def _steps(timeline: Timeline) -> Iterator[Json]:
    for number, attempt in enumerate(timeline.attempts, 1):
        if attempt.start_ns is None:
            continue
        for step in attempt.steps:
            start_ns = attempt.start_ns + round(step.start_ms * 1e6)
            yield {
                **_complete(step.side, STEPS, step.step, "step", start_ns, round(step.duration_ms * 1e6)),
                "args": {"attempt": number},
            }


def _messages(timeline: Timeline) -> Iterator[Json]:
    """A slice where a message is sent and one where it is received, and a flow between them."""
    flights = timeline.flights()
    times: dict[str, list[int]] = {side: [] for side in SIDES}
    for flight in flights:
        times[flight.side].append(flight.sent_ns)
        if flight.received_ns is not None:
            times[_peer(flight)].append(flight.received_ns)
    lasts = {side: dict(_lasts(sorted(set(of_side)))) for side, of_side in times.items()}
    for number, flight in enumerate(flights, 1):
        facts = {"bytes": flight.size, "connection": flight.connection, "received": flight.received_ns is not None}
        sent = _slice(flight.side, f"send {flight.message}", flight.sent_ns, lasts[flight.side])
        yield {**sent, "args": facts}
        if flight.received_ns is None:
            continue
        received = _slice(_peer(flight), f"receive {flight.message}", flight.received_ns, lasts[_peer(flight)])
        yield {**received, "args": facts}
        flow = {"name": flight.message, "cat": "message", "id": number}
        yield {"ph": "s", **flow, "pid": sent["pid"], "tid": LINK, "ts": sent["ts"]}
        yield {"ph": "f", "bp": "e", **flow, "pid": received["pid"], "tid": LINK, "ts": received["ts"]}


def _slice(side: str, name: str, at_ns: int, lasts: Mapping[int, int]) -> Json:
    return _complete(side, LINK, name, "message", at_ns, lasts[at_ns])


def _lasts(times: list[int]) -> Iterator[tuple[int, int]]:
    """How long what happens at each of these times may be drawn without reaching the next, in ns."""
    longest = round(MESSAGE_US * 1000)
    for time_ns, next_ns in pairwise([*times, math.inf]):
        yield int(time_ns), int(min(longest, next_ns - time_ns))


def _guests(timeline: Timeline) -> Iterator[Json]:
    since: dict[str, int] = {}
    for event in timeline.events:
        if event.kind is Kind.RUNS:
            since.setdefault(event.side, event.at_ns)
        elif event.kind in (Kind.RESTS, Kind.DIES) and event.side in since:
            yield _runs(event.side, since.pop(event.side), event.at_ns)
    for side, start_ns in since.items():
        yield _runs(side, start_ns, timeline.events[-1].at_ns)


def _runs(side: str, start_ns: int, end_ns: int) -> Json:
    return _complete(side, GUEST, "the guest runs", "guest", start_ns, end_ns - start_ns)


def _instants(timeline: Timeline) -> Iterator[Json]:
    for event in timeline.events:
        match event.kind:
            case Kind.FAULT | Kind.CALM:
                yield _instant(event, ENGINE, "g" if event.side == WORLD else "p", event.kind.value)
            case Kind.WRITES:
                yield _instant(event, JOURNAL, "t", "write")
            case Kind.BEGINS | Kind.DIES:
                yield _instant(event, ENGINE, "p", "process")
            case Kind.TELLS | Kind.ENDS | Kind.ROUND:
                yield _instant(event, ENGINE, "t", "told")


def _counters(timeline: Timeline) -> Iterator[Json]:
    """Pages that are dirty, as each round left them, and bytes of RAM sent so far."""
    sent = 0
    for event in timeline.events:
        if event.kind is Kind.ROUND:
            sent += event.facts["bytes"]
            values = {"dirty pages": event.facts["dirtied_pages"], "RAM bytes sent": sent}
            for name, value in values.items():
                yield {
                    "ph": "C", "name": name, "pid": PROCESSES[event.side], "tid": 0, "ts": _us(event.at_ns),
                    "args": {"value": value},
                }  # fmt: skip


def _complete(side: str, tid: int, name: str, category: str, start_ns: int, duration_ns: int) -> Json:
    return {
        "ph": "X", "name": name, "cat": category, "pid": PROCESSES[side], "tid": tid, "ts": _us(start_ns),
        "dur": _us(duration_ns),
    }  # fmt: skip


def _instant(event: Event, tid: int, scope: str, category: str) -> Json:
    """Scope "t" is its thread, "p" its process, "g" everything."""
    return {
        "ph": "i", "s": scope, "name": event.text, "cat": category, "pid": PROCESSES.get(event.side, 1), "tid": tid,
        "ts": _us(event.at_ns), "args": {"phase": event.phase},
    }  # fmt: skip


def _us(ns: int) -> float:
    return ns / 1000


def _peer(flight: Flight) -> str:
    return TARGET if flight.side == SOURCE else SOURCE
