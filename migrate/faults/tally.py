"""What came of every fault: for each place where one can strike and each thing that it can do, the outcomes, and why.

This is the material of a fault map.  Of single faults each has a place of its own.  Of plans with more than one, all
faults of a plan share its outcome, and places are not told apart by number, or nobody could look at them.
"""

from enum import StrEnum
from typing import Any, Final

import attrs

from migrate.faults.explore import Tried
from migrate.faults.plan import (
    ACTIONS,
    Action,
    AtByte,
    AtMessage,
    AtTake,
    AtTime,
    AtWrite,
    InPhase,
    InRound,
    Trigger,
    name_of,
)
from migrate.faults.words import action_words, stream_words, trigger_words

WHY_MAX: Final = 300
"""Characters that are kept of a reason."""


class Course(StrEnum):
    """How a migration went, from the best to the worst."""

    NOT_STRUCK = "the fault did not strike"
    MOVED = "migrated as if nothing had been"
    RECOVERED = "migrated after a failed attempt"
    SETTLED = "migrated after a handoff in doubt was settled"
    STAYED = "stayed at the source, which runs it"
    VIOLATED = "an audit was violated"


RANK: Final = {course: rank for rank, course in enumerate(Course)}


def course_of(tried: Tried) -> Course:
    if tried.violations:
        return Course.VIOLATED
    if tried.fired == 0:
        return Course.NOT_STRUCK
    if tried.owner != "target":
        return Course.STAYED
    outcomes = [word.partition(": ")[2] for word in tried.published]
    if "HandoffInDoubt" in outcomes:
        return Course.SETTLED
    return Course.MOVED if all(outcome == "migrated" for outcome in outcomes) else Course.RECOVERED


def why(tried: Tried) -> str:
    """What was found, or what the two sides said of their failures; "" if nothing failed."""
    found = [f"{violation.check}: {violation.message}" for violation in tried.violations]
    text = "; ".join(found or dict.fromkeys(tried.reasons))
    return text if len(text) <= WHY_MAX else text[: WHY_MAX - 1] + "…"


@attrs.define
class Count:
    """Plans that went one way, and the reason in the first of them."""

    plans: int
    why: str


@attrs.define
class Tally:
    """`cells` by place and action, in the order in which they were tried; both in words."""

    is_coarse: bool
    cells: dict[tuple[str, str], dict[Course, Count]] = attrs.field(factory=dict)

    def add(self, tried: Tried) -> None:
        course, reason = course_of(tried), why(tried)
        keys = {
            (coarse_place(fault.when), coarse_action(fault.do))
            if self.is_coarse
            else (trigger_words(fault.when), action_words(fault.do)): None
            for fault in tried.plan.faults
        }
        for key in keys:
            self._count(key, course, 1, reason)

    def merge(self, other: "Tally") -> None:
        for key, counts in other.cells.items():
            for course, count in counts.items():
                self._count(key, course, count.plans, count.why)

    def _count(self, key: tuple[str, str], course: Course, plans: int, reason: str) -> None:
        counts = self.cells.setdefault(key, {})
        if course in counts:
            counts[course].plans += plans
        else:
            counts[course] = Count(plans, reason)

    def as_json(self) -> dict[str, Any]:
        return {
            "is_coarse": self.is_coarse,
            "cells": [
                [*key, {course.name: [count.plans, count.why] for course, count in counts.items()}]
                for key, counts in self.cells.items()
            ],
        }

    @classmethod
    def from_json(cls, document: Any) -> "Tally":
        """Raises KeyError, TypeError or ValueError if it is none."""
        tally = cls(is_coarse=bool(document["is_coarse"]))
        for place, action, counts in document["cells"]:
            for course, (plans, reason) in counts.items():
                tally._count((str(place), str(action)), Course[course], int(plans), str(reason))
        return tally


def coarse_place(when: Trigger) -> str:
    """Without numbers."""
    match when:
        case AtMessage(message=message, side=side, moment=moment, stream=stream):
            place = f"{message} received by {side.peer}" if moment == "received" else f"{moment} {message}, {side}"
            return place + stream_words(stream)
        case AtWrite(side=side, moment=moment):
            return f"{moment} a write, {side}"
        case AtTake(side=side, moment=moment):
            return f"{moment} taking the register, {side}"
        case InPhase(phase=phase, side=side):
            return f"{side} enters {phase}"
        case AtByte(side=side, stream=stream):
            return f"a byte of {side}{stream_words(stream)}"
        case InRound():
            return "a RAM round begins"
        case AtTime():
            return "some time"


def coarse_action(do: Action) -> str:
    """Its kind, and its side."""
    side = getattr(do, "side", None)
    return name_of(do, ACTIONS) + ("" if side is None else f" {side}")
