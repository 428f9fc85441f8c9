"""The ownership record kept in memory: it survives cut connections, not the death of the process."""

import attrs

from migrate.engine.handoff import Holding, Record


@attrs.define
class VolatileJournal:
    """A journal for one machine; see `migrate.engine.ports.Journal`."""

    record: Record
    _highest: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._highest = self.record.generation

    async def new_generation(self) -> int:
        self._highest += 1
        return self._highest

    async def write(self, record: Record) -> None:
        self._highest = max(self._highest, record.generation)
        self.record = record


def journal_of_owner() -> VolatileJournal:
    """For a machine that is born here."""
    return VolatileJournal(Record(Holding.OWNER, 1))


def journal_of_stranger() -> VolatileJournal:
    """For a node that has never had the machine."""
    return VolatileJournal(Record(Holding.NOT_OWNER, 0))
