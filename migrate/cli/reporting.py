"""`--report` and `--trace`: what commands leave for people to look at."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from migrate.daemon.address import BadInput
from migrate.reports.page import Facts, migration_page
from migrate.reports.timeline import Timeline
from migrate.reports.trace import trace_of

Report = Annotated[
    Path | None, Parameter(name="--report", help="Leave a page to look at here: one HTML file that needs nothing else.")
]
Trace = Annotated[
    Path | None, Parameter(name="--trace", help="Leave a trace for Perfetto or chrome://tracing here, as JSON.")
]


def require_writable(**options: Path | None) -> None:
    """Raises BadInput now, and not when all is done, if one of these files cannot be written."""
    for option, path in options.items():
        if path is None:
            continue
        was_there = path.exists()
        try:
            path.open("a").close()
        except OSError as error:
            raise BadInput(f"--{option} {path}: cannot be written: {error.strerror or error}") from error
        if not was_there:
            path.unlink()


def leave(path: Path, text: str) -> None:
    """Raises BadInput if it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error


def leave_migration(
    report: Path | None, trace: Path | None, title: str, timeline: Callable[[], Timeline], facts: Facts
) -> None:
    """The page and the trace of one migration, as far as they were asked for."""
    if report is None and trace is None:
        return
    drawn = timeline()
    if report is not None:
        leave(report, migration_page(title, drawn, facts))
    if trace is not None:
        leave(trace, json.dumps(trace_of(drawn)) + "\n")


def rehearsal_facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What a rehearsal is summed up in."""
    guest, last = document["guest"], document["attempts"][-1] if document["attempts"] else None
    facts: list[tuple[str, str]] = []
    if last is not None and last["spec_version"] is not None:
        facts.append(("spec version", str(last["spec_version"])))
    if last is not None and last["ledger"]["downtime_ms"] is not None and last["outcome"] == "migrated":
        facts.append(("downtime", f"{last['ledger']['downtime_ms']:.1f} ms of {last['ledger']['total_ms']:.0f} ms"))
    if guest["blackout_ms"] is not None:
        facts.append(("guest", f"away for {guest['blackout_ms']:.1f} ms by its own clock"))
    if guest["records_found"] is not None:
        facts.append(("records", f"{guest['records_found']} found of {guest['records_acknowledged']} acknowledged"))
    facts.append(("guest RAM", f"{document['ram_bytes']:,} bytes, {document['ram_bytes_sent']:,} sent"))
    facts.append(("seed", str(document["seed"])))
    return [*facts, *_reasons(document["attempts"])]


def _reasons(attempts: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [("refused", reason["message"]) for attempt in attempts for reason in attempt["reasons"]]
