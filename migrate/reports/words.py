"""How times, sizes and events are written, for people."""

from collections.abc import Mapping
from typing import Any, Final

from migrate.reports.timeline import NS_PER_MS, Kind

#: The words of an event are cut here: an error may quote whatever a peer has said.
TOLD_MAX: Final = 400


SILENT: Final = frozenset({"ram", "estimate"})
"""What engines tell for whoever watches them meanwhile; a timeline has the rounds."""


def kind_and_facts(event: str, facts: Mapping[str, Any]) -> tuple[Kind, dict[str, int]]:
    """What an event that an engine or a daemon told is on a timeline."""
    if event == "round":
        return Kind.ROUND, {name: facts[name] for name in ("pages", "bytes", "dirtied_pages")}
    return Kind.TELLS, {}


def told_words(event: str, facts: Mapping[str, Any]) -> str:
    """What an engine or a daemon told, with what it told about it."""
    if event == "round":
        return f"round {facts['number']}: {facts['pages']:,} pages, {facts['dirtied_pages']:,} dirtied meanwhile"
    if event == "guest resumed" and facts["blackout_ms"] is None:
        return "the guest goes on"
    if event == "guest resumed":
        return f"the guest was away for {facts['blackout_ms']:.1f} ms by its own clock"
    message = facts.get("message")
    if message is not None:
        return shortened(f"{event}: {message}")
    return shortened(" ".join([event, *(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())]))


def shortened(text: str, length: int = TOLD_MAX) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def milliseconds(ms: float) -> str:
    """`0.042 ms`, `12.3 ms`, `4.50 s`: three digits that count."""
    if ms == 0:
        return "0 ms"
    if ms >= 1000:
        return f"{ms / 1000:,.2f} s"
    return f"{ms:.3f} ms" if ms < 1 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms"


def time_of(ns: int) -> str:
    """A place on a timeline, always in ms, so that places can be compared; in a margin of nine characters."""
    ms = ns / NS_PER_MS
    return f"{ms:,.3f}" if ms < 10_000 else f"{ms:,.1f}"


def size_of(size: float) -> str:
    """`17 B`, `36.1 KiB`, `128.4 MiB`."""
    if size < 1024:
        return f"{size:,.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"
