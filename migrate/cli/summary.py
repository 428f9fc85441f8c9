"""The end of a rehearsal, for people: what happened, how long the guest was away and why, and what the audit found.

It fits a screen or two: the rounds of the last attempt only, and the downtime ledger only of one that migrated.  The
rest is in `--json`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from migrate.cli.output import mebibytes, print_line, print_table
from migrate.rehearsal.result import RehearsalResult

Json = dict[str, Any]

DEVICE_WORDS: Final = {"export_ms": "export", "import_ms": "import"}
LABEL: Final = 10
"""Columns of a label at the left of the facts."""


def print_summary(result: RehearsalResult, title: str) -> None:
    print_line()
    print_line(f"{title}: {result.outcome}", style="bold")
    document = result.document
    attempts = document["attempts"]
    for number, attempt in enumerate(attempts, 1):
        is_last = number == len(attempts)
        _print_attempt(attempt, "" if len(attempts) == 1 else f"attempt {number}: ", is_last)
    print_line()
    guest = document["guest"]
    if guest["blackout_ms"] is not None:
        slower = _slower(attempts[-1]["precopy"]) if attempts else ""
        _print_fact("guest", f"away for {guest['blackout_ms']:.1f} ms by its own clock{slower}")
    if guest["records_found"] is not None:
        _print_fact("records", f"{guest['records_found']} found of {guest['records_acknowledged']} acknowledged")
    if guest["away_ms"] is not None:
        seen = ", ".join(f"{ms:.1f} ms by the {how}" for how, ms in guest["away_ms"].items() if ms is not None)
        _print_fact("ledger", f"longest time between two records {seen}")
    _print_fact("owner", document["owner"])
    _print_audit(document["audit"])


def _slower(precopy: Json | None) -> str:
    """What copying cost the guest before it was paused."""
    if precopy is None or precopy["guest_slowdown"] is None:
        return ""
    throttled = f", throttled by up to {precopy['throttle_max']:.0%}" if precopy["throttle_max"] else ""
    return f"; {max(precopy['guest_slowdown'], 0.0):.0%} slower while it was copied{throttled}"


def _print_fact(label: str, text: str) -> None:
    print_line(f"{label:{LABEL}}{text}", under=LABEL)


def _print_audit(audit: Json) -> None:
    checks, violations = audit["checks"], audit["violations"]
    _print_fact("audit", f"{len(checks)} checks, {len(violations) or 'none'} violated: {', '.join(checks)}")
    for violation in violations:
        print_line(f"VIOLATED  {violation['check']}: {violation['message']}", under=LABEL, style="bold")


def _print_attempt(attempt: Json, prefix: str, is_last: bool) -> None:
    error = attempt["error"]
    if attempt["reasons"]:
        print_line(f"{prefix}refused by the {error['side']}, before any RAM moved:")
        print_reasons(attempt["reasons"])
        return
    if error is not None:
        told = f"{attempt['outcome']} in phase {attempt['phase']!r} on the {error['side']}: {error['message']}"
        print_line(f"{prefix}{told} ({error['class']})", under=2)
    elif attempt["spec_version"] is not None:
        newest = "" if attempt["why_not_newer"] else ", the newest that the source knows"
        print_line(f"{prefix and prefix + 'migrated, in '}spec version {attempt['spec_version']}{newest}")
        for line in attempt["why_not_newer"]:
            print_line(f"  {line}", under=4)
    for warning in attempt["warnings"]:
        print_line(f"  warning: {warning}", under=4)
    if attempt["rounds"] and is_last:
        print_line()
        _print_rounds(attempt["rounds"])
    ledger = attempt["ledger"]
    if error is None and ledger["downtime_ms"] is not None:
        print_line()
        print_ledger(ledger, attempt["precopy"])


def print_reasons(reasons: Iterable[Mapping[str, str]]) -> None:
    """All reasons of a refusal, as they are in `--json`."""
    for reason in reasons:
        print_line(f"  {reason['message']}", under=4)


def _print_rounds(rounds: list[Json]) -> None:
    print_table(
        ("round ", "pages ", "zero ", "sent ", "took ms ", "rate ", "dirtied "),
        [
            (
                round_["number"],
                f"{round_['pages']:,}",
                f"{round_['zero_pages']:,}",
                mebibytes(round_["bytes"]),
                f"{round_['duration_ms']:.1f}",
                f"{mebibytes(round_['bytes'] / max(round_['duration_ms'] / 1e3, 1e-9))}/s",
                f"{round_['dirtied_pages']:,}",
            )
            for round_ in rounds
        ],
    )


def print_ledger(ledger: Json, precopy: Json) -> None:
    """One line for each step of the blackout, both sides beside each other, on an axis that begins with the pause.

    Beside them is what each added to the time for which the guest was away; parts of steps add to these.
    """
    predicted = precopy["predicted_downtime_ms"]
    expected = "" if predicted is None else f" ({predicted:.1f} predicted)"
    print_line(
        f"downtime {ledger['downtime_ms']:.1f} ms{expected}, of {ledger['total_ms']:.0f} ms in all; since the pause, "
        "in ms:"
    )
    paused_ms = next(step["start_ms"] for step in ledger["steps"] if step["step"] == "pause")
    rows: dict[str, dict[str, Json]] = {}
    for step in ledger["steps"]:
        rows.setdefault(step["step"], {})[step["side"]] = step
    blackout = ledger["blackout"]
    added = {} if blackout is None else {part["step"]: part["ms"] for part in blackout["parts"]}
    print_table(
        ("step", "source from ", "took ", "target from ", "took ", "guest waits "),
        [
            (
                name,
                *(cell for side in ("source", "target") for cell in _times(sides.get(side), paused_ms)),
                f"{added[name]:.2f}" if name in added else "",
            )
            for name, sides in rows.items()
        ],
    )
    if blackout is not None:
        print_line(
            f"the guest waits for {blackout['total_ms']:.1f} ms, from its last step to its first; "
            f"{added['before the pause']:.2f} of it before the pause"
        )
    if ledger["devices"]:
        _print_slowest(ledger["devices"])
    clock = ledger["clock"]
    if clock is not None and clock["offset_ms"]:
        off, error = clock["offset_ms"], clock["error_ms"]
        print_line(f"the target's clock shows {off:,.3f} ms more than the source's, within {error:.3f} ms")


def _print_slowest(devices: Json) -> None:
    """All are in `--json`."""
    slowest = max(devices, key=lambda device: sum(ms or 0.0 for ms in devices[device].values()))
    took = devices[slowest]
    parts = [f"{took[name]:.2f} ms to {word}" for name, word in DEVICE_WORDS.items() if took[name] is not None]
    print_line(f"the slowest of {len(devices)} devices is {slowest}: {' and '.join(parts)}")


def _times(step: Json | None, origin_ms: float) -> tuple[str, str]:
    if step is None:
        return "", ""
    return f"{step['start_ms'] - origin_ms:.2f}", f"{step['duration_ms']:.2f}"
