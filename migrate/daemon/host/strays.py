"""Further connections for guest RAM, on a host: each goes to the migration that has announced it.

A stream says a token, and by that alone whose it is.  It may be here before its announcement has been read, which came
by another connection; until then it waits, as a caller like any other, and no longer than it takes to open a
conversation.
"""

from collections.abc import Callable

import attrs
import trio

from migrate.daemon.door import Receiver, tell_turned_away
from migrate.daemon.events import EventLog
from migrate.daemon.link import SocketLink
from migrate.daemon.streams import carry_ram
from migrate.daemon.waiting_room import Caller
from migrate.errors import MigrationError
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Attach


@attrs.define(eq=False)
class Strays:
    """Those whose migration is not known yet; `awaiting` finds the one that awaits a token."""

    awaiting: Callable[[bytes], Receiver | None]
    deadlines: Deadlines
    events: EventLog
    _news: trio.Event = attrs.field(factory=trio.Event, init=False)

    def look_again(self) -> None:
        """Somebody has announced streams."""
        self._news.set()
        self._news = trio.Event()

    async def receive(self, link: SocketLink, caller: Caller) -> None:
        """See `migrate.daemon.door`."""
        attach = link.opening
        assert isinstance(attach, Attach), "the host has seen that"
        found = await self._awaited(attach.token, caller)
        if found is not None:
            caller.let_in()  # it knows the token: no crowd is to throw it out
            await found.receive(link, caller)
            return
        try:
            await carry_ram(link, attach, None, caller.let_in)
        except MigrationError as error:
            tell_turned_away(self.events, caller, caller.explain(error))

    async def _awaited(self, token: bytes, caller: Caller) -> Receiver | None:
        caller.on_crowded_out = self.look_again
        with trio.move_on_after(self.deadlines.opening_s):
            while not caller.crowded_out:
                found = self.awaiting(token)
                if found is not None:
                    return found
                await self._news.wait()
        return None
