"""Mistakes in who may run the machine: the order of writing, saying, running; what follows from an answer; fences."""

from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from migrate.engine import handoff, ownership, source, target
from migrate.engine.handoff import Act, Claim, Holding, Record, Ruling, Say, Take, Write, granted
from migrate.errors import HandoffInDoubt, JournalFailed
from migrate.protocol.messages import Abandon, Commit
from migrate.simulation.disk import Content, Disk, SimulatedJournal
from sim_vmm.fence import Title


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


def take_owned_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
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


def stay_paused_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    async def roll_back(self: Any, error: Exception) -> None:
        self.observer.tell("rolled back", phase=self.attempt.phase)

    patch.setattr(source._Source, "roll_back", roll_back)


def use_a_generation_again(patch: pytest.MonkeyPatch) -> None:
    async def new_generation(self: Any) -> int:
        return int(self.record.generation) + 1

    patch.setattr(SimulatedJournal, "new_generation", new_generation)


def forget_ready_without_a_floor(patch: pytest.MonkeyPatch) -> None:
    """Together with generations that are used again, without which nothing depends on it here."""

    def declining(record: Record) -> Ruling:
        return tuple(_without_floor(effect, record) for effect in right_declining(record))

    def on_abandon(record: Record, generation: int, sender: str) -> Ruling:
        return tuple(_without_floor(effect, record) for effect in right_abandon(record, generation, sender))

    right_declining, right_abandon = handoff.declining, handoff.on_abandon
    patch.setattr("migrate.simulation.daemons.declining", declining)
    patch.setattr(target, "on_abandon", on_abandon)
    use_a_generation_again(patch)


def _without_floor(effect: Any, record: Record) -> Any:
    if not isinstance(effect, Write):
        return effect
    return attrs.evolve(effect, record=attrs.evolve(effect.record, generation=record.owned))


def take_unknown_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(source, "on_unknown", handoff.on_declined)


def hand_over_by_the_last_word_only(patch: pytest.MonkeyPatch) -> None:
    """The source forgets the machine as soon as it has said so: nothing is kept until the target has heard it."""

    def on_ready(*args: Any, **options: Any) -> Ruling:
        return tuple(
            attrs.evolve(effect, record=attrs.evolve(effect.record, holding=Holding.NOT_OWNER))
            if isinstance(effect, Write)
            else effect
            for effect in right(*args, **options)
        )

    right = handoff.on_ready
    patch.setattr(source, "on_ready", on_ready)


def say_what_could_not_be_noted(patch: pytest.MonkeyPatch) -> None:
    async def write(self: Any, record: Record, image: bytes | None, owes: object) -> None:
        try:
            await right(self, record, image, owes)
        except JournalFailed:
            return

    right = ownership.Ownership._write
    patch.setattr(ownership.Ownership, "_write", write)


def count_what_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    """A record counts as soon as it is in the host's cache, so a loss of power takes back the last one."""
    before: dict[int, tuple[Disk, Content]] = {}

    async def change(self: Any, change: Any, what: str) -> None:
        self.life.check()
        before[id(self.disk)] = (self.disk, self.disk.content)
        self.disk.content = change(self.disk.content)

    def lose_power(self: Disk) -> None:
        _, self.content = before.pop(id(self), (self, self.content))
        right(self)

    right = Disk.lose_power
    patch.setattr(SimulatedJournal, "_change", change)
    patch.setattr(Disk, "lose_power", lose_power)


def drop_the_image_when_the_answer_is_lost(patch: pytest.MonkeyPatch) -> None:
    async def await_commit(self: Any, handoff: Any) -> Any:
        try:
            return await right(self, handoff)
        except target.ImageHeld as held:
            record = handoff.journal.record
            await handoff.ownership.carry_out(right_abandon(record, record.generation, record.peer))
            raise held.cause from held

    right, right_abandon = target._Target.await_commit, handoff.on_abandon
    patch.setattr(target._Target, "await_commit", await_commit)


def do_not_take_the_register(patch: pytest.MonkeyPatch) -> None:
    async def take(*_: object) -> None:
        """As if there were no fence."""

    patch.setattr(ownership.Ownership, "_take", take)


def reclaim_from_whoever_has_it(patch: pytest.MonkeyPatch) -> None:
    def grant(claim: Claim, found: Title | None, record: Record, **options: Any) -> Any:
        return granted(Claim.FORCE if claim is Claim.RECLAIM else claim, found, record, **options)

    patch.setattr(ownership, "granted", grant)


def ask_nobody_who_has_the_register(patch: pytest.MonkeyPatch) -> None:
    """A target that has taken it, and died before it noted that, asks its source as if it had not."""
    patch.setattr("migrate.simulation.daemons.taken_already", lambda *_, **__: False)
    patch.setattr(target, "taken_already", lambda *_, **__: False)


def pause_after_the_last_pages(patch: pytest.MonkeyPatch) -> None:
    async def copy_the_rest(self: Any, choice: Any, generation: int) -> Any:
        guest, ram = self.guest, self.ram

        async def pause() -> None:
            """Not yet."""

        async def send_round() -> Any:
            round_ = await ram.send_round()
            await guest.pause()
            return round_

        self.guest, self.ram = SimpleNamespace(pause=pause), SimpleNamespace(send_round=send_round)
        try:
            return await right(self, choice, generation)
        finally:
            self.guest = guest

    right = source._Source.copy_the_rest
    patch.setattr(source._Source, "copy_the_rest", copy_the_rest)
