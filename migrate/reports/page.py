"""Whole pages, each one file that needs nothing else: no network, no script, every style and picture inside.

What stands on a page are values: names, times, counts, what an error said.  Whole documents do not, so that nothing
that a spec carries besides (such as the requests of its storage backends) gets into a file that people pass around.
"""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template
from typing import Final

import attrs

from migrate.faults.tally import Tally
from migrate.rehearsal.matrix import Cell
from migrate.reports import charts, fault_map, matrix_map
from migrate.reports.diagram import diagram
from migrate.reports.markup import Markup, details, escaped, joined, section, table, tag
from migrate.reports.sequence import bands_of, rows_of
from migrate.reports.timeline import SOURCE, TARGET, Attempt, Kind, Timeline
from migrate.reports.words import milliseconds, size_of, time_of

Facts = Sequence[tuple[str, str]]

GOOD, NOT_DONE, VIOLATED = "good", "not-done", "violated"
TIMELINES_MAX: Final = 5
"""Violations of a campaign that are drawn; of the others there is the plan."""


@attrs.frozen(kw_only=True)
class Shown:
    """A violation of a campaign: its plan as TOML, where that has been left, and the timeline of a run of it."""

    check: str
    message: str
    plan: str
    file: str
    timeline: Timeline | None


def migration_page(title: str, timeline: Timeline, facts: Facts = ()) -> str:
    """Of one migration, rehearsed or simulated."""
    verdict = VIOLATED if timeline.violations else GOOD if timeline.outcome == "migrated" else NOT_DONE
    lead = f"{timeline.outcome}; the {timeline.owner} has the machine"
    if timeline.owner == "nobody":
        lead = f"{timeline.outcome}; nobody has the machine"
    body = joined(
        (
            *_violations(timeline),
            tag(
                "div",
                tag("div", *_beside(timeline, facts), class_="aside"),
                tag("div", _timeline(timeline)),
                class_="columns",
            ),
        )
    )
    return _page(title, lead, verdict, body)


def campaign_page(
    title: str, lead: str, tally: Tally, outcomes: Facts, violations: Sequence[Shown], undisturbed: Timeline
) -> str:
    """Of an exploration."""
    body = joined(
        (
            *(_shown(number, shown) for number, shown in enumerate(violations, 1)),
            section("What came of them", table(("outcome", "schedules "), outcomes)),
            section(
                "Fault map",
                tag("p", _map_words(tally), class_="note"),
                fault_map.fault_map(tally),
            ),
            section(
                "The migration that is disturbed",
                tag("p", "As it goes when nothing strikes.", class_="note"),
                _legend(),
                diagram(undisturbed),
                details("As a table", events_table(undisturbed)),
            ),
        )
    )
    return _page(title, lead, VIOLATED if violations else GOOD, body, fault_map.symbols())


def matrix_page(title: str, lead: str, cells: Sequence[Cell], releases: Sequence[str], path: str | None) -> str:
    """Of who can go where."""
    drawn = matrix_map.grids(cells, releases) if path is None else matrix_map.paths(cells, path)
    body = joined(
        (
            section("Which machine can go where", matrix_map.legend(), drawn),
            section("In words", matrix_map.in_words(cells)),
        )
    )
    return _page(title, lead, GOOD if all(cell.is_ok for cell in cells) else NOT_DONE, body)


def _page(title: str, lead: str, verdict: str, body: Markup, symbols: str = "") -> str:
    here = files("migrate.reports")
    template = Template(here.joinpath("page.html").read_text())
    return template.substitute(
        title=escaped(title),
        lead=escaped(lead),
        verdict=verdict,
        style=here.joinpath("page.css").read_text(),
        symbols=symbols,
        body=body,
    )


# Parts


def _violations(timeline: Timeline) -> list[Markup]:
    return [
        tag("div", tag("p", tag("strong", f"Violated: {check}")), tag("p", message), class_="violation")
        for check, message in timeline.violations
    ]


def _beside(timeline: Timeline, facts: Facts) -> Iterable[Markup]:
    audited = f"{len(timeline.checks)} checks, {len(timeline.violations) or 'none'} violated"
    told = [*facts, ("audit", audited)] if timeline.checks else [*facts]
    yield section("In short", facts_list(told))
    if timeline.planned:
        yield section("Faults", faults_table(timeline))
    for number, attempt in enumerate(timeline.attempts, 1):
        yield _attempt(attempt, f"Attempt {number}" if len(timeline.attempts) > 1 else "The attempt")
    if timeline.checks:
        yield section("Audit", details("What was checked", tag("p", ", ".join(timeline.checks))))
    yield section("Everything that happened", details("As a table", events_table(timeline)))


def _attempt(attempt: Attempt, title: str) -> Markup:
    parts = [tag("p", attempt.error)] if attempt.error else []
    if attempt.rounds:
        parts += [
            tag("h3", "RAM rounds"),
            _key(
                ("sent", "pages sent"), ("dirtied", "pages that the guest dirtied meanwhile, and the next round sends")
            ),
            charts.rounds_chart(attempt.rounds),
        ]
    if any(step.duration_ms for step in attempt.blackout()):
        downtime = "" if attempt.downtime_ms is None else f": downtime {milliseconds(attempt.downtime_ms)}"
        parts += [
            tag("h3", f"The blackout, step by step{downtime}"),
            _key((SOURCE, "on the source"), (TARGET, "on the target")),
            charts.blackout_chart(attempt),
            charts.blackout_table(attempt),
        ]
    if attempt.waits:
        away = milliseconds(sum(wait.ms for wait in attempt.waits))
        parts += [tag("h3", f"What the guest waited for: {away}"), charts.waits_chart(attempt.waits)]
    return section(f"{title}: {attempt.outcome}", *parts)


def _key(*entries: tuple[str, str]) -> Markup:
    items = []
    for name, words in entries:
        square = tag("rect", width=14, height=14, class_=name)
        items.append(tag("li", tag("svg", square, viewBox="0 0 14 14", class_="swatch bar"), " ", words))
    return tag("ul", *items, class_="legend")


def _timeline(timeline: Timeline) -> Markup:
    return section(
        "Timeline", tag("p", "Times in ms since the beginning.", class_="note"), _legend(), diagram(timeline)
    )


#: What the colours of the diagram are for.
LEGEND: Final = (
    ("guest", "the guest runs here"),
    ("talk", "phases before RAM is sent"),
    ("ram", "RAM is sent while the guest runs"),
    ("state", "the guest is paused: last pages, devices"),
    ("handoff", "handoff"),
    ("fault", "a fault strikes"),
)


def _legend() -> Markup:
    items = []
    for name, words in LEGEND:
        square = tag("rect", x=1, y=1, width=14, height=14, class_=name)
        if name == "fault":
            square = tag("path", d="M8 1l7 7l-7 7l-7 -7z", class_="mark")
        items.append(tag("li", tag("svg", square, viewBox="0 0 16 16", class_="swatch"), " ", words))
    return tag("ul", *items, class_="legend")


def facts_list(facts: Facts) -> Markup:
    return tag("dl", *(part for name, text in facts for part in (tag("dt", name), tag("dd", text))), class_="facts")


def faults_table(timeline: Timeline) -> Markup:
    """What was planned, and what has struck, with its number in the diagram."""
    struck = list(enumerate(timeline.faults, 1))
    rows = [(str(number), event.text, f"at {time_of(event.at_ns)} ms") for number, event in struck]
    left = list(timeline.planned)
    for _, event in struck:
        if event.text in left:
            left.remove(event.text)
    rows += [("", text, "did not strike") for text in left]
    return table(("", "fault", "struck"), rows)


def events_table(timeline: Timeline) -> Markup:
    """The diagram in words; messages of one kind, one after the other, in one row."""
    bands = {band.sent[0]: band for band in bands_of(timeline)}
    rows = []
    for row in rows_of(timeline, tuple(bands.values())):
        event, band = row.event, bands.get(row.index)
        if band is not None:
            count = f" ×{band.count}" if band.count > 1 else ""
            size = f", {size_of(band.size)}" if band.size else ""
            lost = "" if not band.lost else ", never received" if band.count == 1 else f", {band.lost} never received"
            text = f"sends {band.message}{count}{size}{lost}"
        elif event.kind in (Kind.SENDS, Kind.RECEIVES):
            continue
        else:
            text = {Kind.PHASE: "enters ", Kind.WRITES: "writes ", Kind.FAULT: "FAULT: "}.get(
                event.kind, ""
            ) + event.text
        cells = (tag("td", cell) for cell in (time_of(event.at_ns), event.side, text, event.phase))
        rows.append(tag("tr", *cells, class_="fault" if event.kind is Kind.FAULT else None))
    head = tag("tr", *(tag("th", name, scope="col") for name in ("ms", "side", "what", "in phase")))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="events"), class_="scrolled")


def _shown(number: int, shown: Shown) -> Markup:
    parts: list[Markup] = [
        tag("div", tag("p", tag("strong", f"Violated: {shown.check}")), tag("p", shown.message), class_="violation"),
        tag("p", "The smallest plan that was found; run it again with ", tag("code", f"migrate replay {shown.file}")),
        tag("pre", shown.plan),
    ]
    if shown.timeline is not None:
        parts.append(details("Its timeline", _legend(), diagram(shown.timeline)))
    return section(f"Violation {number}", *parts)


def _map_words(tally: Tally) -> str:
    places, actions = (len(dict.fromkeys(key[place] for key in tally.cells)) for place in (0, 1))
    what = "Each mark is one schedule"
    if tally.is_coarse:
        what = "Each mark stands for all plans with such a fault, and shows the worst that came of them"
    return (
        f"{places:,} places where a fault can strike, {actions} things that it can do. {what}; rest a pointer on it to "
        "read why."
    )
