"""Callers who have not been let in yet: counted, and when there are too many the one who has waited longest goes.

Whoever really comes for a machine says so within milliseconds, so a crowd that only sits there keeps nobody out: it is
the crowd that goes.  It goes at once and without a word, so that no more sockets are open than there are seats.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import trio

SEATS: Final = 64


@attrs.define(eq=False)
class Caller:
    """One connection."""

    stream: trio.SocketStream
    crowded_out: bool = False

    def explain(self, error: Exception) -> str:
        """Why it was turned away, where `error` may be no more than what its closed socket gave."""
        return "crowded out: too many came after it before it said what it wants" if self.crowded_out else str(error)


@attrs.define
class WaitingRoom:
    seats: int = SEATS
    _waiting: dict[Caller, None] = attrs.field(factory=dict)  # in the order of their coming

    @contextmanager
    def caller(self, stream: trio.SocketStream) -> Iterator[Caller]:
        """Inside the block somebody waits, until `let_in` says otherwise."""
        while len(self._waiting) >= self.seats:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.crowded_out = True
            longest.stream.socket.close()  # whoever reads from it hears so
        caller = Caller(stream)
        self._waiting[caller] = None
        try:
            yield caller
        finally:
            self._waiting.pop(caller, None)

    def let_in(self, caller: Caller) -> None:
        """It is known by now, and goes when it wants to."""
        self._waiting.pop(caller, None)
