"""Many machines between two hosts, each a process: what one costs when it is one of 10, of 100, of 1,000.

`python -m benchmarks.crowd --machines 1000` migrates 10, then 100, then 1,000 machines of 8 MiB, all of them at once,
and prints a table.  The limit is on the processor time of both hosts for a machine, which other work on this computer
disturbs least: with many machines it may be half as much again as with ten, or something looks at all of them whenever
something happens to one.

What an idle migration takes is measured with all of them held in the first RAM round by a bandwidth of 1 byte a second.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from benchmarks.measure import MIB
from migrate.daemon.host.pair import CrowdOptions, CrowdResult, HostProcess, host_process, run_crowd
from migrate.daemon.host.requests import Boot, Limit, List
from migrate.daemon.host.run import room_for
from migrate.daemon.host.sending import send_all
from migrate.specs.reading import parse_json

SPEC: Final = Path("examples/web-server.json")
MEMORY_MB: Final = 8
FEW: Final = 10
MODERATE: Final = 100
GROWTH_MAX: Final = 1.5
HELD: Final = 50

Document = dict[str, Any]


@attrs.frozen(kw_only=True)
class Growth:
    """`cost` is of a machine, in s of the processors of both hosts, by how many there were; 1 / growth is the ratio."""

    path: str
    cost: dict[int, float]
    wall: dict[int, float]
    moved: dict[int, int]
    limit: float = 1 / GROWTH_MAX

    @property
    def ratio(self) -> float:
        return self.cost[min(self.cost)] / self.cost[max(self.cost)]

    def __str__(self) -> str:
        verdict = "" if self.ratio >= self.limit else "   below the limit"
        costs = ", ".join(f"{cost * 1e3:.0f} ms of {count:,}" for count, cost in self.cost.items())
        moved = ", ".join(f"{self.moved[count]:,} of {count:,} in {wall:.1f} s" for count, wall in self.wall.items())
        return f"{self.path}\n  ratio {self.ratio:.2f} (limit {self.limit:.2f}){verdict}\n  {costs}; migrated {moved}"

    def as_json(self) -> Document:
        return {**attrs.asdict(self), "ratio": self.ratio}


def results(most: int = MODERATE) -> Iterator[Growth]:
    """Of `FEW` and of `most`."""
    runs = {count: run(count) for count in (FEW, most)}
    yield growth(runs)


def growth(runs: dict[int, CrowdResult]) -> Growth:
    return Growth(
        path=f"a machine of {MEMORY_MB} MiB between two hosts, one of {FEW} at once, against one of {max(runs):,}",
        cost={count: cpu_s(result) / count for count, result in runs.items()},
        wall={count: result.seconds for count, result in runs.items()},
        moved={count: moved(result) for count, result in runs.items()},
    )


def moved(result: CrowdResult) -> int:
    return sum(sent["outcome"] == "migrated" for sent in result.sent)


def cpu_s(result: CrowdResult) -> float:
    """Of both hosts, while the machines migrated."""
    return float(sum(after["cpu_s"] - booted["cpu_s"] for _, booted, after in result.status.values()))


def boot_of(count: int) -> Boot:
    return Boot(spec=parse_json(SPEC.read_bytes()), name="vm", count=count, guest="stamp", memory_mb=MEMORY_MB)


def options_of(directory: Path, count: int, *more: str) -> dict[str, list[str]]:
    """As hosts are that survive a kill."""
    common = ["--machines-max", str(count), "--migrations-max", str(count), "--offer-s", "3600", *more]
    common += ["--downtime-limit-ms", "30000", "--storage", str(directory / "disks")]
    return {side: [*common, "--state-dir", str(directory / side)] for side in ("source", "target")}


def run(count: int) -> CrowdResult:
    """All of them booted, and migrated at once."""
    room_for(count)
    with tempfile.TemporaryDirectory(prefix="migrate-bench-") as temporary:
        directory = Path(temporary)
        options = CrowdOptions(boot=boot_of(count), arguments=options_of(directory, count))
        return trio.run(run_crowd, options, directory, _ignore, _ignore)


def _ignore(_: Document) -> None:
    """Nobody looks."""


async def held(count: int, directory: Path) -> Document:
    """What machines take that only are there, and what migrations take that wait for bandwidth: bytes, by side."""
    arguments = options_of(directory, count, "--limits", "frame_s=3600,phase_s=3600")
    async with (
        host_process("source", directory, arguments["source"]) as source,
        host_process("target", directory, arguments["target"]) as target,
    ):
        hosts = {"source": source, "target": target}
        empty = {side: await host.status() for side, host in hosts.items()}
        booted = (await source.control.ask(boot_of(count)))["machines"]
        idle = await source.status()
        await source.control.ask(Limit(bandwidth=1))
        async with trio.open_nursery() as nursery:
            ids = [machine["vm_id"] for machine in booted]
            nursery.start_soon(send_all, source.control, target.control, ids, 0)
            await _all_in_ram(source, count)
            waiting = {side: await host.status() for side, host in hosts.items()}
            await source.control.ask(Limit(bandwidth=0))

    def each(after: Document, before: Document) -> float:
        return float(after["rss_private_bytes"] - before["rss_private_bytes"]) / count

    return {
        "machine": each(idle, empty["source"]),
        "migration out": each(waiting["source"], idle),
        "machine and migration in": each(waiting["target"], empty["target"]),
    }


async def _all_in_ram(source: HostProcess, count: int) -> None:
    while True:
        phases = [machine["phase"] for machine in (await source.control.ask(List()))["machines"]]
        if phases.count("ram") == count:
            return
        await trio.sleep(0.2)


COLUMNS: Final = ("machines", "boot s", "migrate s", "a second", "CPU ms each", "MiB each", "files", "tasks", "moved")


def row(count: int, result: CrowdResult) -> list[str]:
    """Files and tasks of the source: with its machines, and when they have gone, which is as before they came."""
    empty, booted, after = result.status["source"]
    each = (booted["rss_private_bytes"] - empty["rss_private_bytes"]) / count / MIB
    return [
        f"{count:,}",
        f"{result.boot_seconds:.1f}",
        f"{result.seconds:.1f}",
        f"{count / result.seconds:.1f}",
        f"{cpu_s(result) / count * 1e3:.0f}",
        f"{each:.2f}",
        f"{empty['open_files']}, {booted['open_files']:,}, {after['open_files']}",
        f"{empty['tasks']}, {booted['tasks']:,}, {after['tasks']}",
        f"{moved(result):,}",
    ]


def main() -> None:
    arguments = sys.argv[1:]
    most = int(arguments[arguments.index("--machines") + 1]) if "--machines" in arguments else MODERATE
    runs: dict[int, CrowdResult] = {}
    print("  ".join(f"{column:>11}" for column in COLUMNS))
    for count in sorted({FEW, min(100, most), most}):
        runs[count] = run(count)
        print("  ".join(f"{cell:>11}" for cell in row(count, runs[count])), flush=True)
        for sent in runs[count].sent:
            if sent["outcome"] != "migrated":
                print(f"  {sent['asked']}: {sent['outcome']}: {sent['error']['message']}")
    with tempfile.TemporaryDirectory(prefix="migrate-bench-") as temporary:
        each = trio.run(held, HELD, Path(temporary))
    print("; ".join(f"{what}: {size / MIB:.2f} MiB" for what, size in each.items()), "(each, beside guest RAM)")
    print(growth(runs))


if __name__ == "__main__":
    main()
