"""What is going on, for people: a live display on a terminal, plain lines elsewhere; always on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from migrate.cli.output import mebibytes, printable

Event = dict[str, Any]
Watch = Callable[[Event], None]

#: What people are told of events that have nothing to be reckoned.
SAID: Final = {
    "alarm": "ALARM: {message}",
    "rolled back": "the machine runs on here",
    "started again": "its process had died: guest {guest} boots again from its disks",
    **dict.fromkeys(
        ("throttle", "in doubt", "still in doubt", "interrupt", "fenced off", "image lost", "told", "no fence"),
        "{message}",
    ),
}


def describe(event: Event) -> str | None:
    """One line about an event, or None if it says nothing to people."""
    match event["event"]:
        case "listening":
            return f"{event['machine']} {event['state']}, at {event['address']}"
        case "attempt":
            return f"attempt {event['number']}"
        case "accepted":
            return f"the target takes spec version {event['spec_version']}"
        case "round":
            rate = event["bytes"] / max(event["duration_ms"] / 1e3, 1e-9)
            return (
                f"round {event['number']}: {event['pages']:,} pages ({event['zero_pages']:,} zero), "
                f"{mebibytes(event['bytes'])} at {mebibytes(rate)}/s, {event['dirtied_pages']:,} dirtied"
            )
        case "estimate":
            return _estimate(event)
        case "attempt ended" if event["error"] is not None:
            return f"{event['outcome']} in phase {event['phase']!r}: {event['error']['message']}"
        case "attempt ended":
            return "migrated"
        case "running":
            return f"{event['machine']} runs here now"
        case "guest resumed" if event["blackout_ms"] is None:
            return "the guest goes on"
        case "guest resumed":
            return f"the guest was away for {event['blackout_ms']:.1f} ms by its own clock"
        case "phase" if event["phase"] not in ("last ram", "time data", "devices", "server state"):
            return f"phase {event['phase']}"
        case name:
            said = SAID.get(name)
            return None if said is None else said.format(**event)


def _estimate(event: Event) -> str:
    away, left = event["downtime_ms"], event["remaining_ms"]
    now = "nobody can tell how long the guest would be away" if away is None else f"paused now, away for {away:.0f} ms"
    to_go = "no end in sight" if left is None else f"{left / 1e3:.1f} s to go"
    return f"{now}; {event['dirty_pages_per_s']:,} pages dirtied a second; {to_go}: {event['decision']}, {event['why']}"


def event_lines(stream: TextIO) -> Watch:
    """A listener that writes a line about each event worth one."""

    def write(event: Event) -> None:
        line = describe(event)
        if line is not None:
            print(printable(f"{event['side']}: {line}"), file=stream, flush=True)

    return write


@contextmanager
def live_progress(*, quiet: bool) -> Iterator[Watch]:
    """A listener for the events of both daemons."""
    if quiet:
        yield lambda event: None
    elif sys.stderr.isatty():
        with _display() as watch:
            yield watch
    else:
        yield event_lines(sys.stderr)


@contextmanager
def _display() -> Iterator[Watch]:
    """A line a side with its phase, and a bar for the RAM round in progress."""
    console = Console(stderr=True, highlight=False, emoji=False)
    columns = (TextColumn("{task.description:7}"), BarColumn(24), TextColumn("{task.fields[what]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        tasks = {side: progress.add_task(side, total=None, what="starting") for side in ("source", "target")}

        def watch(event: Event) -> None:
            task = tasks[event["side"]]
            match event["event"]:
                case "ram":
                    rate = f"{mebibytes(event['bytes_per_s'])}/s"
                    progress.update(
                        task,
                        total=max(event["of_pages"], 1),
                        completed=min(event["pages"], event["of_pages"]),
                        what=f"round {event['round']}: {mebibytes(event['bytes'])} at {rate}",
                    )
                case "phase":
                    progress.update(task, what=event["phase"])
                case "round" | "estimate" | "throttle" | "rolled back" | "accepted":
                    progress.console.print(Text(printable(f"{event['side']}: {describe(event)}")))
                case "attempt ended" if event["side"] == "target":  # no attempt is without one
                    progress.console.print(Text(printable(f"target: {describe(event)}")))

        yield watch
