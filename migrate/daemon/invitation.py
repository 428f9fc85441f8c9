"""Migration ids: both sides know beforehand which migration this is, and it happens once.

A source that was given an id lets in only a target that presents it (`HelloFor`), one connection at a time.  The id is
used up from the moment at which a target is let in; only an attempt that was undone, and of which nothing is left,
gives it back, so that a target may try again.  Both sides keep that in their state directories, before anything else is
said, so a daemon that was killed in an attempt does not take the same id twice.  What is kept is a digest.

An id does not stand in for TLS: in the clear, whoever listens reads it.  Coming back to settle a handoff (`Inquire`)
needs none, as the machine, the generation and both nodes are named there.
"""

import hashlib
from typing import Final, Protocol
from uuid import UUID

import attrs

from migrate.daemon.state import StateDirectory
from migrate.protocol.messages import Hello, HelloFor
from migrate.reasons import Reason

USED: Final = "used"
GIVEN_BACK: Final = "given back"


class IdUsed(Exception):
    """A migration id was given a second time."""


class KnownIds(Protocol):
    """Which ids were used here."""

    def __contains__(self, migration: UUID) -> bool: ...

    async def note(self, migration: UUID, what: str) -> None:
        """`USED`, or `GIVEN_BACK`.  Raises JournalFailed, StateError."""


@attrs.define
class UsedIds:
    """What a node remembers of ids: for ever with a state directory, else as long as its process lives."""

    state: StateDirectory | None = None
    _here: dict[str, str] = attrs.field(factory=dict)

    def __contains__(self, migration: UUID) -> bool:
        fact = _fact(migration)
        known = self._here.get(fact) if self.state is None else self.state.fact(fact)
        return known == USED

    async def note(self, migration: UUID, what: str) -> None:
        """Raises JournalFailed, StateError."""
        self._here[_fact(migration)] = what
        if self.state is not None:
            await self.state.set_fact(_fact(migration), what)


def _fact(migration: UUID) -> str:
    return f"migration id {digest_of_id(migration)}"


def digest_of_id(migration: UUID) -> str:
    return hashlib.sha256(migration.bytes).hexdigest()


@attrs.define
class Invitation:
    """The migration that a daemon is there for; any, if `migration` is None."""

    migration: UUID | None = attrs.field(default=None, repr=False)
    used: KnownIds = attrs.field(factory=UsedIds)
    _in_progress: bool = False

    @property
    def is_used(self) -> bool:
        return self.migration is not None and self.migration in self.used

    def require_unused(self) -> None:
        """Raises IdUsed: it was used before, here."""
        if self.is_used:
            raise IdUsed("this migration id was used before; give both sides a new --migration-id")

    def objection(self, hello: Hello | HelloFor) -> Reason | None:
        """Why this target is not the one that is waited for."""
        expected = "the id that both sides were given for this migration"
        match hello:
            case Hello():
                return None if self.migration is None else _reason("missing", expected)
            case HelloFor(migration=presented):
                given = UUID(bytes=presented)
                if given == self.migration and self._in_progress:
                    return _reason("in use on another connection", "the end of that attempt")
                if given in self.used:
                    return _reason("used already", "a new one, given to both sides")
                if self.migration is None:
                    return _reason("given to the target only", "one that the source was started with, too")
                return None if given == self.migration else _reason("another one", expected)

    async def use(self) -> None:
        """Before an attempt.

        Raises:
            IdUsed: it was used before, here.
            JournalFailed, StateError: it cannot be noted, so the attempt must not begin.
        """
        self.require_unused()
        if self.migration is not None:
            await self.used.note(self.migration, USED)
            self._in_progress = True

    async def end(self, *, undone: bool) -> None:
        """After an attempt; `undone` if nothing came of it on either side.

        Raises:
            JournalFailed, StateError: it stays used.
        """
        self._in_progress = False
        if self.migration is not None and undone:
            await self.used.note(self.migration, GIVEN_BACK)


def _reason(have: str, need: str) -> Reason:
    return Reason(component="migration", field="id", have=have, need=need)
