"""The result of a rehearsal in the shape that the command-line contract promises."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import attrs

from migrate.daemon.pair import Event
from migrate.rehearsal.audit import AuditResult, Evidence
from migrate.rehearsal.downtime import WentOn, ledger_of

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class RehearsalResult:
    """`document` is what `--json` prints.

    Beyond the contract's keys an attempt has the `reasons` of a refusal, `why_not_newer` for the spec version,
    `warnings`, and `precopy`: what the source predicted when it paused the guest, and what copying cost the guest.
    """

    document: Json

    @property
    def outcome(self) -> str:
        return str(self.document["outcome"])

    @property
    def violations(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.document["audit"]["violations"]
        return found


def assemble(
    evidence: Evidence, audited: AuditResult, ram_bytes: int, seed: int, fired: Sequence[str] = ()
) -> RehearsalResult:
    """Lay what both sides told side by side; `fired` are the faults that struck, in words."""
    sources, targets = (_all(told, "attempt ended") for told in (evidence.pair.source, evidence.pair.target))
    resumed = evidence.last("target", "guest resumed")
    attempts = [attempt for attempt, _ in attempts_of(sources, targets, WentOn.of(resumed, evidence.frames_ns))]
    return RehearsalResult(
        document={
            "outcome": _outcome(attempts),
            "owner": _owner(evidence),
            "attempts": attempts,
            "ram_bytes": ram_bytes,
            "ram_bytes_sent": sum(round_["bytes"] for attempt in attempts for round_ in attempt["rounds"]),
            "guest": {
                "blackout_ms": None if resumed is None else resumed["blackout_ms"],
                **_records(evidence),
            },
            "audit": audited.as_json(),
            "faults_fired": list(fired),
            "seed": seed,
        },
    )


def attempts_of(
    sources: Sequence[Event], targets: Sequence[Event], went_on: WentOn | None = None
) -> list[tuple[Json, int | None]]:
    """Both views of each attempt laid together, from what each side said when it had ended.

    Beside it is when the source's view began, in ns of the clock that both sides go by: there the axis of the ledger
    begins.  None if the source knew nothing of the attempt.  `went_on` is about the last attempt that a target took
    the machine over in.
    """
    last = next((target for target in reversed(targets) if target["committed"]), None)
    return [
        (
            _attempt(source, target, went_on if target is last else None),
            None if source is None else source["started_ns"],
        )
        for source, target in views_of(sources, targets)
    ]


def _records(evidence: Evidence) -> Json:
    """Of a ledger, as its reader found them; else of the console.  `away_ms` is as clock, console and wire have it."""
    ledger, guest = evidence.ledger, evidence.guest()
    if ledger is not None:
        return {
            "records_acknowledged": ledger.acknowledged,
            "records_found": ledger.found,
            "away_ms": {
                "clock": ledger.away_by_clock_ms,
                "console": ledger.away_by_console_ms,
                "wire": ledger.away_by_wire_ms,
            },
        }
    records = {} if guest is None else guest["records"] or {}
    return {"records_acknowledged": records.get("acknowledged"), "records_found": records.get("found"), "away_ms": None}


def _all(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def views_of(sources: Sequence[Event], targets: Sequence[Event]) -> Iterator[tuple[Event | None, Event | None]]:
    """Both views of each attempt, in order of time; None for a side that knew nothing of it.

    The source's view begins when it hears a target's hello, so it belongs to the last attempt that a target had begun;
    a second one in that time is the settlement of the first.
    """
    began = [*(target["started_ns"] for target in targets), float("inf")]
    for source in sources:
        if source["started_ns"] < began[0]:
            yield source, None
    for target, (since, until) in zip(targets, pairwise(began), strict=True):
        of_target = [source for source in sources if since <= source["started_ns"] < until]
        yield of_target[0] if of_target else None, target
        for source in of_target[1:]:
            yield source, None


def _outcome(attempts: list[Json]) -> str:
    outcome = attempts[-1]["outcome"] if attempts else "failed"
    return outcome if outcome in ("migrated", "refused") else "failed"


def _owner(evidence: Evidence) -> str:
    for side in ("target", "source"):
        ended = evidence.last(side, "ended")
        if ended is not None and ended["runs_here"]:
            return side
    return "nobody"


def _attempt(source: Event | None, target: Event | None, went_on: WentOn | None) -> Json:
    """One attempt from both views.  The side whose error names a cause is believed before one that lost its link."""
    views = [view for view in (source, target) if view is not None]
    told = source or target
    assert told is not None, "an attempt that neither side saw"
    with_error = [view for view in views if view["error"] is not None]
    cause = next((view for view in with_error if view["error"]["class"] != "TransportLost"), None)
    failed = cause or (with_error[0] if with_error else None)
    return {
        "outcome": failed["outcome"] if failed is not None else "migrated",
        "phase": (failed or told)["phase"],
        "error": None if failed is None else failed["error"],
        "reasons": next((view["reasons"] for view in views if view["reasons"]), []),
        "spec_version": told["spec_version"],
        "why_not_newer": told["why_not_newer"],
        "payloads": told["payloads"],
        "rounds": told["rounds"],
        "precopy": None if source is None else source["precopy"],
        "warnings": [warning for view in views for warning in view["warnings"]],
        "ledger": ledger_of(source, target, went_on),
    }
