"""The target's side of a migration.

It judges the preamble, makes the machine, fills it, and runs it only after two things have happened in this order: the
source has committed, and this side has noted that it owns the machine.  Until it has promised `Ready`, whatever goes
wrong ends in a machine that is discarded and a source that is told.  After that promise only the source can say what
becomes of the image, so a lost link leaves it held, not run: `ImageHeld`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final
from uuid import UUID

import attrs

from migrate.engine.attempt import Attempt
from migrate.engine.handoff import (
    Act,
    Effect,
    Holding,
    Record,
    Ruling,
    on_abandon,
    on_commit,
    on_gone,
    on_prepare,
    on_released,
    on_unknown,
    standing_of,
    taken_already,
    writes,
)
from migrate.engine.image import (
    PauseImage,
    import_clock,
    import_console,
    import_states,
    read_device,
    warm_up_devices,
)
from migrate.engine.negotiation import Acceptable, judge
from migrate.engine.ownership import Hands, Ownership, StorageTaken
from migrate.engine.ports import Clock, Fence, Hypervisor, IncomingRam, Journal, Journals, Link, Observer, Ram
from migrate.engine.ram import MappedRam
from migrate.engine.source import tell_failure
from migrate.errors import (
    HandoffInDoubt,
    MachineCreationFailed,
    MigrationError,
    PeerFailed,
    Refused,
    RemoteProtocolError,
)
from migrate.protocol.messages import (
    PROTOCOL_VERSIONS,
    Abandon,
    Commit,
    DevicesEnd,
    DeviceState,
    Gone,
    Hello,
    HelloFor,
    Inquire,
    Preamble,
    Prepare,
    Refuse,
    Released,
    Role,
    RoundStored,
    ServerState,
    Standing,
    TimeOfDay,
    Transcript,
    Unknown,
    Welcome,
)
from migrate.reasons import Reason, sayable
from migrate.releases import Release
from migrate.specs.replacements import Replacements
from sim_vmm.machine import DeviceState as ImportedState
from sim_vmm.machine import Machine

DEVICE_STATES_MAX: Final = 2 * DeviceState.BODY_MAX
"""Bytes of all devices' payloads, which are all here before the first is imported.  Only contents of blobs are large,
and they were in the preamble too."""


@attrs.frozen(kw_only=True)
class TargetPorts:
    link: Link
    hypervisor: Hypervisor
    journals: Journals
    clock: Clock
    observer: Observer
    fence: Fence | None = None
    ram: Ram = attrs.field(factory=MappedRam)


@attrs.frozen(kw_only=True)
class TargetSettings:
    """`migration` is the id under which the source expects this target, if both were given one."""

    node: str
    release: Release
    migration: UUID | None = attrs.field(default=None, repr=False)
    replacements: Replacements = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Arrived:
    """A machine that runs here now.  `settled` is false if the source does not know yet: see `tell_answer`."""

    machine: Machine
    machine_name: str
    generation: int
    source: str
    settled: bool


class ImageHeld(HandoffInDoubt):
    """The complete image is here and the source has not said what becomes of it.  It must not run until it does."""

    def __init__(self, machine: Machine, machine_name: str, record: Record, cause: MigrationError) -> None:
        super().__init__(
            f"the complete image of generation {record.generation} is here, and must not run until the source says "
            f"so; what came between: {cause}"
        )
        self.machine, self.machine_name, self.generation = machine, machine_name, record.generation
        self.source = record.peer
        self.cause = cause


class Declined(MigrationError):
    """The source gave the machine away, and it cannot run here: the source was told, or will be, and has it again."""


async def run_target(ports: TargetPorts, settings: TargetSettings, attempt: Attempt) -> Arrived:
    """Migrate a machine in from the peer of `ports.link`.

    Returns when it runs here.  `attempt` is filled in whatever happens.

    Raises:
        MigrationError: nothing is left here of the machine.
        ImageHeld: the image is complete, and who may run it is unknown.
    """
    return await _Target(ports, settings, attempt).run()


class _Target:
    def __init__(self, ports: TargetPorts, settings: TargetSettings, attempt: Attempt) -> None:
        self.ports = ports
        self.link, self.hypervisor = ports.link, ports.hypervisor
        self.observer = ports.observer
        self.settings, self.attempt = settings, attempt
        self.machine: Machine | None = None
        self.machine_name = self.source = ""
        self.journal: Journal | None = None
        self.image: PauseImage | None = None
        self.prepared_ns = 0

    def enter(self, phase: str) -> None:
        self.attempt.phase = phase
        self.observer.tell("phase", phase=phase)

    async def run(self) -> Arrived:
        try:
            await self.greet()
            machine = self.machine = await self.negotiate()
            machine.receive()
            await self.fill(machine)
            handoff = await self.promise(machine)
        except Exception as error:
            await self.give_up(error)
            raise
        return await self.await_commit(handoff)

    async def greet(self) -> None:
        self.enter("hello")
        await self.link.send(hello_of(self.settings))
        answer = await self.link.receive()
        if isinstance(answer, Refuse):
            raise Refused(answer.reasons, Role.SOURCE)
        assert isinstance(answer, Welcome), "the table allows nothing else"
        if answer.protocol_version not in PROTOCOL_VERSIONS:
            raise RemoteProtocolError(f"the source chose protocol version {answer.protocol_version}, not one of ours")
        self.source = answer.node

    async def negotiate(self) -> Machine:
        """Judge the preamble; make the machine before saying yes, so that every refusal is a cheap one."""
        self.enter("preamble")
        preamble = await self.link.receive()
        heard_ns = self.attempt.clock.monotonic_ns()
        assert isinstance(preamble, Preamble), "the table allows nothing else"
        self.enter("verdict")
        self.machine_name = preamble.machine
        verdict = judge(preamble, self.settings.release, self.settings.replacements)
        if isinstance(verdict, Acceptable):
            self.journal = await self.ports.journals.of(verdict.birth, self.machine_name)
            if self.journal.record.holding is Holding.OWNER:
                verdict = (owned_here(self.journal.record),)
        if isinstance(verdict, Acceptable):
            try:
                machine = await self.hypervisor.create(verdict.spec, verdict.birth)
            except MachineCreationFailed as error:
                verdict = (Reason(component="host", field="machine", have=str(error), need="a host that can make it"),)
            else:
                self.machine = machine
                sent_ns = self.attempt.clock.monotonic_ns()
                self.attempt.exchanged("preamble", sent_ns=sent_ns, heard_ns=heard_ns)
                await self.link.send(verdict.answer)
                warm_up_devices(machine, self.settings.release)  # while the source gets ready
                self.attempt.spec_version = verdict.answer.spec_version
                return machine
        reasons = sayable(verdict)  # a peer's own obstacles are among them
        await self.link.send(Refuse(reasons=reasons))
        raise Refused(reasons, Role.TARGET)

    async def fill(self, machine: Machine) -> None:
        """Everything up to the source's `Prepare`."""
        ram = self.ports.ram.incoming(machine, self.link)
        await self.receive_while_running(ram)
        attempt = self.attempt
        self.enter("last ram")
        with attempt.step("last ram"):
            await ram.receive_round()
            ram.mark_received_dirty()
        self.enter("time data")
        with attempt.step("time data"):
            time = await self.link.receive()
            assert isinstance(time, TimeOfDay), "the table allows nothing else"
            warning = import_clock(machine, time)
            if warning is not None:
                attempt.warnings.append(warning)
        self.enter("devices")
        with attempt.step("devices"):
            devices = await self.receive_devices(machine)
        self.enter("server state")
        with attempt.step("server state"):
            server = await self.link.receive()
            assert isinstance(server, ServerState), "the table allows nothing else"
            import_console(machine, server)
        self.image = PauseImage(time=time, devices=devices, server=server)

    async def receive_while_running(self, ram: IncomingRam) -> None:
        self.enter("ram")
        while (end := await ram.receive_round()) is not None:
            if end.round == 0:
                assert self.machine is not None, "it is being filled"
                assert self.journal is not None, "the verdict needed it"
                await self.journal.expect(self.machine)
            ram.mark_received_dirty()  # now, so that little of it is left for the blackout
            await self.link.send(RoundStored(round=end.round))

    async def receive_devices(self, machine: Machine) -> tuple[DeviceState, ...]:
        messages: list[DeviceState] = []
        states: list[ImportedState] = []
        left = DEVICE_STATES_MAX
        while not isinstance(message := await self.link.receive(), DevicesEnd):
            assert isinstance(message, DeviceState), "the table allows nothing else"
            if len(states) == len(machine.devices):
                raise RemoteProtocolError(f"the source sends more states than the machine's {len(states)} devices")
            left -= sum(len(payload.data) for payload in message.payloads)
            if left < 0:
                raise RemoteProtocolError(f"the source sends more than {DEVICE_STATES_MAX} bytes of device state")
            messages.append(message)
            began_ns = self.attempt.clock.monotonic_ns()
            states.append(read_device(message, self.settings.release))
            self.attempt.devices[message.device] = self.attempt.clock.monotonic_ns() - began_ns
            self.attempt.payloads[message.device] = {payload.kind: payload.version for payload in message.payloads}
        if message.devices != len(states):
            raise RemoteProtocolError(f"the source says that it sent {message.devices} devices; {len(states)} arrived")
        import_states(machine, self.timed(states))
        return tuple(messages)

    def timed(self, states: Iterable[ImportedState]) -> Iterator[ImportedState]:
        """Notes for how long each is imported, beside how long it took to read."""
        for state in states:
            began_ns = self.attempt.clock.monotonic_ns()
            yield state
            self.attempt.devices[state.key] += self.attempt.clock.monotonic_ns() - began_ns

    async def promise(self, machine: Machine) -> "Handoff":
        """Note that the image is complete, then say so.  From here on only the source can end this."""
        self.enter("handoff")
        prepare = await self.hear_prepare()
        self.prepared_ns = self.attempt.clock.monotonic_ns()
        assert isinstance(prepare, Prepare), "the table allows nothing else"
        assert self.journal is not None, "the verdict needed it"
        assert self.image is not None, "it has just been filled"
        handoff = Handoff.of(self.ports, self.settings, self.journal, machine, self.machine_name, self.attempt)
        with self.attempt.step("ready"):
            session = await handoff.ownership.session()
            ruling = on_prepare(self.journal.record, prepare.generation, self.source, session)
            if writes(ruling) is None:
                await handoff.ownership.carry_out(ruling)
                raise RemoteProtocolError(self.attempt.warnings.pop())
            self.link.forbid_cancelling()
            image = self.image.encode() if self.journal.keeps_images else None
            *note, handoff.ready = ruling
            await handoff.ownership.carry_out(tuple(note), image=image)
        return handoff

    async def hear_prepare(self) -> object:
        """Raises RemoteProtocolError: what arrived is not what the source has said, though every frame was whole."""
        here = self.link.transcript
        while isinstance(message := await self.link.receive(), Transcript):  # an older source does not say it
            if message.digest != here:
                raise RemoteProtocolError(
                    f"the source has not said what arrived here: the transcript is {message.digest:#018x} there and "
                    f"{here:#018x} here; a frame of another attempt was among it, or one was lost"
                )
            here = self.link.transcript
        return message

    async def await_commit(self, handoff: "Handoff") -> Arrived:
        """Raises ImageHeld if the link fails, and another MigrationError if the source kept the machine."""
        record = handoff.journal.record
        try:
            with self.attempt.step("commit"):
                sent_ns = self.attempt.clock.monotonic_ns()
                await handoff.ownership.carry_out((handoff.ready,), self.link)
                self.attempt.exchanged("ready", sent_ns=sent_ns, heard_ns=self.prepared_ns)
                commit = await self.link.receive()
                if getattr(commit, "generation", None) != record.generation:
                    raise RemoteProtocolError(f"{commit} is not for generation {record.generation}")
        except PeerFailed:  # it has undone the attempt
            try:
                await handoff.ownership.carry_out(on_abandon(record, record.generation, record.peer))
            except MigrationError as error:  # that could not be noted: it must be asked for again
                raise handoff.held(error) from error
            raise
        except MigrationError as error:
            raise handoff.held(error) from error
        return await handoff.take_over()

    async def give_up(self, error: Exception) -> None:
        if self.machine is not None:
            await self.hypervisor.discard(self.machine)
        if isinstance(error, MigrationError) and not isinstance(error, Refused | PeerFailed):
            await tell_failure(self.link, self.attempt.phase, error)


def hello_of(settings: TargetSettings) -> Hello | HelloFor:
    node, release = settings.node, settings.release.name
    if settings.migration is None:
        return Hello(protocol_versions=PROTOCOL_VERSIONS, node=node, release=release)
    migration = settings.migration.bytes
    return HelloFor(protocol_versions=PROTOCOL_VERSIONS, node=node, release=release, migration=migration)


def owned_here(record: Record) -> Reason:
    return Reason(
        component="machine",
        field="ownership",
        have=f"here already, in generation {record.generation}",
        need="a node that does not run it",
    )


@attrs.define(kw_only=True)
class Handoff:
    """The last steps of a machine that is here completely: in the conversation that brought it, or in a later one."""

    ports: TargetPorts
    journal: Journal
    machine: Machine
    machine_name: str
    attempt: Attempt
    ownership: Ownership
    ready: Effect = attrs.field(init=False)

    @classmethod
    def of(
        cls,
        ports: TargetPorts,
        settings: TargetSettings,
        journal: Journal,
        machine: Machine,
        machine_name: str,
        attempt: Attempt,
    ) -> "Handoff":
        ownership = Ownership(
            node=settings.node,
            machine=machine.birth.vm_id,
            journal=journal,
            fence=ports.fence,
            observer=ports.observer,
            hands=Hands(
                run=lambda image_is_good: _run(ports, machine, image_is_good=image_is_good),
                drop=lambda: ports.hypervisor.discard(machine),
            ),
            alarms=attempt.warnings,
            timing=attempt.part,
        )
        return cls(
            ports=ports,
            journal=journal,
            machine=machine,
            machine_name=machine_name,
            attempt=attempt,
            ownership=ownership,
        )

    def held(self, cause: MigrationError) -> ImageHeld:
        return ImageHeld(self.machine, self.machine_name, self.journal.record, cause)

    async def take_over(self) -> Arrived:
        """The source has committed: note that the machine is ours, then run it, then say so.

        Raises:
            Declined: it cannot run here, ever.
            ImageHeld: that could not be noted, and one may ask again.
        """
        record = self.journal.record
        generation = record.generation
        *own, run, tell = on_commit(record, generation, record.peer)
        try:
            with self.attempt.step("own"):
                await self.ownership.carry_out(tuple(own), self.ports.link)
            with self.attempt.step("run"):
                await self.ownership.carry_out((run,))
        except StorageTaken as taken:
            await self.hear_released(generation)
            raise Declined(str(taken)) from taken
        except MigrationError as error:
            if self.journal.record.holding is Holding.OWNER:  # it is ours, and this host cannot run it
                raise
            raise self.held(error) from error
        self.attempt.committed = True
        self.ports.observer.tell("taken over", generation=generation)
        settled = await self.tell(tell, generation)
        return Arrived(
            machine=self.machine,
            machine_name=self.machine_name,
            generation=generation,
            source=record.peer,
            settled=settled,
        )

    async def tell(self, say: Any, generation: int) -> bool:
        """Tell the source that it is released; whether it is known to have heard."""
        try:
            await self.ownership.carry_out((say,), self.ports.link)
        except MigrationError:
            return False
        return await self.hear_released(generation)

    async def hear_released(self, generation: int) -> bool:
        record = self.journal.record
        try:
            answer = await self.ports.link.receive()
            ruling = answered(record, answer, generation, record.peer)
            if Act.STOP in ruling:  # for whoever runs the machine: it is not settled, so the source is asked again
                return False
            await self.ownership.carry_out(ruling)
        except MigrationError:
            return False
        return answer == Released(generation=generation)


async def _run(ports: TargetPorts, machine: Machine, *, image_is_good: bool) -> None:
    if image_is_good:
        await ports.hypervisor.run(machine)
    else:
        await ports.hypervisor.start_over(machine)


async def settle_image(
    ports: TargetPorts, settings: TargetSettings, journal: Journal, held: ImageHeld, attempt: Attempt
) -> Arrived | None:
    """Ask the source, over a new connection, what becomes of an image: run it, or None once it is discarded.

    Raises:
        HandoffInDoubt: the source does not know, or says that it is long over; a person must look.
        MigrationError: no answer; the image is still held, and one may ask again.
    """
    attempt.phase = "handoff"
    ports.link.forbid_cancelling()
    handoff = Handoff.of(ports, settings, journal, held.machine, held.machine_name, attempt)
    record = journal.record
    machine = held.machine.birth.vm_id
    answer = await inquire(ports.link, settings.node, machine, held.machine_name, record, Standing.HOLDS)
    if answer == Commit(generation=record.generation):
        return await handoff.take_over()
    await handoff.ownership.carry_out(answered(record, answer, record.generation, record.peer))
    if answer == Abandon(generation=record.generation):
        return None
    if isinstance(answer, Gone | Unknown):
        raise NobodyKnows(
            f"the source answers {type(answer).__name__} about generation {record.generation}: it must not run here"
        )
    raise RemoteProtocolError(f"{answer} does not settle generation {record.generation}")


async def take_what_is_taken(
    ports: TargetPorts, settings: TargetSettings, journal: Journal, held: ImageHeld, attempt: Attempt
) -> Arrived | None:
    """Run a machine whose register this node has taken already, without asking anybody; None if it has not.

    The link of `ports` may be one that leads nowhere.

    Raises:
        MigrationError: as `settle_image`.
    """
    if ports.fence is None:
        return None
    handoff = Handoff.of(ports, settings, journal, held.machine, held.machine_name, attempt)
    found = await ports.fence.read()
    if not taken_already(journal.record, found, node=settings.node, machine=held.machine.birth.vm_id):
        return None
    return await handoff.take_over()


class NobodyKnows(HandoffInDoubt):
    """The source answered, and its answer settles nothing: asking again will not help, a person must look."""


async def tell_answer(link: Link, ownership: Ownership, machine_name: str, generation: int, source: str) -> None:
    """Tell `source`, over a new connection, what became here of a generation that it gave away.

    Raises:
        NobodyKnows: it has other evidence; telling it again will not help.
        MigrationError: it could not be told; one may try again.
    """
    record = ownership.record
    asked = attrs.evolve(record, generation=generation, peer=source)
    answer = await inquire(
        link, ownership.node, ownership.machine, machine_name, asked, standing_of(record, generation)
    )
    await ownership.carry_out(answered(record, answer, generation, source))
    if answer != Released(generation=generation):
        raise NobodyKnows(f"the source answers {answer} about generation {generation}, and here is {record}")


def answered(record: Record, answer: object, generation: int, sender: str) -> Ruling:
    """What the rule book makes of the last word of a conversation; nothing, if it is about another generation."""
    if getattr(answer, "generation", None) != generation:
        return ()
    match answer:
        case Released():
            return on_released(record, generation, sender)
        case Abandon():
            return on_abandon(record, generation, sender)
        case Gone():
            return on_gone(record, generation, sender)
        case Unknown():
            return on_unknown(record, generation, sender)
        case _:
            return ()


async def inquire(
    link: Link, node: str, machine: UUID, machine_name: str, record: Record, standing: Standing
) -> object:
    """What the source, the peer of `record`, answers to a target that comes back."""
    await link.send(
        Inquire(
            machine=machine.bytes,
            name=machine_name,
            generation=record.generation,
            standing=standing,
            node=node,
            source=record.peer,
        )
    )
    return await link.receive()
