"""Who may run the machine: the records of ownership, and what each answers after a lost connection.  No I/O.

Ownership moves in one step: the source writes `C(n)`, which gives generation n away, and only then sends `Commit(n)`;
the target writes `O(n)` and only then runs.  Before `C(n)` only the source may run; after it, only the target's
choice counts, and the source runs again only when the target says that it will never run generation n.

The records are written through the journal port.  Today's daemons keep them in memory, so the rules hold across cut
connections but not across the death of a process.
"""

from enum import StrEnum

import attrs

from migrate.protocol.messages import Abandon, Commit, Released, Settle


class Holding(StrEnum):
    """What a node has of the machine."""

    OWNER = "O"
    """Owns generation n: runs it."""
    COMMITTED = "C"
    """Source: gave generation n away; must not run; keeps the paused machine."""
    READY = "R"
    """Target: holds the complete image of generation n; must not run."""
    NOT_OWNER = "N"
    """Not the owner; every generation up to n is dead here for ever."""


@attrs.frozen
class Record:
    """One node's record for one machine."""

    holding: Holding
    generation: int

    def __str__(self) -> str:
        return f"{self.holding}({self.generation})"


def answer_settle(record: Record, settle: Settle) -> Commit | Released | Abandon:
    """What a source holding `record` tells a target that comes back with `settle`.

    A target that owns the generation releases the source if the source gave that very one away.  A target that holds
    an image may run it only if the source gave it away and waits; in every other case the image is dead, because the
    source, or somebody after it, has run since.
    """
    gave_it_away = record == Record(Holding.COMMITTED, settle.generation)
    if settle.owned and (gave_it_away or record == Record(Holding.NOT_OWNER, settle.generation)):
        return Released(generation=settle.generation)
    if gave_it_away:
        return Commit(generation=settle.generation)
    return Abandon(generation=settle.generation)


def after_settle(record: Record, answer: Commit | Released | Abandon) -> Record:
    """The source's record once it has answered: it must be written before `answer` is sent."""
    if isinstance(answer, Released) and record.holding is Holding.COMMITTED:
        return Record(Holding.NOT_OWNER, record.generation)
    return record
