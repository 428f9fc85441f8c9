"""The door of a migration port: who calls is admitted, says what it wants, and is led to the machine that it comes for.

Until then it may be anybody, and waits among the callers that are counted (`waiting_room`).  One daemon may have one
machine behind its door, or many.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import attrs
import trio

from migrate.daemon.access import Access
from migrate.daemon.events import EventLog
from migrate.daemon.link import SocketLink
from migrate.daemon.waiting_room import Caller, WaitingRoom
from migrate.engine.source import tell_failure
from migrate.errors import MigrationError
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Message, Refuse, Role
from migrate.reasons import Reason


class Receiver(Protocol):
    """A machine, or what is left of one, that a caller can be led to."""

    async def receive(self, link: SocketLink, caller: Caller) -> None:
        """All of what `caller` came for: it has opened the conversation on `link`, and is let in or turned away."""


@attrs.define
class Door:
    """`lead` says for whom a caller has come, by its first message, or why for nobody."""

    access: Access
    deadlines: Deadlines
    events: EventLog
    lead: Callable[[Message], Receiver | Reason]
    _waiting_room: WaitingRoom = attrs.field(factory=WaitingRoom)

    async def answer(self, stream: trio.SocketStream) -> None:
        """One connection, to its end."""
        with self._waiting_room.caller(stream) as caller:
            try:
                transport = await self.access.admit(stream, self.deadlines)
            except MigrationError as error:
                tell_turned_away(self.events, caller, caller.explain(error))
                return
            async with SocketLink(
                Role.SOURCE, transport, self.deadlines, self._visit, self.events.note_message
            ) as link:
                opening = await self._opening(link, caller)
                if opening is None:
                    return
                led = self.lead(opening)
                if isinstance(led, Reason):
                    await turn_away(link, led, caller, self.events)
                else:
                    await led.receive(link, caller)

    async def _opening(self, link: SocketLink, caller: Caller) -> Message | None:
        """What a target opens with, or None: nobody occupies a machine before having opened the conversation."""
        try:
            await link.hear_opening()
        except MigrationError as error:
            tell_turned_away(self.events, caller, caller.explain(error))
            if link.peer_speaks_ours and not caller.crowded_out:
                await tell_failure(link, "hello", error)
            return None
        return link.opening

    def _visit(self, point: str) -> None:
        self.events.tell("point", name=point)


async def turn_away(link: SocketLink, objection: Reason, caller: Caller, events: EventLog) -> None:
    """Answer the hello, so that the refusal is understood; who came to settle will come again."""
    tell_turned_away(events, caller, objection.message)
    with suppress(MigrationError):  # it has gone, or what it said cannot be refused
        await link.send(Refuse(reasons=(objection,)))


def tell_turned_away(events: EventLog, caller: Caller, why: str) -> None:
    events.tell("turned away", peer=caller.address, error=why)
