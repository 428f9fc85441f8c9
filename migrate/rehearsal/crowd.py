"""Many machines at once, each judged by the checks of a rehearsal of one (`audit.py`).

What two hosts have told is taken apart by machine; what each machine is found to be at the end stands for the last
words of a daemon of its own.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import attrs

from migrate.daemon.host.pair import CrowdResult
from migrate.daemon.pair import Event, PairResult
from migrate.rehearsal.audit import CHECKS, Evidence, audit

Document = dict[str, Any]

NOT_JUDGED: Final = frozenset({"ledger"})
"""What wants the artefacts of one machine."""
LEFT_ALONE: Final = "nothing left behind"


@attrs.frozen(kw_only=True)
class CrowdAudit:
    """`violations` are of a check and a machine, in words."""

    checks: tuple[str, ...]
    machines: int
    violations: tuple[tuple[str, str, str], ...]

    def as_json(self) -> Document:
        return {
            "checks": list(self.checks),
            "machines": self.machines,
            "violations": [
                {"check": check, "machine": machine, "message": message} for check, machine, message in self.violations
            ],
        }


def audit_crowd(result: CrowdResult, expected_spec: str) -> CrowdAudit:
    """Every check of every machine, with everything that it objects to; and of both hosts, what must be gone is."""
    told = {side: by_machine(events) for side, events in result.events.items()}
    violations = [
        (check, document["machine"], message)
        for document in result.sent
        for check, message in audit(evidence_of(result, told, document["asked"], expected_spec)).violations
    ]
    violations += [(LEFT_ALONE, side, message) for side in result.status for message in left_behind(result, side)]
    checks = (*(name for name in CHECKS if name not in NOT_JUDGED), LEFT_ALONE)
    return CrowdAudit(checks=checks, machines=len(result.sent), violations=tuple(violations))


def by_machine(events: list[Event]) -> dict[str, list[Event]]:
    """Events by the machine's id, those as well that were told before the host knew it."""
    ids = {event["hosted"]: event["vm_id"] for event in events if "hosted" in event and "vm_id" in event}
    found: dict[str, list[Event]] = {}
    for event in events:
        if event.get("hosted") in ids:
            found.setdefault(ids[event["hosted"]], []).append(event)
    return found


def evidence_of(
    result: CrowdResult, told: dict[str, dict[str, list[Event]]], vm_id: str, expected_spec: str
) -> Evidence:
    """What a rehearsal of this machine alone would have had."""
    sides = {side: [*of_side.get(vm_id, ()), _ended(result, side, vm_id)] for side, of_side in told.items()}
    pair = PairResult(source=sides["source"], target=sides["target"], exit_codes=result.exit_codes)
    return Evidence(pair=pair, expected_spec=expected_spec)


def _ended(result: CrowdResult, side: str, vm_id: str) -> Event:
    """As a daemon of its own would say last."""
    found = result.inspected[side].get(vm_id)
    runs_here = found is not None and found["runs"]
    return {"event": "ended", "side": side, "runs_here": runs_here, "guest": None if found is None else found["facts"]}


def left_behind(result: CrowdResult, side: str) -> Iterator[str]:
    """A host without machines has no more files and tasks than before it had any."""
    before, _, after = result.status[side]
    if after["machines"]:
        return
    for what in ("open_files", "tasks"):
        if after[what] > before[what]:
            yield f"{what.replace('_', ' ')}: {after[what]} when all machines have gone, {before[what]} before"


def crowd_document(result: CrowdResult, audited: CrowdAudit, at_once: int) -> Document:
    """The result for programs."""
    away = sorted(one["blackout_ms"] for one in result.sent if one["blackout_ms"] is not None)
    outcomes = Counter(one["outcome"] for one in result.sent)
    return {
        "machines": len(result.sent),
        "at_once": at_once,
        "outcomes": dict(outcomes),
        "boot_s": result.boot_seconds,
        "migrate_s": result.seconds,
        "per_second": outcomes["migrated"] / result.seconds,
        "cpu_s": {side: after["cpu_s"] - booted["cpu_s"] for side, (_, booted, after) in result.status.items()},
        "blackout_ms": None
        if not away
        else {"median": away[len(away) // 2], "p99": away[min(len(away) - 1, len(away) * 99 // 100)], "max": away[-1]},
        "failures": [
            {"machine": one["machine"], "outcome": one["outcome"], "error": one["error"]}
            for one in result.sent
            if one["outcome"] != "migrated"
        ],
        "hosts": result.status,
        "audit": audited.as_json(),
    }
