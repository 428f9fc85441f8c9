"""Two ways to do the same work, timed in turns, so that whatever else the host is doing disturbs both alike.

A ratio is our speed over the peer's: 1 is as fast, 0.5 takes twice as long.  A limit says below which ratio something
has changed for the worse; it has about 25 % slack, which runs on a shared host need.
"""

import gc
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import attrs

MIB: Final = 1 << 20


@attrs.frozen(kw_only=True)
class Result:
    """`ours_s` and `peer_s` are the medians of `runs` interleaved runs; `amount` of `unit` is done in each."""

    path: str
    peer: str
    ours_s: float
    peer_s: float
    runs: int
    limit: float
    amount: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.peer_s / self.ours_s

    def __str__(self) -> str:
        verdict = "" if self.ratio >= self.limit else "   below the limit"
        ours, theirs = self.amount / self.ours_s, self.amount / self.peer_s
        return (
            f"{self.path}\n  ratio {self.ratio:.2g} (limit {self.limit:g}){verdict}\n"
            f"  {ours:,.4g} {self.unit}/s against {theirs:,.4g} of {self.peer}; {self.runs} interleaved runs, medians"
        )

    def as_json(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "ratio": self.ratio}


def have_memory(mib: int) -> None:
    """Write and give back so much memory: what is asked for next is then memory that the host has found already."""
    block = b"x" * MIB
    descriptor = os.memfd_create("memory")
    try:
        for _ in range(mib):
            os.write(descriptor, block)
    finally:
        os.close(descriptor)


def compare(
    path: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    against: str,
    limit: float,
    amount: float = 1,
    unit: str = "times",
    repeats: int = 1,
    runs: int = 11,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Time `ours` and `peer` in turns; each run does its work `repeats` times, with the garbage collector at rest.

    With `time.process_time` as the `clock`, work that waits for nothing does not seem slower when others have the core.
    """
    timed: tuple[list[float], list[float]] = ([], [])
    ours(), peer()  # caches are warm, imports done
    gc.disable()
    try:
        for _ in range(runs):
            for work, times in zip((ours, peer), timed, strict=True):
                times.append(seconds(work, repeats, clock) / repeats)
            gc.collect()
    finally:
        gc.enable()
    return Result(
        path=path,
        peer=against,
        ours_s=median(timed[0]),
        peer_s=median(timed[1]),
        runs=runs,
        limit=limit,
        amount=amount,
        unit=unit,
    )


@attrs.frozen(kw_only=True)
class Allowance:
    """Work that has to be done within `allowed_s`, as a guest waits for it; the ratio is the allowance over ours."""

    path: str
    ours_s: float
    allowed_s: float
    runs: int
    limit: float = 1.0

    @property
    def ratio(self) -> float:
        return self.allowed_s / self.ours_s

    def __str__(self) -> str:
        verdict = "" if self.ratio >= self.limit else "   below the limit"
        return (
            f"{self.path}\n  ratio {self.ratio:.2f} (limit {self.limit:g}){verdict}\n"
            f"  {self.ours_s * 1e3:.2f} ms of the {self.allowed_s * 1e3:g} ms allowed; median of {self.runs} runs"
        )

    def as_json(self) -> dict[str, Any]:
        return {**attrs.asdict(self), "ratio": self.ratio}


def within(path: str, work: Callable[[], object], allowed_s: float, runs: int = 21) -> Allowance:
    """Time `work`, warm, against what it is allowed to take."""
    work()
    return Allowance(path=path, ours_s=median(seconds(work, 1) for _ in range(runs)), allowed_s=allowed_s, runs=runs)


def seconds(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    for _ in range(repeats):
        work()
    return clock() - start
