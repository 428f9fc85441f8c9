"""The source daemon: a running machine, ready to be migrated away by whoever connects.

One connection migrates at a time; others are told so and the first is left undisturbed.  A failed attempt leaves the
machine running and the daemon listening.  When a handoff is in doubt the machine stays paused, and only a target that
comes back to settle it is served.
"""

from collections.abc import Sequence
from typing import Final

import attrs
import trio

from migrate.daemon.clock import TrioClock
from migrate.daemon.deadlines import Deadlines
from migrate.daemon.events import EventLog
from migrate.daemon.guests import GuestRunner
from migrate.daemon.journal import VolatileJournal
from migrate.daemon.link import SocketLink
from migrate.daemon.outcome import AttemptOutcome, Cancelling, Outcome
from migrate.engine.attempt import Attempt
from migrate.engine.source import SourcePorts, SourceSettings, run_source, tell_failure
from migrate.errors import MigrationError
from migrate.protocol.messages import Refuse, Role
from migrate.reasons import Reason

CONNECTIONS_MAX: Final = 64
"""Connections looked at at once; what comes beyond is closed unread."""

BUSY: Final = Reason(
    component="machine", field="migration", have="in progress with another target", need="the end of that attempt"
)


@attrs.define
class SourceDaemon:
    """Serves one machine until it is handed over."""

    runner: GuestRunner
    journal: VolatileJournal
    settings: SourceSettings
    events: EventLog
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    attempts: list[AttemptOutcome] = attrs.field(factory=list)
    handed_over: trio.Event = attrs.field(factory=trio.Event)
    _current: SocketLink | None = None
    _connections: int = 0

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Return when a target owns the machine."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._answer, list(listeners))
            await self.handed_over.wait()
            nursery.cancel_scope.cancel()

    def cancel_attempt(self) -> Cancelling:
        """End the attempt that is in progress, if there is one and it can still be undone."""
        return Cancelling.NOTHING_TO_CANCEL if self._current is None else self._current.cancel()

    async def _answer(self, stream: trio.SocketStream) -> None:
        if self._connections >= CONNECTIONS_MAX:
            await stream.aclose()
            return
        self._connections += 1
        try:
            async with SocketLink(Role.SOURCE, stream, self.deadlines) as link:
                if not await self._is_target(link):
                    return
                if self._current is None:
                    self._current = link
                    try:
                        await self._attempt(link)
                    finally:
                        self._current = None
                else:
                    await self._turn_away(link)
        finally:
            self._connections -= 1

    async def _is_target(self, link: SocketLink) -> bool:
        """Whether a target is there: nobody occupies the machine before having opened the conversation."""
        try:
            await link.hear_opening()
        except MigrationError as error:
            self.events.tell("turned away", error=str(error))
            if link.peer_speaks_ours:
                await tell_failure(link, "hello", error)
            return False
        return True

    async def _attempt(self, link: SocketLink) -> None:
        clock = TrioClock()
        attempt = Attempt(side=Role.SOURCE, clock=clock)
        ports = SourcePorts(link=link, guest=self.runner, journal=self.journal, clock=clock, observer=self.events)
        self.events.tell("attempt", number=len(self.attempts) + 1)
        error: MigrationError | None = None
        try:
            await run_source(ports, self.settings, attempt)
        except MigrationError as failure:
            error = failure
        outcome = AttemptOutcome(attempt=attempt, error=error)
        self.attempts.append(outcome)
        self.events.tell("attempt ended", **outcome.as_json())
        if outcome.outcome is Outcome.MIGRATED:
            self.handed_over.set()

    async def _turn_away(self, link: SocketLink) -> None:
        """Answer the hello, so that the refusal is understood; who came to settle will come again."""
        try:
            await link.send(Refuse(reasons=(BUSY,)))
        except MigrationError as error:
            self.events.tell("turned away", error=str(error))
