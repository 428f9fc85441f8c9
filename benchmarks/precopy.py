"""Whether the switchover keeps its promise: rehearsals of guests that dirty memory, rates by working sets by limits.

`python -m benchmarks.precopy [RUNS]` rehearses a hundred times, or so often, and prints for each downtime limit how
many migrations the policy switched over by itself, how many of them kept the limit, and how far predicted and actual
downtime and total time are apart in the median.  Then an idle guest of `IDLE_MIB` with a limit of 1 ms and journals on
disk, in a machine that is as bare as can be and in the example; `python -m benchmarks.precopy idle` does that alone.
It takes minutes, and is no part of `make bench`.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import attrs

from benchmarks.qemu import BARE, migrate_ours

EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "web-server.json"
RUNS: Final = 100
MEMORY_MIB: Final = 256
RATES: Final = ("10M", "50M", "100M", "200M")
WORKING_SETS: Final = ("4M", "16M", "64M")
LIMITS_MS: Final = (50, 100, 200, 300)
WITHIN: Final = 0.95
IDLE_MIB: Final = 4096
IDLE_RUNS: Final = 9
IDLE_LIMIT_MS: Final = 1
IDLE_ALLOWED_MS: Final = 10


@attrs.frozen(kw_only=True)
class Run:
    limit_ms: float
    outcome: str
    by_itself: bool = False
    downtime_ms: float = 0.0
    total_ms: float = 0.0
    predicted_downtime_ms: float = 0.0
    predicted_total_ms: float = 0.0
    slowdown: float | None = None
    """None if the guest had not run for long enough before."""

    @property
    def kept(self) -> bool:
        return self.downtime_ms <= self.limit_ms


def rehearse(*options: str) -> dict[str, Any]:
    """The document of one rehearsal; that it is refused is no error."""
    command = [sys.executable, "-m", "migrate", "rehearse", str(EXAMPLE), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def one(rate: str, working_set: str, limit_ms: float) -> Run:
    document = rehearse(
        *("--guest", f"dirty:{rate},{working_set}", "--memory-mb", str(MEMORY_MIB)),
        *("--downtime-limit-ms", str(limit_ms)),
    )
    attempt = document["attempts"][-1]
    if document["outcome"] != "migrated":
        return Run(limit_ms=limit_ms, outcome=document["outcome"])
    precopy = attempt["precopy"]
    return Run(
        limit_ms=limit_ms,
        outcome="migrated",
        by_itself=not precopy["forced"],
        downtime_ms=attempt["ledger"]["downtime_ms"],
        total_ms=precopy["total_ms"],
        predicted_downtime_ms=precopy["predicted_downtime_ms"],
        predicted_total_ms=precopy["predicted_total_ms"],
        slowdown=precopy["guest_slowdown"],
    )


def table(runs: Sequence[Run]) -> Iterable[str]:
    yield "limit    runs  migrated  within limit  predicted/actual downtime  off by  total  slow-down"
    for limit_ms in LIMITS_MS:
        yield row(f"{limit_ms} ms", [run for run in runs if run.limit_ms == limit_ms])
    yield row("all", runs)


def row(name: str, runs: Sequence[Run]) -> str:
    done = [run for run in runs if run.by_itself]
    if not done:
        return f"{name:7} {len(runs):5}  {0:8}"
    ratios = [run.predicted_downtime_ms / run.downtime_ms for run in done]
    off = median(abs(ratio - 1) for ratio in ratios)
    total = median(run.predicted_total_ms / run.total_ms for run in done)
    slowdowns = [run.slowdown for run in done if run.slowdown is not None]
    slow = f"{median(slowdowns):.0%}" if slowdowns else ""
    kept = sum(run.kept for run in done)
    begin = f"{name:7} {len(runs):5}  {len(done):8}  {kept:12}"
    return f"{begin}  {median(ratios):25.2f}  {off:6.0%}  {total:5.2f}  {slow:>9}"


def idle(name: str, machine: dict[str, Any]) -> str:
    """Between two daemons that nobody audits, with journals on disk; the guest has touched next to none of its RAM."""
    runs = [migrate_ours(IDLE_MIB, IDLE_LIMIT_MS, "idle", machine=machine, spare=0)[1] for _ in range(IDLE_RUNS)]
    middle = median(runs)
    verdict = "" if middle <= IDLE_ALLOWED_MS else "   above what is allowed"
    return (
        f"an idle guest of {IDLE_MIB} MiB, {name}, limit {IDLE_LIMIT_MS} ms, journals: downtime {middle:.1f} ms of "
        f"the {IDLE_ALLOWED_MS} ms allowed{verdict}; median of {IDLE_RUNS} runs"
    )


def idle_guests() -> None:
    for name, machine in (("a bare machine", BARE), (EXAMPLE.name, json.loads(EXAMPLE.read_text()))):
        print(idle(name, machine), flush=True)


def main() -> None:
    if sys.argv[1:] == ["idle"]:
        idle_guests()
        return
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    cases = itertools.cycle(itertools.product(RATES, WORKING_SETS, LIMITS_MS))
    runs = []
    for number, case in enumerate(itertools.islice(cases, wanted), 1):
        runs.append(one(*case))
        print(f"\r{number} of {wanted}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print("\n".join(table(runs)), flush=True)
    done = [run for run in runs if run.by_itself]
    share = sum(run.kept for run in done) / max(len(done), 1)
    print(f"{100 * share:.0f} % of those that the policy switched over kept the limit; {100 * WITHIN:.0f} % have to")
    idle_guests()


if __name__ == "__main__":
    main()
