"""The target daemon: migrate a machine in, then run it.

An attempt that failed can be repeated in the same process; a refusal is not repeated, because nothing would change.
When the link is lost during the handoff the daemon comes back by itself, with growing pauses, and asks the source what
becomes of the image it holds, or tells it that the machine runs here.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import attrs
import trio

from migrate.daemon.clock import TrioClock
from migrate.daemon.deadlines import Deadlines
from migrate.daemon.events import EventLog
from migrate.daemon.guests import TrioHypervisor
from migrate.daemon.journal import VolatileJournal
from migrate.daemon.link import SocketLink, connect
from migrate.daemon.outcome import AttemptOutcome, Cancelling, Outcome
from migrate.engine.attempt import Attempt
from migrate.engine.target import (
    Arrived,
    ImageHeld,
    TargetPorts,
    TargetSettings,
    run_target,
    settle_image,
    settle_ownership,
)
from migrate.errors import MigrationError
from migrate.protocol.messages import Role

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.05
PAUSE_MAX_S: Final = 5.0
TELL_FOR_S: Final = 600.0
"""How long an owner tells a source that does not answer: the source has most likely heard it and gone."""


@attrs.define
class TargetDaemon:
    """Migrates one machine in from the source at `host`:`port`."""

    host: str
    port: int
    hypervisor: TrioHypervisor
    journal: VolatileJournal
    settings: TargetSettings
    events: EventLog
    retries: int = 0
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    attempts: list[AttemptOutcome] = attrs.field(factory=list)
    _link: SocketLink | None = None
    cancelled: bool = False
    _migrating: bool = False
    _in_doubt: bool = False

    async def migrate_in(self) -> Arrived | None:
        """Return when the machine runs here, or None when every allowed attempt has failed: see `attempts`."""
        self._migrating = True
        try:
            return await self._attempts()
        finally:
            self._migrating = False

    async def _attempts(self) -> Arrived | None:
        for number in range(1 + self.retries):
            if number:
                self.events.tell("retrying", attempt=number + 1)
                await trio.sleep(min(FIRST_PAUSE_S * 2**number, PAUSE_MAX_S))
            arrived = await self._attempt()
            if arrived is not None:
                return arrived
            if self.cancelled or self.attempts[-1].outcome is Outcome.REFUSED:
                return None
        return None

    async def keep_telling(self, arrived: Arrived) -> None:
        """Tell the source again that the machine runs here, until it has heard it or has been gone for a while."""
        with trio.move_on_after(TELL_FOR_S):
            await self._until_settled(lambda ports: settle_ownership(ports.link, arrived))
            self.events.tell("settled", generation=arrived.generation)

    def cancel_attempt(self) -> Cancelling:
        """End the attempt that is in progress, and all further ones, if it can still be undone."""
        if not self._migrating:
            return Cancelling.NOTHING_TO_CANCEL
        if self._in_doubt or (self._link is not None and self._link.cancel() is Cancelling.TOO_LATE):
            return Cancelling.TOO_LATE
        self.cancelled = True
        return Cancelling.CANCELLED

    async def _attempt(self) -> Arrived | None:
        attempt = self._new_attempt()
        self.events.tell("attempt", number=len(self.attempts) + 1)
        error: MigrationError | None = None
        arrived: Arrived | None = None
        try:
            arrived = await self._connected(lambda ports: run_target(ports, self.settings, attempt))
        except ImageHeld as held:
            self._in_doubt = True
            self.events.tell("in doubt", message=str(held))
            arrived = await self._settle(held, attempt)
            self._in_doubt = arrived is not None
            error = None if arrived is not None else held.cause
        except MigrationError as failure:
            error = failure
        outcome = AttemptOutcome(attempt=attempt, error=error)
        self.attempts.append(outcome)
        self.events.tell("attempt ended", **outcome.as_json())
        return arrived

    async def _settle(self, held: ImageHeld, attempt: Attempt) -> Arrived | None:
        arrived = await self._until_settled(lambda ports: settle_image(ports, held, attempt))
        self.events.tell("settled", generation=held.generation)
        return arrived

    async def _until_settled(self, ask: Callable[[TargetPorts], Awaitable[T]]) -> T:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._connected(ask)
            except MigrationError as error:
                self.events.tell("still in doubt", message=str(error), again_in_s=pause_s)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _connected(self, converse: Callable[[TargetPorts], Awaitable[T]]) -> T:
        stream = await connect(self.host, self.port, self.deadlines)
        async with SocketLink(Role.TARGET, stream, self.deadlines) as link:
            self._link = link
            if self.cancelled:  # while there was no link
                link.cancel()
            try:
                return await converse(self._ports(link))
            finally:
                self._link = None

    def _ports(self, link: SocketLink) -> TargetPorts:
        return TargetPorts(
            link=link, hypervisor=self.hypervisor, journal=self.journal, clock=TrioClock(), observer=self.events
        )

    def _new_attempt(self) -> Attempt:
        return Attempt(side=Role.TARGET, clock=TrioClock())
