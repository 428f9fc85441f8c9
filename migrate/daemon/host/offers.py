"""A migration of a host, as whoever is in control sees it: an offer to be taken, or a machine that is to come in.

It is known by its id, which both hosts are given.  It waits for a slot, may be tried several times, and is concluded
once, with an outcome that can be asked for later.
"""

import math
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import attrs
import trio

from migrate.daemon.outcome import AttemptOutcome, Outcome
from migrate.daemon.slots import Slot

CANCELLED: Final = "cancelled"


class Stage(StrEnum):
    """Where a migration is."""

    QUEUED = "queued"
    READY = "ready"
    """Offered: its target may come."""
    IN_PROGRESS = "in progress"
    IN_DOUBT = "in doubt"
    OVER = "over"


@attrs.frozen(kw_only=True)
class Conclusion:
    """What came of it, in the words of the command-line contract, or `cancelled`; `error` as in an attempt's JSON.

    `blackout_ms` is how long the guest was away by its own clock, where it came to run again.
    """

    outcome: str
    machine: str = ""
    vm_id: UUID | None = None
    phase: str = ""
    error: dict[str, str] | None = None
    reasons: tuple[dict[str, str], ...] = ()
    blackout_ms: float | None = None
    attempts: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "machine": self.machine,
            "vm_id": None if self.vm_id is None else str(self.vm_id),
            "phase": self.phase,
            "error": self.error,
            "reasons": list(self.reasons),
            "blackout_ms": self.blackout_ms,
            "attempts": self.attempts,
        }

    @classmethod
    def of(
        cls, attempts: list[AttemptOutcome], machine: str, vm_id: UUID | None, blackout_ms: float | None = None
    ) -> "Conclusion":
        """Of what has been tried."""
        last = attempts[-1].as_json()
        return cls(
            outcome=last["outcome"],
            machine=machine,
            vm_id=vm_id,
            phase=last["phase"],
            error=last["error"],
            reasons=tuple(last["reasons"]),
            attempts=len(attempts),
            blackout_ms=blackout_ms,
        )

    @classmethod
    def without_attempt(cls, outcome: str, why: str, machine: str = "", vm_id: UUID | None = None) -> "Conclusion":
        return cls(
            outcome=outcome, machine=machine, vm_id=vm_id, error={"class": "NotBegun", "message": why, "side": "host"}
        )


@attrs.define(eq=False)
class Migration:
    """`direction` is "out" or "in"; `retries` is how many failed attempts it survives.

    An offer waits for its target for `patience_s`, as long as `patience` is entered.
    """

    migration: UUID = attrs.field(repr=False)
    direction: str
    retries: int
    patience_s: float
    stage: Stage = Stage.QUEUED
    place: int = 0
    """In the queue, when it was put there."""
    slot: Slot | None = None
    conclusion: Conclusion | None = None
    over: trio.Event = attrs.field(factory=trio.Event)
    waiting: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    failed: int = 0
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def begin(self) -> None:
        self._enter(Stage.IN_PROGRESS)

    def wait_again(self) -> None:
        """For a target that may come."""
        self._enter(Stage.READY)

    async def next_stage(self) -> None:
        """Return when it has come to another stage than now."""
        await self._changed.wait()

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        is_waiting = stage is Stage.READY
        self.patience.deadline = trio.current_time() + self.patience_s if is_waiting else math.inf
        self._changed.set()
        self._changed = trio.Event()

    def is_settled_by(self, outcome: Outcome) -> bool:
        """Whether an attempt that ended so is the last one."""
        match outcome:
            case Outcome.IN_DOUBT:
                self._enter(Stage.IN_DOUBT)
                self.release()  # nobody knows for how long
                return False
            case Outcome.FAILED:
                self.failed += 1
                self._enter(Stage.READY)
                return self.failed > self.retries
            case _:
                return True

    def conclude(self, conclusion: Conclusion) -> None:
        """Once; what comes later says nothing new."""
        self.release()
        if self.conclusion is None:
            self.conclusion = conclusion
            self._enter(Stage.OVER)
            self.over.set()

    def release(self) -> None:
        if self.slot is not None:
            self.slot.release()

    def as_json(self) -> dict[str, Any]:
        return {"direction": self.direction, "stage": self.stage.value, "place": self.place, "failed": self.failed}
