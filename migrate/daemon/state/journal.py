"""The ownership record of one machine, durable: the engines' journal port over the state directory's database.

A write is one transaction, whatever goes with the record: the image of the paused machine, the machine itself, a debt.
So a restart finds all of it or none.  An image exists only along with `C(n)` or `R(n)`, and only of that generation: a
record of anything else removes it in the same transaction.

Nobody who is cancelled leaves a write behind half done: a write that has begun is waited for.  Writes of one directory
follow each other, and each is carried out in a thread, so that a slow disk holds up nobody else.  But three of them lie
in the blackout, one after the other, and on a fast disk the way to a thread and back takes as long as the write: those
are carried out where they are asked for, as long as the disk is brisk.
"""

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

import attrs
import trio

from migrate.daemon.state.contents import INTEGER_MAX, Contents, Debt, Kept, KnownMachine, PauseImage
from migrate.daemon.state.database import Database
from migrate.engine.handoff import Holding, Record
from migrate.errors import JournalFailed

WITH_IMAGE: Final = frozenset({Holding.COMMITTED, Holding.READY})

WRITES: Final = frozenset(
    {
        *(f"write {holding}" for holding in Holding),
        "birth",
        "expect",
        "new generation",
        "settle debt",
        "note attempt",
        "set fact",
    }
)
"""Everything that is made durable, by the names of its points: at each of them a process may die."""

AT_ONCE: Final = frozenset(
    {*(f"write {holding}" for holding in (Holding.READY, Holding.COMMITTED, Holding.OWNER)), "new generation"}
)
"""The three of the blackout, and the one by whose time they are predicted: written where asked for, on a brisk disk."""
BRISK_NS: Final = 4_000_000
"""What everybody else in the event loop may be kept from it by a write."""


@attrs.define(eq=False)
class Committer:
    """Makes changes durable, one after the other.

    `on_point` is told "before X", when nothing of X has been written, and "after X", when X is durable.
    """

    database: Database
    on_point: Callable[[str], None] | None = None
    _turn: trio.Lock = attrs.field(init=False, factory=trio.Lock)
    _took_ns: int = attrs.field(init=False, default=BRISK_NS)

    async def commit(self, what: str, change: Callable[[Contents], Contents]) -> Contents:
        """See `Database.commit`; `change` is called on what the change before it left, maybe in a thread."""
        assert what in WRITES, f"{what!r} is a write at whose points nobody has been killed yet"
        self._visit(f"before {what}")
        if what in AT_ONCE and self.disk_is_brisk and not self._turn.locked():
            contents = self._commit(change)
        else:
            with trio.CancelScope(shield=True):
                async with self._turn:  # the threads are those of the process: many directories do not need as many
                    contents = await trio.to_thread.run_sync(self._commit, change)
        self._visit(f"after {what}")
        return contents

    @property
    def disk_is_brisk(self) -> bool:
        """Whether the last write took so little that nobody need be spared the next."""
        return self._took_ns < BRISK_NS

    def _commit(self, change: Callable[[Contents], Contents]) -> Contents:
        began_ns, self._took_ns = time.monotonic_ns(), BRISK_NS  # a disk that fails is not brisk, however soon it does
        contents = self.database.commit(change)
        self._took_ns = time.monotonic_ns() - began_ns
        return contents

    def _visit(self, point: str) -> None:
        if self.on_point is not None:
            self.on_point(point)


@attrs.frozen
class DurableJournal:
    """The journal of one machine; see `migrate.engine.ports.Journal`.  All that look at one see the same."""

    _committer: Committer
    vm_id: UUID

    @property
    def record(self) -> Record:
        return self._kept.record

    @property
    def highest(self) -> int:
        """The highest generation that was ever used here, or may have been."""
        return self._kept.highest

    @property
    def debts(self) -> tuple[Debt, ...]:
        """What peers must still be told, oldest first."""
        return self._kept.debts

    async def new_generation(self) -> int:
        """One above the highest, which is durable before it is returned.

        Raises:
            JournalFailed: the record stands; the number may be passed over.
            StateError: see `write`.
        """
        refuse_large(self.highest + 1)
        contents = await self._change("new generation", lambda kept: attrs.evolve(kept, highest=kept.highest + 1))
        return contents.kept(self.vm_id).highest

    async def write(
        self,
        record: Record,
        *,
        image: PauseImage | None = None,
        machine: KnownMachine | None = None,
        debt: Debt | None = None,
    ) -> None:
        """Return when `record`, and what is given with it, will be found after any crash.

        Raises:
            JournalFailed: nothing was written; the record before stands, and the journal can be used further.
            StateError: nobody knows whether it was written; the daemon must stop.
        """
        await self.write_as(f"write {record.holding}", record, image=image, machine=machine, debt=debt)

    async def write_as(
        self,
        what: str,
        record: Record,
        *,
        image: PauseImage | None = None,
        machine: KnownMachine | None = None,
        debt: Debt | None = None,
    ) -> None:
        """`write` under another name for the points."""
        if image is not None:
            assert record.holding in WITH_IMAGE, f"an image has no place beside {record}"
            assert image.generation == record.generation, f"an image of {image.generation} beside {record}"
        assert machine is None or machine.vm_id == self.vm_id, "the journal of another machine"
        refuse_large(record.generation, record.session, *(() if debt is None else (debt.generation,)))
        await self._change(what, lambda kept: _written(kept, record, image, machine, debt))

    async def settle_debt(self, generation: int, peer: str) -> None:
        """`peer` has heard what it was owed of `generation`; nothing happens if nothing was.

        Raises:
            JournalFailed, StateError: as `write`.
        """
        await self._change(
            "settle debt",
            lambda kept: attrs.evolve(
                kept, debts=tuple(debt for debt in kept.debts if (debt.generation, debt.peer) != (generation, peer))
            ),
        )

    @property
    def _kept(self) -> Kept:
        return self._committer.database.contents.kept(self.vm_id)

    async def _change(self, what: str, change: Callable[[Kept], Kept]) -> Contents:
        return await self._committer.commit(what, lambda contents: contents.having(change(contents.kept(self.vm_id))))


def refuse_large(*numbers: int) -> None:
    """Raises JournalFailed for what a peer may say and a journal cannot hold."""
    for number in numbers:
        if not 0 <= number <= INTEGER_MAX:
            raise JournalFailed(
                f"a journal holds generations up to {INTEGER_MAX} and not {number}: nothing was written"
            )


def _written(
    kept: Kept, record: Record, image: PauseImage | None, machine: KnownMachine | None, debt: Debt | None
) -> Kept:
    image = image or kept.image
    if image is not None and (record.holding not in WITH_IMAGE or image.generation != record.generation):
        image = None
    debts = kept.debts
    if debt is not None:
        others = (one for one in debts if (one.generation, one.peer) != (debt.generation, debt.peer))
        debts = (*others, debt)
    return attrs.evolve(
        kept,
        record=record,
        highest=max(kept.highest, record.generation),
        machine=machine or kept.machine,
        image=image,
        debts=debts,
    )
