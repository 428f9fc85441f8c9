"""Traces in the Chrome format: they keep to its rules, and hold everything that a timeline has."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from migrate.faults.explore import Experiment, random_plan
from migrate.faults.plan import AtMessage, Fault, Kill, Plan
from migrate.protocol.messages import Role
from migrate.reports.recording import record
from migrate.reports.timeline import Kind, Timeline
from migrate.reports.trace import trace_of
from migrate.simulation.remembering import remembering
from tests.traces import objections
from tests.worlds import SPEC

Json = dict[str, Any]
EXPERIMENT = Experiment(spec=SPEC)
TARGET_DIES = Plan(faults=(Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Kill(side=Role.TARGET)),))


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with remembering():
        yield


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return record(EXPERIMENT, TARGET_DIES).timeline


@pytest.fixture
def trace(timeline: Timeline) -> Json:
    document: Json = json.loads(json.dumps(trace_of(timeline)))
    return document


@pytest.mark.parametrize("seed", range(25))
def test_the_trace_of_whatever_happens_keeps_to_the_format(seed: int) -> None:
    timeline = record(EXPERIMENT, random_plan(seed)).timeline
    trace = trace_of(timeline)
    assert objections(trace) == []
    events = trace["traceEvents"]
    assert [event["name"] for event in events if event.get("cat") == "fault"] == [
        fault.text for fault in timeline.faults
    ]
    flows = [event for event in events if event["ph"] == "s"]
    assert len(flows) == sum(flight.received_ns is not None for flight in timeline.flights())
    sends = [event for event in events if event["ph"] == "X" and event["name"].startswith("send ")]
    assert len(sends) == len(timeline.flights())


def test_an_empty_timeline_has_an_empty_trace() -> None:
    assert objections(trace_of(Timeline(names={}, events=()))) == []


def of(trace: Json, phase: str, **wanted: Any) -> list[Json]:
    return [
        event
        for event in trace["traceEvents"]
        if event["ph"] == phase and all(event.get(key) == value for key, value in wanted.items())
    ]


def test_processes_are_nodes_and_threads_their_parts(trace: Json) -> None:
    assert [event["args"]["name"] for event in of(trace, "M", name="process_name")] == [
        "rack-3 (source)",
        "rack-7 (target)",
    ]
    threads = [event["args"]["name"] for event in of(trace, "M", name="thread_name", pid=1)]
    assert threads == ["engine", "downtime ledger", "link", "guest", "journal"]


def test_phases_steps_messages_and_counters_are_where_the_timeline_has_them(trace: Json, timeline: Timeline) -> None:
    phases = sorted((event["pid"], event["name"], event["ts"]) for event in of(trace, "X", cat="phase"))
    assert phases == sorted(
        (1 if span.side == "source" else 2, span.name, span.start_ns / 1000) for span in timeline.phases()
    )
    steps = [event for event in of(trace, "X", cat="step") if event["args"]["attempt"] == 1]
    assert {event["name"] for event in steps} >= {"pause", "last ram", "devices", "ready"}
    (commit,) = [event for event in timeline.events if event.kind is Kind.FAULT]
    (fault,) = of(trace, "i", cat="fault")
    assert (fault["ts"], fault["s"], fault["pid"]) == (commit.at_ns / 1000, "p", 2)
    dirty = [event["args"]["value"] for event in of(trace, "C", name="dirty pages")]
    sent = [event["args"]["value"] for event in of(trace, "C", name="RAM bytes sent")]
    assert dirty == [9, 5]
    assert sent == [36864, 73728]
    writes = [event["name"] for event in of(trace, "i", cat="write")]
    assert writes == [event.text for event in timeline.events if event.kind is Kind.WRITES]


# The check itself: it objects to what Perfetto would drop or misplace


def _without(key: str) -> Callable[[list[Json]], None]:
    def spoil(events: list[Json]) -> None:
        del next(event for event in events if event["ph"] == "X")[key]

    return spoil


def _overlap(events: list[Json]) -> None:
    first, second = [event for event in events if event.get("cat") == "phase" and event["pid"] == 1][2:4]
    first["dur"] = second["ts"] + second["dur"] / 2 - first["ts"]


def _one_end(events: list[Json]) -> None:
    events.remove(next(event for event in events if event["ph"] == "f"))


def _late_start(events: list[Json]) -> None:
    start = next(event for event in events if event["ph"] == "s")
    start["ts"] = 1e12
    events.remove(start)
    events.append(start)


def _unsorted(events: list[Json]) -> None:
    events.reverse()


def _nameless(events: list[Json]) -> None:
    events.remove(next(event for event in events if event["name"] == "thread_name"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("dur"), "lacks ['dur']"),
        (_without("ts"), "lacks ['ts']"),
        (_overlap, "and ends after it"),
        (_one_end, "has one end"),
        (_late_start, "ends before it begins"),
        (_unsorted, "not in order"),
        (_nameless, "a thread without a name"),
    ],
)
def test_a_trace_that_breaks_a_rule_is_objected_to(
    trace: Json, spoil: Callable[[list[Json]], None], words: str
) -> None:
    spoiled = copy.deepcopy(trace)
    spoil(spoiled["traceEvents"])
    assert any(words in objection for objection in objections(spoiled)), objections(spoiled)
