"""The fault map: a row for each place where a fault can strike, a column for each thing it can do, marks for what came.

A mark has a colour and a shape of its own, so that it can be told in print and by whoever sees few colours.  The map is
a table, so it can be read out, and its heads stay in sight while it is scrolled.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from migrate.faults.tally import RANK, Count, Course, Tally
from migrate.reports.markup import Markup, details, joined, table, tag

MARKS: Final = {
    Course.NOT_STRUCK: "none",
    Course.MOVED: "moved",
    Course.RECOVERED: "recovered",
    Course.SETTLED: "settled",
    Course.STAYED: "stayed",
    Course.VIOLATED: "violated",
}
LETTERS: Final = {
    Course.NOT_STRUCK: "-",
    Course.MOVED: "m",
    Course.RECOVERED: "r",
    Course.SETTLED: "d",
    Course.STAYED: "s",
    Course.VIOLATED: "V",
}
SHAPES: Final = {
    "none": (tag("circle", cx=8, cy=8, r=1.5),),
    "moved": (tag("rect", x=1, y=1, width=14, height=14),),
    "recovered": (tag("rect", x=1, y=1, width=14, height=14), tag("circle", cx=8, cy=8, r=3, class_="ink")),
    "settled": (tag("rect", x=1, y=1, width=14, height=14), tag("path", d="M2 14L14 2", class_="stroke")),
    "stayed": (tag("rect", x=1, y=1, width=14, height=14), tag("path", d="M3 8h10", class_="stroke")),
    "violated": (tag("rect", x=1, y=1, width=14, height=14), tag("path", d="M4 4l8 8m0 -8l-8 8", class_="stroke")),
}
DENSE_ABOVE: Final = 56
"""Columns: with more, marks are smaller, so that the map still fits a screen."""
REASONS_MAX: Final = 400
"""Rows of the table of reasons; a campaign of pairs has very many."""
EXAMPLES_MAX: Final = 3


def symbols() -> Markup:
    """The shapes, once for the whole page."""
    drawn = (
        tag("symbol", *shape, id=f"mark-{name}", viewBox="0 0 16 16", class_=f"mark-{name}")
        for name, shape in SHAPES.items()
    )
    return tag("svg", *drawn, class_="symbols", aria_hidden="true", width=0, height=0)


def mark(course: Course) -> Markup:
    return tag("svg", tag("use", href=f"#mark-{MARKS[course]}"), class_=f"mark-{MARKS[course]}", width=16, height=16)


def legend(courses: Iterable[Course]) -> Markup:
    return tag("ul", *(tag("li", mark(course), " ", course.value) for course in courses), class_="legend")


def fault_map(tally: Tally) -> Markup:
    """The map with its legend, and the same in words below it."""
    places = list(dict.fromkeys(place for place, _ in tally.cells))
    actions = list(dict.fromkeys(action for _, action in tally.cells))
    if tally.is_coarse:  # places come up in no order that means anything
        places.sort()
        actions.sort()
    found = {course for counts in tally.cells.values() for course in counts}
    head = tag(
        "tr",
        tag("th", "strikes", scope="col", class_="corner"),
        *(tag("th", tag("span", action), scope="col") for action in actions),
    )
    body = [
        tag(
            "tr",
            tag("th", place, scope="row"),
            *(_cell(place, action, tally.cells.get((place, action))) for action in actions),
        )
        for place in places
    ]
    kind = "fault-map dense" if len(actions) > DENSE_ABOVE else "fault-map"
    drawn = tag("table", tag("thead", head), tag("tbody", *body), class_=kind)
    return joined(
        (
            legend(course for course in Course if course in found),
            tag("div", drawn, class_="map scrolled", tabindex=0, role="region", aria_label="Fault map"),
            reasons_table(tally),
        )
    )


def _cell(place: str, action: str, counts: Mapping[Course, Count] | None) -> Markup:
    if counts is None:
        return tag("td")
    worst = max(counts, key=RANK.__getitem__)
    return tag("td", mark(worst), tag("i", LETTERS[worst]), title=_said(place, action, counts))


def _said(place: str, action: str, counts: Mapping[Course, Count]) -> str:
    """What a pointer that rests on a mark is told, the worst first."""
    lines = [f"{action} – {place}"]
    total = sum(count.plans for count in counts.values())
    for course in sorted(counts, key=RANK.__getitem__, reverse=True):
        count = counts[course]
        number = "" if total == 1 else f"{count.plans:,} of {total:,}: "
        lines.append(f"{number}{course.value}" + (f": {count.why}" if count.why else ""))
    return "\n".join(lines)


def reasons_table(tally: Tally) -> Markup:
    """Every outcome and reason once, with how many faults came to it and some of them."""
    plans: Counter[tuple[Course, str]] = Counter()
    examples: dict[tuple[Course, str], list[str]] = {}
    for (place, action), counts in tally.cells.items():
        for course, count in counts.items():
            plans[course, count.why] += count.plans
            examples.setdefault((course, count.why), []).append(f"{action} – {place}")
    ordered = sorted(plans, key=lambda key: (-RANK[key[0]], -plans[key], key[1]))
    rows = [
        (
            key[0].value,
            f"{plans[key]:,}",
            key[1] or "nothing failed",
            "; ".join(examples[key][:EXAMPLES_MAX]) + (" …" if len(examples[key]) > EXAMPLES_MAX else ""),
        )
        for key in ordered[:REASONS_MAX]
    ]
    more = f", the first {REASONS_MAX} of {len(ordered):,}" if len(ordered) > REASONS_MAX else ""
    heads = ("outcome", "times ", "because", "by")
    return details(f"What came of them and why, in words{more}", table(heads, rows, class_="reasons"))
