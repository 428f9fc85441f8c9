"""Where everything stands in the diagram of a timeline: time runs down, the source is at the left, the target right.

Whatever happens gets a row of its own, so that the order can be read where all happens in a moment.  Distances between
rows grow with the logarithm of the time between them; quiet stretches that would dwarf all the rest become a break,
which says how long it was.  Messages of one kind, one after the other, are one band from the first to the last.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import attrs

from migrate.reports.timeline import SIDES, SOURCE, TARGET, Event, Flight, Kind, Timeline, flights_of

BREAK_AFTER: Final = 4
"""A quiet stretch is a break if it is longer than so many times everything shorter together."""


@attrs.frozen(kw_only=True)
class Band:
    """Messages of one kind that a side sent one after the other; indexes into the events of the timeline.

    Of what was received these are the first and the last; None if nothing was.
    """

    side: str
    message: str
    count: int
    lost: int
    size: int
    sent: tuple[int, int]
    received: tuple[int, int] | None


@attrs.frozen(kw_only=True)
class Row:
    """One line of the diagram; `gap_ns` is how long ago the one before it was, `is_break` if that is not to scale."""

    index: int
    event: Event
    gap_ns: int
    is_break: bool


def bands_of(timeline: Timeline) -> tuple[Band, ...]:
    """Every message, in the order in which they were sent."""
    bands: list[Band] = []
    flights = _indexed(timeline.events)
    sent = {flight_sent: place for place, (_, flight_sent, _) in enumerate(flights)}
    open_bands: dict[str, list[tuple[Flight, int, int | None]]] = {side: [] for side in SIDES}
    for index, event in enumerate(timeline.events):
        flight = flights[sent[index]] if index in sent else None
        for side in SIDES if event.side not in SIDES else (event.side,):
            before = open_bands[side]
            if before and not (flight is not None and _alike(before[-1][0], flight[0])):
                bands.append(_band(before))
                open_bands[side] = []
        if flight is not None:
            open_bands[event.side].append(flight)
    bands += [_band(left) for left in open_bands.values() if left]
    return tuple(sorted(bands, key=lambda band: band.sent))


def rows_of(timeline: Timeline, bands: Sequence[Band]) -> tuple[Row, ...]:
    """What is shown: everything but the middle of the bands."""
    shown = {index for index, event in enumerate(timeline.events) if event.kind not in (Kind.SENDS, Kind.RECEIVES)}
    for band in bands:
        shown.update(band.sent, band.received or ())
    indexes = sorted(shown)
    times = [timeline.events[index].at_ns for index in indexes]
    gaps = [later - earlier for earlier, later in pairwise([*times[:1], *times])]
    longest = break_above_ns(gaps)
    return tuple(
        Row(index=index, event=timeline.events[index], gap_ns=gap, is_break=gap > longest)
        for index, gap in zip(indexes, gaps, strict=True)
    )


def break_above_ns(gaps: Sequence[int]) -> float:
    """Quiet stretches that are longer become breaks."""
    left, longest = sum(gaps), math.inf
    for gap in sorted(gaps, reverse=True):
        left -= gap
        if gap <= BREAK_AFTER * left or left == 0:
            return longest
        longest = gap - 1
    return longest


def _indexed(events: Sequence[Event]) -> list[tuple[Flight, int, int | None]]:
    """Each message with the indexes of where it was sent and received."""
    of_messages = [(index, event) for index, event in enumerate(events) if event.connection is not None]
    sends = [index for index, event in of_messages if event.kind is Kind.SENDS]
    flights = flights_of([attrs.evolve(event, at_ns=index) for index, event in of_messages])
    return [(flight, index, flight.received_ns) for flight, index in zip(flights, sends, strict=True)]


def _alike(one: Flight, other: Flight) -> bool:
    return (one.message, one.connection) == (other.message, other.connection)


def _band(flights: Sequence[tuple[Flight, int, int | None]]) -> Band:
    received = [index for _, _, index in flights if index is not None]
    first = flights[0][0]
    return Band(
        side=first.side,
        message=first.message,
        count=len(flights),
        lost=len(flights) - len(received),
        size=sum(flight.size for flight, _, _ in flights),
        sent=(flights[0][1], flights[-1][1]),
        received=(min(received), max(received)) if received else None,
    )


def wrapped(text: str, width: int, lines_max: int) -> tuple[str, ...]:
    """`text` in lines of at most `width` characters; what does not fit into so many lines is left out, with a mark."""
    lines = list(_lines(text, width))
    if len(lines) <= lines_max:
        return tuple(lines)
    return (*lines[: lines_max - 1], lines[lines_max - 1][: width - 1] + "…")


def _lines(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        while len(word) > width:  # a word that no line can hold
            room = width - len(line) - 1 if line else width
            if room < 4:
                yield line
                line = ""
                continue
            yield f"{line} {word[:room]}".strip()
            line, word = "", word[room:]
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def opposite(side: str) -> str:
    return TARGET if side == SOURCE else SOURCE
