"""The target daemon: migrate a machine in, then run it.

An attempt that failed can be repeated in the same process; a refusal is not repeated, because nothing would change.
When the link is lost during the handoff the daemon comes back by itself, with growing pauses, and asks the source what
becomes of the image it holds; what it owes the source, that the machine runs here or never will, it tells until it is
heard.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import attrs
import trio

from migrate.daemon.access import Access
from migrate.daemon.address import Address
from migrate.daemon.clock import TrioClock
from migrate.daemon.events import EventLog
from migrate.daemon.guests import GuestRunner, TrioHypervisor
from migrate.daemon.invitation import Invitation, KnownIds, UsedIds
from migrate.daemon.journal import Owed
from migrate.daemon.link import SocketLink
from migrate.daemon.node import AnyJournal, ImageLost, Node, NodeJournal, NodeJournals, new_attempt
from migrate.daemon.outcome import AttemptOutcome, Cancelling, Outcome
from migrate.daemon.slots import Slots
from migrate.daemon.source import BUSY
from migrate.daemon.state import Debt
from migrate.daemon.transport import Transport
from migrate.engine.attempt import Attempt
from migrate.engine.handoff import NEVER_HAD, declining, taken_already
from migrate.engine.no_link import NoLink
from migrate.engine.ownership import Ownership
from migrate.engine.target import (
    Arrived,
    Declined,
    ImageHeld,
    NobodyKnows,
    TargetPorts,
    TargetSettings,
    run_target,
    settle_image,
    take_what_is_taken,
    tell_answer,
)
from migrate.errors import MigrationError, Refused
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.05
PAUSE_MAX_S: Final = 1.0
"""Who is there again is to be asked again within two seconds."""
BUSY_MAX: Final = 10
"""How often in a row a source may be busy after an attempt of ours, most likely with its end, before that is final."""
TELL_FOR_S: Final = 600.0
"""How long a debt is told to a source that does not answer: it has most likely heard it and gone."""


class Restarted(MigrationError):
    """An attempt that a dead process had begun."""


@attrs.define
class TargetDaemon:
    """Migrates one machine in from the source at `address`, to `node`.

    Where many come at once, `openings` are for those whom no source has answered yet: more than fit a waiting room
    would crowd each other out.
    """

    address: Address
    node: Node
    settings: TargetSettings
    events: EventLog
    retries: int = 0
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    access: Access = attrs.field(factory=Access)
    streams: int = 1
    pace: float = 1.0
    used_ids: KnownIds = attrs.field(factory=UsedIds)
    openings: Slots | None = None
    invitation: Invitation = attrs.field(init=False)
    attempts: list[AttemptOutcome] = attrs.field(factory=list)
    journals: NodeJournals = attrs.field(init=False)
    _link: SocketLink | None = None
    cancelled: bool = False
    _migrating: bool = False
    _in_doubt: bool = False

    def __attrs_post_init__(self) -> None:
        self.journals = self.node.journals(str(self.address))
        self.invitation = Invitation(self.settings.migration, self.used_ids)

    @property
    def hypervisor(self) -> TrioHypervisor:
        return self.node.hypervisor

    @property
    def journal(self) -> AnyJournal:
        """Of the machine that came last."""
        assert self.journals.last is not None, "a machine has come"
        return self.journals.last

    async def migrate_in(self) -> Arrived | None:
        """Return when the machine runs here, or None when every allowed attempt has failed: see `attempts`.

        Raises:
            IdUsed, JournalFailed: there was no attempt.
        """
        await self.invitation.use()
        self._migrating = True
        try:
            arrived = await self._attempts()
        finally:
            self._migrating = False
        last = self.attempts[-1]
        try:
            await self.invitation.end(undone=last.outcome in (Outcome.REFUSED, Outcome.FAILED))
        except MigrationError as error:
            self.events.tell("not remembered", message=f"that the migration id may be used again: {error}")
        return arrived

    async def ask(self, runner: GuestRunner, name: str, journal: NodeJournal, lost: ImageLost | None) -> Arrived | None:
        """An image that was here when the process died: what becomes of it.  One that is lost is declined."""
        attempt = new_attempt(Role.TARGET)
        self.journals.last = journal
        if lost is not None and not await self._has_taken(runner, journal):
            await self.node.ownership(runner, journal).carry_out(declining(journal.record))
            await self._note(attempt, lost)
            return None
        held = ImageHeld(runner.machine, name, journal.record, Restarted("the process of this node died"))
        self._migrating = self._in_doubt = True
        try:
            return await self._conclude(attempt, held)
        finally:
            self._migrating = False

    async def _has_taken(self, runner: GuestRunner, journal: NodeJournal) -> bool:
        fence, machine = self.hypervisor.fence, runner.machine.birth.vm_id
        if fence is None:
            return False
        return taken_already(journal.record, await fence.read(), node=self.node.name, machine=machine)

    async def tell(self, ownership: Ownership, journal: AnyJournal, name: str, for_s: float = TELL_FOR_S) -> None:
        """Tell sources what they must hear, until they have or have been gone for a while."""
        for debt in journal.debts:
            address = Address.parse(debt.address) if isinstance(debt, Debt) and debt.address else self.address

            async def ask(address: Address = address, debt: Owed | Debt = debt) -> None:
                await self._connected(
                    lambda ports: tell_answer(ports.link, ownership, name, debt.generation, debt.peer), address
                )

            with trio.move_on_after(for_s):
                try:
                    await self._until_settled(ask)
                except NobodyKnows as error:
                    self.events.tell("alarm", message=str(error))
                    continue
                self.events.tell("settled", generation=debt.generation)

    def cancel_attempt(self) -> Cancelling:
        """End the attempt that is in progress, and all further ones, if it can still be undone."""
        if not self._migrating:
            return Cancelling.NOTHING_TO_CANCEL
        if self._in_doubt or (self._link is not None and self._link.cancel() is Cancelling.TOO_LATE):
            return Cancelling.TOO_LATE
        self.cancelled = True
        return Cancelling.CANCELLED

    async def _attempts(self) -> Arrived | None:
        number = busy = 0
        while number <= self.retries:
            if number or busy:
                self.events.tell("retrying", attempt=len(self.attempts) + 1)
                await trio.sleep(self.pace * min(FIRST_PAUSE_S * 2 ** (number + busy), PAUSE_MAX_S))
            arrived = await self._attempt()
            if arrived is not None:
                return arrived
            last = self.attempts[-1]
            busy = busy + 1 if len(self.attempts) > 1 and _found_busy(last) and busy < BUSY_MAX else 0
            if self.cancelled or (not busy and last.outcome in (Outcome.REFUSED, Outcome.IN_DOUBT)):
                return None
            number += not busy
        return None

    async def _attempt(self) -> Arrived | None:
        attempt = new_attempt(Role.TARGET)
        self.events.tell("attempt", number=len(self.attempts) + 1)
        try:
            arrived = await self._connected(lambda ports: run_target(ports, self.settings, attempt), self.address)
        except ImageHeld as held:
            self._in_doubt = True
            return await self._conclude(attempt, held)
        except MigrationError as failure:
            await self._note(attempt, failure)
            return None
        await self._note(attempt, None)
        return arrived

    async def _conclude(self, attempt: Attempt, held: ImageHeld) -> Arrived | None:
        """Ask until it is known what becomes of an image."""
        self.events.tell("in doubt", message=str(held))
        error: MigrationError | None = None
        arrived: Arrived | None = None
        try:
            arrived = await self._until_settled(lambda: self._ask_once(held, attempt))
            self.events.tell("settled", generation=held.generation)
            error = None if arrived is not None else held.cause
        except MigrationError as failure:  # it was declined, or nobody can say
            error = failure
        self._in_doubt = arrived is not None
        await self._note(attempt, error)
        return arrived

    async def _ask_once(self, held: ImageHeld, attempt: Attempt) -> Arrived | None:
        """First of the fence, which may know, then of the source."""
        journal = self.journal
        taken = await take_what_is_taken(self._ports(NoLink()), self.settings, journal, held, attempt)
        if taken is not None:
            return taken
        return await self._connected(
            lambda ports: settle_image(ports, self.settings, journal, held, attempt), self.address
        )

    async def _note(self, attempt: Attempt, error: MigrationError | None) -> None:
        outcome = AttemptOutcome(attempt=attempt, error=error)
        self.attempts.append(outcome)
        journal = self.journals.last
        vm_id = getattr(getattr(journal, "birth", None), "vm_id", None)
        await self.node.note_attempt(vm_id, outcome, NEVER_HAD if journal is None else journal.record)
        self.events.tell("attempt ended", **outcome.as_json())

    async def _until_settled(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Raises MigrationError that asking again would not change: `NobodyKnows`, `Declined`."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await ask()
            except (NobodyKnows, Declined):
                raise
            except MigrationError as error:
                self.events.tell("still in doubt", message=str(error), again_in_s=pause_s)
                await trio.sleep(self.pace * pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _connected(self, converse: Callable[[TargetPorts], Awaitable[T]], address: Address) -> T:
        async def dial() -> Transport:
            return await self.access.connect(address, self.deadlines)

        opening = None if self.openings is None else await self.openings.take()
        try:
            async with SocketLink(
                Role.TARGET, await dial(), self.deadlines, self._visit, self.events.note_message, dial, self.streams
            ) as link:
                if opening is not None:
                    link.on_answer = opening.release
                self._link = link
                if self.cancelled:  # while there was no link
                    link.cancel()
                try:
                    return await converse(self._ports(link))
                finally:
                    self._link = None
        finally:
            if opening is not None:
                opening.release()

    def _visit(self, point: str) -> None:
        self.events.tell("point", name=point)

    def _ports(self, link: SocketLink | NoLink) -> TargetPorts:
        return TargetPorts(
            link=link,
            hypervisor=self.hypervisor,
            journals=self.journals,
            clock=TrioClock(),
            observer=self.events,
            fence=self.hypervisor.fence,
        )


def _found_busy(outcome: AttemptOutcome) -> bool:
    """The source refused because it was at another attempt: the one refusal that passes by itself."""
    return isinstance(outcome.error, Refused) and outcome.error.reasons == (BUSY,)
