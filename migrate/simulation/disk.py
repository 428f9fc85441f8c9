"""A node's disk, and the journal on it: what is there again after the node has died.

What is written lies in the host's cache until it is synced.  The death of a process costs nothing of it; the death of
the host costs everything that was not synced, and guest RAM, which never is.  A write of the journal is one change of
everything that it concerns, followed by one sync, so whoever dies meanwhile finds all of it or nothing.

A disk can be full, which fails a write before it changes anything, and its sync can fail, after which the change is
taken back: the record that counts is the old one, as the state directory of the daemons promises.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Self

import attrs

from migrate.engine.handoff import NEVER_HAD, Holding, Record
from migrate.errors import JournalFailed
from sim_vmm.birth import Birth
from sim_vmm.machine import Machine
from sim_vmm.memory import GuestMemory
from sim_vmm.spec import Spec

if TYPE_CHECKING:
    from migrate.simulation.node import Life

SYNC_NS: Final = 600_000


@attrs.frozen
class Debt:
    """What `peer` must be told of `generation`."""

    generation: int
    peer: str


@attrs.frozen(kw_only=True)
class KeptImage:
    """The small part of a paused machine, and its RAM, which lies in a file that is mapped shared."""

    frames: bytes
    generation: int
    ram: GuestMemory = attrs.field(eq=False, repr=False)
    boot: int


@attrs.frozen(kw_only=True)
class Content:
    """Everything that a node remembers of the machine."""

    record: Record = NEVER_HAD
    highest: int = 0
    debts: tuple[Debt, ...] = ()
    image: KeptImage | None = None
    spec: Spec | None = attrs.field(default=None, eq=False, repr=False)
    birth: Birth | None = attrs.field(default=None, eq=False, repr=False)


@attrs.define
class Disk:
    """`content` is what a living process goes by; `pending` is in the host's cache, and its sync is under way.

    `full` and `failing_syncs` count the operations that are to fail; `boot` counts the starts of the host.
    """

    content: Content = attrs.field(factory=Content)
    pending: Content | None = None
    full: int = 0
    failing_syncs: int = 0
    boot: int = 0

    def outlive_process(self) -> None:
        """What is in the cache will be found, synced or not."""
        self.content, self.pending = self.pending or self.content, None

    def lose_power(self) -> None:
        """What was not synced is gone, and so is guest RAM."""
        self.pending = None
        self.boot += 1


@attrs.define
class SimulatedJournal:
    """See `migrate.engine.ports.Journal`; also the journals of the node, as the world has one machine only."""

    life: "Life"
    disk: Disk
    keeps_images: bool = attrs.field(default=True, init=False)

    @property
    def record(self) -> Record:
        return self.disk.content.record

    @property
    def highest(self) -> int:
        return self.disk.content.highest

    @property
    def debts(self) -> tuple[Debt, ...]:
        return self.disk.content.debts

    async def of(self, birth: Birth, name: str) -> Self:
        self.life.check()
        return self

    async def new_generation(self) -> int:
        number = self.highest + 1
        await self._change(lambda content: attrs.evolve(content, highest=number), f"the number {number}")
        return number

    async def expect(self, machine: Machine) -> None:
        """A write costs the same here, whatever is in it."""

    async def write(self, record: Record, *, image: bytes | None = None, owes_answer: bool = False) -> None:
        life, kept = self.life, None
        machine = life.machine
        if image is not None:
            assert machine is not None, "the image is of a machine that is here"
            kept = KeptImage(frames=image, generation=record.generation, ram=machine.memory, boot=self.disk.boot)

        def change(content: Content) -> Content:
            keeps = record.holding in (Holding.COMMITTED, Holding.READY)
            debts = content.debts
            if owes_answer:
                debts = (*debts, Debt(record.generation, record.peer))
            return Content(
                record=record,
                highest=max(content.highest, record.generation),
                image=(kept or content.image) if keeps else None,
                debts=debts,
                spec=content.spec if machine is None else machine.spec,
                birth=content.birth if machine is None else machine.birth,
            )

        life.world.hooks.writing(life)
        await self._change(change, str(record))
        life.world.say(life.node.name, lambda: f"writes {record}")
        life.world.hooks.written(life)

    async def settle_debt(self, generation: int, peer: str) -> None:
        left = tuple(debt for debt in self.debts if debt != Debt(generation, peer))
        if left != self.debts:
            await self._change(lambda content: attrs.evolve(content, debts=left), "that a debt is settled")

    async def _change(self, change: Callable[[Content], Content], what: str) -> None:
        """Raises JournalFailed: nothing has changed."""
        self.life.check()
        disk = self.disk
        if disk.full:
            disk.full -= 1
            raise JournalFailed(f"no space is left to note {what}")
        after = change(disk.content)
        if after == disk.content and after.image is disk.content.image:
            return
        disk.pending = after
        await self.life.world.scheduler.sleep(SYNC_NS)
        disk.pending = None
        if disk.failing_syncs:
            disk.failing_syncs -= 1
            raise JournalFailed(f"the disk cannot sync {what}")
        disk.content = after
