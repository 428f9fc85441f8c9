"""Callers who have not been let in yet: counted, and when there are too many the one who has waited longest goes.

Whoever really comes for a machine says so within milliseconds, so a crowd that only sits there keeps nobody out: it is
the crowd that goes, at once and without a word, so that hardly more sockets are open than there are seats.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import attrs
import trio

from migrate.daemon.address import Address

SEATS: Final = 64


def _nothing() -> None:
    """Nobody waits for anything but the socket."""


@attrs.define(eq=False)
class Caller:
    """One connection."""

    stream: trio.SocketStream
    crowded_out: bool = False
    let_in: Callable[[], None] = _nothing
    """It is known by now, and goes when it wants to."""
    address: str = attrs.field(init=False)
    on_crowded_out: Callable[[], None] = _nothing

    def __attrs_post_init__(self) -> None:
        try:
            host, port = self.stream.socket.getpeername()[:2]
            self.address = str(Address(host=host, port=port))
        except OSError:
            self.address = "gone already"

    def hang_up(self) -> None:
        """Whoever reads from it hears so.  It is not closed here: its number may be another connection's at once."""
        self.crowded_out = True
        with suppress(OSError):  # it has gone already
            self.stream.socket.shutdown(socket.SHUT_RDWR)
        self.on_crowded_out()

    def explain(self, error: Exception) -> str:
        """Why it was turned away, where `error` may be no more than what its socket gave then."""
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
            longest.hang_up()
        caller = Caller(stream)
        caller.let_in = lambda: self.let_in(caller)
        self._waiting[caller] = None
        try:
            yield caller
        finally:
            self._waiting.pop(caller, None)

    def let_in(self, caller: Caller) -> None:
        """It is known by now, and goes when it wants to."""
        self._waiting.pop(caller, None)
