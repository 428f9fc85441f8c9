"""What the two daemons do around the engines: serve, try again, settle, tell what is owed, begin again after a death.

This is `migrate.daemon.source`, `target` and `run` in virtual time, with the same pauses and limits.  Whatever decides
something about ownership is not here, but in the engines and the rule book, which are called as they are.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding, declining, starting, taken_already
from migrate.engine.no_link import NoLink
from migrate.engine.ownership import Hands, Ownership, StorageTaken
from migrate.engine.ports import Link
from migrate.engine.source import Served, SourcePorts, SourceSettings, run_source, tell_failure
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
from migrate.errors import HandoffInDoubt, MigrationError, Refused, RemoteProtocolError
from migrate.protocol.messages import Attach, Refuse, Role
from migrate.reasons import Reason
from migrate.simulation.disk import Debt
from migrate.simulation.link import SimulatedLink
from migrate.simulation.node import BUSY_STEPS, BUSY_STEPS_OVER_STREAMS, Life, SimulatedHypervisor
from migrate.simulation.scheduler import NS_PER_S
from migrate.simulation.streams import carry_ram

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.05
PAUSE_MAX_S: Final = 5.0
TELL_FOR_S: Final = 200.0
"""A third of what the daemons have, as all is well again sooner here than anywhere."""
PAY_FIRST_FOR_S: Final = 10.0
RECLAIM_AFTER_S: Final = 10.0
MACHINE_NAME: Final = "web-server"

BUSY: Final = Reason(
    component="machine", field="migration", have="in progress with another target", need="the end of that attempt"
)


class Restarted(MigrationError):
    """An attempt that a dead process had begun."""


def ownership_of(life: Life) -> Ownership:
    """What may be done, outside of a conversation, to the machine that is here."""

    async def run(image_is_good: bool) -> None:
        assert life.guest is not None, "a machine is here"
        if not image_is_good:
            await life.guest.start_over()
            return
        life.guest.machine.memory.dirty.restore()
        await life.guest.resume()

    async def drop() -> None:
        if life.machine is not None:
            await SimulatedHypervisor(life).discard(life.machine)

    async def stop() -> None:
        assert life.guest is not None, "a machine is here"
        await life.guest.stop()

    _, birth = life.made_of()
    return Ownership(
        node=life.node.name,
        machine=birth.vm_id,
        journal=life.journal,
        fence=life.fence,
        observer=life,
        hands=Hands(run=run, drop=drop, stop=stop),
    )


class SourceDaemon:
    """Serves the machine of a process to whoever connects."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.settings = SourceSettings(
            node=life.node.name,
            machine_name=MACHINE_NAME,
            release=life.world.release,
            policy=life.world.policy,
            bandwidth=life.world.bandwidth,
        )
        self._busy = self._reclaims = False
        self._current: SimulatedLink | None = None

    async def begin(self) -> None:
        """Find the machine again, or what is left of it."""
        life, record = self.life, self.life.journal.record
        if record.holding is Holding.OWNER and life.machine is None:
            life.have(life.make(*life.made_of()))
            await ownership_of(life).carry_out(starting(record))
        elif record.holding is Holding.COMMITTED:
            life.hold_again()
            self._mind_doubt()
        if record.holding is not Holding.NOT_OWNER:
            life.world.listen(self)

    async def answer(self, link: SimulatedLink) -> None:
        """One connection, from its opening to its end; of a stream, until the conversation has it."""
        is_over = True
        try:
            try:
                await link.hear_opening()
            except MigrationError as error:
                await tell_failure(link, "hello", error)
                return
            if isinstance(link.opening, Attach):
                is_over = not await self._carries_ram(link)
                return
            if self._busy:
                await self._turn_away(link)
                return
            self._busy = True
            self._current = link
            try:
                await self._attempt(link)
            finally:
                self._busy = False
                self._current = None
        finally:
            if is_over and self.life.alive:
                link.close()

    async def _carries_ram(self, link: SimulatedLink) -> bool:
        """Whether the conversation of the attempt in progress has taken this stream, and closes it."""
        attach = await link.receive()
        assert isinstance(attach, Attach), "it has been looked at"
        try:
            carry_ram(link, attach, self._current)
        except RemoteProtocolError as error:
            await tell_failure(link, "hello", error)
            return False
        return True

    async def _turn_away(self, link: SimulatedLink) -> None:
        try:
            await link.send(Refuse(reasons=(BUSY,)))
        except MigrationError as error:
            self.life.tell("turned away", error=error)

    async def _attempt(self, link: SimulatedLink) -> None:
        life = self.life
        assert life.guest is not None, "a source has a machine"
        life.guest.busy_steps = BUSY_STEPS if life.world.streams == 1 else BUSY_STEPS_OVER_STREAMS
        attempt = Attempt(side=Role.SOURCE, clock=life)
        ports = SourcePorts(
            link=link,
            guest=life.guest,
            journal=life.journal,
            clock=life,
            observer=life,
            fence=life.fence,
            ram=life.world.ram,
        )
        error: MigrationError | None = None
        served: Served | None = None
        try:
            served = await run_source(ports, self.settings, attempt)
        except MigrationError as failure:
            error = failure
        if served is Served.NOTHING_CHANGED:
            return
        life.world.note_outcome(life, attempt, error)
        self._mind_doubt()

    def _mind_doubt(self) -> None:
        """What follows from the record that is here after an attempt, or at the beginning."""
        holding = self.life.journal.record.holding
        if holding is Holding.NOT_OWNER:
            self.life.world.stop_listening(self)
        elif holding is Holding.COMMITTED and self.life.fence is not None and not self._reclaims:
            self._reclaims = True
            self.life.world.spawn(self.life, self._reclaim)

    async def _reclaim(self) -> None:
        """Again and again while a handoff is in doubt: wait for the target, then ask the fence."""
        while self.life.journal.record.holding is Holding.COMMITTED:
            await self.life.pause(RECLAIM_AFTER_S)
            if self._busy or self.life.journal.record.holding is not Holding.COMMITTED:
                continue
            self._busy = True
            try:
                await self._take_back()
            finally:
                self._busy = False
        self._reclaims = False
        self._mind_doubt()

    async def _take_back(self) -> None:
        life = self.life
        attempt = Attempt(side=Role.SOURCE, clock=life, phase="handoff", committed=True)
        error: MigrationError | None = None
        try:
            await ownership_of(life).reclaim()
        except StorageTaken as taken:
            if life.journal.record.holding is Holding.COMMITTED:  # the target has begun to start it, and will say so
                life.tell("still in doubt", message=taken)
                return
        except MigrationError as failure:
            life.tell("still in doubt", message=failure)
            return
        else:
            error = HandoffInDoubt("no target has come; the fence shows that none has started the machine: it is back")
        life.world.note_outcome(life, attempt, error)


class TargetDaemon:
    """Migrates the machine in, then runs it."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.settings = TargetSettings(node=life.node.name, release=life.world.release)
        self.hypervisor = SimulatedHypervisor(life)

    async def begin(self) -> None:
        life, record = self.life, self.life.journal.record
        match record.holding:
            case Holding.OWNER:
                life.have(life.make(*life.made_of()))
                await ownership_of(life).carry_out(starting(record))
                await self._pay(TELL_FOR_S)
            case Holding.READY:
                await self._ask()
                await self._pay(TELL_FOR_S)
            case _:
                await self._pay(PAY_FIRST_FOR_S)
                await self._attempts()
                await self._pay(TELL_FOR_S)

    async def _ask(self) -> None:
        """An image was here when the process died: what becomes of it.  One that is lost is declined."""
        life, attempt = self.life, Attempt(side=Role.TARGET, clock=self.life)
        lost = life.hold_again()
        if lost is not None and not await self._has_taken():
            await ownership_of(life).carry_out(declining(life.journal.record))
            life.world.note_outcome(life, attempt, lost)
            return
        assert life.machine is not None, "it has been held again"
        cause = Restarted("the process of this node died")
        await self._conclude(attempt, ImageHeld(life.machine, MACHINE_NAME, life.journal.record, cause))

    async def _has_taken(self) -> bool:
        life = self.life
        if life.fence is None:
            return False
        _, birth = life.made_of()
        found = await life.fence.read()
        return taken_already(life.journal.record, found, node=life.node.name, machine=birth.vm_id)

    async def _attempts(self) -> None:
        for number in range(1 + self.life.world.retries):
            if number:
                await self.life.pause(min(FIRST_PAUSE_S * 2**number, PAUSE_MAX_S))
            if await self._attempt():
                return

    async def _attempt(self) -> bool:
        """Whether another one is of no use: it has succeeded, or its error is not one that passes."""
        life, attempt = self.life, Attempt(side=Role.TARGET, clock=self.life)
        try:
            await self._connected(lambda ports: run_target(ports, self.settings, attempt))
        except ImageHeld as held:
            return await self._conclude(attempt, held)
        except MigrationError as failure:
            life.world.note_outcome(life, attempt, failure)
            return isinstance(failure, Refused | HandoffInDoubt)
        life.world.note_outcome(life, attempt, None)
        return True

    async def _conclude(self, attempt: Attempt, held: ImageHeld) -> bool:
        """Ask until it is known what becomes of an image; as `_attempt`."""
        life = self.life
        error: MigrationError | None = None
        arrived: Arrived | None = None
        try:
            arrived = await self._until_settled(lambda: self._ask_once(held, attempt))
            error = None if arrived is not None else held.cause
        except MigrationError as failure:  # it was declined, or nobody can say
            error = failure
        life.world.note_outcome(life, attempt, error)
        return arrived is not None or isinstance(error, Refused | HandoffInDoubt)

    async def _ask_once(self, held: ImageHeld, attempt: Attempt) -> Arrived | None:
        """First of the fence, which may know, then of the source."""
        journal = self.life.journal
        taken = await take_what_is_taken(self._ports(NoLink()), self.settings, journal, held, attempt)
        if taken is not None:
            return taken
        return await self._connected(lambda ports: settle_image(ports, self.settings, journal, held, attempt))

    async def _pay(self, for_s: float) -> None:
        """Tell the source what it must hear, until it has, or has been gone for a while."""
        life = self.life
        for debt in life.journal.debts:
            ownership = ownership_of(life)

            async def ask(ownership: Ownership = ownership, debt: Debt = debt) -> None:
                await self._connected(
                    lambda ports: tell_answer(ports.link, ownership, MACHINE_NAME, debt.generation, debt.peer)
                )

            try:
                await self._until_settled(ask, life.world.scheduler.now_ns + round(for_s * NS_PER_S))
            except NobodyKnows as error:
                life.tell("alarm", message=error)

    async def _until_settled(self, ask: Callable[[], Awaitable[T]], until_ns: int | None = None) -> T | None:
        """Raises MigrationError that asking again would not change."""
        pause_s = FIRST_PAUSE_S
        scheduler = self.life.world.scheduler
        await self.life.pause(0.0)
        while until_ns is None or scheduler.now_ns < until_ns:
            try:
                return await ask()
            except (NobodyKnows, Declined):
                raise
            except MigrationError as error:
                self.life.tell("still in doubt", message=error)
                await self.life.pause(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return None

    async def _connected(self, converse: Callable[[TargetPorts], Awaitable[T]]) -> T:
        life = self.life
        life.check()
        link = await life.world.connect(life)
        try:
            return await converse(self._ports(link))
        finally:
            if life.alive:
                link.close()

    def _ports(self, link: Link) -> TargetPorts:
        life = self.life
        return TargetPorts(
            link=link,
            hypervisor=self.hypervisor,
            journals=life.journal,
            clock=life,
            observer=life,
            fence=life.fence,
            ram=life.world.ram,
        )


def daemon_of(life: Life) -> SourceDaemon | TargetDaemon:
    return SourceDaemon(life) if life.node.role is Role.SOURCE else TargetDaemon(life)
