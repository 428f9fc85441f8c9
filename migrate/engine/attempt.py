"""What one side knows of one attempt, filled in while it happens: the material of every report."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from migrate.engine.ports import Clock
from migrate.engine.rounds import NS_PER_MS, Round
from migrate.protocol.messages import Role


@attrs.frozen(kw_only=True)
class Step:
    """One entry of the downtime ledger.  `start_ns` on the monotonic clock of the side's host."""

    side: Role
    step: str
    start_ns: int
    duration_ns: int

    @property
    def end_ns(self) -> int:
        return self.start_ns + self.duration_ns


@attrs.define(kw_only=True)
class Attempt:
    """One side's view of one attempt."""

    side: Role
    clock: Clock
    phase: str = "hello"
    started_ns: int = 0
    spec_version: int | None = None
    payloads: dict[str, dict[str, int]] = attrs.field(factory=dict)
    why_not_newer: list[str] = attrs.field(factory=list)
    rounds: list[Round] = attrs.field(factory=list)
    steps: list[Step] = attrs.field(factory=list)
    warnings: list[str] = attrs.field(factory=list)
    committed: bool = False

    def __attrs_post_init__(self) -> None:
        self.started_ns = self.clock.monotonic_ns()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside, whether it succeeds or not."""
        start = self.clock.monotonic_ns()
        try:
            yield
        finally:
            end = self.clock.monotonic_ns()
            self.steps.append(Step(side=self.side, step=name, start_ns=start, duration_ns=end - start))

    def as_json(self) -> dict[str, Any]:
        """Durations in ms; `start_ms` counts from `started_ns`, so that two sides on one host can be laid together."""
        return {
            "started_ns": self.started_ns,
            "spec_version": self.spec_version,
            "why_not_newer": self.why_not_newer,
            "payloads": self.payloads,
            "rounds": [round_.as_json() for round_ in self.rounds],
            "steps": [
                {
                    "side": step.side.value,
                    "step": step.step,
                    "start_ms": (step.start_ns - self.started_ns) / NS_PER_MS,
                    "duration_ms": step.duration_ns / NS_PER_MS,
                }
                for step in self.steps
            ],
            "warnings": self.warnings,
            "committed": self.committed,
        }
