"""What one side knows of one attempt, filled in while it happens: the material of every report."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs

from migrate.engine.ports import Clock
from migrate.engine.rounds import NS_PER_MS, Round, finite
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


@attrs.frozen(kw_only=True)
class Precopy:
    """What the source expected when it paused the guest, and what copying had cost the guest until then.

    `total_ms` counts from the beginning of the attempt.  `forced` says that the limit was not expected to be kept.
    `slowdown` is the share of its work that the guest did not get done while its RAM was copied, the throttle's part
    included; None if it had not run here long enough before to tell.
    """

    downtime_ms: float
    total_ms: float
    forced: bool
    slowdown: float | None


@attrs.define(kw_only=True)
class Attempt:
    """One side's view of one attempt.

    `devices` says for how many ns each was exported here, or read and imported.  `exchanges` are requests of the source
    and their answers: when this side was about to send its part, and when it had heard the other's; with those of the
    other side two hosts' clocks can be laid together.  `stopped_ns` is when the guest had executed its last here.  All
    on the monotonic clock of the side's host.
    """

    side: Role
    clock: Clock
    phase: str = "hello"
    started_ns: int = 0
    spec_version: int | None = None
    payloads: dict[str, dict[str, int]] = attrs.field(factory=dict)
    why_not_newer: list[str] = attrs.field(factory=list)
    rounds: list[Round] = attrs.field(factory=list)
    steps: list[Step] = attrs.field(factory=list)
    devices: dict[str, int] = attrs.field(factory=dict)
    exchanges: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    stopped_ns: int | None = None
    precopy: Precopy | None = None
    warnings: list[str] = attrs.field(factory=list)
    committed: bool = False
    _open: str = ""

    def __attrs_post_init__(self) -> None:
        self.started_ns = self.clock.monotonic_ns()

    def step(self, name: str) -> "Timing":
        """Time what happens inside, whether it succeeds or not."""
        return Timing(self, name)

    def part(self, name: str) -> AbstractContextManager[None]:
        """Time a part of the step that is being timed, if one is; it is called after both."""
        return Timing(self, name, self._open) if self._open else nullcontext()

    def exchanged(self, name: str, *, sent_ns: int, heard_ns: int) -> None:
        """Note an exchange that both sides call `name`."""
        self.exchanges[name] = sent_ns, heard_ns

    def _precopy(self) -> dict[str, Any] | None:
        """What was predicted beside what came of it, as the source saw it: until it heard that the guest runs."""
        if self.precopy is None:
            return None
        ends = {step.step: step for step in self.steps}
        downtime_ns = total_ns = None
        if self.committed and "commit" in ends:
            downtime_ns = ends["commit"].end_ns - ends["pause"].start_ns
            total_ns = ends["commit"].end_ns - self.started_ns
        return {
            "predicted_downtime_ms": finite(self.precopy.downtime_ms),
            "predicted_total_ms": finite(self.precopy.total_ms),
            "downtime_ms": None if downtime_ns is None else downtime_ns / NS_PER_MS,
            "total_ms": None if total_ns is None else total_ns / NS_PER_MS,
            "forced": self.precopy.forced,
            "guest_slowdown": self.precopy.slowdown,
            "throttle_max": max((round_.throttle for round_ in self.rounds), default=0.0),
        }

    def _since_ms(self, at_ns: int) -> float:
        return (at_ns - self.started_ns) / NS_PER_MS

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
                    "start_ms": self._since_ms(step.start_ns),
                    "duration_ms": step.duration_ns / NS_PER_MS,
                }
                for step in self.steps
            ],
            "devices": {device: ns / NS_PER_MS for device, ns in self.devices.items()},
            "exchanges": {
                name: {"sent_ms": self._since_ms(sent_ns), "heard_ms": self._since_ms(heard_ns)}
                for name, (sent_ns, heard_ns) in self.exchanges.items()
            },
            "stopped_ms": None if self.stopped_ns is None else self._since_ms(self.stopped_ns),
            "precopy": self._precopy(),
            "warnings": self.warnings,
            "committed": self.committed,
        }


class Timing:
    """Adds what it encloses to the steps of `attempt`; with `within`, as a part of the step of that name."""

    __slots__ = ("_attempt", "_name", "_start_ns", "_within")

    def __init__(self, attempt: Attempt, name: str, within: str = "") -> None:
        self._attempt, self._name, self._within = attempt, name, within

    def __enter__(self) -> None:
        if not self._within:
            self._attempt._open = self._name
        self._start_ns = self._attempt.clock.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        start_ns, attempt = self._start_ns, self._attempt
        if not self._within:
            attempt._open = ""
        duration_ns = attempt.clock.monotonic_ns() - start_ns
        name = f"{self._within}: {self._name}" if self._within else self._name
        attempt.steps.append(Step(side=attempt.side, step=name, start_ns=start_ns, duration_ns=duration_ns))
