"""When to stop copying a running guest's memory: pure, and in one place.

A round takes the pages that were dirty when it began; what the guest dirties meanwhile is the next round.  After each
round the estimated downtime is what is dirty now over the measured bandwidth.  If that fits the limit, the guest is
paused.  If rounds stop getting smaller, or there have been too many, the guest dirties memory faster than the link
carries it: pausing would break the downtime promise, so the attempt is given up, unless it is told to go on regardless.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import attrs

from migrate.engine.rounds import Round
from sim_vmm.memory import PAGE_SIZE

DEFAULT_DOWNTIME_LIMIT_MS: Final = 300.0
"""QEMU's and Cloud Hypervisor's default (published-runs F)."""

STALLED_AFTER_ROUNDS: Final = 3
ROUNDS_MAX: Final = 30
"""QEMU's guestperf uses 30 (published-runs F)."""


class Decision(StrEnum):
    ANOTHER_ROUND = "another round"
    PAUSE = "pause"
    GIVE_UP = "give up"


class OnStall(StrEnum):
    """What to do with a guest that does not converge."""

    REFUSE = "refuse"
    FORCE = "force"


@attrs.frozen(kw_only=True)
class PrecopyPolicy:
    downtime_limit_ms: float = DEFAULT_DOWNTIME_LIMIT_MS
    on_stall: OnStall = OnStall.REFUSE

    def estimated_downtime_ms(self, rounds: Sequence[Round], dirty_pages: int) -> float:
        """Time to send `dirty_pages` at the bandwidth measured so far, in ms; 0 if nothing is dirty.

        Infinite while no content has been sent: rounds of zero pages say nothing about the link.
        """
        sent = sum(round_.bytes for round_ in rounds)
        elapsed_ns = sum(round_.duration_ns for round_ in rounds)
        if dirty_pages == 0:
            return 0.0
        if sent == 0:
            return math.inf
        return dirty_pages * PAGE_SIZE * (elapsed_ns / sent) / 1e6

    def decide(self, rounds: Sequence[Round], dirty_pages: int) -> Decision:
        """What to do after `rounds`, with `dirty_pages` dirty now."""
        if self.estimated_downtime_ms(rounds, dirty_pages) <= self.downtime_limit_ms:
            return Decision.PAUSE
        if len(rounds) >= ROUNDS_MAX or self._stalled(rounds):
            return Decision.PAUSE if self.on_stall is OnStall.FORCE else Decision.GIVE_UP
        return Decision.ANOTHER_ROUND

    def _stalled(self, rounds: Sequence[Round]) -> bool:
        """No round of the last few left less behind than the round before them."""
        if len(rounds) <= STALLED_AFTER_ROUNDS:
            return False
        recent = rounds[-STALLED_AFTER_ROUNDS:]
        before = rounds[-STALLED_AFTER_ROUNDS - 1]
        return min(round_.dirtied_pages for round_ in recent) >= before.dirtied_pages
