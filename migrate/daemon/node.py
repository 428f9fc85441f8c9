"""A node: who it is, and what it remembers of machines across the death of its process.

With a state directory (migrate/daemon/state) a node finds itself again after kill -9: its name, the record of each
machine, what the machine is made of, and of a machine that must not run the image.  Guest RAM is a file in that
directory, mapped shared, so what the guest or a migration has written is in it at once; beside it an image is the
small part of the machine, written in the very transaction that writes `C(n)` or `R(n)`.  An image of an earlier boot of
the host counts as lost, because RAM was never synced.

Without one, a node is another one each time, and forgets everything.

Whatever a restart finds, the rule book decides (`migrate.engine.handoff`): an owner starts its machine from its disks,
whoever holds an image asks.
"""

import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final
from uuid import UUID

import attrs

from migrate import cbor
from migrate.daemon.clock import TrioClock
from migrate.daemon.events import EventLog
from migrate.daemon.fence import TrioFence
from migrate.daemon.guests import GuestRunner, TrioHypervisor
from migrate.daemon.journal import VolatileJournal, VolatileJournals
from migrate.daemon.outcome import AttemptOutcome
from migrate.daemon.state import Debt, DurableJournal, KnownMachine, StateDirectory, current_boot_id
from migrate.daemon.state import MachineState as Kept
from migrate.daemon.state import PauseImage as KeptImage
from migrate.daemon.state.directory import RAM
from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Claim, Holding, Record, being_born, starting, stillborn
from migrate.engine.image import PauseImage
from migrate.engine.ownership import Hands, Ownership
from migrate.errors import JournalFailed, MachineCreationFailed, MigrationError
from migrate.protocol.messages import NAME_MAX, Role
from migrate.releases import Release
from migrate.specs import BY_NUMBER
from sim_vmm.birth import Birth, Interface
from sim_vmm.guest import GuestProgram, guest_in, guest_text, make_guest
from sim_vmm.machine import MIB, Machine
from sim_vmm.spec import Spec

FIRST_GENERATION: Final = 1
HOST_NAME_MAX: Final = 64

#: Facts of a node in its state directory.
LISTENS_AT: Final = "listens at"
SOURCE_AT: Final = "source at"


class ImageLost(MigrationError):
    """The image of a paused machine cannot be trusted any more: it must not be resumed."""


def new_node_name() -> str:
    """The name of a node that has no state directory: never the same twice."""
    name = f"{socket.gethostname()[:HOST_NAME_MAX]}-{secrets.token_hex(8)}"
    assert len(name) <= NAME_MAX, "it fits a message"
    return name


@attrs.define(kw_only=True)
class Node:
    """`hypervisor` makes its machines; `state` is None if it forgets.

    `keep` gives the directory of a machine that comes, where that is another for each machine.
    """

    name: str
    release: Release
    hypervisor: TrioHypervisor
    events: EventLog
    state: StateDirectory | None = None
    keep: Callable[[Birth], Awaitable[StateDirectory | None]] | None = None
    _forgetful: VolatileJournals = attrs.field(factory=VolatileJournals)

    def use(self, state: StateDirectory) -> None:
        """Remember there, as the node that it says."""
        self.state, self.name = state, state.node
        self.hypervisor.ram_path = lambda birth: state.ram_path(birth.vm_id)
        state.on_point = self.hypervisor.on_point
        self.forget_unused_ram()

    async def make_room(self, birth: Birth, peer_address: str) -> None:
        """Before a machine comes from the source at `peer_address`.

        Raises:
            MigrationError: it cannot be kept here.
        """
        if self.keep is None:
            return
        state = await self.keep(birth)
        if state is not None and state is not self.state:
            self.use(state)
            await self.remember(SOURCE_AT, peer_address)

    def journals(self, peer_address: str) -> "NodeJournals":
        """Of a target whose source is at `peer_address`: there it will be found if it must be told something."""
        return NodeJournals(self, peer_address)

    def journal(self, birth: Birth, name: str, peer_address: str = "") -> "AnyJournal":
        if self.state is None:
            return self._forgetful.journal(birth)
        return NodeJournal(self, self.state.journal(birth.vm_id), birth, name, peer_address)

    def ownership(self, runner: GuestRunner, journal: "AnyJournal") -> Ownership:
        """What may be done here, outside of a conversation, to a machine that this node has."""

        async def run(image_is_good: bool) -> None:
            if not image_is_good:
                await runner.start_over()
                return
            runner.machine.memory.dirty.restore()  # whoever got them has no use for them any more
            await runner.resume()

        async def drop() -> None:
            await self.hypervisor.discard(runner.machine)

        return self._ownership(
            runner.machine.birth.vm_id, journal, self.hypervisor.fence, Hands(run=run, drop=drop, stop=runner.stop)
        )

    def memory_of(self, kept: Kept) -> "tuple[Ownership, NodeJournal]":
        """What may be done about a machine of which nothing is left here but a record."""

        async def run(_: bool) -> None:
            raise AssertionError(f"nothing is here that could run: {kept.record}")

        journal = self.journal_of(kept)
        return self._ownership(kept.vm_id, journal, None, Hands(run=run)), journal

    def _ownership(self, machine: UUID, journal: "AnyJournal", fence: TrioFence | None, hands: Hands) -> Ownership:
        return Ownership(
            node=self.name, machine=machine, journal=journal, fence=fence, observer=self.events, hands=hands
        )

    # A machine's way into this node

    async def bear(
        self, spec: Spec, name: str, program: GuestProgram, birth: Birth, claim: Claim = Claim.BIRTH
    ) -> "tuple[GuestRunner, AnyJournal]":
        """A new machine, owned and booted here.

        Raises:
            MachineCreationFailed: the spec makes no machine here, or the guest does not fit.
            StorageTaken: its disks are another machine's.
            JournalFailed, StorageUnreachable.
        """
        machine = await self.hypervisor.create(spec, birth)
        runner = self.hypervisor.runner_of(machine, program)
        journal = self.journal(birth, name)
        ownership = self.ownership(runner, journal)
        try:
            if isinstance(journal, NodeJournal):
                await journal.remember(machine, program)
            await ownership.carry_out(being_born(FIRST_GENERATION, claim))
        except BaseException as error:
            if isinstance(error, MachineCreationFailed) and journal.record.holding is Holding.OWNER:
                await ownership.carry_out(stillborn(journal.record))
            await self.hypervisor.discard(runner.machine)
            raise
        return runner, journal

    def found(self) -> Kept | None:
        """The machine that this node had when its process died, if it had one that is not settled elsewhere."""
        if self.state is None:
            return None
        live = [kept for kept in self.state.machines() if kept.record.holding is not Holding.NOT_OWNER]
        assert len(live) <= 1, "a state directory has one machine at a time"
        return live[0] if live else None

    def owing(self) -> list[Kept]:
        """Machines that are not here any more, and of which a source must still be told something."""
        if self.state is None:
            return []
        return [kept for kept in self.state.machines() if kept.record.holding is Holding.NOT_OWNER and kept.debts]

    async def start_again(self, kept: Kept) -> tuple[GuestRunner, "NodeJournal"]:
        """An owner whose process died: its machine starts from its disks."""
        machine = await self.hypervisor.create(*self._made_of(kept))
        runner = self.hypervisor.runner_of(machine, make_guest(known_machine(kept).guest))
        journal = self.journal_of(kept)
        await self.ownership(runner, journal).carry_out(starting(kept.record))
        self.events.tell("started again", generation=kept.record.generation, guest=runner.program.name)
        return runner, journal

    async def hold_again(self, kept: Kept, attempt: Attempt) -> tuple[GuestRunner, "NodeJournal", ImageLost | None]:
        """A machine that must not run: with its image, or as one that can only start from its disks, and why."""
        spec, birth = self._made_of(kept)
        lost: ImageLost | None = None
        try:
            machine = self._restored(kept, spec, birth, attempt)
            program = guest_in(machine.memory)
        except MigrationError as error:
            lost = ImageLost(f"the image of {kept.record} is lost: {error}")
            machine = await self.hypervisor.create(spec, birth)
            program = self.hypervisor.programs[machine] = make_guest(known_machine(kept).guest)
        return self.hypervisor.runner_of(machine, program), self.journal_of(kept), lost

    def _restored(self, kept: Kept, spec: Spec, birth: Birth, attempt: Attempt) -> Machine:
        """Raises MigrationError if there is nothing that may be resumed."""
        assert self.state is not None
        image = kept.image
        if image is None:
            raise ImageLost("there is none")
        if image.generation != kept.record.generation:
            raise ImageLost(f"it is of generation {image.generation}")
        if image.boot_id != current_boot_id():
            raise ImageLost("the host has been booted since")
        parts = PauseImage.decode(image.frames)
        ram = self.state.path / RAM / image.ram
        machine = self.hypervisor.make(spec, birth, ram=ram)
        try:
            machine.receive()
            warning = parts.restore(machine, self.release)
        except BaseException:
            machine.stop()
            machine.close()
            raise
        if warning is not None:
            attempt.warnings.append(warning)
        self.hypervisor.adopt(machine, ram)
        return machine

    def _made_of(self, kept: Kept) -> tuple[Spec, Birth]:
        known = known_machine(kept)
        version = BY_NUMBER[known.spec_version]
        shows = frozenset(map(Interface, known.birth_shows))
        return (
            version.decode(cbor.decode(known.spec_document)),
            Birth(release=known.birth_release, vm_id=known.vm_id, shows=shows),
        )

    def journal_of(self, kept: Kept) -> "NodeJournal":
        _, birth = self._made_of(kept)
        source_at = None if self.state is None else self.state.fact(SOURCE_AT)
        journal = self.journal(birth, known_machine(kept).name, source_at or "")
        assert isinstance(journal, NodeJournal), "it was found in the state directory"
        return journal

    # What is kept beside the records

    async def note_attempt(self, vm_id: UUID | None, outcome: AttemptOutcome, record: Record | None) -> None:
        """One line of history.  A failing disk costs the line, not the machine."""
        if self.state is None or vm_id is None:
            return
        try:
            await self.state.note_attempt(
                vm_id,
                side=outcome.attempt.side.value,
                outcome=outcome.outcome.value,
                phase=outcome.attempt.phase,
                generation=0 if record is None else record.generation,
                peer="" if record is None else record.peer,
                error=None if outcome.error is None else str(outcome.error),
                at=time.time_ns(),
            )
        except MigrationError as error:
            self.events.tell("history lost", message=str(error))

    async def remember(self, fact: str, value: str) -> None:
        """Something that a restart need not be told again.  A failing disk costs the fact, not the machine."""
        if self.state is None:
            return
        try:
            await self.state.set_fact(fact, value)
        except JournalFailed as error:
            self.events.tell("not remembered", message=f"{fact} {value}: {error}")

    def forget_unused_ram(self) -> None:
        """Before a machine is here, and after: only RAM that belongs to an image is of use to anybody."""
        if self.state is not None:
            self.state.forget_unused_ram(())

    def close(self) -> None:
        if self.state is not None:
            self.forget_unused_ram()
            self.state.close()


def known_machine(kept: Kept) -> KnownMachine:
    assert kept.machine is not None, "what a machine is made of is written with its first record"
    return kept.machine


def new_attempt(side: Role) -> Attempt:
    return Attempt(side=side, clock=TrioClock())


@attrs.define
class NodeJournals:
    """See `migrate.engine.ports.Journals`."""

    node: Node
    peer_address: str
    last: "AnyJournal | None" = None

    async def of(self, birth: Birth, name: str) -> "AnyJournal":
        await self.node.make_room(birth, self.peer_address)
        self.last = self.node.journal(birth, name, self.peer_address)
        return self.last


@attrs.define
class NodeJournal:
    """The journal of one machine in the state directory; see `migrate.engine.ports.Journal`."""

    node: Node
    durable: DurableJournal
    birth: Birth
    name: str
    peer_address: str = ""
    keeps_images: bool = attrs.field(default=True, init=False)
    _known: KnownMachine | None = attrs.field(default=None, init=False)

    @property
    def record(self) -> Record:
        return self.durable.record

    @property
    def highest(self) -> int:
        return self.durable.highest

    @property
    def debts(self) -> tuple[Debt, ...]:
        return self.durable.debts

    async def new_generation(self) -> int:
        return await self.durable.new_generation()

    async def remember(self, machine: Machine, program: GuestProgram) -> None:
        """What the machine is made of goes into the directory with the next record."""
        self._known = self._facts(machine, guest_text(program))

    async def expect(self, machine: Machine) -> None:
        """What the machine is made of, and which guest is in it."""
        known = self._facts(machine, guest_text(guest_in(machine.memory)))
        await self.durable.write_as("expect", self.record, machine=known)

    async def write(self, record: Record, *, image: bytes | None = None, owes_answer: bool = False) -> None:
        kept, known = None, self._known
        if image is not None:
            machine, ram = self._machine()
            kept = KeptImage(frames=image, ram=ram.name, boot_id=current_boot_id(), generation=record.generation)
            if record.holding is Holding.READY:
                known = self._facts(machine, guest_text(guest_in(machine.memory)))
        debt = None
        if owes_answer:
            owned = record.holding is Holding.OWNER
            debt = Debt(generation=record.generation, peer=record.peer, address=self.peer_address, owned=owned)
        await self.durable.write(record, image=kept, machine=known, debt=debt)
        self._known = None

    async def settle_debt(self, generation: int, peer: str) -> None:
        await self.durable.settle_debt(generation, peer)

    def _machine(self) -> tuple[Machine, Path]:
        """The one that is here: of two with one birth, the one that came last."""
        mine = [item for item in self.node.hypervisor.rams.items() if item[0].birth == self.birth]
        return mine[-1]

    def _facts(self, machine: Machine, guest: str) -> KnownMachine:
        newest = self.node.hypervisor.documents[machine]
        return KnownMachine(
            vm_id=self.birth.vm_id,
            name=self.name,
            spec_version=newest.version,
            spec_document=newest.document,
            birth_release=self.birth.release,
            birth_shows=tuple(sorted(map(str, self.birth.shows))),
            release=self.node.release.name,
            guest=guest,
            memory_bytes=machine.spec.board.memory_mb * MIB,
        )


AnyJournal = VolatileJournal | NodeJournal
