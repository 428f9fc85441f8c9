"""The source daemon: a running machine, ready to be migrated away by whoever connects.

One connection migrates at a time; others are told so and the first is left undisturbed.  A failed attempt leaves the
machine running and the daemon listening.  When a handoff is in doubt the machine stays paused, and only a target that
comes back to settle it is served; if the machine's storage has a fence, the source takes the machine back by itself
when no target has come for a while, or finds by the fence that the target has it.
"""

from collections.abc import Callable, Sequence
from typing import Final

import attrs
import trio

from migrate.daemon.access import Access
from migrate.daemon.clock import TrioClock
from migrate.daemon.door import Door, tell_turned_away, turn_away
from migrate.daemon.events import EventLog
from migrate.daemon.guests import GuestRunner, do_nothing
from migrate.daemon.invitation import Invitation
from migrate.daemon.link import SocketLink
from migrate.daemon.node import AnyJournal, Node
from migrate.daemon.outcome import AttemptOutcome, Cancelling, Outcome
from migrate.daemon.streams import carry_ram
from migrate.daemon.waiting_room import Caller
from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding
from migrate.engine.ownership import StorageTaken
from migrate.engine.ports import Ram
from migrate.engine.ram import MappedRam
from migrate.engine.source import Served, SourcePorts, SourceSettings, no_common_version, run_source, tell_failure
from migrate.errors import HandoffInDoubt, MigrationError
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import PROTOCOL_VERSIONS, Attach, Hello, HelloFor, Message, Role
from migrate.reasons import Reason
from sim_vmm.fence import FencedOff

RECLAIM_AFTER_S: Final = 10.0

BUSY: Final = Reason(
    component="machine", field="migration", have="in progress with another target", need="the end of that attempt"
)


@attrs.define
class SourceDaemon:
    """Serves one machine until it is handed over, or must not run here any more.

    `reclaim_after_s` is for how long a target may be unreachable before a machine with a fence is taken back.
    `on_streams` is told when a target has announced further connections.
    """

    runner: GuestRunner
    journal: AnyJournal
    settings: SourceSettings
    events: EventLog
    node: Node | None = None
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    access: Access = attrs.field(factory=Access)
    invitation: Invitation = attrs.field(factory=Invitation)
    reclaim_after_s: float = RECLAIM_AFTER_S
    ram: Ram = attrs.field(factory=MappedRam)
    on_streams: Callable[[], None] = do_nothing
    attempts: list[AttemptOutcome] = attrs.field(factory=list)
    over: trio.Event = attrs.field(factory=trio.Event)
    in_doubt: trio.Event = attrs.field(factory=trio.Event)
    lost: bool = False
    _current: SocketLink | None = None
    _reclaiming: bool = False

    async def serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Return when a target owns the machine; with `lost` set, when it must not run here and nobody was given it."""
        door = Door(self.access, self.deadlines, self.events, lambda _: self)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, door.answer, list(listeners))
            await self.watch()
            nursery.cancel_scope.cancel()

    async def watch(self) -> None:
        """`serve`, where somebody else has the door, and leads here who comes for this machine."""
        if self.journal.record.holding is Holding.COMMITTED:
            self.in_doubt.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_fence)
            if self.node is not None and self.node.hypervisor.fence is not None:
                nursery.start_soon(self._reclaim)
            await self.over.wait()
            nursery.cancel_scope.cancel()

    def cancel_attempt(self) -> Cancelling:
        """End the attempt that is in progress, if there is one and it can still be undone."""
        return Cancelling.NOTHING_TO_CANCEL if self._current is None else self._current.cancel()

    def _ports(self, link: SocketLink) -> SourcePorts:
        fence = None if self.node is None else self.node.hypervisor.fence
        clock = TrioClock()
        return SourcePorts(
            link=link,
            guest=self.runner,
            journal=self.journal,
            clock=clock,
            observer=self.events,
            fence=fence,
            ram=self.ram,
            way_ns=link.way_ns,
        )

    async def _heed_fence(self) -> None:
        """A machine whose I/O is refused because the disks are another's is over here."""
        await self.runner.fenced_off.wait()
        refusal = self.runner.refusal
        assert refusal is not None, "the event says so"
        self.events.tell("fenced off", message=str(refusal))
        if self._current is None:  # else the attempt finds out by itself, when it pauses or resumes the guest
            if self.node is not None:
                found = refusal.found if isinstance(refusal, FencedOff) else None
                await self.node.ownership(self.runner, self.journal).lose(found)
            self.lost = True
            self.over.set()

    async def _reclaim(self) -> None:
        """Again and again while a handoff is in doubt: wait for the target, then ask the fence."""
        while True:
            await self.in_doubt.wait()
            await trio.sleep(self.reclaim_after_s)
            if self.node is None or self._current is not None or self.journal.record.holding is not Holding.COMMITTED:
                continue
            self._reclaiming = True
            try:
                await self._take_back(self.node)
            finally:
                self._reclaiming = False

    async def _take_back(self, node: Node) -> None:
        attempt = Attempt(side=Role.SOURCE, clock=TrioClock(), phase="handoff", committed=True)
        error: MigrationError | None = None
        try:
            await node.ownership(self.runner, self.journal).reclaim()
        except StorageTaken as taken:
            if self.journal.record.holding is Holding.COMMITTED:  # the target has begun to start it, and will say so
                self.events.tell("still in doubt", message=str(taken), again_in_s=self.reclaim_after_s)
                return
            self.events.tell("handed over", generation=self.journal.record.generation)
        except MigrationError as failure:
            self.events.tell("still in doubt", message=str(failure), again_in_s=self.reclaim_after_s)
            return
        else:
            self.events.tell("rolled back", phase="handoff")
            error = HandoffInDoubt("no target has come; the fence shows that none has started the machine: it is back")
        await self._note(AttemptOutcome(attempt=attempt, error=error))

    async def receive(self, link: SocketLink, caller: Caller) -> None:
        """Whoever opened the conversation on `link` has come for this machine: see `door`."""
        if isinstance(link.opening, Attach):
            await self._carry_ram(link, link.opening, caller)
            return
        objection = self._objection(link.opening)
        if objection is not None:
            await turn_away(link, objection, caller, self.events)
            return
        caller.let_in()
        self._current, link.on_streams = link, self.on_streams
        try:
            await self._invited(link)
        finally:
            self._current = None

    def awaits(self, token: bytes) -> bool:
        """Whether the migration in progress has announced streams under `token`."""
        return self._current is not None and self._current.streams.rules.awaits(token)

    async def _carry_ram(self, link: SocketLink, attach: Attach, caller: Caller) -> None:
        """Until the migration in progress has taken the stream as its own, it is a caller like any other."""
        caller.on_crowded_out = link.over.set
        try:
            await carry_ram(link, attach, self._current, caller.let_in)
        except MigrationError as error:
            tell_turned_away(self.events, caller, str(error))

    def _objection(self, opening: Message | None) -> Reason | None:
        """Why whoever said this must not have the machine now."""
        if isinstance(opening, Hello | HelloFor):
            if not set(opening.protocol_versions) & set(PROTOCOL_VERSIONS):
                return no_common_version(opening.protocol_versions)
            unknown = self.invitation.objection(opening)
            if unknown is not None:
                return unknown
        return BUSY if self._current is not None or self._reclaiming else None

    async def _invited(self, link: SocketLink) -> None:
        """An attempt under the migration's id, if there is one; a handoff that is settled needs none."""
        if not isinstance(link.opening, HelloFor):
            await self._attempt(link)
            return
        invitation = self.invitation
        try:
            await invitation.use()
        except MigrationError as error:
            self.events.tell("turned away", error=str(error))
            await tell_failure(link, "hello", error)
            return
        await self._attempt(link)
        try:
            await invitation.end(undone=not self.attempts[-1].attempt.committed)
        except MigrationError as error:
            self.events.tell("not remembered", message=f"that the migration id may be used again: {error}")

    async def _attempt(self, link: SocketLink) -> None:
        attempt = Attempt(side=Role.SOURCE, clock=TrioClock())
        self.events.tell("attempt", number=len(self.attempts) + 1)
        error: MigrationError | None = None
        served: Served | None = None
        try:
            served = await run_source(self._ports(link), self.settings, attempt)
        except MigrationError as failure:
            error = failure
        if served is Served.NOTHING_CHANGED:
            self.events.tell("told", message="a node has told again what became of an earlier generation")
            return
        await self._note(AttemptOutcome(attempt=attempt, error=error))

    async def _note(self, outcome: AttemptOutcome) -> None:
        """What came of an attempt, and of the machine."""
        self.attempts.append(outcome)
        record = self.journal.record
        if record.holding is Holding.COMMITTED:
            self.in_doubt.set()
        else:
            self.in_doubt = trio.Event()
        if self.node is not None:
            await self.node.note_attempt(self.runner.machine.birth.vm_id, outcome, record)
        self.events.tell("attempt ended", **outcome.as_json())
        if record.holding is Holding.NOT_OWNER or self.runner.fenced_off.is_set():
            self.lost = outcome.outcome is not Outcome.MIGRATED
            self.over.set()
