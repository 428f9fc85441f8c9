"""Was it one machine all along?  Judged from what both daemons told and what the guest left behind, by nothing else.

Each check is a function that yields what it objects to.  A check that does not apply, because nothing moved and there
is nothing to compare, objects to nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs

from migrate.daemon.pair import Event, PairResult
from migrate.rehearsal.ledger import LedgerAudit

CLOCK_TOLERANCE_NS: Final = 20_000_000
"""Both daemons are on one host, so the guest's boot time may differ only by how its two clocks drifted meanwhile."""


NAMED_MAX: Final = 10
"""How many records a violation lists."""


@attrs.frozen(kw_only=True)
class Evidence:
    """`expected_spec` is the digest that the machine's spec must have on the target, replacements applied.

    `ledger` is what a reader made of the artefacts of a `ledger` guest, `frames_ns` when a wire's observer saw a frame.
    """

    pair: PairResult
    expected_spec: str
    ledger: LedgerAudit | None = None
    frames_ns: tuple[int, ...] = ()

    def last(self, side: str, name: str) -> Event | None:
        events = self.pair.source if side == "source" else self.pair.target
        return next((event for event in reversed(events) if event["event"] == name), None)

    def images(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The machine as the source gave it away, and as the target ran it; None if it did not move."""
        before, after = self.last("source", "image"), self.last("target", "image")
        return None if before is None or after is None else (before["image"], after["image"])

    def guest(self) -> dict[str, Any] | None:
        """What the guest left behind, where it ran last."""
        for side in ("target", "source"):
            ended = self.last(side, "ended")
            if ended is not None and ended["runs_here"] and ended["guest"]["sequence"] is not None:
                guest: dict[str, Any] = ended["guest"]
                return guest
        return None


def _one_runner(evidence: Evidence) -> Iterator[str]:
    runners = [
        side for side in ("source", "target") if (evidence.last(side, "ended") or {"runs_here": False})["runs_here"]
    ]
    if len(runners) != 1:
        yield f"at the end the machine runs on {' and '.join(runners) or 'neither side'}"


def _never_two_runners(evidence: Evidence) -> Iterator[str]:
    taken = evidence.last("target", "taken over")
    if taken is None:
        return
    paused = [event for event in evidence.pair.source if event["event"] == "phase" and event["phase"] == "last ram"]
    resumed = evidence.last("source", "rolled back")
    if not paused or paused[-1]["at_ns"] > taken["at_ns"]:
        yield "the target ran the machine before the source had paused it"
    elif resumed is not None and resumed["at_ns"] > paused[-1]["at_ns"]:
        yield "the source resumed the machine although the target runs it"


def _spec(evidence: Evidence) -> Iterator[str]:
    images = evidence.images()
    if images is not None and images[1]["spec"] != evidence.expected_spec:
        yield f"the target's spec has digest {images[1]['spec']}; expected {evidence.expected_spec}"


def _ram(evidence: Evidence) -> Iterator[str]:
    images = evidence.images()
    if images is not None:
        for field in ("ram", "ram_bytes"):
            if images[0][field] != images[1][field]:
                yield f"{field}: {images[0][field]} on the source, {images[1][field]} on the target"


def _devices(evidence: Evidence) -> Iterator[str]:
    images = evidence.images()
    if images is None:
        return
    before, after = images[0]["devices"], images[1]["devices"]
    for device in sorted(set(before) | set(after)):
        if before.get(device) != after.get(device):
            yield f"the state of device {device!r} differs between source and target"


def _console(evidence: Evidence) -> Iterator[str]:
    images = evidence.images()
    if images is not None and images[0]["console"] != images[1]["console"]:
        yield f"console history: {images[0]['console']} on the source, {images[1]['console']} on the target"


def _clock(evidence: Evidence) -> Iterator[str]:
    images = evidence.images()
    if images is None:
        return
    before, after = images[0]["clock"], images[1]["clock"]
    drift_ns = abs(after["boot_hrtime"] - before["boot_hrtime"])
    if drift_ns > CLOCK_TOLERANCE_NS:
        yield f"the guest's boot time moved by {drift_ns / 1e6:.1f} ms"
    if before["guest_freq"] != after["guest_freq"]:
        yield f"the guest's TSC runs at {after['guest_freq']} Hz instead of {before['guest_freq']}"


def _records(evidence: Evidence) -> Iterator[str]:
    guest = evidence.guest()
    records = None if guest is None else guest["records"]
    if records is None:
        return
    for problem in ("lost", "repeated"):
        if records[problem]:
            yield f"console records {problem}: {_some(records[problem])}"
    for problem in ("out_of_order", "torn"):
        if records[problem]:
            yield f"{records[problem]} console records are {problem.replace('_', ' ')}"
    found, printed = records["found"], records["acknowledged"]
    if not records["lost"] and found < printed:
        yield f"the last console records are lost: {found} of {printed} are there"


def _some(numbers: list[int]) -> str:
    more = f" and {len(numbers) - NAMED_MAX} more" if len(numbers) > NAMED_MAX else ""
    return ", ".join(map(str, numbers[:NAMED_MAX])) + more


def _ledger(evidence: Evidence) -> Iterator[str]:
    guest = evidence.guest()
    if evidence.ledger is not None:
        yield from evidence.ledger.violations
    elif guest is not None and guest["program"] == "ledger":
        yield "the guest kept a ledger, and nothing is left of it to be read"


def _stale_pages(evidence: Evidence) -> Iterator[str]:
    guest = evidence.guest()
    if guest is not None and guest["stale_pages"]:
        yield f"{len(guest['stale_pages'])} pages of guest RAM missed a write, the first is {guest['stale_pages'][0]}"


def _failed_after_resume(evidence: Evidence) -> Iterator[str]:
    """Propolis #811: a failure that is visible before the source runs again invites a retry that races the resume."""
    paused = False
    for event in evidence.pair.source:
        match event["event"]:
            case "phase" if event["phase"] == "pause":
                paused = True
            case "rolled back":
                paused = False
            case "attempt ended":
                if paused and event["outcome"] in ("failed", "refused"):
                    yield f"an attempt was reported as {event['outcome']} before the source ran again"
                paused = False  # or given away: then it is not to run here


def _orderly_end(evidence: Evidence) -> Iterator[str]:
    for side, code in evidence.pair.exit_codes.items():
        if code not in (0, 1):
            yield f"the {side} daemon ended with exit code {code}"


CHECKS: Final[dict[str, Callable[[Evidence], Iterator[str]]]] = {
    "one runner at the end": _one_runner,
    "never two runners": _never_two_runners,
    "spec": _spec,
    "RAM": _ram,
    "devices": _devices,
    "console history": _console,
    "clock": _clock,
    "guest records": _records,
    "ledger": _ledger,
    "no stale page": _stale_pages,
    "failed only after resume": _failed_after_resume,
    "orderly end": _orderly_end,
}


DEVICES_AND_MEMORY: Final = (_ram, _devices, _console)
"""The checks that a machine which has moved is the one that was given away."""
FAILED_EARLY: Final = _failed_after_resume


@attrs.frozen(kw_only=True)
class AuditResult:
    checks: tuple[str, ...]
    violations: tuple[tuple[str, str], ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "checks": list(self.checks),
            "violations": [{"check": check, "message": message} for check, message in self.violations],
        }


def audit(evidence: Evidence) -> AuditResult:
    """Every check, with everything that it objects to."""
    violations = tuple((name, message) for name, check in CHECKS.items() for message in check(evidence))
    return AuditResult(checks=tuple(CHECKS), violations=violations)
