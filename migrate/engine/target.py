"""The target's side of a migration.

It judges the preamble, makes the machine, fills it, and runs it only after two things have happened in this order: the
source has committed, and this side has noted that it owns the machine.  Until it has promised `Ready`, whatever goes
wrong ends in a machine that is discarded and a source that is told.  After that promise only the source can say what
becomes of the image, so a lost link leaves it held, not run: `ImageHeld`.
"""

from typing import Any

import attrs

from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding, Record
from migrate.engine.negotiation import Acceptable, judge
from migrate.engine.ports import Clock, Hypervisor, Journal, Link, Observer
from migrate.engine.ram import RamReceiver
from migrate.engine.source import tell_failure
from migrate.errors import (
    DeviceStateError,
    HandoffInDoubt,
    MachineCreationFailed,
    MigrationError,
    PeerFailed,
    Refused,
    RemoteProtocolError,
    TimeDataError,
)
from migrate.payloads import PayloadError, decode_payload, warm_up_payloads
from migrate.protocol.frames import warm_up_messages
from migrate.protocol.messages import (
    PROTOCOL_VERSIONS,
    Abandon,
    Commit,
    DevicesEnd,
    DeviceState,
    Hello,
    Owned,
    Paused,
    Payload,
    Preamble,
    Prepare,
    RamBatch,
    Ready,
    Refuse,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    Settle,
    TimeOfDay,
    Welcome,
)
from migrate.reasons import Reason
from migrate.releases import Release
from migrate.specs.replacements import Replacements
from sim_vmm.clock import TimeData
from sim_vmm.clock import TimeDataError as MachineTimeDataError
from sim_vmm.console import ConsoleState, ConsoleStateError
from sim_vmm.devices.errors import DeviceStateError as MachineDeviceError
from sim_vmm.machine import DeviceState as ImportedState
from sim_vmm.machine import Machine
from sim_vmm.payloads import Payload as MachinePayload
from sim_vmm.payloads import Schema


@attrs.frozen(kw_only=True)
class TargetPorts:
    link: Link
    hypervisor: Hypervisor
    journal: Journal
    clock: Clock
    observer: Observer


@attrs.frozen(kw_only=True)
class TargetSettings:
    node: str
    release: Release
    replacements: Replacements = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Arrived:
    """A machine that runs here now.  `settled` is false if the source does not know yet: see `settle`."""

    machine: Machine
    machine_name: str
    generation: int
    settled: bool


class ImageHeld(HandoffInDoubt):
    """The complete image is here and the source has not said what becomes of it.  It must not run until it does."""

    def __init__(self, machine: Machine, machine_name: str, generation: int, cause: MigrationError) -> None:
        super().__init__(
            f"the complete image of generation {generation} is here, and then the link failed ({cause}); it must not "
            "run until the source says so"
        )
        self.machine, self.machine_name, self.generation = machine, machine_name, generation
        self.cause = cause


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
        self.link, self.hypervisor, self.journal = ports.link, ports.hypervisor, ports.journal
        self.observer = ports.observer
        self.settings, self.attempt = settings, attempt
        self.machine: Machine | None = None
        self.machine_name = ""

    def enter(self, phase: str) -> None:
        self.attempt.phase = phase
        self.observer.tell("phase", phase=phase)

    async def run(self) -> Arrived:
        try:
            await self.greet()
            machine = self.machine = await self.negotiate()
            machine.receive()
            await self.fill(machine)
            generation = await self.promise()
        except Exception as error:
            await self.give_up(error)
            raise
        await self.await_commit(machine, generation)
        return await take_over(self.ports, machine, self.machine_name, generation, self.attempt)

    async def greet(self) -> None:
        self.enter("hello")
        release = self.settings.release.name
        await self.link.send(Hello(protocol_versions=PROTOCOL_VERSIONS, node=self.settings.node, release=release))
        answer = await self.link.receive()
        if isinstance(answer, Refuse):
            raise Refused(answer.reasons, Role.SOURCE)
        assert isinstance(answer, Welcome), "the table allows nothing else"
        if answer.protocol_version not in PROTOCOL_VERSIONS:
            raise RemoteProtocolError(f"the source chose protocol version {answer.protocol_version}, not one of ours")

    async def negotiate(self) -> Machine:
        """Judge the preamble; make the machine before saying yes, so that every refusal is a cheap one."""
        self.enter("preamble")
        preamble = await self.link.receive()
        assert isinstance(preamble, Preamble), "the table allows nothing else"
        self.enter("verdict")
        self.machine_name = preamble.machine
        verdict = judge(preamble, self.settings.release, self.settings.replacements)
        if isinstance(verdict, Acceptable):
            try:
                machine = await self.hypervisor.create(verdict.spec, verdict.birth)
            except MachineCreationFailed as error:
                verdict = (Reason(component="host", field="machine", have=str(error), need="a host that can make it"),)
            else:
                self.machine = machine
                warm_up_payloads()  # now, and not in the blackout
                warm_up_messages()
                await self.link.send(verdict.answer)
                self.attempt.spec_version = verdict.answer.spec_version
                return machine
        await self.link.send(Refuse(reasons=verdict))
        raise Refused(verdict, Role.TARGET)

    async def fill(self, machine: Machine) -> None:
        """Everything up to the source's `Prepare`."""
        ram = RamReceiver(machine.memory, self.link)
        await self.receive_while_running(ram)
        attempt = self.attempt
        self.enter("last ram")
        with attempt.step("last ram"):
            await self.receive_round(ram)
            ram.mark_received_dirty()
        self.enter("time data")
        with attempt.step("time data"):
            self.set_clock(machine, await self.link.receive())
        self.enter("devices")
        with attempt.step("devices"):
            await self.receive_devices(machine)
        self.enter("server state")
        with attempt.step("server state"):
            state = await self.link.receive()
            assert isinstance(state, ServerState), "the table allows nothing else"
            try:
                machine.console.import_(ConsoleState(**attrs.asdict(state)))
            except ConsoleStateError as error:
                raise RemoteProtocolError(f"console history: {error}") from error

    async def receive_while_running(self, ram: RamReceiver) -> None:
        self.enter("ram")
        while True:
            match await self.link.receive():
                case RamBatch() as batch:
                    await ram.take(batch)
                case RoundEnd() as end:
                    ram.end_round(end)
                    await self.link.send(RoundStored(round=end.round))
                case Paused():
                    return
                case other:
                    raise AssertionError(f"the table allows no {other} here")

    async def receive_round(self, ram: RamReceiver) -> None:
        while not isinstance(message := await self.link.receive(), RoundEnd):
            assert isinstance(message, RamBatch), "the table allows nothing else"
            await ram.take(message)
        ram.end_round(message)

    def set_clock(self, machine: Machine, message: Any) -> None:
        assert isinstance(message, TimeOfDay), "the table allows nothing else"
        try:
            flight = machine.clock.import_(TimeData(**attrs.asdict(message)))
        except MachineTimeDataError as error:
            raise TimeDataError(str(error)) from error
        if flight.warning is not None:
            self.attempt.warnings.append(flight.warning)

    async def receive_devices(self, machine: Machine) -> None:
        states: list[ImportedState] = []
        while not isinstance(message := await self.link.receive(), DevicesEnd):
            assert isinstance(message, DeviceState), "the table allows nothing else"
            if len(states) == len(machine.devices):
                raise RemoteProtocolError(f"the source sends more states than the machine's {len(states)} devices")
            try:
                payloads = tuple(self.read_payload(payload) for payload in message.payloads)
            except PayloadError as error:
                raise DeviceStateError(f"device {message.device!r}: {error}") from error
            states.append(ImportedState(message.device, payloads))
            self.attempt.payloads[message.device] = {payload.kind: payload.version for payload in message.payloads}
        if message.devices != len(states):
            raise RemoteProtocolError(f"the source says that it sent {message.devices} devices; {len(states)} arrived")
        try:
            machine.import_devices(states)
        except MachineDeviceError as error:
            raise DeviceStateError(str(error)) from error

    def read_payload(self, payload: Payload) -> MachinePayload:
        """Raises PayloadError if this build does not know its version, whatever this program has code for."""
        schema = Schema(payload.kind, payload.version)
        release = self.settings.release
        if not release.knows(schema):
            known = ", ".join(map(str, release.payloads.get(schema.kind, ()))) or "none"
            raise PayloadError(f"{schema} has arrived, and the target ({release.name}) knows versions {known} of it")
        return decode_payload(schema, payload.data)

    async def promise(self) -> int:
        """Note that the image is complete, then say so.  From here on only the source can end this."""
        self.enter("handoff")
        prepare = await self.link.receive()
        assert isinstance(prepare, Prepare), "the table allows nothing else"
        generation = prepare.generation
        floor = self.journal.record
        if generation <= floor.generation:
            raise RemoteProtocolError(
                f"generation {generation} is not above {floor}: the source's journal went backwards"
            )
        self.link.forbid_cancelling()
        with self.attempt.step("ready"):
            await self.journal.write(Record(Holding.READY, generation))
        return generation

    async def await_commit(self, machine: Machine, generation: int) -> None:
        """Raises ImageHeld if the link fails, and another MigrationError if the source kept the machine."""
        try:
            with self.attempt.step("commit"):
                await self.link.send(Ready(generation=generation))
                commit = await self.link.receive()
                if getattr(commit, "generation", None) != generation:
                    raise RemoteProtocolError(f"{commit} is not for generation {generation}")
        except PeerFailed as error:
            await self.journal.write(Record(Holding.NOT_OWNER, generation))
            await self.give_up(error)
            raise
        except MigrationError as error:
            raise ImageHeld(machine, self.machine_name, generation, error) from error

    async def give_up(self, error: Exception) -> None:
        if self.machine is not None:
            await self.hypervisor.discard(self.machine)
        if isinstance(error, MigrationError) and not isinstance(error, Refused | PeerFailed):
            await tell_failure(self.link, self.attempt.phase, error)


async def take_over(
    ports: TargetPorts, machine: Machine, machine_name: str, generation: int, attempt: Attempt
) -> Arrived:
    """The source has committed: note that the machine is ours, then run it, then say so."""
    with attempt.step("own"):
        await ports.journal.write(Record(Holding.OWNER, generation))
        attempt.committed = True
    with attempt.step("run"):
        await ports.hypervisor.run(machine)
    ports.observer.tell("taken over", generation=generation)
    settled = await say_owned(ports.link, generation)
    return Arrived(machine=machine, machine_name=machine_name, generation=generation, settled=settled)


async def say_owned(link: Link, generation: int) -> bool:
    """Tell the source that it is released; whether it is known to have heard."""
    try:
        await link.send(Owned(generation=generation))
        return await link.receive() == Released(generation=generation)
    except MigrationError:
        return False


async def settle_image(ports: TargetPorts, held: ImageHeld, attempt: Attempt) -> Arrived | None:
    """Ask the source, over a new connection, what becomes of an image: run it, or None once it is discarded.

    Raises:
        MigrationError: no answer; the image is still held, and one may ask again.
    """
    attempt.phase = "handoff"
    ports.link.forbid_cancelling()
    await ports.link.send(Settle(machine=held.machine_name, generation=held.generation, owned=False))
    answer = await ports.link.receive()
    match answer:
        case Commit(generation=held.generation):
            return await take_over(ports, held.machine, held.machine_name, held.generation, attempt)
        case Abandon(generation=held.generation):
            await ports.journal.write(Record(Holding.NOT_OWNER, held.generation))
            await ports.hypervisor.discard(held.machine)
            return None
        case _:
            raise RemoteProtocolError(f"{answer} does not settle generation {held.generation}")


async def settle_ownership(link: Link, arrived: Arrived) -> None:
    """Tell the source, over a new connection, that the machine runs here.

    Raises:
        MigrationError: it could not be told; one may try again.
    """
    await link.send(Settle(machine=arrived.machine_name, generation=arrived.generation, owned=True))
    answer = await link.receive()
    if answer != Released(generation=arrived.generation):
        raise RemoteProtocolError(f"the source answers {answer} although generation {arrived.generation} runs here")
