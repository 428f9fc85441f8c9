"""One machine of a host, from where it comes into being here to where it is gone: a daemon of its own, without a door.

It is born here, comes from another host, or is found in its state directory after the host's process has died.  While
it is here a `SourceDaemon` serves it, and the host leads callers there.  When it has been given away its directory
departs, as soon as nothing is owed to anybody.

What happens is told to the host's listeners, with the number that the machine has on this host (`hosted`).
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import attrs
import trio

from migrate.daemon.address import Address
from migrate.daemon.events import Event, EventLog
from migrate.daemon.guests import GuestRunner
from migrate.daemon.host.bandwidth import SharedRam
from migrate.daemon.host.budget import HostHypervisor
from migrate.daemon.host.offers import CANCELLED, Conclusion, Migration, Stage
from migrate.daemon.images import Image
from migrate.daemon.invitation import IdUsed, Invitation
from migrate.daemon.link import SocketLink
from migrate.daemon.node import SOURCE_AT, AnyJournal, Node, known_machine, new_attempt
from migrate.daemon.outcome import Cancelling, Outcome
from migrate.daemon.run import Birthplace, go_on, leaf_of, pay, release_disks, tell_blackout
from migrate.daemon.slots import NoMoreSlots
from migrate.daemon.source import SourceDaemon
from migrate.daemon.state import StateDirectory, StateError
from migrate.daemon.target import TargetDaemon
from migrate.daemon.waiting_room import Caller
from migrate.engine.handoff import Holding
from migrate.engine.target import TargetSettings
from migrate.errors import MigrationError
from migrate.protocol.messages import Role
from sim_vmm.birth import Birth
from sim_vmm.lifecycle import MachineState

if TYPE_CHECKING:
    from migrate.daemon.host.host import Host


GONE_WITHIN_S: Final = 5.0
"""How long a machine that comes again waits for what is left of an attempt that failed."""


class AnotherMachine(MigrationError):
    """A machine cannot come in: it is here, comes already, or is not the one that came before under this id."""


@attrs.define(eq=False)
class Hosted:
    """`vm_id` and `name` are known when the machine is; `migration` is the one that it is in, or the last."""

    host: "Host"
    number: int
    log: EventLog = attrs.field(init=False)
    hypervisor: HostHypervisor = attrs.field(init=False)
    node: Node = attrs.field(init=False)
    vm_id: UUID | None = None
    name: str = ""
    source: SourceDaemon | None = None
    target: TargetDaemon | None = None
    migration: Migration | None = None
    phase: str = ""
    problem: str | None = None
    """Why it does not run, though it should."""
    gone: trio.Event = attrs.field(factory=trio.Event)
    told: trio.Event = attrs.field(factory=trio.Event)
    """Nothing is owed to a source, as far as it can be reached."""

    def __attrs_post_init__(self) -> None:
        host = self.host
        self.log = EventLog(
            "source",
            [self._heed, *host.events.listeners],
            about={"hosted": self.number},
            unheard=host.events.unheard,
        )
        self.hypervisor = host.new_hypervisor(self.log)
        self.node = Node(
            name=host.name,
            release=host.settings.release,
            hypervisor=self.hypervisor,
            events=self.log,
            keep=self._keep,
            forgetful=host.forgetful,
        )
        self.told.set()

    # What it is

    @property
    def runner(self) -> GuestRunner | None:
        return self.hypervisor.runner if self.source is None else self.source.runner

    @property
    def journal(self) -> AnyJournal | None:
        if self.source is not None:
            return self.source.journal
        return None if self.target is None else self.target.journals.last

    @property
    def runs(self) -> bool:
        return self.runner is not None and self.runner.machine.state is MachineState.RUNNING

    @property
    def stays(self) -> bool:
        """It is not on its way out of here: a next start of the host finds it, if that is remembered."""
        if self.problem is not None:
            return True
        return self.journal is not None and self.journal.record.holding is not Holding.NOT_OWNER

    @property
    def is_busy(self) -> bool:
        """An attempt is in progress, and will end by itself."""
        return self.migration is not None and self.migration.stage is Stage.IN_PROGRESS

    def awaits(self, token: bytes) -> bool:
        """Whether its migration out has announced streams under `token`."""
        return self.source is not None and self.source.awaits(token)

    def as_json(self) -> dict[str, Any]:
        runner, journal, migration = self.runner, self.journal, self.migration
        record = None if journal is None else journal.record
        return {
            "number": self.number,
            "machine": self.name,
            "vm_id": None if self.vm_id is None else str(self.vm_id),
            "runs": self.runs,
            "steps": None if runner is None else runner.pace.work,
            "guest": None if runner is None else runner.program.name,
            "memory_mb": None if runner is None else runner.machine.spec.board.memory_mb,
            "record": None if record is None else str(record),
            "in_doubt": record is not None
            and record.holding in (Holding.COMMITTED, Holding.READY)
            and not self.is_busy,
            "problem": self.problem,
            "phase": self.phase,
            "migration": None if migration is None else migration.as_json(),
        }

    # How it comes to be here

    async def be_born(self, birthplace: Birthplace) -> None:
        """Returns when its guest runs, and goes on in the background.

        Raises:
            MachineCreationFailed, StorageTaken, NotKept, JournalFailed.
        """
        birth = self.host.settings.release.birth(uuid4())
        self.name = birthplace.name
        self.host.is_named(self)
        self.claim(birth.vm_id)
        try:
            await self.node.make_room(birth, "")
            runner, journal = await self.node.bear(birthplace.spec, self.name, birthplace.program, birth)
        except BaseException:
            await self._depart()
            raise
        source = self._present(runner, journal)
        self.host.start(self, lambda: self._serve(source))

    async def come(self, address: Address, migration: Migration) -> None:
        """Bring a machine in, when it is its turn, and serve it; all that there is to say is in `migration`."""
        self.migration, self.log.side = migration, "target"
        host = self.host
        try:
            with migration.waiting:
                migration.slot = await host.incoming.take(self._queued)
            if migration.waiting.cancelled_caught:
                migration.conclude(Conclusion.without_attempt(CANCELLED, "it was cancelled in the queue"))
                return await self._depart()
        except NoMoreSlots as closed:
            migration.conclude(Conclusion.without_attempt(Outcome.FAILED, str(closed)))
            return await self._depart()
        migration.begin()
        settings = TargetSettings(node=host.name, release=host.settings.release, migration=migration.migration)
        self.target = self._target(address, settings, migration.retries)
        try:
            arrived = await self.target.migrate_in()
        except (IdUsed, MigrationError) as error:
            migration.conclude(Conclusion.without_attempt(Outcome.REFUSED, str(error)))
            return await self._depart()
        if arrived is not None:
            self.name = arrived.machine_name
            self.host.is_named(self)
        if arrived is None:
            migration.conclude(Conclusion.of(self.target.attempts, self.name, self.vm_id))
            await pay(self.target, self.node)
            return await self._depart()
        blackout_ms = await tell_blackout(self.hypervisor, self.log)
        source = self._arrive(self.target)
        migration.conclude(Conclusion.of(self.target.attempts, self.name, self.vm_id, blackout_ms))
        return await self._settle_in(self.target, source)

    async def come_back(self, state: StateDirectory) -> None:
        """Be what a host that died had here: see `migrate.daemon.node`."""
        self.node.use(state)
        kept = self.node.found()
        address = Address.parse(state.fact(SOURCE_AT) or "127.0.0.1:0")
        settings = TargetSettings(node=self.host.name, release=self.host.settings.release)
        if kept is None:
            self.log.side = "target"
            self.target = self._target(address, settings)
            await pay(self.target, self.node)
            return await self._depart()
        self.name = known_machine(kept).name
        self.host.is_named(self)
        try:
            if kept.record.holding is Holding.READY:
                self.log.side = "target"
                self.target = self._target(address, settings)
                if (await go_on(self.target, self.node, kept))[1] is None:
                    return await self._depart()
                return await self._settle_in(self.target, self._arrive(self.target))
            if kept.record.holding is Holding.OWNER:
                runner, journal = await self.node.start_again(kept)
                if kept.debts:  # whoever gave it away has not heard that it is here
                    self.target = self._target(address, settings)
                    return await self._settle_in(self.target, self._present(runner, journal))
            else:
                runner, journal, _ = await self.node.hold_again(kept, new_attempt(Role.SOURCE))
        except MigrationError as error:  # others must not wait for it
            self._fail(f"it cannot be started again: {error}")
            return None
        return await self._serve(self._present(runner, journal))

    def _arrive(self, target: TargetDaemon) -> SourceDaemon:
        assert self.hypervisor.runner is not None, "it has come"
        self.log.tell("running", machine=self.name)
        self.log.side = "source"
        return self._present(self.hypervisor.runner, target.journal)

    async def _settle_in(self, target: TargetDaemon, source: SourceDaemon) -> None:
        """What is still to be said of how it came, and on with it."""
        async with trio.open_nursery() as nursery:
            self.told = trio.Event()
            nursery.start_soon(self._tell, target, source.runner, source.journal)
            if self.hypervisor.image is not None:
                image, self.hypervisor.image = self.hypervisor.image, None
                self.log.tell("image", side="target", image=await image.facts())
            await self._serve(source)

    async def _tell(self, target: TargetDaemon, runner: GuestRunner, journal: AnyJournal) -> None:
        try:
            await target.tell(self.node.ownership(runner, journal), journal, self.name)
        finally:
            self.told.set()

    # How it is here, and goes

    async def guarded(self, live: Callable[[], Awaitable[None]]) -> None:
        """`live`, to its end here.  A journal of which nobody knows what it holds ends this machine, and no other."""
        try:
            await live()
        except* StateError as group:
            await self.lose_journal(leaf_of(group))

    async def lose_journal(self, error: BaseException) -> None:
        """Whoever goes on may run a second one: the guest stops, and a restart finds out."""
        if self.runner is not None:
            await self.runner.stop()
        self._fail(str(error))

    async def receive(self, link: SocketLink, caller: Caller) -> None:
        """See `migrate.daemon.door`."""
        assert self.source is not None, "it is here"
        try:
            await self.source.receive(link, caller)
        except* StateError as group:
            await self.lose_journal(leaf_of(group))

    def _present(self, runner: GuestRunner, journal: AnyJournal) -> SourceDaemon:
        """From now on it is here for whoever may come for it."""
        settings = self.host.settings
        self.source = SourceDaemon(
            runner,
            journal,
            attrs.evolve(settings.as_source, node=self.node.name, machine_name=self.name),
            self.log,
            node=self.node,
            deadlines=settings.deadlines,
            access=settings.access,
            invitation=self.host.nobody,
            reclaim_after_s=settings.reclaim_after_s,
            ram=SharedRam(self.host.bandwidth),
            on_streams=self.host.strays.look_again,
        )
        self.log.tell("here", machine=self.name, record=str(journal.record))
        return self.source

    async def _serve(self, source: SourceDaemon) -> None:
        await source.watch()
        if self.host.settings.audited and not source.lost:
            self.log.tell("image", image=await Image.of(source.runner.machine).facts())
        await self._end_machine(source.runner)
        self.log.tell("gone", machine=self.name, record=str(source.journal.record))
        await self.told.wait()
        await self._depart()

    async def end(self) -> None:
        """The host ends: the machine stops, and its directory says what a restart makes of it."""
        if self.runner is not None:
            await self._end_machine(self.runner)
        await self._close_node()

    async def _close_node(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self.node.close)

    async def _end_machine(self, runner: GuestRunner) -> None:
        await runner.stop()
        release_disks(runner.machine, self.log)
        self.hypervisor.let_go(runner.machine)

    async def _depart(self) -> None:
        """Nothing is left here of it but its record."""
        state, settled = self.node.state, self.node.found() is None and not self.node.owing()
        await self._close_node()
        self.host.forget(self)
        if state is not None and settled and self.vm_id is not None and self.host.places is not None:
            self.host.places.depart(self.vm_id)

    def _fail(self, why: str) -> None:
        self.problem = why
        self.log.tell("not running", machine=self.name, message=why)
        if self.migration is not None:
            self.migration.conclude(Conclusion.without_attempt(Outcome.FAILED, why, self.name, self.vm_id))

    # What whoever is in control may want of it

    async def offer(self, migration: Migration) -> None:
        """Return when its target may come; `migration` says it if it must not.

        Raises:
            NoMoreSlots: none are given any more.
        """
        self.migration = migration
        with migration.waiting:
            migration.slot = await self.host.outgoing.take(self._queued)
        if migration.waiting.cancelled_caught:
            self.withdraw(Conclusion.without_attempt(CANCELLED, "it was cancelled in the queue", self.name, self.vm_id))
            return
        if migration.conclusion is not None or self.source is None:  # or else it has ended meanwhile
            migration.release()
            return
        migration.wait_again()
        self.source.invitation = Invitation(migration.migration, self.host.ids)
        self.log.tell("offered", machine=self.name)

    def withdraw(self, conclusion: Conclusion) -> None:
        """Nobody may come any more."""
        if self.source is not None:
            self.source.invitation = self.host.nobody
        if self.migration is not None:
            self.host.invited.pop(self.migration.migration, None)
            self.migration.conclude(conclusion)

    def begin_nothing(self, conclusion: Conclusion) -> None:
        """The host is ending: an offer that nobody has come for is over, and what fails is not tried again."""
        if self.target is not None:
            self.target.retries = 0
        if self.migration is not None:
            self.migration.retries = 0
            if self.migration.stage is Stage.READY:
                self.withdraw(conclusion)

    async def until_idle(self) -> None:
        """Return when no attempt is in progress that will end by itself."""
        while self.is_busy:
            assert self.migration is not None, "it is what is in progress"
            await self.migration.next_stage()

    def cancel(self) -> Cancelling:
        """End the migration that it is in, if there is one and it can still be undone."""
        migration = self.migration
        if migration is None or migration.stage is Stage.OVER:
            return Cancelling.NOTHING_TO_CANCEL
        if migration.stage is Stage.QUEUED:
            migration.waiting.cancel()
            return Cancelling.CANCELLED
        daemon = self.target if migration.direction == "in" else self.source
        came_of_it = Cancelling.NOTHING_TO_CANCEL if daemon is None else daemon.cancel_attempt()
        if migration.direction == "out" and came_of_it is not Cancelling.TOO_LATE:
            migration.retries = 0
            if migration.stage is Stage.READY:
                self.withdraw(Conclusion.without_attempt(CANCELLED, "it was cancelled", self.name, self.vm_id))
            return Cancelling.CANCELLED
        return came_of_it

    def _target(self, address: Address, settings: TargetSettings, retries: int = 0) -> TargetDaemon:
        host = self.host
        return TargetDaemon(
            address,
            self.node,
            settings,
            self.log,
            retries=retries,
            deadlines=host.settings.deadlines,
            access=host.settings.access,
            pace=host.settings.pace,
            streams=host.settings.streams,
            used_ids=host.ids,
            openings=host.openings,
        )

    # What is told

    def _heed(self, event: Event) -> None:
        match event["event"]:
            case "phase":
                self.phase = event["phase"]
            case "attempt":
                if self.migration is not None and self.migration.stage is Stage.READY:
                    self.migration.begin()
            case "in doubt" if self.migration is not None and self.migration.stage is not Stage.OVER:
                self.migration.is_settled_by(Outcome.IN_DOUBT)
            case "attempt ended":
                self.phase = ""
                self._note_end(Outcome(event["outcome"]))
            case "told":
                self.phase = ""
                if self.is_busy and self.migration is not None:
                    self.migration.wait_again()  # it was another node that came, about another generation

    def _note_end(self, outcome: Outcome) -> None:
        """Of an attempt to give it away: those to bring it in are concluded where they are waited for."""
        migration, source = self.migration, self.source
        if migration is None or migration.direction == "in" or source is None or migration.stage is Stage.OVER:
            return
        if outcome is Outcome.IN_DOUBT and source.journal.record.holding is Holding.OWNER:
            outcome = Outcome.REFUSED  # it was taken back from a target that did not come
        if migration.is_settled_by(outcome):
            self.withdraw(Conclusion.of(source.attempts, self.name, self.vm_id))

    def _queued(self, place: int) -> None:
        assert self.migration is not None, "that is what waits"
        self.migration.place = place
        self.log.tell("queued", machine=self.name, direction=self.migration.direction, place=place)

    def claim(self, vm_id: UUID) -> None:
        """Which machine it is has become known."""
        self.vm_id = vm_id
        self.log.about["vm_id"] = str(vm_id)
        self.host.machines[vm_id] = self

    async def _keep(self, birth: Birth) -> StateDirectory | None:
        """See `migrate.daemon.node`."""
        if self.vm_id is None:
            other = self.host.machines.get(birth.vm_id)
            if other is not None and not other.stays:  # its source gave it up, and this side is not done with that
                with trio.move_on_after(self.host.settings.pace * GONE_WITHIN_S):
                    await other.gone.wait()
            if birth.vm_id in self.host.machines:
                raise AnotherMachine("this machine is here already, or comes in another migration")
            self.claim(birth.vm_id)
        if self.vm_id != birth.vm_id:
            raise AnotherMachine("this is another machine than the one that came first under this id")
        if self.host.places is None or self.node.state is not None:
            return self.node.state
        return await self.host.places.open_machine(birth.vm_id)
