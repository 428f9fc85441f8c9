"""Draws the diagram of a timeline as SVG: two lifelines, what their engines do, and what passes between them.

A lifeline is a process: dotted while it is dead.  On it a bar for each phase; beside it a strip while the guest runs
there, so that a moment with two runners, or none, is seen at once.  What struck is a band across both, with a number.
"""

import math
from collections.abc import Iterator
from typing import Final

import attrs

from migrate.reports.markup import Markup, joined, tag, title
from migrate.reports.sequence import Band, Row, bands_of, opposite, rows_of, wrapped
from migrate.reports.timeline import SIDES, SOURCE, TARGET, WORLD, Event, Kind, Timeline
from migrate.reports.words import milliseconds, size_of, time_of

WIDTH: Final = 500
LIFELINE: Final = {SOURCE: 200, TARGET: 312}
OUTWARDS: Final = {SOURCE: -1, TARGET: 1}
#: Characters that fit into a line: beside the lifelines, and across.
ROOM: Final = {SOURCE: 18, TARGET: 25, WORLD: 64}
LINES_MAX: Final = 4
HEAD: Final = 40
LINE: Final = 13
ROW: Final = 17
ROW_OF_MESSAGE: Final = 12
BREAK: Final = 26
GAP_MAX: Final = 24.0
STEEP: Final = 36
"""From so many units of height on, the name of a message stands at the end of its arrow, where few others cross it."""

#: Phases by what they are for; the colours are in the style sheet, the names stand in the diagram.
GROUPS: Final = {
    "hello": "talk",
    "preamble": "talk",
    "verdict": "talk",
    "ram": "ram",
    "pre-flight": "ram",
    "pause": "state",
    "last ram": "state",
    "time data": "state",
    "devices": "state",
    "server state": "state",
    "handoff": "handoff",
}


@attrs.define
class Lane:
    """One side, while its line is drawn from above."""

    side: str
    since: float = HEAD
    alive: bool = False
    phase: str = ""
    phase_since: float = 0
    guest_since: float | None = None

    @property
    def x(self) -> int:
        return LIFELINE[self.side]


def diagram(timeline: Timeline) -> Markup:
    """The whole timeline."""
    bands = bands_of(timeline)
    rows = rows_of(timeline, bands)
    places = dict(_placed(rows))
    height = (max(places.values(), default=HEAD) if rows else HEAD) + 2 * ROW
    parts: list[str] = [title(f"Timeline of {timeline.name(SOURCE)} and {timeline.name(TARGET)}")]
    parts += (
        tag("text", timeline.name(side), x=LIFELINE[side], y=16, class_="name", text_anchor="middle") for side in SIDES
    )
    parts += _struck(rows, places)
    parts += _lanes(rows, places, height - ROW)
    parts += (_band(band, places) for band in bands)
    parts += _labels(rows, places)
    return tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {height:.0f}", width=WIDTH, height=f"{height:.0f}", role="img",
        class_="diagram",
    )  # fmt: skip


def lines_of(row: Row) -> tuple[str, ...]:
    """The words beside a row; none for a message, whose name is on its way."""
    event = row.event
    if event.kind in (Kind.SENDS, Kind.RECEIVES):
        return ()
    text = f"writes {event.text}" if event.kind is Kind.WRITES else event.text
    room = ROOM[WORLD] if event.kind is Kind.FAULT else ROOM[event.side]
    return wrapped(text, room, LINES_MAX)


def _placed(rows: tuple[Row, ...]) -> Iterator[tuple[int, float]]:
    """The vertical place of each row, by the index of its event."""
    y: float = HEAD
    for row in rows:
        y += BREAK if row.is_break else min(GAP_MAX, 3 * math.log1p(row.gap_ns / 10_000))
        yield row.index, y
        lines = len(lines_of(row))
        y += ROW_OF_MESSAGE if not lines else ROW + (lines - 1) * LINE


def _struck(rows: tuple[Row, ...], places: dict[int, float]) -> Iterator[Markup]:
    """Behind everything else: a band for each fault."""
    for row in rows:
        if row.event.kind is Kind.FAULT:
            height = ROW + (len(lines_of(row)) - 1) * LINE
            y = places[row.index] - 8
            yield tag("rect", x=52, y=y, width=WIDTH - 52, height=height, rx=3, class_="fault")


def _lanes(rows: tuple[Row, ...], places: dict[int, float], end: float) -> Iterator[Markup]:
    lanes = {side: Lane(side) for side in SIDES}
    drawn: list[Markup] = []
    for row in rows:
        event, y = row.event, places[row.index]
        for side in SIDES if event.side == WORLD else (event.side,):
            yield from _life_until(lanes[side], event, y)
            drawn += _ended_by(lanes[side], event, y)
    for lane in lanes.values():
        yield _life(lane, end)
        drawn += (*_close_phase(lane, end), *_close_guest(lane, end))
    yield from drawn  # before the lifelines


def _life_until(lane: Lane, event: Event, y: float) -> Iterator[Markup]:
    """The lifeline so far, if it changes here."""
    if event.kind in (Kind.FAULT, Kind.CALM):
        return
    alive = event.kind is not Kind.DIES  # whoever does something lives: a target does not say that it has begun
    if alive is not lane.alive or event.kind is Kind.BEGINS:
        yield _life(lane, y)
        lane.alive, lane.since = alive, y


def _ended_by(lane: Lane, event: Event, y: float) -> Iterator[Markup]:
    """What ends at this event, and is drawn therefore."""
    match event.kind:
        case Kind.BEGINS:
            yield from _close_phase(lane, y)
        case Kind.DIES:
            yield from _close_phase(lane, y)
            yield from _close_guest(lane, y)
        case Kind.PHASE:
            yield from _close_phase(lane, y)
            lane.phase, lane.phase_since = event.text, y
        case Kind.ENDS:
            yield from _close_phase(lane, y)
        case Kind.RUNS:
            lane.guest_since = y if lane.guest_since is None else lane.guest_since
        case Kind.RESTS:
            yield from _close_guest(lane, y)


def _life(lane: Lane, y: float) -> Markup:
    kind = "life" if lane.alive else "life dead"
    return tag("line", x1=lane.x, x2=lane.x, y1=lane.since, y2=y, class_=kind)


def _close_phase(lane: Lane, y: float) -> Iterator[Markup]:
    if lane.phase:
        group = GROUPS.get(lane.phase, "talk")
        height = max(y - lane.phase_since, 2)
        yield tag(
            "rect", title(f"{lane.side}: {lane.phase}"), x=lane.x - 5, y=lane.phase_since, width=10, height=height,
            class_=f"phase {group}",
        )  # fmt: skip
        lane.phase = ""


def _close_guest(lane: Lane, y: float) -> Iterator[Markup]:
    if lane.guest_since is not None:
        x = lane.x + OUTWARDS[lane.side] * 10 - 2
        yield tag(
            "rect", title(f"the guest runs on the {lane.side}"), x=x, y=lane.guest_since, width=4,
            height=max(y - lane.guest_since, 2), class_="guest",
        )  # fmt: skip
        lane.guest_since = None


def _band(band: Band, places: dict[int, float]) -> Markup:
    """From the first that was sent to the last that was received; what never came ends halfway, with a cross."""
    inwards = OUTWARDS[opposite(band.side)]
    start, end = LIFELINE[band.side] + 6 * inwards, LIFELINE[opposite(band.side)] - 6 * inwards
    sent = [places[index] for index in band.sent]
    told = title(_told(band))
    if band.received is None:
        end = (start + end) // 2
        y = sent[0]
        cross = tag("path", d=f"M{end - 4} {y - 4:.1f}l8 8m0 -8l-8 8", class_="cross")
        line = tag("line", x1=start, y1=y, x2=end, y2=y, class_="message lost")
        anchor = "start" if band.side == SOURCE else "end"
        return tag("g", told, line, cross, _name(band, start + 3 * inwards, y - 3, anchor))
    received = [places[index] for index in band.received]
    middle = ((sent[0] + received[0]) / 2 + (sent[1] + received[1]) / 2) / 2
    parts = [told]
    if band.count > 1:
        corners = ((start, sent[0]), (end, received[0]), (end, received[1]), (start, sent[1]))
        parts.append(tag("polygon", points=" ".join(f"{x},{y:.1f}" for x, y in corners), class_="messages"))
    parts += [
        tag("line", x1=start, y1=y, x2=end, y2=arrived, class_="message")
        for y, arrived in dict.fromkeys(zip(sent, received, strict=True))
    ]
    y = received[1]
    parts.append(tag("path", d=f"M{end} {y:.1f}l{-7 * inwards} -3.5v7z", class_="head"))
    if abs(received[1] - sent[1]) < STEEP:
        return tag("g", *parts, _name(band, (start + end) / 2, middle - 3))
    along = 0.75  # near its end, where what came in one order is as far apart as the rows
    height = sent[1] + along * (received[1] - sent[1])
    anchor = "end" if band.side == SOURCE else "start"
    return tag("g", *parts, _name(band, end - 8 * inwards, height, anchor))


def _name(band: Band, x: float, y: float, anchor: str = "middle") -> Markup:
    count = f" ×{band.count}" if band.count > 1 else ""
    return tag("text", band.message + count, x=x, y=y, text_anchor=anchor, class_="of-message")


def _told(band: Band) -> str:
    size = f", {size_of(band.size)}" if band.size else ""
    lost = f", {band.lost} never received" if band.lost else ""
    return f"{band.count} {band.message} from the {band.side}{size}{lost}"


def _labels(rows: tuple[Row, ...], places: dict[int, float]) -> Iterator[Markup]:
    """Times at the left, and the words beside each row."""
    told = ""
    number = 0
    for row in rows:
        event, y = row.event, places[row.index]
        if row.is_break:
            middle = (LIFELINE[SOURCE] + LIFELINE[TARGET]) / 2
            later = f"⋮ {milliseconds(row.gap_ns / 1e6)} later"
            yield tag("text", later, x=middle, y=y - BREAK / 2 + 1, text_anchor="middle", class_="break")
        lines = lines_of(row)
        time = time_of(event.at_ns)
        if lines and time != told:
            yield tag("text", time, x=50, y=y + 4, text_anchor="end", class_="time")
            told = time
        if event.kind is Kind.FAULT:
            number += 1
            yield _fault_label(lines, number, y)
        elif lines:
            yield _label(event, lines, y)


def _label(event: Event, lines: tuple[str, ...], y: float) -> Markup:
    side = TARGET if event.side == WORLD else event.side
    x = LIFELINE[side] + OUTWARDS[side] * 18
    anchor = "end" if side == SOURCE else "start"
    said = joined(tag("tspan", line, x=x, dy=LINE if place else 0) for place, line in enumerate(lines))
    kind = event.kind.value
    return tag("text", title(event.text), said, x=x, y=y + 4, text_anchor=anchor, class_=f"event {kind}")


def _fault_label(lines: tuple[str, ...], number: int, y: float) -> Markup:
    said = joined(tag("tspan", line, x=74, dy=LINE if place else 0) for place, line in enumerate(lines))
    return tag(
        "g",
        tag("path", d=f"M62 {y - 6:.1f}l6 6l-6 6l-6 -6z", class_="mark"),
        tag("text", str(number), x=62, y=y + 3, text_anchor="middle", class_="mark-number"),
        tag("text", said, y=y + 4, class_="event fault-words"),
    )
