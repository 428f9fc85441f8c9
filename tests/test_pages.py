"""Pages: whole, self-contained, and telling everything; whatever names and errors say, they stay words."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.dry_run import Verdict
from migrate.faults.explore import Experiment, Tried, random_plan, single_plans
from migrate.faults.plan import AtMessage, Cut, Fault, Kill, Plan
from migrate.faults.tally import Count, Course, Tally, course_of, why
from migrate.faults.words import action_words, trigger_words
from migrate.protocol.messages import Role
from migrate.reasons import Reason
from migrate.rehearsal.matrix import Cell
from migrate.reports import words
from migrate.reports.fault_map import MARKS
from migrate.reports.markup import Markup, escaped, tag
from migrate.reports.page import Shown, campaign_page, matrix_page, migration_page
from migrate.reports.recording import record
from migrate.reports.timeline import Attempt, Event, Kind, Round, Step, Timeline
from migrate.simulation.audits import CHECKS, Violation
from migrate.simulation.remembering import remembering
from tests.pages import Page
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)
HOSTILE = "</style></svg><script>alert(1)</script><img src=http://evil.example/x onerror='x'>&amp;\"'\x00\u202e\ud800"
SHOWN = "</style></svg><script>alert(1)</script><img src=http://evil.example/x onerror='x'>&amp;\"'\\x00\\u202e\\ud800"


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with remembering():
        yield


def read(text: str) -> Page:
    """A page that a browser could show without a network."""
    text.encode()
    page = Page(text)
    assert page.fetches() == []
    policy = next(meta for meta in page.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert page.all("title")[0].words == page.one("h1").words
    return page


# Markup


@given(st.text())
def test_text_stays_text(text: str) -> None:
    page = Page(f"<div>{tag('p', text, title=text)}</div>")
    shown = words_of(text)
    assert page.one("p").words == shown
    assert page.one("p").attributes["title"] == shown


def words_of(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def test_markup_is_not_escaped_again_and_attributes_may_be_left_out() -> None:
    assert tag("p", tag("i", "a & b"), class_="x", hidden=True, title=None) == (
        '<p class="x" hidden=""><i>a &amp; b</i></p>'
    )
    assert escaped(Markup("<b>")) == "<b>"
    assert tag("line", x1=1.0, y1=2.345678, stroke_width=0) == '<line x1="1" y1="2.35" stroke-width="0"></line>'


# Of a migration


@pytest.mark.parametrize("seed", range(12))
def test_every_fault_of_a_plan_is_on_the_page_and_what_struck_is_in_the_diagram(seed: int) -> None:
    plan = random_plan(seed)
    recorded = record(EXPERIMENT, plan)
    page = read(migration_page("a plan", recorded.timeline))
    listed = [row.words for row in page.all("tr") if "did not strike" in row.words or re.match(r"^\d", row.words)]
    for fault in plan.faults:
        assert any(trigger_words(fault.when) in row and action_words(fault.do) in row for row in listed)
    assert len(page.all("g")) >= len(recorded.fired)
    numbers = [text.words for text in page.all("text", "mark-number")]
    assert numbers == [str(number) for number in range(1, len(recorded.fired) + 1)]
    labels = [text.words.replace(" ", "") for text in page.all("text", "fault-words")]
    for fault, label in zip(recorded.fired, labels, strict=True):
        words = f"{action_words(fault.do)} – {trigger_words(fault.when)}"
        assert label == words.replace(" ", "")
    assert len(page.all("tr", "fault")) == len(recorded.fired)


def test_a_page_of_a_migration_has_its_charts_and_the_same_in_words() -> None:
    recorded = record(EXPERIMENT, Plan(faults=()))
    page = read(migration_page("undisturbed", recorded.timeline, [("seed", "0")]))
    assert page.one("h1").words == "undisturbed"
    assert "migrated; the target has the machine" in page.one("p", "lead").words
    (attempt,) = recorded.timeline.attempts
    assert len(page.all("rect", "sent")) == len(attempt.rounds) + 1  # and in the legend
    rounds, blackout = page.one("table", "rounds").words, page.one("table", "blackout").words
    assert all(words.size_of(round_.bytes) in rounds for round_ in attempt.rounds)
    assert all(step.step in blackout for step in attempt.blackout())
    assert f"downtime {words.milliseconds(attempt.downtime_ms or 0)}" in page.one("main").words
    events = page.one("table", "events").words
    for flight in recorded.timeline.flights():
        assert f"sends {flight.message}" in events
    for span in recorded.timeline.phases():
        assert f"enters {span.name}" in events
    assert f"{len(CHECKS)} checks, none violated" in page.one("dl", "facts").words


def test_whatever_names_and_errors_say_they_stay_words() -> None:
    event = Event(at_ns=0, side="source", kind=Kind.TELLS, text=HOSTILE, phase=HOSTILE)
    timeline = Timeline(
        names={"source": HOSTILE, "target": HOSTILE},
        events=(
            event,
            attrs.evolve(event, kind=Kind.PHASE),
            attrs.evolve(event, kind=Kind.FAULT, side="world"),
            attrs.evolve(event, kind=Kind.SENDS, message=HOSTILE, connection=0),
            attrs.evolve(event, kind=Kind.ENDS, side="target"),
        ),
        attempts=(
            Attempt(
                outcome=HOSTILE,
                error=HOSTILE,
                rounds=(Round(number=0, pages=1, zero_pages=0, bytes=1, duration_ms=0.0, dirtied_pages=0),),
                steps=(
                    Step(side="source", step="pause", start_ms=0.0, duration_ms=1.0),
                    Step(side="target", step=HOSTILE, start_ms=1.0, duration_ms=1.0),
                ),
                total_ms=1.0,
                downtime_ms=1.0,
            ),
        ),
        owner=HOSTILE,
        outcome=HOSTILE,
        planned=(HOSTILE,),
        checks=(HOSTILE,),
        violations=((HOSTILE, HOSTILE),),
    )
    page = read(migration_page(HOSTILE, timeline, [(HOSTILE, HOSTILE)]))
    assert page.one("h1").words == SHOWN
    assert page.one("div", "violation").words == f"Violated: {SHOWN}{SHOWN}"
    assert page.one("main").words.count("<script>") > 10


# Of a campaign


MOVED = ("source: migrated", "target: migrated")


def tried(**changes: Any) -> Tried:
    fault = Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Cut())
    facts: dict[str, Any] = {
        "plan": Plan(faults=(fault,)), "owner": "target", "published": MOVED, "fired": 1, "violations": (),
    }  # fmt: skip
    return Tried(**{**facts, **changes})


@pytest.mark.parametrize(
    ("changes", "course"),
    [
        ({}, Course.MOVED),
        ({"published": ("target: migrated",)}, Course.MOVED),
        ({"published": ("source: TransportLost", *MOVED)}, Course.RECOVERED),
        ({"published": ("source: HandoffInDoubt", *MOVED)}, Course.SETTLED),
        ({"owner": "source", "published": ("target: Refused",)}, Course.STAYED),
        ({"owner": "nobody"}, Course.STAYED),
        ({"fired": 0}, Course.NOT_STRUCK),
        ({"violations": (Violation("one runner", "two"),), "fired": 0}, Course.VIOLATED),
    ],
)
def test_how_a_migration_went_has_one_name(changes: dict[str, Any], course: Course) -> None:
    assert course_of(tried(**changes)) is course


def test_the_reason_is_what_was_found_or_else_what_was_said() -> None:
    assert why(tried()) == ""
    assert why(tried(reasons=("source: lost", "target: lost", "source: lost"))) == "source: lost; target: lost"
    assert why(tried(reasons=("x",), violations=(Violation("one runner", "two"),))) == "one runner: two"
    assert len(why(tried(reasons=("x" * 1000,)))) == 300


def test_a_tally_is_kept_merged_and_read_again() -> None:
    whole, parts = Tally(is_coarse=False), [Tally(is_coarse=False) for _ in range(2)]
    for place, plan in enumerate(list(single_plans(EXPERIMENT))[::70]):
        outcome = EXPERIMENT.run(plan)
        whole.add(outcome)
        parts[place > 10].add(outcome)
    parts[0].merge(parts[1])
    assert parts[0] == whole
    assert Tally.from_json(json.loads(json.dumps(whole.as_json()))) == whole


def test_of_many_faults_each_shares_what_came_of_them() -> None:
    kill = Fault(when=AtMessage(message="Ready", side=Role.TARGET, number=2), do=Kill(side=Role.TARGET, restart_s=None))
    cut = Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Cut())
    tally = Tally(is_coarse=True)
    tally.add(tried(plan=Plan(faults=(kill, cut, cut))))
    tally.add(tried(plan=Plan(faults=(cut,)), owner="source", reasons=("source: lost",)))
    assert tally.cells == {
        ("before Ready, target", "kill target"): {Course.MOVED: Count(1, "")},
        ("before Ready, target", "cut"): {Course.MOVED: Count(1, ""), Course.STAYED: Count(1, "source: lost")},
    }


def marks(page: Page) -> list[str]:
    return [use.attributes["href"].removeprefix("#mark-") for use in page.all("use") if "td" in use.inside]


def test_the_map_has_a_mark_for_every_fault_that_says_why() -> None:
    tally = Tally(is_coarse=False)
    plans = list(single_plans(EXPERIMENT))[::9]
    courses = {}
    for plan in plans:
        outcome = EXPERIMENT.run(plan)
        tally.add(outcome)
        (fault,) = plan.faults
        courses[f"{action_words(fault.do)} – {trigger_words(fault.when)}"] = outcome
    undisturbed = record(EXPERIMENT, Plan(faults=())).timeline
    page = read(campaign_page("explore", "lead", tally, [("all", "1")], [], undisturbed))
    cells = {cell.attributes["title"].split("\n")[0]: cell for cell in page.all("td") if "title" in cell.attributes}
    assert set(cells) == set(courses)
    for name, outcome in courses.items():
        course = course_of(outcome)
        said = cells[name].attributes["title"].split("\n", 1)[1]
        assert said == course.value + (f": {why(outcome)}" if why(outcome) else "")
    assert sorted(marks(page)) == sorted(MARKS[course_of(outcome)] for outcome in courses.values())
    heads = [head.words for head in page.all("th") if head.attributes.get("scope") == "row"]
    assert heads == list(dict.fromkeys(trigger_words(plan.faults[0].when) for plan in plans))
    legend = page.all("ul", "legend")[0].words
    assert all(course_of(outcome).value in legend for outcome in courses.values())


def test_a_violation_is_shown_with_its_plan_and_its_timeline() -> None:
    timeline = record(EXPERIMENT, random_plan(3)).timeline
    shown = Shown(check="nothing lost", message=HOSTILE, plan='seed = 0  # "<b>"', file=HOSTILE, timeline=timeline)
    tally = Tally(is_coarse=True)
    tally.add(tried(violations=(Violation("nothing lost", HOSTILE),)))
    page = read(campaign_page("explore", "lead", tally, [], [shown, attrs.evolve(shown, timeline=None)], timeline))
    assert [pre.words for pre in page.all("pre")] == ['seed = 0  # "<b>"'] * 2
    assert len(page.all("svg", "diagram")) == 2  # of the first violation, and undisturbed
    assert "violated" in page.one("p", "lead").attributes["class"].split()
    assert marks(page) == ["violated"]


# Of a matrix


def cell(source: str, target: str, *reasons: Reason, spec: str = HOSTILE) -> Cell:
    verdict = Verdict(spec_version=None if reasons else 6, payloads={}, why_not_newer=(), reasons=reasons)
    return Cell(spec=spec, source=source, target=target, verdict=verdict)


BARRED = Reason(component=HOSTILE, field="f", have="h", need=HOSTILE)


def test_a_matrix_has_a_square_for_every_cell_that_says_why() -> None:
    cells = [cell("r1", "r1"), cell("r1", "r2", BARRED), cell("r2", "r1"), cell("r2", "r2", BARRED)]
    page = read(matrix_page("title", "lead", cells, ["r1", "r2"], None))
    said = [text.words for text in page.all("title") if "→" in text.words]
    assert said == [
        "r1 → r1: ok, in spec version 6",
        f"r1 → r2: refused\n{words_of(BARRED.message)}",
        "r2 → r1: ok, in spec version 6",
        f"r2 → r2: refused\n{words_of(BARRED.message)}",
    ]
    assert len(page.all("rect", "ok")) - 1 == 2  # and in the legend
    assert len(page.all("rect", "refused")) - 1 == 2
    assert "Would migrate: r1→r1 r2→r1" in page.one("main").words
    assert "r1→r2 r2→r2" in page.one("table", "obstacles").words
    assert page.one("figcaption").words == SHOWN


def test_a_path_is_shown_as_far_as_it_came() -> None:
    page = read(matrix_page("title", "lead", [cell("r1", "r6"), cell("r6", "r1", BARRED)], ["r1", "r6"], "r1,r6,r1"))
    assert "barred; r1,r6,r1 was asked for" in page.one("main").words
    assert [text.words for text in page.all("text")] == ["r1", "→ r6", "→ r1"]


# Numbers


@pytest.mark.parametrize(
    ("ms", "words_"),
    [(0, "0 ms"), (0.0421, "0.042 ms"), (4.5, "4.50 ms"), (12.34, "12.3 ms"), (999.4, "999.4 ms"), (99000, "99.00 s")],
)
def test_times_have_the_digits_that_count(ms: float, words_: str) -> None:
    assert words.milliseconds(ms) == words_


@pytest.mark.parametrize(
    ("size", "words_"), [(17, "17 B"), (36864, "36.0 KiB"), (1 << 27, "128.0 MiB"), (1 << 40, "1.0 TiB")]
)
def test_sizes_have_a_unit(size: int, words_: str) -> None:
    assert words.size_of(size) == words_


def test_the_style_and_the_template_are_in_the_package() -> None:
    folder = Path(words.__file__).parent
    assert "prefers-color-scheme: dark" in (folder / "page.css").read_text()
    assert "@media print" in (folder / "page.css").read_text()
    assert "<script" not in (folder / "page.html").read_text()
