"""A timeline as text, for terminals and the output of tests: the source at the left, the target at the right."""

from collections.abc import Iterator
from typing import Final

from migrate.reports.sequence import Band, bands_of, rows_of, wrapped
from migrate.reports.timeline import SOURCE, TARGET, WORLD, Event, Kind, Timeline
from migrate.reports.words import milliseconds, time_of

TIME: Final = 12
COLUMN: Final = 40
LINES_MAX: Final = 6


def timeline_text(timeline: Timeline) -> str:
    """Every line; what struck stands across both columns, marked with `>>>`."""
    return "\n".join([*_head(timeline), *_body(timeline), *_foot(timeline)])


def _head(timeline: Timeline) -> Iterator[str]:
    heads = (timeline.name(side) + ("" if timeline.name(side) == side else f" ({side})") for side in (SOURCE, TARGET))
    yield _line("ms", *heads)
    yield "─" * (TIME + 2 * COLUMN)


def _body(timeline: Timeline) -> Iterator[str]:
    bands = bands_of(timeline)
    sent = {band.sent[0]: band for band in bands}
    received = {band.received[0]: band for band in bands if band.received is not None}
    told = ""
    for row in rows_of(timeline, bands):
        words = _words(row.event, sent.get(row.index), received.get(row.index))
        if not words:
            continue
        if row.is_break:
            yield _line("", f"⋮ {milliseconds(row.gap_ns / 1e6)} later", "")
        time = time_of(row.event.at_ns)
        yield from _lines("" if time == told else time, row.event, words)
        told = time


def _words(event: Event, sent: Band | None, received: Band | None) -> str:
    match event.kind:
        case Kind.SENDS | Kind.RECEIVES:
            band = sent if event.kind is Kind.SENDS else received
            if band is None:
                return ""  # the last of several
            count = f" ×{band.count}" if band.count > 1 else ""
            lost = " (never received)" if sent is not None and band.received is None else ""
            return f"{event.kind.value} {band.message}{count}{lost}"
        case Kind.PHASE:
            return f"[{event.text}]"
        case Kind.WRITES:
            return f"writes {event.text}"
        case Kind.FAULT:
            return f">>> {event.text}"
        case _:
            return event.text


def _lines(time: str, event: Event, words: str) -> Iterator[str]:
    if event.side == WORLD or event.kind is Kind.FAULT:
        lines = wrapped(words, 2 * COLUMN, LINES_MAX)
        yield from (f"{time if first else '':>{TIME - 2}}  {line}" for first, line in _firsts(lines))
        return
    for first, line in _firsts(wrapped(words, COLUMN - 2, LINES_MAX)):
        yield _line(time if first else "", *((line, "") if event.side == SOURCE else ("", line)))


def _firsts(lines: tuple[str, ...]) -> Iterator[tuple[bool, str]]:
    for number, line in enumerate(lines):
        yield number == 0, line


def _line(time: str, source: str, target: str) -> str:
    return f"{time:>{TIME - 2}}  {source:<{COLUMN}}{target}".rstrip()


def _foot(timeline: Timeline) -> Iterator[str]:
    yield "─" * (TIME + 2 * COLUMN)
    yield f"{timeline.outcome}; {timeline.owner} has the machine"
    struck = [event.text for event in timeline.faults]
    yield from (f"did not strike: {text}" for text in timeline.planned if text not in struck)
    yield from (f"VIOLATED  {check}: {message}" for check, message in timeline.violations)
