"""Mistakes that engines could have: each replaces something of the real code, and must be found by exploring.

The first ones are those of the handoff's design, each found on paper before; the others are common slips.
"""

from collections.abc import Callable
from typing import Any, Final

import attrs
import pytest

from migrate.engine import handoff, source, target
from migrate.engine.handoff import Act, Claim, Holding, Record, Ruling, Say, Take, Write
from migrate.engine.ram import RamReceiver
from migrate.errors import HandoffInDoubt
from migrate.protocol import frames
from migrate.protocol.messages import Abandon, Commit
from migrate.simulation import remembering
from migrate.simulation.audits import (
    AT_REST,
    NOTHING_EARLY,
    NOTHING_FORGOTTEN,
    NOTHING_LOST,
    ONE_IN_THE_END,
    ONE_RUNNER,
    STALE_IMAGE,
)
from sim_vmm.dirty import DirtyPages

Break = Callable[[pytest.MonkeyPatch], None]


@attrs.frozen
class Mistake:
    """`checks` are those of the audits any of which may find it."""

    name: str
    apply: Break
    checks: tuple[str, ...]


def commit_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    def on_ready(*args: Any, **options: Any) -> Ruling:
        ruling = right(*args, **options)
        return tuple(sorted(ruling, key=lambda effect: not isinstance(effect, Say)))

    right = handoff.on_ready
    patch.setattr(source, "on_ready", on_ready)


def run_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    def on_commit(record: Record, generation: int, sender: str) -> Ruling:
        match right(record, generation, sender):
            case (Take() as take, Write() as write, Act.RUN, say):
                return take, Act.RUN, write, say
            case other:
                return other

    right = handoff.on_commit
    patch.setattr(target, "on_commit", on_commit)


def ready_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    def on_prepare(*args: Any) -> Ruling:
        return tuple(reversed(right(*args)))

    right = handoff.on_prepare
    patch.setattr(target, "on_prepare", on_prepare)


def resume_when_the_answer_is_lost(patch: pytest.MonkeyPatch) -> None:
    async def give_away(self: Any, generation: int, image: bytes | None) -> None:
        try:
            await right(self, generation, image)
        except HandoffInDoubt:
            await self.run_again(True)
            raise

    right = source._Source.give_away
    patch.setattr(source._Source, "give_away", give_away)


def silence_is_a_refusal(patch: pytest.MonkeyPatch) -> None:
    def on_owned(record: Record, generation: int, sender: str, *, runs: bool = True) -> Ruling:
        back = attrs.evolve(record, holding=Holding.OWNER)
        return Take(Claim.REFUSED), Write(back), Act.RUN, *right(record, generation, sender, runs=runs)[-1:]

    right = handoff.on_owned
    patch.setattr(source, "on_owned", on_owned)


def abandon_what_was_committed(patch: pytest.MonkeyPatch) -> None:
    def on_ready(record: Record, generation: int, sender: str, **options: Any) -> Ruling:
        ruling = right(record, generation, sender, **options)
        if options["preparing"] is None and ruling == (Say(Commit(generation=generation)),):
            return (Say(Abandon(generation=generation)),)
        return ruling

    right = handoff.on_ready
    patch.setattr(source, "on_ready", on_ready)


def forget_the_debt(patch: pytest.MonkeyPatch) -> None:
    def on_commit(record: Record, generation: int, sender: str) -> Ruling:
        ruling = right(record, generation, sender)
        return tuple(attrs.evolve(effect, owes=None) if isinstance(effect, Write) else effect for effect in ruling)

    right = handoff.on_commit
    patch.setattr(target, "on_commit", on_commit)


def restore_only_what_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    def restore(self: Any) -> None:
        self._dirty.update(self._in_flight)
        self.settle()

    patch.setattr(DirtyPages, "restore", restore)


def stay_paused_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    async def roll_back(self: Any, error: Exception) -> None:
        self.observer.tell("rolled back", phase=self.attempt.phase)

    patch.setattr(source._Source, "roll_back", roll_back)


def lose_the_console(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(target, "import_console", lambda machine, state: None)


def lose_the_last_round(patch: pytest.MonkeyPatch) -> None:
    def mark_dirty(self: Any) -> None:
        """What has been received is not noted."""

    patch.setattr(RamReceiver, "mark_received_dirty", mark_dirty)


def believe_every_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "check_body", lambda header, body: None)
    remembering.decode.cache_clear()


MISTAKES: Final = (
    Mistake("Commit is said before C is written", commit_before_it_is_written, (ONE_RUNNER, ONE_IN_THE_END)),
    Mistake("Ready is said before R is written", ready_before_it_is_written, (ONE_IN_THE_END, AT_REST)),
    Mistake("the machine runs before O is written", run_before_it_is_written, (ONE_RUNNER, STALE_IMAGE)),
    Mistake("a source resumes when the answer is lost", resume_when_the_answer_is_lost, (ONE_RUNNER,)),
    Mistake("a source takes Owned for a refusal", silence_is_a_refusal, (ONE_RUNNER,)),
    Mistake("a source abandons what it committed", abandon_what_was_committed, (ONE_IN_THE_END, AT_REST)),
    Mistake("a target forgets that it owes an answer", forget_the_debt, (ONE_IN_THE_END, AT_REST)),
    Mistake("pages that were acknowledged are not restored", restore_only_what_is_in_flight, (NOTHING_FORGOTTEN,)),
    Mistake("the source stays paused after a failure", stay_paused_after_a_failure, (NOTHING_EARLY, ONE_IN_THE_END)),
    Mistake("the console is not taken over", lose_the_console, (NOTHING_LOST,)),
    Mistake("what was received could not travel on", lose_the_last_round, (NOTHING_FORGOTTEN,)),
    Mistake("a damaged frame is believed", believe_every_frame, (NOTHING_LOST,)),
)
