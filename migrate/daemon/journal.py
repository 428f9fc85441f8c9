"""Ownership records kept in memory: they survive cut connections, not the death of the process.

For daemons without a state directory; those with one keep theirs in it (migrate/daemon/state.py).
"""

from uuid import UUID

import attrs

from migrate.engine.handoff import NEVER_HAD, Holding, Record
from sim_vmm.birth import Birth
from sim_vmm.machine import Machine


@attrs.frozen
class Owed:
    """What `peer` must be told of `generation`."""

    generation: int
    peer: str


@attrs.define
class VolatileJournal:
    """A journal for one machine; see `migrate.engine.ports.Journal`."""

    record: Record
    highest: int = attrs.field(init=False)
    debts: list[Owed] = attrs.field(factory=list)
    keeps_images: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.highest = self.record.generation

    async def new_generation(self) -> int:
        self.highest += 1
        return self.highest

    async def expect(self, machine: Machine) -> None:
        """Nothing is to be done."""

    async def write(self, record: Record, *, image: bytes | None = None, owes_answer: bool = False) -> None:
        self.highest = max(self.highest, record.generation)
        self.record = record
        if owes_answer:
            self.debts.append(Owed(record.generation, record.peer))

    async def settle_debt(self, generation: int, peer: str) -> None:
        self.debts = [debt for debt in self.debts if debt != Owed(generation, peer)]


@attrs.define
class VolatileJournals:
    """The journals of a node that forgets them with its process; see `migrate.engine.ports.Journals`."""

    kept: dict[UUID, VolatileJournal] = attrs.field(factory=dict)

    def journal(self, birth: Birth) -> VolatileJournal:
        return self.kept.setdefault(birth.vm_id, journal_of_stranger())

    async def of(self, birth: Birth, name: str) -> VolatileJournal:
        return self.journal(birth)


def journal_of_owner() -> VolatileJournal:
    """For a machine that is born here."""
    return VolatileJournal(Record(Holding.OWNER, 1))


def journal_of_stranger() -> VolatileJournal:
    """For a node that has never had the machine."""
    return VolatileJournal(NEVER_HAD)
