"""Carries out what the rule book decides (`handoff`), effect by effect and in its order.

This is the one place where a record is written, the storage's register is taken, the machine is let go, and the peer is
told.  So "written before it is said" and "written before it runs" hold because a ruling has them in that order, and
for no other reason.

A register that turns out to be somebody else's ends a ruling before anything that stands behind it, and what the rule
book has for that case is done instead.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID

import attrs

from migrate.engine.handoff import (
    Act,
    Alarm,
    Claim,
    Holding,
    Record,
    Ruling,
    Say,
    Settled,
    Take,
    Write,
    granted,
    on_title_lost,
    reclaiming,
    writes,
)
from migrate.engine.ports import Fence, Journal, Link, Observer
from migrate.errors import MigrationError, StorageUnreachable
from sim_vmm.fence import Title, TitleMoved

IMAGE_HOLDERS = (Holding.COMMITTED, Holding.READY)


class StorageTaken(MigrationError):
    """The register in the machine's storage is another's: the machine must not run here."""

    def __init__(self, found: Title | None) -> None:
        super().__init__(f"the machine's storage is held in {found or 'no session at all'}: it must not run here")
        self.found = found


async def nothing() -> None:
    """For what cannot come up."""


def untimed(_: str) -> AbstractContextManager[None]:
    """For whoever keeps no ledger."""
    return nullcontext()


@attrs.frozen(kw_only=True)
class Hands:
    """What a ruling may do to the machine.  `run` is told whether the image, or what is paused, may go on."""

    run: Callable[[bool], Awaitable[None]]
    drop: Callable[[], Awaitable[None]] = nothing
    stop: Callable[[], Awaitable[None]] = nothing


@attrs.define(kw_only=True)
class Ownership:
    """One node's part in who may run `machine`; `timing` gives a scope for what takes time, by name."""

    node: str
    machine: UUID
    journal: Journal
    fence: Fence | None
    observer: Observer
    hands: Hands
    alarms: list[str] = attrs.field(factory=list)
    timing: Callable[[str], AbstractContextManager[None]] = untimed
    _image_is_good: bool = True

    @property
    def record(self) -> Record:
        return self.journal.record

    async def session(self) -> int:
        """Of the storage's register as it is now; 0 without one."""
        title = None if self.fence is None else await self.fence.read()
        return 0 if title is None else title.session

    async def carry_out(self, ruling: Ruling, link: Link | None = None, image: bytes | None = None) -> None:
        """Do all of `ruling`; `image` is kept with a record that stands for one.

        Raises:
            StorageTaken: the register is another's, and the rule book's answer to that has been carried out instead.
            MigrationError: an effect failed; none behind it has happened.
        """
        try:
            for effect in ruling:
                await self._do(effect, ruling, link, image)
        except StorageTaken as taken:
            instead = on_title_lost(self.record, taken.found, self.machine)
            for effect in instead:
                try:
                    await self._do(effect, instead, link, None)
                except MigrationError:
                    if not isinstance(effect, Say):  # what could not be said is owed
                        raise
            raise

    async def _do(self, effect: object, ruling: Ruling, link: Link | None, image: bytes | None) -> None:
        match effect:
            case Write(record, owes):
                await self._write(record, image if record.holding in IMAGE_HOLDERS else None, owes)
            case Say(message):
                if link is not None:
                    await link.send(message)
            case Take(claim):
                written = writes(ruling)
                await self._take(claim, (written or self.record).generation)
            case Alarm(text):
                self.alarms.append(text)
                self.observer.tell("alarm", message=text)
            case Act.RUN:
                await self.hands.run(self._image_is_good)
            case Act.DROP:
                await self.hands.drop()
            case Act.STOP:
                await self.hands.stop()
            case Settled(generation, peer):
                await self.journal.settle_debt(generation, peer)
            case _:
                raise AssertionError(f"no such effect: {effect!r}")

    async def _write(self, record: Record, image: bytes | None, owes: object) -> None:
        if self.fence is not None and record.holding in (Holding.OWNER, Holding.COMMITTED):
            record = attrs.evolve(record, session=self.fence.session)
        with self.timing("journal"):
            await self.journal.write(record, image=image, owes_answer=owes is not None)

    async def _take(self, claim: Claim, generation: int) -> None:
        """Raises StorageTaken if the register is another's, or becomes so while we look."""
        if self.fence is None:
            return
        try:
            with self.timing("register"):
                await self._swap(self.fence, claim, generation)
        except StorageUnreachable as error:
            if claim is not Claim.RESUME:
                raise
            self.alarms.append(f"the machine goes on in the session that it was paused in: {error}")

    async def _swap(self, fence: Fence, claim: Claim, generation: int) -> None:
        record = self.record
        if claim is Claim.RESUME:  # good for the session that was paused, whatever an older record says
            record = attrs.evolve(record, session=fence.session)
        found = await fence.read()
        grant = granted(claim, found, record, node=self.node, machine=self.machine, generation=generation)
        if grant is None:
            raise StorageTaken(found)
        self._image_is_good = grant.image_is_good
        try:
            await fence.take(found, grant.title)
        except TitleMoved as moved:
            raise StorageTaken(moved.found) from moved

    async def reclaim(self) -> None:
        """A source takes back what it gave away, without an answer of the target, by the storage's fence.

        Raises:
            StorageTaken: the target has it; the machine is over here.
            StorageUnreachable, JournalFailed: nothing has changed.
        """
        assert self.fence is not None, "only the fence can tell that nobody has started the machine"
        await self.fence.read()  # no number is spent while the storage cannot answer
        await self.carry_out(reclaiming(self.record, await self.journal.new_generation()))

    async def lose(self, found: Title | None) -> None:
        """The disks have refused this node's machine: they are held in `found`."""
        await self.carry_out(on_title_lost(self.record, found, self.machine))
