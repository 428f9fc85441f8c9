"""Charts that are tables: each row has its numbers in words, and a bar beside them that says the same at a glance."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from migrate.reports.markup import Markup, details, table, tag, title
from migrate.reports.timeline import SIDES, Attempt, Round, Step, Wait
from migrate.reports.words import milliseconds, size_of

#: Units across a bar's picture, which is drawn as wide as its column.
ACROSS: Final = 1000
THIN: Final = 3.0
"""The least that can be seen of a bar that is there."""


def bar(*pieces: Markup, height: int = 12) -> Markup:
    """A picture as wide as its place."""
    return tag(
        "svg", *pieces, viewBox=f"0 0 {ACROSS} {height}", preserveAspectRatio="none", class_="bar", aria_hidden="true"
    )


def piece(start: float, length: float, class_: str, *, y: float = 1, height: float = 10, said: str = "") -> Markup:
    """Of a bar; `start` and `length` are parts of the whole, from 0 to 1."""
    drawn = max(length * ACROSS, THIN)
    return tag(
        "rect",
        *([title(said)] if said else []),
        x=min(start * ACROSS, ACROSS - drawn),
        y=y,
        width=drawn,
        height=height,
        class_=class_,
    )


def rounds_chart(rounds: Sequence[Round]) -> Markup:
    """Pages that each round sent, beside those that the guest dirtied meanwhile: what the next has to send.

    Bars are as long as the logarithm of their number, for a round is often a hundredth of the one before.
    """
    most = math.log1p(max((max(round_.pages, round_.dirtied_pages) for round_ in rounds), default=0) or 1)
    is_throttled = any(round_.throttle for round_ in rounds)
    rows = [
        (
            str(round_.number),
            bar(
                piece(0, math.log1p(round_.pages) / most, "sent", said=f"{round_.pages:,} pages sent"),
                piece(
                    0,
                    math.log1p(round_.dirtied_pages) / most,
                    "dirtied",
                    y=13,
                    said=f"{round_.dirtied_pages:,} dirtied",
                ),
                height=24,
            ),
            f"{round_.pages:,}",
            f"{round_.dirtied_pages:,}",
            f"{round_.zero_pages:,}",
            size_of(round_.bytes),
            milliseconds(round_.duration_ms),
            f"{size_of(round_.bytes / (round_.duration_ms / 1e3))}/s" if round_.duration_ms else "",
            *([f"{round_.throttle:.0%}"] if is_throttled else []),
        )
        for round_ in rounds
    ]
    heads = ["round ", "sent and dirtied, logarithmic", "pages ", "dirtied ", "zero ", "sent ", "took ", "rate "]
    if is_throttled:
        heads.append("guest asleep ")
    return table(heads, rows, class_="chart rounds")


def blackout_chart(attempt: Attempt) -> Markup:
    """Each step of the blackout on one axis that begins with the pause, the source's above the target's."""
    steps = attempt.blackout()
    begin_ms = steps[0].start_ms
    whole_ms = max(max(step.end_ms for step in steps) - begin_ms, 1e-9)
    rows = []
    for name, of_sides in _by_name(steps):
        drawn = [
            piece(
                (step.start_ms - begin_ms) / whole_ms,
                step.duration_ms / whole_ms,
                side,
                y=1 if side == SIDES[0] else 13,
                said=f"{side}: {name}, {milliseconds(step.duration_ms)} from {milliseconds(step.start_ms - begin_ms)}",
            )
            for side in SIDES
            for step in of_sides.get(side, ())
        ]
        rows.append((name, bar(*drawn, height=24), *(_times(of_sides.get(side, ()), begin_ms) for side in SIDES)))
    heads = ("step", f"since the pause, over {milliseconds(whole_ms)}", "source, took at ", "target, took at ")
    return table(heads, rows, class_="chart blackout")


def waits_chart(waits: Sequence[Wait]) -> Markup:
    """One part below the other, each beginning where the one above it ended: they add up to what the guest was away."""
    whole_ms = max(sum(wait.ms for wait in waits), 1e-9)
    rows, at_ms = [], 0.0
    for wait in waits:
        said = f"{wait.step}: {milliseconds(wait.ms)} from {milliseconds(at_ms)}"
        drawn = bar(piece(at_ms / whole_ms, wait.ms / whole_ms, "waits", said=said)) if wait.ms else bar()
        rows.append((wait.step, drawn, f"{wait.ms:.2f}", f"{wait.ms / whole_ms:.0%}"))
        at_ms += wait.ms
    heads = ("until the end of", f"since the guest's last step, over {milliseconds(whole_ms)}", "ms ", "share ")
    return table(heads, rows, class_="chart waits")


def blackout_table(attempt: Attempt) -> Markup:
    """The ledger in full."""
    steps = attempt.blackout()
    begin_ms = steps[0].start_ms
    rows = [(step.step, step.side, f"{step.start_ms - begin_ms:.3f}", f"{step.duration_ms:.3f}") for step in steps]
    return details("The downtime ledger in numbers", table(("step", "side", "from, ms ", "took, ms "), rows))


def _by_name(steps: Sequence[Step]) -> Iterator[tuple[str, dict[str, list[Step]]]]:
    names = dict.fromkeys(step.step for step in steps)
    for name in names:
        of_sides: dict[str, list[Step]] = {}
        for step in steps:
            if step.step == name:
                of_sides.setdefault(step.side, []).append(step)
        yield name, of_sides


def _times(steps: Sequence[Step], begin_ms: float) -> str:
    return "; ".join(f"{step.duration_ms:.2f} at {step.start_ms - begin_ms:.2f}" for step in steps)
