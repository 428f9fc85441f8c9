"""A world for the engines without trio, sockets or time: two nodes, a link made of two byte queues, and a scheduler.

Everything that happens is in one list, `World.events`, in the order in which it happened.  The guest takes a step
whenever somebody awaits a link, as it would between any two instructions of the daemons.  A link operation can be made
to fail: see `Fault`.  After every step the world itself checks that the machine runs in at most one place.
"""

from collections.abc import Callable, Coroutine, Generator, Sequence
from enum import StrEnum
from typing import Any, Final, Self
from uuid import UUID

import attrs

from migrate.daemon.journal import VolatileJournal, journal_of_owner, journal_of_stranger
from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Record
from migrate.engine.ownership import Hands, Ownership
from migrate.engine.policy import PrecopyPolicy
from migrate.engine.ports import Pace
from migrate.engine.source import Served, SourcePorts, SourceSettings, run_source
from migrate.engine.target import (
    Arrived,
    ImageHeld,
    TargetPorts,
    TargetSettings,
    run_target,
    settle_image,
    tell_answer,
)
from migrate.errors import LocalProtocolError, MigrationError, PeerFailed, RemoteProtocolError, TransportLost
from migrate.payloads import encode_payload
from migrate.protocol.conversation import Conversation, OutOfTurn, Phase
from migrate.protocol.frames import HEADER, decode_body, decode_header, encode_frame
from migrate.protocol.messages import Failure, Message, RamContent, Role
from migrate.releases import NEWEST, builtin_releases
from sim_vmm.birth import Birth
from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import GuestProgram, StampGuest
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec
from tests.machines import EVERY_DEVICE, make_spec

CALM_STEPS: Final = 12
CALM_TICKS: Final = 6
NS_PER_OPERATION: Final = 1_000
NS_PER_BYTE: Final = 1
WALL: Final = 1_700_000_000 * 10**9
RELEASE: Final = builtin_releases()[NEWEST]
MACHINE_NAME: Final = "web-server"
VM_ID: Final = UUID(int=0x5EED)

#: An engine or a part of one.
Engine = Coroutine["Until", None, Any]

#: What is put on the wire in place of a message.
Tamper = Callable[[Message], tuple[Message, ...]]


# The scheduler


@attrs.frozen
class Until:
    """Awaiting this lets others run, and returns once `ready()` is true."""

    ready: Callable[[], bool]

    def __await__(self) -> Generator["Until", None, None]:
        yield self


def run_together(engines: Sequence[Engine], after_each_step: Callable[[int], None]) -> list[Any]:
    """Run coroutines in turns until all have ended; what each returned, or the MigrationError that it raised.

    `after_each_step` is told which one has ended, if one has, by its index, else -1.
    """
    waiting: dict[int, Until] = dict.fromkeys(range(len(engines)), Until(lambda: True))
    results: list[Any] = [None] * len(engines)
    while waiting:
        ready = [index for index, until in waiting.items() if until.ready()]
        assert ready, "everybody waits for somebody else"
        for index in ready:
            try:
                waiting[index] = engines[index].send(None)
                after_each_step(-1)
            except StopIteration as finished:
                results[index] = finished.value
            except MigrationError as error:
                results[index] = error
            else:
                continue
            del waiting[index]
            after_each_step(index)
    return results


def run_alone(engine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nobody to wait for."""
    try:
        engine.send(None)
    except StopIteration as finished:
        return finished.value
    raise AssertionError("it waits for something")


# The link


class Loss(StrEnum):
    """What becomes of the operation that fails, and of what is under way."""

    NOTHING_ARRIVES = "nothing arrives"
    """Neither this message nor what either side had sent before and the other not read."""
    PEER_HEARS = "the peer hears it"
    """A send that seems to fail although the message arrives; of a receive, the message is gone."""


@attrs.frozen
class Fault:
    """The `operation`-th link operation of `side`, from 0, fails, and with it the connection."""

    side: Role
    operation: int
    loss: Loss


@attrs.define
class Queue:
    """Bytes in one direction.  `broken`: nobody can write; what is there can still be read."""

    data: bytearray = attrs.field(factory=bytearray)
    broken: bool = False


@attrs.define
class MemoryLink:
    """One end of a connection; see `migrate.engine.ports.Link`."""

    role: Role
    world: "World"
    inbox: Queue
    outbox: Queue
    fault: Fault | None
    operations: int = 0
    cancelling_forbidden: bool = False
    torn: bool = False
    conversation: Conversation = attrs.field(factory=Conversation)

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    async def send(self, message: Message) -> None:
        await self._send(message, b"")

    async def ready_for_ram(self) -> None:
        """A wire in memory has room."""

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        await self._send(batch, bytes(content))

    async def receive(self) -> Message:
        failing = await self._begin()
        header = decode_header(await self._read(HEADER.size))
        message = decode_body(header, await self._read(header.length))
        self._end(failing)
        try:
            self.conversation.advance(self.role.peer, message)
        except OutOfTurn as error:
            raise RemoteProtocolError(f"the {self.role.peer} sent {error}") from None
        self.conversation.note(bytes(header))
        if isinstance(message, Failure):
            raise PeerFailed(self.role.peer.value, message.phase, message.error, message.message)
        return message

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        failing = await self._begin()
        for buffer in buffers:
            buffer[:] = await self._read(len(buffer))
        self._end(failing)

    def forbid_cancelling(self) -> None:
        self.cancelling_forbidden = True

    def close(self) -> None:
        self.inbox.broken = self.outbox.broken = True

    async def _send(self, message: Message, content: bytes) -> None:
        if self.inbox.data and not self.torn and self.conversation.phase is not Phase.ENDED:
            await self.receive()  # the peer has failed: hear it before speaking into the void
        failing = await self._begin()
        if self.outbox.broken:
            raise TransportLost("the connection is closed")
        try:
            self.conversation.advance(self.role, message)
        except OutOfTurn as error:
            raise LocalProtocolError(str(error)) from error
        self.conversation.note(encode_frame(message)[: HEADER.size])
        self.outbox.data += b"".join(map(encode_frame, self.world.tamper(message))) + content
        self.world.happened(f"{self.role} sends {_short(message)}")
        self.world.advance(NS_PER_BYTE * len(content))
        self._end(failing)

    async def _begin(self) -> bool:
        """Let the others run; whether this is the operation that fails, after it took effect."""
        await Until(lambda: True)
        self.world.tick()
        number = self.operations
        self.operations += 1
        if self.torn:
            raise TransportLost("the connection was lost before")
        failing = self.fault is not None and (self.fault.side, self.fault.operation) == (self.role, number)
        if failing and self.fault is not None and self.fault.loss is Loss.NOTHING_ARRIVES:
            self.inbox.data.clear()
            self.outbox.data.clear()
            self._break_off()
        return failing

    def _end(self, failing: bool) -> None:
        if failing:
            self._break_off()

    def _break_off(self) -> None:
        self.torn = True
        self.close()
        raise TransportLost(f"injected at operation {self.operations - 1} of the {self.role}")

    async def _read(self, length: int) -> bytes:
        await Until(lambda: len(self.inbox.data) >= length or self.inbox.broken)
        if len(self.inbox.data) < length:
            self.torn = True
            raise TransportLost(f"the {self.role.peer} closed the connection")
        data = bytes(self.inbox.data[:length])
        del self.inbox.data[:length]
        return data


def _short(message: Message) -> str:
    generation = getattr(message, "generation", None)
    return type(message).__name__ + (f"({generation})" if generation is not None else "")


# Nodes


async def no_more_runs(_: bool) -> None:
    raise AssertionError("who only tells lets nothing run")


class DiskFull(MigrationError):
    """A journal cannot write: the old record stands."""


@attrs.define
class TracingJournal:
    """A journal whose writes can be seen in the events."""

    node: Role
    world: "World"
    journal: VolatileJournal
    full_disk: bool = False

    keeps_images: bool = False

    @property
    def record(self) -> Record:
        return self.journal.record

    @property
    def highest(self) -> int:
        return self.journal.highest

    async def new_generation(self) -> int:
        return await self.journal.new_generation()

    async def write(self, record: Record, *, image: bytes | None = None, owes_answer: bool = False) -> None:
        if self.full_disk:
            raise DiskFull(f"no space is left to note {record}")
        if record != self.record:
            self.world.happened(f"{self.node} writes {record}")
        await self.journal.write(record, image=image, owes_answer=owes_answer)

    async def expect(self, machine: Machine) -> None:
        await self.journal.expect(machine)

    async def settle_debt(self, generation: int, peer: str) -> None:
        await self.journal.settle_debt(generation, peer)

    async def of(self, birth: Birth, name: str) -> Self:
        """The world has one machine only."""
        return self


@attrs.define
class SteppedGuest:
    """The source's machine, which executes `steps_left` more steps of its program.

    One whenever the world ticks, which dirties more than fits the downtime limit; fewer for the last `CALM_STEPS`.
    """

    machine: Machine
    world: "World"
    steps_left: int
    ticks: int = 0
    program: GuestProgram = attrs.field(factory=lambda: StampGuest(steps_per_record=2))
    throttled: list[float] = attrs.field(factory=list)

    def step(self) -> None:
        self.ticks += 1
        is_due = self.steps_left > CALM_STEPS or self.ticks % CALM_TICKS == 0
        if self.machine.state is MachineState.RUNNING and self.steps_left > 0 and is_due:
            self.steps_left -= 1
            self.machine.poll()
            self.program.step(self.machine)

    @property
    def pace(self) -> Pace:
        return Pace(work=self.ticks, running_ns=self.ticks * NS_PER_OPERATION)

    def throttle(self, share: float) -> None:
        self.throttled.append(share)

    async def pause(self) -> None:
        self.world.happened("source pauses")
        self.machine.pause()

    async def resume(self) -> None:
        if self.machine.state is MachineState.PAUSED:
            self.world.happened("source resumes")
            self.machine.resume()

    async def start_over(self) -> None:
        raise AssertionError("an image was doubted without a reason")

    async def stop(self) -> None:
        self.world.happened("source stops")
        self.machine.stop()


@attrs.define
class Target:
    """A node that may get the machine; see `migrate.engine.ports.Hypervisor`."""

    world: "World"
    journal: TracingJournal
    node: str
    made: list[Machine] = attrs.field(factory=list)
    facts_at_start: "Facts | None" = None
    result: Any = None

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        machine = Machine.create(spec, host_clock=self.world.target_clock, counters=self.world.counters, birth=birth)
        self.made.append(machine)
        return machine

    async def run(self, machine: Machine) -> None:
        self.facts_at_start = Facts.of(machine)
        self.world.happened("target runs")
        machine.start()

    async def start_over(self, machine: Machine) -> None:
        raise AssertionError("an image was doubted without a reason")

    async def discard(self, machine: Machine) -> None:
        self.world.happened("target discards")
        machine.stop()
        machine.close()

    @property
    def is_running(self) -> bool:
        return any(machine.state is MachineState.RUNNING for machine in self.made)


@attrs.frozen
class Facts:
    """What must be the same on both sides: content of RAM, device states, console history, TSC and uptime."""

    ram: str
    devices: dict[str, list[bytes]]
    console: Any
    uptime_ns: int
    tsc: int

    @classmethod
    def of(cls, machine: Machine) -> Self:
        with machine.memory.snapshot() as snapshot:
            ram = snapshot.digest()
        devices = {state.key: [encode_payload(payload) for payload in state.payloads] for state in machine.preflight()}
        return cls(ram, devices, machine.console.export(), machine.clock.uptime_ns(), machine.clock.tsc())


# The world


class World:
    """A source with a running machine, and any number of targets.  Use it as a context manager."""

    def __init__(
        self,
        *,
        spec: Spec | None = None,
        steps: int = 26,
        policy: PrecopyPolicy | None = None,
        settings: SourceSettings | None = None,
    ) -> None:
        self.events: list[str] = []
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.source_clock = ManualClock(monotonic=5 * 10**9, wall=WALL)
        self.target_clock = ManualClock(monotonic=77 * 10**9, wall=WALL)
        self.counters = InjectionCounters()
        machine = Machine.create(
            spec or make_spec(EVERY_DEVICE),
            host_clock=self.source_clock,
            counters=self.counters,
            birth=RELEASE.birth(VM_ID),
        )
        self.guest = SteppedGuest(machine, self, steps)
        machine.start()
        self.guest.program.boot(machine)
        self.journal = TracingJournal(Role.SOURCE, self, journal_of_owner())
        self.settings = settings or SourceSettings(
            node="rack-3",
            machine_name=MACHINE_NAME,
            release=RELEASE,
            policy=policy or PrecopyPolicy(rounds_min=3),
        )
        self.targets: list[Target] = []
        self.source_attempt = self.target_attempt = Attempt(side=Role.SOURCE, clock=_EngineClock(self))
        self.links: dict[Role, MemoryLink] = {}
        self.tamper: Tamper = lambda message: (message,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in (self.machine, *(machine for target in self.targets for machine in target.made)):
            machine.close()

    @property
    def machine(self) -> Machine:
        return self.guest.machine

    @property
    def source_runs(self) -> bool:
        return self.machine.state is MachineState.RUNNING

    @property
    def runners(self) -> int:
        return self.source_runs + sum(target.is_running for target in self.targets)

    def new_target(self) -> Target:
        node = f"rack-{7 + len(self.targets)}"
        target = Target(self, TracingJournal(Role.TARGET, self, journal_of_stranger()), node)
        self.targets.append(target)
        return target

    def migrate(self, target: Target, fault: Fault | None = None, settings: TargetSettings | None = None) -> Any:
        """One attempt: what the source's engine returned or raised; the target's is in `target.result`."""
        settings = settings or TargetSettings(node=target.node, release=RELEASE)
        return self._connect(target, fault, lambda ports, attempt: run_target(ports, settings, attempt))

    def settle(self, target: Target, fault: Fault | None = None) -> Any:
        """The target comes back, as its last result says it has to; the same results as of `migrate`."""
        last = target.result
        if isinstance(last, ImageHeld):
            settings = TargetSettings(node=target.node, release=RELEASE)
            return self._connect(
                target,
                fault,
                lambda ports, attempt: settle_image(ports, settings, target.journal, last, attempt),
                keep=last,
            )
        assert isinstance(last, Arrived)
        ownership = Ownership(
            node=target.node,
            machine=last.machine.birth.vm_id,
            journal=target.journal,
            fence=None,
            observer=self,
            hands=Hands(run=no_more_runs),
        )
        return self._connect(
            target,
            fault,
            lambda ports, _: tell_answer(ports.link, ownership, last.machine_name, last.generation, last.source),
            keep=last,
        )

    def converse(self, target: Engine, link: MemoryLink) -> tuple[Any, Any]:
        """The source's engine against any coroutine at the other end, which was given `link`: the results of both.

        That of a source that has handed the machine over is None.
        """
        ends = (self.links[Role.SOURCE], link)

        def after_each_step(ended: int) -> None:
            if ended >= 0:
                ends[ended].close()
            assert self.runners <= 1, f"two runners: {self.events}"

        source, other = run_together([self._source(), target], after_each_step)
        return None if source is Served.HANDED_OVER else source, other

    def connect(self, fault: Fault | None = None) -> MemoryLink:
        """A new connection: the target's end of it."""
        up, down = Queue(), Queue()
        self.links = {
            Role.SOURCE: MemoryLink(Role.SOURCE, self, inbox=up, outbox=down, fault=fault),
            Role.TARGET: MemoryLink(Role.TARGET, self, inbox=down, outbox=up, fault=fault),
        }
        return self.links[Role.TARGET]

    def _source(self) -> Engine:
        clock = _EngineClock(self)
        self.source_attempt = Attempt(side=Role.SOURCE, clock=clock)
        ports = SourcePorts(
            link=self.links[Role.SOURCE], guest=self.guest, journal=self.journal, clock=clock, observer=self
        )
        return run_source(ports, self.settings, self.source_attempt)

    def _connect(
        self,
        target: Target,
        fault: Fault | None,
        engine: Callable[[TargetPorts, Attempt], Engine],
        keep: Arrived | ImageHeld | None = None,
    ) -> Any:
        link = self.connect(fault)
        clock = _EngineClock(self)
        self.target_attempt = Attempt(side=Role.TARGET, clock=clock)
        ports = TargetPorts(link=link, hypervisor=target, journals=target.journal, clock=clock, observer=self)
        source, result = self.converse(engine(ports, self.target_attempt), link)
        failed_to_settle = keep is not None and isinstance(result, MigrationError)
        if isinstance(keep, Arrived) and result is None:
            result = attrs.evolve(keep, settled=True)
        target.result = keep if failed_to_settle else result
        return source

    # What engines and links tell the world

    def happened(self, event: str) -> None:
        self.events.append(event)

    def tell(self, event: str, **facts: Any) -> None:
        self.facts.append((event, facts))

    def tick(self) -> None:
        """Somebody awaited the link: time passes, and the guest goes on."""
        self.advance(NS_PER_OPERATION)
        self.guest.step()

    def advance(self, ns: int) -> None:
        self.source_clock.advance(ns)
        self.target_clock.advance(ns)


@attrs.frozen
class _EngineClock:
    """The clock port: sleeping is letting time pass."""

    world: World

    def monotonic_ns(self) -> int:
        return self.world.source_clock.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        self.world.advance(round(seconds * 10**9))
