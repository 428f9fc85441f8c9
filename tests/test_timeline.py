"""Timelines: what a simulated world and two daemons told, as values; and the same as text."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.faults.explore import Experiment, random_plan, single_plans
from migrate.faults.injection import Injector
from migrate.faults.plan import (
    AtByte,
    AtMessage,
    AtTime,
    AtWrite,
    Cut,
    Fault,
    FlipBit,
    InPhase,
    InRound,
    Kill,
    Moment,
    OneWay,
    Plan,
    PowerLoss,
)
from migrate.faults.words import fault_words
from migrate.protocol.messages import Role
from migrate.rehearsal.result import attempts_of
from migrate.reports.recording import Recorded, record
from migrate.reports.sequence import bands_of, break_above_ns, rows_of, wrapped
from migrate.reports.text import timeline_text
from migrate.reports.timeline import Event, Flight, Kind, Timeline, flights_of, in_order
from migrate.reports.told import timeline_of
from migrate.simulation.remembering import remembering
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)
SECOND_COMMIT = AtMessage(message="Commit", side=Role.SOURCE, number=2, moment=Moment.RECEIVED)
TARGET_DIES = Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Kill(side=Role.TARGET))


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with remembering():
        yield


@pytest.fixture(scope="module")
def undisturbed() -> Recorded:
    return record(EXPERIMENT, Plan(faults=()))


# In words


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (TARGET_DIES, "kill target – before Ready 1, target"),
        (Fault(when=SECOND_COMMIT, do=Cut(for_s=9.5)), "cut, for_s 9.5 – Commit 2 received by target"),
        (
            Fault(when=AtWrite(side=Role.SOURCE, moment=Moment.AFTER), do=PowerLoss(side=Role.SOURCE, restart_s=None)),
            "power-loss source, restart_s never – after write 1, source",
        ),
        (
            Fault(when=InPhase(phase="ram", side=Role.TARGET), do=OneWay(side=Role.SOURCE)),
            "one-way source – target enters ram",
        ),
        (Fault(when=InPhase(phase="ram", side=Role.TARGET, number=3), do=Cut()), "cut – target enters ram (3)"),
        (Fault(when=AtByte(side=Role.SOURCE, byte=1234), do=FlipBit(bit=7)), "flip-bit, bit 7 – byte 1,234, source"),
        (Fault(when=InRound(round=2), do=Cut()), "cut – RAM round 2 begins"),
        (Fault(when=AtTime(seconds=0.25), do=Cut()), "cut – after 0.25 s"),
    ],
)  # fmt: skip
def test_a_fault_is_said_in_a_line(fault: Fault, words: str) -> None:
    assert fault_words(fault) == words


def test_different_faults_have_different_words() -> None:
    faults = {plan.faults[0] for plan in single_plans(EXPERIMENT)}
    assert len({fault_words(fault) for fault in faults}) == len(faults) > 2000


# Of a simulated world


@pytest.mark.parametrize("seed", range(8))
def test_a_recorded_world_is_the_world_that_nobody_records(seed: int) -> None:
    plan = random_plan(seed)
    recorded = record(EXPERIMENT, plan)
    injector = Injector(plan)
    with EXPERIMENT.world(injector, traced=True) as world:
        assert recorded.result == world.run()
    assert recorded.fired == tuple(injector.fired)


def test_an_undisturbed_migration_is_all_there(undisturbed: Recorded) -> None:
    timeline = undisturbed.timeline
    assert (timeline.owner, timeline.outcome, timeline.violations) == ("target", "migrated", ())
    assert timeline.names == {"source": "rack-3", "target": "rack-7"}
    (attempt,) = timeline.attempts
    assert [round_.number for round_ in attempt.rounds] == [0, 1, 2]
    assert attempt.downtime_ms == pytest.approx(2.1, abs=0.1)
    assert [step.step for step in attempt.blackout()][:2] == ["pause", "last ram"]
    flights = timeline.flights()
    assert all(flight.received_ns is not None and flight.received_ns > flight.sent_ns for flight in flights)
    assert [flight.message for flight in flights][:4] == ["Hello", "Welcome", "Preamble", "Accept"]
    phases = [span.name for span in timeline.phases() if span.side == "source"]
    assert phases == [
        "hello", "preamble", "verdict", "ram", "pre-flight", "pause", "last ram", "time data", "devices",
        "server state", "handoff",
    ]  # fmt: skip
    assert [event.text for event in timeline.events if event.kind is Kind.WRITES] == ["R(2)", "C(2)", "O(2)", "N(2)"]
    running = [(event.side, event.kind) for event in timeline.events if event.kind in (Kind.RUNS, Kind.RESTS)]
    assert running == [("source", Kind.RUNS), ("source", Kind.RESTS), ("target", Kind.RUNS)]


@pytest.mark.parametrize("seed", range(30))
def test_a_timeline_is_in_order_and_has_every_fault_that_struck(seed: int) -> None:
    recorded = record(EXPERIMENT, random_plan(seed))
    timeline = recorded.timeline
    times = [event.at_ns for event in timeline.events]
    assert times == sorted(times)
    assert times[0] == 0
    assert [event.text for event in timeline.faults] == [fault_words(fault) for fault in recorded.fired]
    for span in timeline.phases():
        assert 0 <= span.start_ns <= span.end_ns <= times[-1]
    ends = [event for event in timeline.events if event.kind is Kind.ENDS]
    assert len(ends) == len(recorded.result.published)


def test_a_process_that_dies_and_comes_again_is_seen(undisturbed: Recorded) -> None:
    timeline = record(EXPERIMENT, Plan(faults=(TARGET_DIES,))).timeline
    of_target = [event for event in timeline.events if event.side == "target"]
    kinds = [event.kind for event in of_target if event.kind in (Kind.FAULT, Kind.DIES, Kind.BEGINS)]
    assert kinds == [Kind.BEGINS, Kind.FAULT, Kind.DIES, Kind.BEGINS]
    (fault,) = timeline.faults
    assert fault.phase == "handoff"
    assert timeline.attempts[0].outcome == "failed"
    assert timeline.attempts[0].start_ns is not None


def test_a_failure_that_is_reported_is_received() -> None:
    damaged = Fault(when=AtMessage(message="DeviceState", side=Role.SOURCE, number=2), do=FlipBit(bit=420))
    recorded = record(EXPERIMENT, Plan(faults=(damaged,)))
    failures = [flight for flight in recorded.timeline.flights() if flight.message == "Failure"]
    assert failures
    assert all(failure.received_ns is not None for failure in failures)


# Messages


def said(at_ns: int, side: str, kind: Kind, message: str, connection: int = 0) -> Event:
    return Event(at_ns=at_ns, side=side, kind=kind, text=message, message=message, connection=connection, size=10)


S, R = Kind.SENDS, Kind.RECEIVES


@pytest.mark.parametrize(
    ("events", "arrivals"),
    [
        ([said(1, "source", S, "A"), said(5, "target", R, "A")], [("A", 5)]),
        ([said(1, "source", S, "A")], [("A", None)]),
        ([said(1, "source", S, "A"), said(2, "source", S, "B"), said(5, "target", R, "B")], [("A", None), ("B", 5)]),
        ([said(1, "source", S, "A"), said(5, "target", R, "A", connection=1)], [("A", None)]),
        ([said(1, "source", S, "A"), said(5, "source", R, "A")], [("A", None)]),
        ([said(1, "source", S, "A"), said(5, "target", R, "A"), said(6, "target", R, "A")], [("A", 5)]),
        ([said(1, "source", S, "A"), said(1, "source", S, "A"), said(5, "target", R, "A"), said(6, "target", R, "A")],
         [("A", 5), ("A", 6)]),
    ],
    ids=["received", "lost", "the first lost", "on another connection", "by its sender", "twice", "two in order"],
)  # fmt: skip
def test_what_is_received_is_the_first_that_was_sent(
    events: list[Event], arrivals: list[tuple[str, int | None]]
) -> None:
    assert [(flight.message, flight.received_ns) for flight in flights_of(events)] == arrivals


messages = st.lists(
    st.tuples(st.sampled_from(["source", "target"]), st.sampled_from([S, R]), st.sampled_from("AB"), st.integers(0, 1)),
    max_size=30,
)


@given(messages)
def test_no_message_is_received_before_it_is_sent_or_twice(told: list[tuple[str, Kind, str, int]]) -> None:
    events = [said(at, side, kind, message, connection) for at, (side, kind, message, connection) in enumerate(told)]
    flights = flights_of(events)
    assert len(flights) == sum(event.kind is S for event in events)
    received = [flight.received_ns for flight in flights if flight.received_ns is not None]
    assert len(set(received)) == len(received)
    assert all(flight.received_ns is None or flight.sent_ns < flight.received_ns for flight in flights)
    for connection, side in {(flight.connection, flight.side) for flight in flights}:
        order = [
            flight.received_ns
            for flight in flights
            if (flight.connection, flight.side) == (connection, side) and flight.received_ns is not None
        ]
        assert order == sorted(order)


@given(messages)
def test_bands_hold_every_message_once(told: list[tuple[str, Kind, str, int]]) -> None:
    events = tuple(said(at, side, kind, message, number) for at, (side, kind, message, number) in enumerate(told))
    timeline = Timeline(names={}, events=events)
    bands = bands_of(timeline)
    flights: tuple[Flight, ...] = timeline.flights()
    assert sum(band.count for band in bands) == len(flights)
    assert sum(band.lost for band in bands) == sum(flight.received_ns is None for flight in flights)
    assert sum(band.size for band in bands) == 10 * len(flights)
    shown = {row.index for row in rows_of(timeline, bands)}
    assert {index for band in bands for index in (*band.sent, *(band.received or ()))} == shown


@pytest.mark.parametrize(
    ("gaps", "longest"),
    [
        ([], None),
        ([5], None),
        ([0, 0, 5], None),
        ([1, 1, 1], None),
        ([1, 1, 9], 8),
        ([1, 1, 8], None),
        ([1, 1, 9, 100, 1000], 8),
        ([10, 10, 10, 1000, 7], 999),
    ],
)
def test_a_stretch_that_dwarfs_all_the_rest_is_a_break(gaps: list[int], longest: int | None) -> None:
    assert break_above_ns(gaps) == (float("inf") if longest is None else longest)


@given(st.text("ab  \n", max_size=90), st.integers(5, 30), st.integers(1, 4))
def test_words_are_wrapped_into_their_room(text: str, width: int, lines_max: int) -> None:
    lines = wrapped(text, width, lines_max)
    assert len(lines) <= lines_max
    assert all(len(line) <= width for line in lines)
    whole = wrapped(text, width, 1000)
    assert "".join("".join(whole).split()) == "".join(text.split())


# Of two daemons


def told(side: str, at_ns: int, event: str, **facts: Any) -> dict[str, Any]:
    return {"event": event, "side": side, "at_ns": at_ns, **facts}


def ended(side: str, at_ns: int, started_ns: int, error: dict[str, str] | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "outcome": "migrated" if error is None else "failed", "phase": "ram", "error": error, "reasons": [],
        "started_ns": started_ns, "spec_version": 6, "why_not_newer": [], "precopy": None, "payloads": {}, "rounds": [],
        "steps": [], "warnings": [], "committed": False,
    }  # fmt: skip
    return told(side, at_ns, "attempt ended", **facts)


DOCUMENT: dict[str, Any] = {"owner": "target", "outcome": "migrated", "audit": {"checks": ["spec"], "violations": []}}


def document_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of a rehearsal whose daemons told these."""
    source, target = (
        [event for event in events if (event["event"], event["side"]) == ("attempt ended", side)]
        for side in ("source", "target")
    )
    return DOCUMENT | {"attempts": [attempt for attempt, _ in attempts_of(source, target)]}


LOST = {"class": "TransportLost", "message": "gone", "side": "target"}
EVENTS = [
    told("source", 100, "guest runs"),
    told("source", 110, "listening", address="127.0.0.1:1", machine="m", node="n", state="runs"),
    told("target", 200, "phase", phase="hello"),
    told("target", 210, "sends", name="Hello", bytes=8),
    ended("target", 300, 190, LOST),
    told("target", 400, "phase", phase="hello"),
    told("target", 410, "sends", name="Hello", bytes=8),
    told("source", 420, "receives", name="Hello", bytes=8),
    told("source", 425, "attempt", number=1),
    told("source", 430, "phase", phase="ram"),
    told("source", 440, "ram", round=0, pages=1, of_pages=2, bytes=3, bytes_per_s=4),
    told("target", 445, "fault", fault=fault_words(TARGET_DIES)),
    told("source", 450, "round", number=0, pages=7, zero_pages=1, bytes=99, duration_ms=1.0, dirtied_pages=3),
    told("source", 455, "point", name="before write C"),
    told("source", 460, "point", name="after write C"),
    told("source", 470, "in doubt", message="who knows"),
    ended("source", 500, 425),
    ended("target", 510, 390),
    told("target", 600, "ended", runs_here=True, guest={}),
]


def test_each_stream_of_two_daemons_is_a_connection_of_its_own() -> None:
    """What goes by one may arrive before what went by another."""
    said = [("Hello", 0, 10), ("RamPages", 0, 20), ("RamPages", 1, 30), ("RoundEnd", 1, 40), ("RoundEnd", 0, 50)]
    late_ns = {0: 100, 1: 5}
    events = [
        told(side, at_ns + (late_ns[stream] if kind == "receives" else 0), kind, name=name, bytes=8, **on(stream))
        for name, stream, at_ns in said
        for side, kind in (("target", "sends"), ("source", "receives"))
    ]
    flights = timeline_of(document_of(events), events).flights()
    assert [(flight.message, flight.connection) for flight in flights] == [(name, stream) for name, stream, _ in said]
    assert all(flight.received_ns is not None for flight in flights)


def on(stream: int) -> dict[str, int]:
    return {"stream": stream} if stream else {}


def test_what_daemons_told_becomes_a_timeline() -> None:
    timeline = timeline_of(document_of(EVENTS), [*reversed(EVENTS)], planned=[fault_words(TARGET_DIES)])
    assert [(event.at_ns, event.side, event.kind.value, event.text) for event in timeline.events] == [
        (0, "source", "runs", "the guest runs"),
        (10, "source", "begins", "listens"),
        (100, "target", "phase", "hello"),
        (110, "target", "sends", "Hello"),
        (200, "target", "ends", "failed: gone"),
        (300, "target", "phase", "hello"),
        (310, "target", "sends", "Hello"),
        (320, "source", "receives", "Hello"),
        (330, "source", "phase", "ram"),
        (345, "target", "fault", "kill target – before Ready 1, target"),
        (350, "source", "round", "round 0: 7 pages, 3 dirtied meanwhile"),
        (360, "source", "writes", "C"),
        (370, "source", "tells", "in doubt: who knows"),
        (400, "source", "ends", "migrated"),
        (410, "target", "ends", "migrated"),
        (500, "target", "dies", "the process ends"),
    ]
    assert [(flight.connection, flight.received_ns) for flight in timeline.flights()] == [(0, None), (1, 320)]
    assert [(attempt.outcome, attempt.start_ns) for attempt in timeline.attempts] == [
        ("failed", None),
        ("migrated", 325),
    ]
    (struck,) = timeline.faults
    assert struck.phase == "hello"


# As text


def test_the_text_has_both_sides_beside_each_other_and_what_struck_across() -> None:
    text = timeline_text(record(EXPERIMENT, Plan(faults=(TARGET_DIES,))).timeline)
    lines = text.splitlines()
    assert lines[0].split() == ["ms", "rack-3", "(source)", "rack-7", "(target)"]
    assert "            >>> kill target – before Ready 1, target" in lines
    assert "            sends DeviceState ×5" in lines
    target = "\n".join(line[52:] for line in lines)
    assert "receives DeviceState ×5" in target
    assert "starts again" in target
    assert max(map(len, lines)) <= 92
    assert lines[-1] == "Restarted; source has the machine"


def test_the_text_says_what_did_not_strike_and_what_is_violated() -> None:
    never = Fault(when=AtMessage(message="Ready", side=Role.TARGET, number=9), do=Cut())
    timeline = record(EXPERIMENT, Plan(faults=(never,))).timeline
    assert timeline_text(timeline).splitlines()[-1] == "did not strike: cut – before Ready 9, target"
    violated = Timeline(names={}, events=in_order([]), owner="nobody", outcome="x", violations=(("one runner", "two"),))
    assert timeline_text(violated).splitlines()[-2:] == ["x; nobody has the machine", "VIOLATED  one runner: two"]


def test_every_message_of_a_random_run_is_in_its_text() -> None:
    random = Random(5)
    for seed in random.sample(range(1000), 6):
        timeline = record(EXPERIMENT, random_plan(seed)).timeline
        words = timeline_text(timeline)
        for name in {flight.message for flight in timeline.flights()}:
            assert f"sends {name}" in words
