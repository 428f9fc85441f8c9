"""A host: its machines, whom it lets in for which, and the order in which migrations have their turn.

Migrations out and migrations in have slots of their own, `migrations_max` each.  Whoever waits for a slot in has a
source that holds one out already, and who holds one in waits for nobody's; so hosts that exchange machines never wait
for each other in a circle.

Nothing that happens to one machine looks at all of them: machines are found by id and name, callers by what they say;
a further connection is looked for among the migrations that have not been concluded.
"""

import gc
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid4

import attrs
import trio

from migrate.daemon.access import Access
from migrate.daemon.address import Address
from migrate.daemon.door import Door, Receiver
from migrate.daemon.events import EventLog
from migrate.daemon.guests import MEMORY_MB_MAX, STEP_EVERY_S
from migrate.daemon.host.bandwidth import SharedBandwidth
from migrate.daemon.host.budget import Budget, HostHypervisor
from migrate.daemon.host.departed import Departed
from migrate.daemon.host.hosted import Hosted
from migrate.daemon.host.offers import CANCELLED, Conclusion, Migration, Stage
from migrate.daemon.host.places import HostPlaces, NotKept
from migrate.daemon.host.strays import Strays
from migrate.daemon.invitation import Invitation, KnownIds, UsedIds
from migrate.daemon.journal import VolatileJournals
from migrate.daemon.node import new_node_name
from migrate.daemon.outcome import Cancelling, Outcome
from migrate.daemon.run import Birthplace, Places
from migrate.daemon.slots import NoMoreSlots, Slots
from migrate.daemon.source import RECLAIM_AFTER_S
from migrate.engine.ownership import StorageTaken
from migrate.engine.source import SourceSettings, no_common_version
from migrate.errors import MigrationError
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import PROTOCOL_VERSIONS, Attach, Hello, HelloFor, Inquire, Message
from migrate.reasons import Reason
from migrate.releases import Release

MACHINES_MAX: Final = 1024
MIGRATIONS_MAX: Final = 16
OPENINGS: Final = 16
"""Targets of this host that no source has answered yet: a source's waiting room has 64 seats, and other callers."""
OFFER_S: Final = 60.0
CONCLUSIONS_KEPT: Final = 10_000
REVIVED_AT_ONCE: Final = 8
BIRTHS_AT_ONCE: Final = 4
COLLECT_AFTER: Final = 64
"""Machines that have gone, whose memory is given back once nobody is in a migration: they are all rings of objects."""
TELL_AT_END_S: Final = 5.0
"""How long a host that ends goes on telling sources what they wait for; what is left is told by its next start."""


class NotPossible(Exception):
    """What was asked of a host cannot be: `str` says why, and what instead.  `kind` is for programs."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Ending(StrEnum):
    """How a host ends: what is in progress is completed, or undone where it can be.  Nothing new is begun."""

    DRAIN = "drain"
    ABORT = "abort"


@attrs.frozen(kw_only=True)
class HostSettings:
    """What a person decides.  `bandwidth` in bytes a second, for all migrations together; `offer_s` how long an offer
    waits for its target; `streams` how many connections a machine comes in by; memory in MiB, `memory_total_mb` of all
    machines together."""

    release: Release
    as_source: SourceSettings
    places: Places = attrs.field(factory=Places)
    bandwidth: float | None = None
    machines_max: int = MACHINES_MAX
    migrations_max: int = MIGRATIONS_MAX
    memory_max_mb: int = MEMORY_MB_MAX
    memory_total_mb: int = MEMORY_MB_MAX
    offer_s: float = OFFER_S
    reclaim_after_s: float = RECLAIM_AFTER_S
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    access: Access = attrs.field(factory=Access)
    pace: float = 1.0
    streams: int = 1
    audited: bool = False


@attrs.define(eq=False)
class Host:
    """`nursery` is where its machines live.  `address` is where it listens, once it does."""

    settings: HostSettings
    events: EventLog
    nursery: trio.Nursery
    places: HostPlaces | None = None
    address: str = ""
    name: str = attrs.field(init=False)
    ids: KnownIds = attrs.field(init=False)
    nobody: Invitation = attrs.field(init=False)
    machines: dict[UUID, Hosted] = attrs.field(factory=dict, init=False)
    all: dict[Hosted, None] = attrs.field(factory=dict, init=False)
    """Those that come, whose id is not known yet, as well."""
    migrations: dict[UUID, Hosted] = attrs.field(factory=dict, init=False)
    """Not concluded yet, by their ids."""
    invited: dict[UUID, Hosted] = attrs.field(factory=dict, init=False)
    outgoing: Slots = attrs.field(init=False)
    incoming: Slots = attrs.field(init=False)
    openings: Slots = attrs.field(factory=lambda: Slots(OPENINGS), init=False)
    budget: Budget = attrs.field(init=False)
    bandwidth: SharedBandwidth = attrs.field(init=False)
    strays: Strays = attrs.field(init=False)
    forgetful: VolatileJournals = attrs.field(factory=VolatileJournals, init=False)
    ending: Ending | None = attrs.field(default=None, init=False)
    runners: int = attrs.field(default=0, init=False)
    moved: dict[str, int] = attrs.field(factory=lambda: {"in": 0, "out": 0, "failed": 0}, init=False)
    _by_name: dict[str, dict[Hosted, None]] = attrs.field(factory=dict, init=False)
    _concluded: OrderedDict[UUID, Migration] = attrs.field(factory=OrderedDict, init=False)
    _numbers: int = attrs.field(default=0, init=False)
    _gone: int = attrs.field(default=0, init=False)
    _births: Slots = attrs.field(factory=lambda: Slots(BIRTHS_AT_ONCE), init=False)

    def __attrs_post_init__(self) -> None:
        settings, places = self.settings, self.places
        self.name = new_node_name() if places is None else places.own.node
        self.ids = UsedIds() if places is None else places.ids()
        self.nobody = Invitation(uuid4(), self.ids)  # an id that nobody was given
        self.outgoing, self.incoming = Slots(settings.migrations_max), Slots(settings.migrations_max)
        self.budget = Budget(settings.memory_total_mb)
        self.bandwidth = SharedBandwidth(settings.bandwidth)
        self.strays = Strays(self._awaiting, settings.deadlines, self.events)

    # Who is here

    def new_hypervisor(self, log: EventLog) -> HostHypervisor:
        places = self.settings.places
        return HostHypervisor(
            self.nursery,
            audited=self.settings.audited,
            wire=places.wire,
            storage=places.storage,
            fenced=places.fenced,
            memory_mb_max=self.settings.memory_max_mb,
            on_running=self._note_running,
            on_point=lambda point: log.tell("point", name=point),
            step_every_s=self.step_every_s,
            budget=self.budget,
        )

    def _note_running(self, runs: bool) -> None:
        self.runners += 1 if runs else -1

    def step_every_s(self) -> float:
        """The guests that run here share as many steps a second as one would make alone."""
        return STEP_EVERY_S * max(1, self.runners)

    def new_hosted(self) -> Hosted:
        self._numbers += 1
        hosted = Hosted(self, self._numbers)
        self.all[hosted] = None
        return hosted

    def start(self, hosted: Hosted, live: Callable[[], Awaitable[None]]) -> None:
        """Let it live in the background."""
        self.nursery.start_soon(hosted.guarded, live)

    def is_named(self, hosted: Hosted) -> None:
        """What it is called has become known."""
        self._by_name.setdefault(hosted.name, {})[hosted] = None

    def forget(self, hosted: Hosted) -> None:
        self.all.pop(hosted, None)
        if hosted.vm_id is not None and self.machines.get(hosted.vm_id) is hosted:
            del self.machines[hosted.vm_id]
        others = self._by_name.get(hosted.name, {})
        others.pop(hosted, None)
        if not others:
            self._by_name.pop(hosted.name, None)
        hosted.gone.set()
        self._gone += 1
        if self._gone >= COLLECT_AFTER and not self.migrations:
            self._gone = 0
            gc.collect()

    def find(self, machine: str) -> Hosted:
        """By its name or its id.  Raises NotPossible."""
        found = list(self._by_name.get(machine, {}))
        if not found:
            try:
                by_id = self.machines.get(UUID(machine))
            except ValueError:
                by_id = None
            found = [] if by_id is None else [by_id]
        if not found:
            raise NotPossible("NoSuchMachine", f"no machine {machine!r} is here; see migrate host list")
        if len(found) > 1:
            raise NotPossible("NotUnique", f"{len(found)} machines here are called {machine!r}: give the id of one")
        return found[0]

    # Whom a caller has come for

    def door(self) -> Door:
        return Door(self.settings.access, self.settings.deadlines, self.events, self.lead)

    def lead(self, opening: Message) -> Receiver | Reason:
        """See `migrate.daemon.door`."""
        match opening:
            case HelloFor(migration=migration) if (invited := self.invited.get(UUID(bytes=migration))) is not None:
                return invited
            case Hello() | HelloFor():
                if not set(opening.protocol_versions) & set(PROTOCOL_VERSIONS):
                    return no_common_version(opening.protocol_versions)
                objection = self.nobody.objection(opening)
                assert objection is not None, "nobody was given this id"
                return objection
            case Inquire(machine=machine):
                vm_id = UUID(bytes=machine)
                hosted = self.machines.get(vm_id)
                if hosted is None:
                    return Departed(self, vm_id)
                return _not_yet("machine") if hosted.source is None else hosted
            case Attach():
                return self.strays
            case _:
                return Reason(
                    component="protocol",
                    field="message",
                    have=type(opening).__name__,
                    need="Inquire: a host has to be told which machine is meant",
                )

    def _awaiting(self, token: bytes) -> Hosted | None:
        """The machine whose migration in progress has announced streams under `token`."""
        return next((one for one in self.migrations.values() if one.awaits(token)), None)

    # What may be asked of it

    async def boot(self, birthplace: Birthplace) -> Hosted:
        """A new machine, whose guest runs.  Raises NotPossible."""
        self._require_room()
        turn = await self._births.take()
        try:
            self._require_room()
            if birthplace.name in self._by_name:
                raise NotPossible("NameTaken", f"a machine {birthplace.name!r} is here already: give another name")
            hosted = self.new_hosted()
            await hosted.be_born(birthplace)
            await trio.lowlevel.checkpoint()
        except (MigrationError, StorageTaken) as error:
            raise NotPossible("NotBooted", f"machine {birthplace.name!r} cannot be made: {error}") from error
        finally:
            turn.release()
        return hosted

    async def offer(self, machine: str, migration_id: UUID, retries: int) -> Migration:
        """Return when the target that is given `migration_id` may come for `machine`, or it is over already.

        Raises:
            NotPossible.
        """
        self._require_new(migration_id)
        hosted = self.find(machine)
        before = hosted.migration
        if before is not None and before.stage is not Stage.OVER:
            raise NotPossible("InMigration", f"machine {machine!r} is in a migration already: {before.stage.value}")
        if not hosted.runs:
            raise NotPossible("NotRunning", f"machine {machine!r} does not run here: {hosted.problem or 'in doubt'}")
        migration = Migration(migration_id, "out", retries, self.settings.pace * self.settings.offer_s)
        self._begin(migration, hosted)
        self.nursery.start_soon(self._offer, hosted, migration)  # whoever asked may go away meanwhile
        while migration.stage is Stage.QUEUED:
            await migration.next_stage()
        return migration

    async def _offer(self, hosted: Hosted, migration: Migration) -> None:
        try:
            await hosted.offer(migration)
        except NoMoreSlots as error:
            hosted.withdraw(Conclusion.without_attempt(Outcome.FAILED, str(error), hosted.name, hosted.vm_id))
        if migration.stage is Stage.READY:
            self.invited[migration.migration] = hosted
            await self._expire(hosted, migration)

    def take(self, source: Address, migration_id: UUID, retries: int) -> Migration:
        """Begin to bring in the machine that the host at `source` offers under `migration_id`.  Raises NotPossible."""
        self._require_new(migration_id)
        self._require_room()
        self.settings.access.check(source)
        hosted = self.new_hosted()
        migration = Migration(migration_id, "in", retries, self.settings.pace * self.settings.offer_s)
        self._begin(migration, hosted)
        self.start(hosted, lambda: hosted.come(source, migration))
        return migration

    def migration(self, migration_id: UUID) -> Migration:
        """Raises NotPossible: there is none, or it was concluded too long ago."""
        hosted = self.migrations.get(migration_id)
        found = self._concluded.get(migration_id) if hosted is None else hosted.migration
        if found is None:
            raise NotPossible("NoSuchMigration", "this host knows no migration with this id")
        return found

    def limit(self, migrations_max: int | None, bandwidth: int | None) -> None:
        """Other limits from now on, where they are given.  Raises NotPossible."""
        if migrations_max == 0:
            raise NotPossible("BadInput", "migrations_max is 0: expected 1 or more")
        if migrations_max is not None:
            self.outgoing.set_limit(migrations_max)
            self.incoming.set_limit(migrations_max)
        if bandwidth is not None:
            self.bandwidth.set_rate(float(bandwidth) or None)

    def cancel(self, machine_or_migration: str) -> Cancelling:
        """Raises NotPossible."""
        try:
            hosted = self.migrations.get(UUID(machine_or_migration))
        except ValueError:
            hosted = None
        return (hosted or self.find(machine_or_migration)).cancel()

    def _begin(self, migration: Migration, hosted: Hosted) -> None:
        hosted.migration = migration
        self.migrations[migration.migration] = hosted
        self.nursery.start_soon(self._conclude, migration)

    async def _conclude(self, migration: Migration) -> None:
        await migration.over.wait()
        assert migration.conclusion is not None, "it is over"
        self.moved[migration.direction if migration.conclusion.outcome == Outcome.MIGRATED else "failed"] += 1
        self.migrations.pop(migration.migration, None)
        self._concluded[migration.migration] = migration
        if len(self._concluded) > CONCLUSIONS_KEPT:
            self._concluded.popitem(last=False)

    async def _expire(self, hosted: Hosted, migration: Migration) -> None:
        """Nobody holds a slot for a target that does not come."""
        with migration.patience as patience:
            await migration.over.wait()
        if patience.cancelled_caught:
            why = f"no target came within {self.settings.offer_s:g} s"
            hosted.withdraw(Conclusion.without_attempt(Outcome.FAILED, why, hosted.name, hosted.vm_id))

    def _require_new(self, migration_id: UUID) -> None:
        if self.ending is not None:
            raise NotPossible("Ending", "the host is ending: nothing new is begun")
        if migration_id in self.migrations or migration_id in self.ids:
            raise NotPossible("IdUsed", "this migration id was used before; give both sides a new one")

    def _require_room(self) -> None:
        if self.ending is not None:
            raise NotPossible("Ending", "the host is ending: nothing new is begun")
        if len(self.all) >= self.settings.machines_max:
            raise NotPossible("Full", f"{len(self.all)} machines are here or come; --machines-max allows no more")

    # From its start to its end

    def revive(self) -> None:
        """Be what was here when the process died: each machine is known at once, and starts as it can."""
        if self.places is None:
            return
        at_once = Slots(REVIVED_AT_ONCE)
        for vm_id in self.places.found():
            hosted = self.new_hosted()
            hosted.claim(vm_id)
            self.nursery.start_soon(self._revive, hosted, vm_id, at_once)

    async def _revive(self, hosted: Hosted, vm_id: UUID, at_once: Slots) -> None:
        assert self.places is not None, "it was found there"
        slot = await at_once.take()
        try:
            state = await self.places.open_machine(vm_id)
        except NotKept as error:
            hosted.problem = str(error)
            self.events.tell("not running", machine=str(vm_id), message=str(error))
            return
        finally:
            slot.release()
        await hosted.guarded(lambda: hosted.come_back(state))

    async def end(self, ending: Ending) -> None:
        """Begin nothing new, and return when nothing is in progress any more."""
        self.ending = ending
        self.outgoing.close("the host is ending")
        self.incoming.close("the host is ending")
        busy = [hosted for hosted in self.all if hosted.is_busy]
        turns = [await self._births.take() for _ in range(BIRTHS_AT_ONCE)]  # nobody is being born, or will be
        for turn in turns:
            turn.release()
        self.events.tell("ending", how=ending.value, in_progress=len(busy))
        for hosted in list(self.all):
            hosted.begin_nothing(Conclusion.without_attempt(CANCELLED, "the host is ending", hosted.name, hosted.vm_id))
        if ending is Ending.ABORT:
            self.abort()
        for hosted in busy:
            await hosted.until_idle()
        with trio.move_on_after(self.settings.pace * TELL_AT_END_S):
            for hosted in list(self.all):
                await hosted.told.wait()

    def abort(self) -> None:
        """Undo every attempt in progress that can be undone."""
        for hosted in list(self.all):
            if hosted.is_busy:
                hosted.cancel()

    def in_words(self) -> str:
        """What is to be completed before the host has ended."""
        busy = sum(hosted.is_busy for hosted in self.all)
        return f"ending: {busy} migrations in progress are completed first" if busy else "ending"

    async def close(self) -> dict[str, Any]:
        """Stop all machines, and say what is left; what lives in the nursery has ended."""
        report = self.left()
        async with trio.open_nursery() as nursery:
            for hosted in list(self.all):
                nursery.start_soon(hosted.end)
        return report

    def left(self) -> dict[str, Any]:
        """How the host ends, with each machine that is here."""
        left = [hosted.as_json() for hosted in self.all if hosted.stays]
        return {
            "node": self.name,
            "ending": None if self.ending is None else self.ending.value,
            "moved": self.moved,
            "left": left,
            "in_doubt": sum(machine["in_doubt"] for machine in left),
        }

    def status(self) -> dict[str, Any]:
        """Counts and limits, from what is kept of each: nobody is asked."""
        settings = self.settings
        return {
            "node": self.name,
            "release": settings.release.name,
            "address": self.address,
            "ending": None if self.ending is None else self.ending.value,
            "machines": len(self.machines),
            "running": self.runners,
            "machines_max": settings.machines_max,
            "migrations_max": self.outgoing.limit,
            "in_progress": {"out": self.outgoing.held, "in": self.incoming.held},
            "queued": {"out": self.outgoing.waiting, "in": self.incoming.waiting},
            "moved": self.moved,
            "memory_mb": self.budget.used_mb,
            "memory_total_mb": self.budget.total_mb,
            "bandwidth": self.bandwidth.rate,
        }


def _not_yet(component: str) -> Reason:
    return Reason(component=component, field="state", have="not started again yet", need="a moment")
