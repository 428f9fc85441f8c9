"""When to stop copying a running guest's memory: pure, and in one place.

A round takes the pages that were dirty when it began; what the guest dirties meanwhile is the next round.  After each
round there is an outlook (`Outlook`), made of what the rounds have shown and nothing else:

    bandwidth     of the rounds so far, each counting half as much as the one after it.  A round's time is until its
                  receipt, less the shortest receipt of all, which is taken for the way there and back
    dirty rate    the highest of the last few rounds: a long round hides the rate behind the working set
    downtime      what is dirty now over the bandwidth, and what handing over costs with nothing left to send: the
                  `floor`, from the pre-flight (export, size of the state), a write of the journal, a look at the
                  storage's register if there is one, and the way

and a decision (`PrecopyPolicy.decide`):

    pause         as soon as the estimate, with some caution, fits the limit, unless another round is worth it: never
                  pause for nothing.  It is worth it if it would halve what the guest waits for RAM, and that is a tenth
                  of the downtime or more.  It costs the same time, in which the guest runs
    no progress   in so many rounds nothing came near to what had been reached before, or there were too many rounds,
                  or they took too long: then `OnStall` decides

A limit below the floor cannot be kept by any pre-copy.  After some rounds more, in which the host may have got quieter,
it is read as "as short as it can be": the floor and a tenth.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, Self

import attrs

from migrate.engine.rounds import NS_PER_MS, NS_PER_S, Round, finite
from sim_vmm.memory import PAGE_SIZE

DEFAULT_DOWNTIME_LIMIT_MS: Final = 300.0
"""QEMU's and Cloud Hypervisor's default (published-runs F)."""

CAUTION: Final = 1.2
"""The estimate may be wrong by so much without breaking the promise."""
ABOVE_FLOOR: Final = 1.1

WORTH_SHRINKING: Final = 0.5
WORTH_SHARE: Final = 0.1
WORTH_MS: Final = 0.5

ROUNDS_MAX: Final = 30
"""QEMU's guestperf uses 30 (published-runs F)."""
STALLED_AFTER_ROUNDS: Final = 3
PROGRESS: Final = 0.95
"""What is left must be less than this of the best before, to be progress."""

THROTTLE_FIRST: Final = 0.2
THROTTLE_STEP: Final = 0.1
THROTTLE_MAX: Final = 0.99
"""QEMU's cpu-throttle-initial, -increment and max-cpu-throttle."""
THROTTLE_HELPS: Final = 0.75
"""A throttle is deep enough if each round leaves at most this of what the one before left."""

RATE_ROUNDS: Final = 3
SMOOTHING: Final = 0.5
FULL_WEIGHT_BYTES: Final = 1 << 20
"""Smaller rounds say less about the bandwidth."""

RECORDS: Final = 3
"""Written one after the other in the blackout: R at the target, C here, O there."""
REGISTER_TURNS: Final = 2
"""With a fence the target looks at the register before it promises, and takes it before the guest runs."""
WAYS: Final = 1.5
"""Round trips in the blackout: the state there, Ready back, Commit there."""
ANSWERING_NS: Final = 1_000_000
"""What two processes add to a round trip of the network's: wake up, read, answer, and wake up again."""
FIRST_TIME: Final = 4
"""What is done for the first time, as the import of a state is, takes up to so many times as long as once more."""
FORECAST_ROUNDS: Final = 1000


class Decision(StrEnum):
    ANOTHER_ROUND = "another round"
    PAUSE = "pause"
    GIVE_UP = "give up"


class OnStall(StrEnum):
    """What to do with a guest that does not converge."""

    REFUSE = "refuse"
    """Leave it where it is."""
    THROTTLE = "throttle"
    """Slow it down, step by step; leave it where it is if even that does not help."""
    FORCE = "force"
    """Pause it all the same, where the least is left."""
    POSTPONE = "postpone"
    """Go on until it converges by itself, or somebody cancels, or the time is up."""


@attrs.frozen(kw_only=True)
class SwitchoverCost:
    """What handing over takes with no RAM left to send, as far as it shows before.

    `export_ns` for exporting and encoding `state_bytes` of devices and console as if it had not been done before,
    `journal_ns` for one durable record, `register_ns` for one look at the register of the machine's storage.  `way_ns`
    is what the network says that the way there and back takes, if it does.
    """

    state_bytes: int = 0
    export_ns: int = 0
    journal_ns: int = 0
    register_ns: int = 0
    way_ns: int | None = None


@attrs.frozen(kw_only=True)
class Outlook:
    """What is to be expected after a round.  Infinite is what nobody can say, as no content has been sent yet."""

    dirty_pages: int
    dirty_pages_per_s: float
    ns_per_byte: float
    floor_ms: float
    ram_ms: float
    """Time to send what is dirty now."""
    round_ms: float
    """Time of another round."""
    next_ram_ms: float
    """Time to send what that round would leave."""

    @classmethod
    def after(cls, rounds: Sequence[Round], dirty_pages: int, cost: SwitchoverCost, throttle: float = 0.0) -> Self:
        """After `rounds`, with `dirty_pages` dirty now; `throttle` is what the guest would have in another round."""
        way_ns = min((round_.receipt_ns for round_ in rounds), default=0)
        ns_per_byte = smoothed_ns_per_byte(rounds, way_ns)
        rate = dirty_rate(rounds) * (1 - throttle)
        ram_ms = _ms(dirty_pages * PAGE_SIZE, ns_per_byte)
        round_ms = ram_ms + way_ns / NS_PER_MS
        working_set = max((round_.dirtied_pages for round_ in rounds[-RATE_ROUNDS:]), default=0)
        next_pages = min(working_set, rate * round_ms / 1e3)
        written_ns = RECORDS * cost.journal_ns + REGISTER_TURNS * cost.register_ns
        # Nothing is on its way then, and a long round's receipt waits until all of the round has been stored.
        empty_way_ns = way_ns if cost.way_ns is None else min(way_ns, cost.way_ns + ANSWERING_NS)
        floor_ms = (2 * cost.export_ns + written_ns + WAYS * empty_way_ns) / NS_PER_MS
        return cls(
            dirty_pages=dirty_pages,
            dirty_pages_per_s=rate,
            ns_per_byte=ns_per_byte,
            floor_ms=floor_ms + (_ms(cost.state_bytes, ns_per_byte) if math.isfinite(ns_per_byte) else 0.0),
            ram_ms=ram_ms,
            round_ms=round_ms,
            next_ram_ms=_ms(next_pages * PAGE_SIZE, ns_per_byte),
        )

    @property
    def downtime_ms(self) -> float:
        """If the guest were paused now."""
        return self.floor_ms + self.ram_ms

    @property
    def bandwidth(self) -> float:
        """Bytes a second; 0 while nobody can say."""
        return NS_PER_S / self.ns_per_byte

    def as_json(self) -> dict[str, Any]:
        return {
            "dirty_pages": self.dirty_pages,
            "dirty_pages_per_s": round(self.dirty_pages_per_s),
            "bytes_per_s": round(self.bandwidth),
            "floor_ms": self.floor_ms,
            "downtime_ms": finite(self.downtime_ms),
        }


@attrs.frozen(kw_only=True)
class Course:
    """What to do after a round.  `throttle` is for the next one; `forced` says that the limit will not be kept."""

    decision: Decision
    why: str
    throttle: float = 0.0
    forced: bool = False


@attrs.frozen(kw_only=True)
class PrecopyPolicy:
    """See the module.  At least `rounds_min` rounds are made while the guest runs, whatever is left.

    `rounds_max` is `ROUNDS_MAX` if not given, and without end if the guest may take its time (`POSTPONE`).
    """

    downtime_limit_ms: float = DEFAULT_DOWNTIME_LIMIT_MS
    on_stall: OnStall = OnStall.REFUSE
    rounds_min: int = 1
    rounds_max: int | None = None
    time_max_s: float = math.inf
    stalled_after: int = STALLED_AFTER_ROUNDS

    def decide(self, rounds: Sequence[Round], dirty_pages: int, elapsed_ns: int, cost: SwitchoverCost) -> Course:
        """What to do after `rounds`, at least one, which took `elapsed_ns`, with `dirty_pages` dirty now."""
        throttle = rounds[-1].throttle
        outlook = Outlook.after(rounds, dirty_pages, cost, throttle)
        if len(rounds) < self.rounds_min:
            return Course(decision=Decision.ANOTHER_ROUND, why="there must be more", throttle=throttle)
        cap = self._cap_reached(rounds, elapsed_ns, outlook)
        if self.fits(outlook):
            why = None if cap is not None else self._why_not_yet(rounds, outlook)
            if why is not None:
                return Course(decision=Decision.ANOTHER_ROUND, why=why, throttle=throttle)
            if not self.keeps_limit(outlook):
                return Course(decision=Decision.PAUSE, why="it cannot be shorter, though the limit is below that")
            return Course(decision=Decision.PAUSE, why="the rest fits the limit")
        if cap is not None:
            return self._end(cap)
        return self._unless_stalled(rounds, dirty_pages, throttle)

    def keeps_limit(self, outlook: Outlook) -> bool:
        """Whether pausing now keeps the promise, as far as one can know."""
        return outlook.downtime_ms <= self.downtime_limit_ms / CAUTION

    def fits(self, outlook: Outlook) -> bool:
        """Whether it does, or no pre-copy could do better."""
        return self.keeps_limit(outlook) or outlook.downtime_ms <= outlook.floor_ms * ABOVE_FLOOR

    def _why_not_yet(self, rounds: Sequence[Round], outlook: Outlook) -> str | None:
        """What another round, while the guest runs, may be good for, though the guest could be paused now."""
        matters = outlook.ram_ms >= max(WORTH_SHARE * outlook.downtime_ms, WORTH_MS)
        if matters and outlook.next_ram_ms <= WORTH_SHRINKING * outlook.ram_ms:
            return f"it shortens the wait of {outlook.ram_ms:.1f} ms for RAM"
        if not self.keeps_limit(outlook) and len(rounds) <= self.stalled_after:
            return f"handing over alone takes {outlook.floor_ms:.1f} ms as things are"
        return None

    def _cap_reached(self, rounds: Sequence[Round], elapsed_ns: int, outlook: Outlook) -> str | None:
        """A round that would not end in time is not begun."""
        rounds_max = self.rounds_max
        if rounds_max is None and self.on_stall is not OnStall.POSTPONE:
            rounds_max = ROUNDS_MAX
        if rounds_max is not None and len(rounds) >= rounds_max:
            return f"{rounds_max} rounds are allowed"
        next_s = outlook.round_ms / 1e3 if math.isfinite(outlook.round_ms) else 0.0
        if elapsed_ns / NS_PER_S + next_s > self.time_max_s:
            return f"{self.time_max_s:g} s are allowed"
        return None

    def _end(self, why: str) -> Course:
        if self.on_stall is OnStall.FORCE:
            return Course(decision=Decision.PAUSE, why=f"{why}, and the switchover is forced", forced=True)
        return Course(decision=Decision.GIVE_UP, why=why)

    def _unless_stalled(self, rounds: Sequence[Round], dirty_pages: int, throttle: float) -> Course:
        stalled = self._stalled(rounds)
        on = Course(decision=Decision.ANOTHER_ROUND, why="there is progress", throttle=throttle)
        why = f"no progress in {self.stalled_after} rounds"
        match self.on_stall:
            case OnStall.POSTPONE:
                return on
            case OnStall.THROTTLE if throttle or stalled:
                return self._throttled(rounds, throttle) or self._end(f"{why}, with the guest slowed by {throttle:.0%}")
            case OnStall.FORCE if stalled:
                return self._end(why) if self._is_local_minimum(rounds, dirty_pages) else on
            case OnStall.REFUSE if stalled:
                return self._end(why)
            case _:
                return on

    def _stalled(self, rounds: Sequence[Round]) -> bool:
        """Nothing that the last few rounds left comes near to the least that was left before."""
        before, recent = rounds[: -self.stalled_after], rounds[-self.stalled_after :]
        return bool(before) and _least(recent) > PROGRESS * _least(before)

    def _throttled(self, rounds: Sequence[Round], throttle: float) -> Course | None:
        """The next step of the throttle; None if there is none, and the last has shown that it does not help."""
        if throttle and len(rounds) > 1 and rounds[-1].dirtied_pages <= THROTTLE_HELPS * rounds[-2].dirtied_pages:
            return Course(decision=Decision.ANOTHER_ROUND, why="the throttle helps", throttle=throttle)
        if throttle >= THROTTLE_MAX:
            at_most = [round_ for round_ in rounds if round_.throttle >= THROTTLE_MAX]
            if self._stalled(at_most):
                return None
            return Course(decision=Decision.ANOTHER_ROUND, why="the throttle cannot be deeper", throttle=throttle)
        deeper = min(throttle + THROTTLE_STEP, THROTTLE_MAX) if throttle else THROTTLE_FIRST
        return Course(decision=Decision.ANOTHER_ROUND, why="the guest is slowed down", throttle=round(deeper, 2))

    def _is_local_minimum(self, rounds: Sequence[Round], dirty_pages: int) -> bool:
        """As little is left now as the last rounds left at best; or one has waited for that long enough."""
        recent = rounds[-self.stalled_after :]
        return dirty_pages <= _least(recent) / PROGRESS or self._stalled(rounds[: -self.stalled_after])

    def remaining_ms(self, outlook: Outlook, rounds: Sequence[Round]) -> float:
        """Time until the guest runs at the target, if it goes on dirtying as it does; infinite if that never ends.

        The closed form of the published runs: Vi+1 = min(W, d * Ti).
        """
        way_ms = outlook.round_ms - outlook.ram_ms
        working_set_ms = _ms(_most(rounds[-RATE_ROUNDS:]) * PAGE_SIZE, outlook.ns_per_byte)
        grows = outlook.dirty_pages_per_s / 1e3 * _ms(PAGE_SIZE, outlook.ns_per_byte)
        left_ms, spent_ms = outlook.ram_ms, 0.0
        for _ in range(FORECAST_ROUNDS):
            if not math.isfinite(left_ms):
                break
            if self.fits(attrs.evolve(outlook, ram_ms=left_ms)):
                return spent_ms + left_ms + outlook.floor_ms
            took_ms = left_ms + way_ms
            spent_ms += took_ms
            before_ms, left_ms = left_ms, min(working_set_ms, grows * took_ms)
            if left_ms >= before_ms:
                break
        return math.inf


def smoothed_ns_per_byte(rounds: Sequence[Round], way_ns: int) -> float:
    """Time a byte of content takes; infinite while none has been sent."""
    weights = times = 0.0
    for age, round_ in enumerate(reversed(rounds)):
        if round_.bytes:
            weight = SMOOTHING**age * min(1.0, round_.bytes / FULL_WEIGHT_BYTES)
            weights += weight
            times += weight * max(round_.elapsed_ns - way_ns, 1) / round_.bytes
    return times / weights if weights else math.inf


def first_export_ns(exports_ns: Sequence[int]) -> int:
    """What an export takes that was not made before, from all that were: the first one, if nothing disturbed it."""
    return min(max(exports_ns), FIRST_TIME * min(exports_ns))


def dirty_rate(rounds: Sequence[Round]) -> float:
    """Distinct pages a second that the guest dirties if it is not throttled."""
    return max(
        (
            round_.dirtied_pages / max(round_.duration_ns, 1) * NS_PER_S / (1 - round_.throttle)
            for round_ in rounds[-RATE_ROUNDS:]
        ),
        default=0.0,
    )


def not_converging(policy: PrecopyPolicy, course: Course, outlook: Outlook, rounds: int) -> str:
    """Why a guest stays where it is, for people."""
    dirty, carried = outlook.dirty_pages_per_s * PAGE_SIZE, outlook.bandwidth
    return (
        f"after {rounds} rounds the guest would be away for {outlook.downtime_ms:.0f} ms, and the limit is "
        f"{policy.downtime_limit_ms:g} ms ({course.why}): it dirties {dirty / 1e6:.1f} MB/s of memory "
        f"({outlook.dirty_pages_per_s:.0f} pages/s), and the link carries {carried / 1e6:.1f} MB/s; raise the limit "
        "or the bandwidth, or let it be slowed, postponed or forced"
    )


def _ms(size: float, ns_per_byte: float) -> float:
    return size * ns_per_byte / NS_PER_MS if size else 0.0


def _least(rounds: Sequence[Round]) -> int:
    return min(round_.dirtied_pages for round_ in rounds)


def _most(rounds: Sequence[Round]) -> int:
    return max(round_.dirtied_pages for round_ in rounds)
