"""Daemons in one process over real TCP, and what comes between them: a tap that knows frames, and scripted peers.

A `Neighbourhood` starts sources, targets and taps, and closes what they leave.  A `Tap` carries connections of targets
to a source frame by frame, and does to one message whatever its `Fault` says; later connections pass untouched.  A
`Wire` is a peer of ours that says what a test wants: `play_target` and `play_source` lead it honestly to some phase.
"""

import gc
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from enum import Enum
from itertools import groupby
from typing import Any, ClassVar, Final
from uuid import UUID

import attrs
import pytest
import trio
import xxhash
from trio.testing import MockClock

from migrate.daemon.access import Access
from migrate.daemon.address import Address
from migrate.daemon.events import Event, EventLog
from migrate.daemon.guests import GuestRunner, TrioHypervisor
from migrate.daemon.images import Image
from migrate.daemon.invitation import Invitation
from migrate.daemon.journal import VolatileJournal, journal_of_owner, journal_of_stranger
from migrate.daemon.node import Node
from migrate.daemon.source import SourceDaemon
from migrate.daemon.target import TargetDaemon
from migrate.engine.negotiation import preamble_of
from migrate.engine.policy import OnStall, PrecopyPolicy
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.payloads import encode_payload
from migrate.protocol import frames
from migrate.protocol.conversation import NEXT, Conversation, Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import (
    MESSAGES,
    PROTOCOL_VERSIONS,
    Accept,
    Commit,
    DevicesEnd,
    DeviceState,
    Extent,
    Hello,
    KindVersions,
    Message,
    Owned,
    Paused,
    Payload,
    Prepare,
    RamBatch,
    RamContent,
    Ready,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    TimeOfDay,
    Welcome,
)
from migrate.releases import builtin_releases
from sim_vmm.birth import NEWEST, Birth
from sim_vmm.clock import SystemClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import GuestProgram, StampGuest, audit_records, read_stamp
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec
from tests.machines import EVERY_DEVICE, make_spec

LOOPBACK: Final = "127.0.0.1"
RELEASES: Final = builtin_releases()
PAGE: Final = 4096
VM_ID: Final = UUID("c0ffee00-5d0c-4f8e-8d8b-3c6f1fd0a9d2")

#: Long enough for a busy host: these expire only where a test lets time pass.
PATIENT: Final = Deadlines(connect_s=10, frame_s=10, opening_s=10, farewell_s=1)
ENDLESS: Final = Deadlines(connect_s=1e9, frame_s=1e9, opening_s=1e9, phase_s=1e9)
#: Whatever this busy host makes of a round, these tests are not about convergence: there is one, and then the last.
SWITCH_OVER_ANYWAY: Final = PrecopyPolicy(downtime_limit_ms=10_000, on_stall=OnStall.FORCE, rounds_max=1)

SPEAKER: Final = {phase: sender for (phase, sender, _) in NEXT}


@attrs.frozen
class Told:
    """An event, and what the machine was doing when it was told."""

    event: Event
    state: MachineState

    @property
    def name(self) -> str:
        return str(self.event["event"])


@attrs.frozen
class Watched:
    """A guest program that notes on whose machine each step is executed."""

    name: ClassVar[str] = "watched"
    program: GuestProgram
    executed_by: list[str]
    owner: str

    def boot(self, machine: Machine) -> None:
        self.program.boot(machine)

    def step(self, machine: Machine) -> None:
        self.executed_by.append(self.owner)
        self.program.step(machine)


@attrs.define
class WatchedHypervisor(TrioHypervisor):
    """Knows the machines that it made and has not discarded, and watches the guests that it runs."""

    kept: list[Machine] = attrs.field(factory=list)
    executed_by: list[str] = attrs.field(factory=list)
    owner: str = "target"

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        machine = await super().create(spec, birth)
        self.kept.append(machine)
        return machine

    async def discard(self, machine: Machine) -> None:
        await super().discard(machine)
        self.kept.remove(machine)

    async def run(self, machine: Machine) -> None:
        await super().run(machine)
        assert self.runner is not None
        self.runner.program = Watched(self.runner.program, self.executed_by, self.owner)


@attrs.frozen
class Source:
    """A running machine, born on the daemon's release, and the daemon that serves it at `port`."""

    machine: Machine
    runner: GuestRunner
    daemon: SourceDaemon
    journal: VolatileJournal
    port: int
    told: list[Told]

    @property
    def sequence(self) -> int:
        stamp = read_stamp(self.machine.memory)
        assert stamp is not None
        return stamp.sequence

    def told_of(self, name: str) -> list[Told]:
        return [told for told in self.told if told.name == name]


@attrs.frozen
class Target:
    daemon: TargetDaemon
    hypervisor: WatchedHypervisor
    told: list[Event]

    @property
    def journal(self) -> VolatileJournal:
        """Of the machine that came last, or the one that would be of any."""
        journal = self.daemon.journals.last or journal_of_stranger()
        assert isinstance(journal, VolatileJournal)
        return journal

    async def tell(self) -> None:
        """As the daemon does once the machine runs here: tell the source until it has heard it."""
        assert self.hypervisor.runner is not None
        ownership = self.daemon.node.ownership(self.hypervisor.runner, self.journal)
        await self.daemon.tell(ownership, self.journal, "vm")

    @property
    def machine(self) -> Machine:
        """The machine that runs here."""
        assert self.hypervisor.runner is not None
        return self.hypervisor.runner.machine


@attrs.define
class Neighbourhood:
    """Starts daemons whose guests all note their steps in `executed_by`."""

    nursery: trio.Nursery
    closing: ExitStack
    executed_by: list[str] = attrs.field(factory=list)

    @property
    def owners_in_turn(self) -> list[str]:
        """Who executed the guest, in order; nobody may occur twice, or two ran at once."""
        return [owner for owner, _ in groupby(self.executed_by)]

    async def source(
        self,
        spec: Spec | None = None,
        *,
        program: GuestProgram | None = None,
        release: str = "r6",
        deadlines: Deadlines = PATIENT,
        counters: InjectionCounters | None = None,
        bandwidth: float | None = None,
        access: Access | None = None,
        invitation: Invitation | None = None,
    ) -> Source:
        program = program or StampGuest()
        machine = make_machine(spec or make_spec(EVERY_DEVICE), counters, RELEASES[release].birth(VM_ID))
        self.closing.callback(machine.close)
        program.boot(machine)
        machine.start()
        runner = GuestRunner(machine, Watched(program, self.executed_by, "source"), self.nursery)
        await runner.resume()
        told: list[Told] = []
        journal = journal_of_owner()
        daemon = SourceDaemon(
            runner,
            journal,
            SourceSettings(
                node="source-node",
                machine_name="vm",
                release=RELEASES[release],
                policy=SWITCH_OVER_ANYWAY,
                bandwidth=bandwidth,
            ),
            EventLog("source", [lambda event: told.append(Told(event, machine.state))]),
            deadlines=deadlines,
            access=access or Access(),
            invitation=invitation or Invitation(),
        )
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.nursery.start_soon(daemon.serve, listeners)
        return Source(machine, runner, daemon, journal, port_of(listeners), told)

    def target(
        self,
        port: int,
        *,
        owner: str = "target",
        release: str = "r6",
        retries: int = 0,
        streams: int = 1,
        deadlines: Deadlines = PATIENT,
        counters: InjectionCounters | None = None,
        access: Access | None = None,
        migration: UUID | None = None,
    ) -> Target:
        hypervisor = WatchedHypervisor(
            self.nursery,
            audited=True,
            counters=counters or InjectionCounters(),
            executed_by=self.executed_by,
            owner=owner,
        )
        self.closing.callback(close_all, hypervisor.kept)
        told: list[Event] = []
        events = EventLog("target", [told.append])
        settings = TargetSettings(node=f"{owner}-node", release=RELEASES[release], migration=migration)
        node = Node(name=settings.node, release=settings.release, hypervisor=hypervisor, events=events)
        daemon = TargetDaemon(
            Address(host=LOOPBACK, port=port),
            node,
            settings,
            events,
            retries=retries,
            streams=streams,
            deadlines=deadlines,
            access=access or Access(),
        )
        return Target(daemon, hypervisor, told)

    async def tap(self, source_port: int, *faults: "Fault") -> "Tap":
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        tap = Tap(source_port, port_of(listeners), list(faults))
        self.nursery.start_soon(trio.serve_listeners, tap.carry, listeners)
        return tap

    async def scripted_source(self, converse: Callable[["Wire"], Any]) -> int:
        """A port where every connection is a target that `converse` talks to."""

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                with ignoring_loss():
                    await converse(Wire(Role.SOURCE, stream))

        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        self.nursery.start_soon(trio.serve_listeners, answer, listeners)
        return port_of(listeners)


@pytest.fixture
async def neighbourhood() -> AsyncIterator[Neighbourhood]:
    """Daemons, and the proof that they leave no file open."""
    gc.collect()  # what earlier tests left to the collector must not go in the middle of this one
    before = open_files()
    with ExitStack() as closing:
        async with trio.open_nursery() as nursery:
            yield Neighbourhood(nursery, closing)
            nursery.cancel_scope.cancel()
    assert open_files() == before, "files are left open"


@pytest.fixture
def clock() -> MockClock:
    """Time as usual, that a test can jump ahead in."""
    return MockClock(rate=1)


async def time_passes(clock: MockClock, over: Callable[[], object]) -> None:
    """Let deadlines expire, one after another, until `over` holds.

    In between everybody gets some turns, so that what is not held up comes to its end, however busy the host is.
    """
    while not over():
        clock.jump(1.1 * PATIENT.frame_s)
        for _ in range(200):
            await trio.lowlevel.checkpoint()


def make_machine(spec: Spec, counters: InjectionCounters | None = None, birth: Birth = NEWEST) -> Machine:
    return Machine.create(spec, host_clock=SystemClock(), counters=counters or InjectionCounters(), birth=birth)


def port_of(listeners: Sequence[trio.SocketListener]) -> int:
    port: int = listeners[0].socket.getsockname()[1]
    return port


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # the listing itself is one of them, both times


def close_all(machines: Iterable[Machine]) -> None:
    for machine in machines:
        machine.close()


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    """Return when `condition` holds; fail if it does not in time."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  # tests look at daemons from outside, without a word from them
            await trio.sleep(0.002)


async def assert_identical(source: Source, target: Target) -> None:
    """The machine that ran on at the target is the one that the source gave away, and it lost nothing since."""
    assert target.hypervisor.image is not None
    there = await target.hypervisor.image.facts()
    here = await Image.of(source.machine).facts()
    for fact in ("spec", "ram", "ram_bytes", "devices", "console"):
        assert there[fact] == here[fact], fact
    assert StampGuest().stale_pages(target.machine.memory) == []
    assert audit_records(target.machine.console.read(from_start=0).data).is_clean


# What comes between two daemons


class Ending(Enum):
    """How a connection comes to its end."""

    CLOSE = "closed"
    RESET = "reset"
    SILENCE = "silent"
    PARTED = "closed, and nobody gets through until the tap is open again"
    NONE = "not at all"


def nothing(_: bytes) -> bytes:
    return b""


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def everything(data: bytes) -> bytes:
    return data


@attrs.define
class Fault:
    """What becomes of the `number`-th message of a kind from `sender`: what `passes` of its bytes, and what is then."""

    sender: Role
    kind: type[Message]
    passes: Callable[[bytes], bytes]
    then: Ending
    number: int = 1
    fired: bool = False


@attrs.define
class Tap:
    """Carries what targets and the source say, frame by frame; `faults` fire once each."""

    source_port: int
    port: int
    faults: list[Fault]
    is_open: bool = True
    heard: list[tuple[Role, type[Message] | None]] = attrs.field(factory=list)

    async def carry(self, target: trio.SocketStream) -> None:
        try:
            source = await trio.open_tcp_stream(LOOPBACK, self.source_port if self.is_open else 0)
        except OSError:
            await target.aclose()
            return
        async with AsyncExitStack() as closing:
            closing.push_async_callback(trio.aclose_forcefully, target)
            closing.push_async_callback(trio.aclose_forcefully, source)
            async with trio.open_nursery() as nursery:
                link = _Carried({Role.TARGET: target, Role.SOURCE: source}, nursery.cancel_scope)
                nursery.start_soon(self._pump, link, Role.TARGET)
                nursery.start_soon(self._pump, link, Role.SOURCE)

    async def _pump(self, link: "_Carried", sender: Role) -> None:
        reader = FrameReader(link.streams[sender])
        seen: dict[type[Message] | None, int] = {}
        try:
            while (frame := await reader.next()) is not None:
                message, data = frame
                kind = None if message is None else type(message)
                seen[kind] = seen.get(kind, 0) + 1
                self.heard.append((sender, kind))
                fault = self._fault(sender, kind, seen[kind])
                if fault is not None and fault.then is not Ending.NONE:
                    link.last_word = sender  # no answer passes before it has ended
                await link.forward(sender, data if fault is None else fault.passes(data))
                if fault is not None:
                    self._end(link, fault.then)
            await link.end_of(sender)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            link.scope.cancel()

    def _end(self, link: "_Carried", ending: Ending) -> None:
        match ending:
            case Ending.NONE:
                return
            case Ending.SILENCE:
                link.silent = True
                return
            case Ending.PARTED:
                self.is_open = False
            case Ending.RESET:
                for stream in link.streams.values():
                    reset_on_close(stream)
        link.scope.cancel()

    def _fault(self, sender: Role, kind: type[Message] | None, number: int) -> Fault | None:
        for fault in self.faults:
            if not fault.fired and (fault.sender, fault.kind, fault.number) == (sender, kind, number):
                fault.fired = True
                return fault
        return None


@attrs.define
class _Carried:
    """One connection through a tap."""

    streams: dict[Role, trio.SocketStream]
    scope: trio.CancelScope
    silent: bool = False
    last_word: Role | None = None

    async def forward(self, sender: Role, data: bytes) -> None:
        if data and not self.silent and self.last_word in (None, sender):
            await self.streams[sender.peer].send_all(data)

    async def end_of(self, sender: Role) -> None:
        if not self.silent:
            await self.streams[sender.peer].send_eof()


def reset_on_close(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@attrs.define
class FrameReader:
    """Reads frames from a stream, with the page contents that follow them."""

    stream: trio.abc.ReceiveStream
    _buffer: bytearray = attrs.field(factory=bytearray)
    _opened: bool = False

    async def next(self) -> tuple[Message | None, bytes] | None:
        """The next message, None if its type is unknown, and all its bytes; None at the end of the stream.

        The first message comes with the preface before it.
        """
        start = 0 if self._opened else len(frames.PREFACE)
        if not await self._have(start + frames.HEADER.size):
            return None
        self._opened = True
        header = frames.decode_header(bytes(self._buffer[start : start + frames.HEADER.size]))
        length = start + frames.HEADER.size + header.length
        if not await self._have(length):
            return None
        message = None
        if header.type in MESSAGES:
            message = frames.decode_body(header, bytes(self._buffer[start + frames.HEADER.size : length]))
        if isinstance(message, RamContent):
            length += message.content_bytes
            if not await self._have(length):
                return None
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message, data

    async def _have(self, length: int) -> bool:
        while len(self._buffer) < length:
            data = await self.stream.receive_some(1 << 20)
            if not data:
                return False
            self._buffer += data
        return True


# Scripted peers


@attrs.define
class Wire:
    """One end of a connection, in the hands of a test."""

    role: Role
    stream: trio.SocketStream
    conversation: Conversation = attrs.field(factory=Conversation)
    _reader: FrameReader = attrs.field(init=False)
    _opened: bool = False

    def __attrs_post_init__(self) -> None:
        self._reader = FrameReader(self.stream)

    def bytes_of(self, message: Message, content: bytes = b"") -> bytes:
        """What saying `message` next would send."""
        return self.after_preface(frames.encode_frame(message) + content)

    def after_preface(self, data: bytes) -> bytes:
        return data if self._opened else frames.PREFACE + data

    async def say(self, message: Message, content: bytes = b"") -> None:
        self.conversation.advance(self.role, message)
        await self.put(self.bytes_of(message, content))

    async def put(self, data: bytes) -> None:
        self._opened = True
        await self.stream.send_all(data)

    async def hear(self) -> Message | None:
        """The peer's next message, or None if it has hung up."""
        frame = await self._reader.next()
        if frame is None:
            return None
        message = frame[0]
        assert message is not None, "daemons send no messages of unknown types"
        self.conversation.advance(self.role.peer, message)
        return message

    async def last_words(self) -> Message | None:
        """The last thing that the peer says before it hangs up."""
        last = None
        with ignoring_loss():
            while (frame := await self._reader.next()) is not None:
                last = frame[0]
        return last


@contextmanager
def ignoring_loss() -> Iterator[None]:
    """Scripted peers do not mind that the daemon goes away."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        yield


async def connected(port: int) -> Wire:
    """A scripted target."""
    return Wire(Role.TARGET, await trio.open_tcp_stream(LOOPBACK, port))


ALL_PAYLOADS: Final = tuple(
    KindVersions(kind=kind, versions=versions) for kind, versions in sorted(RELEASES["r6"].payloads.items())
)


async def play_target(wire: Wire, stop_in: Phase) -> None:
    """Be a good target until the conversation is in `stop_in`."""
    heard: Any = None
    while wire.conversation.phase is not stop_in:
        if SPEAKER[wire.conversation.phase] is Role.SOURCE:
            heard = await wire.hear()
            assert heard is not None, f"the source hung up in phase {wire.conversation.phase}"
        else:
            await wire.say(target_answer(wire.conversation.phase, heard))


def target_answer(phase: Phase, heard: Any) -> Message:
    """What a good target says in `phase`, having heard `heard` last."""
    match phase:
        case Phase.HELLO:
            return Hello(protocol_versions=PROTOCOL_VERSIONS, node="scripted", release="r6")
        case Phase.VERDICT:
            return Accept(spec_version=6, imports=ALL_PAYLOADS)
        case Phase.RECEIPT:
            return RoundStored(round=heard.round)
        case Phase.READY:
            return Ready(generation=heard.generation)
        case Phase.OWNED:
            return Owned(generation=heard.generation)
        case _:
            raise AssertionError(f"{phase} is not the target's turn")


#: The content of page 0 of the scripted source's machine; all other pages are zero.
SCRIPTED_PAGE: Final = bytes(range(256)) * 16


def source_script(machine: Machine) -> list[tuple[Message, bytes]]:
    """Everything that a good source says to migrate `machine` away: one page of RAM in one round, then the rest."""
    batch = RamBatch(
        round=0,
        extents=(Extent(gpa=0, length=PAGE),),
        zero=(Extent(gpa=PAGE, length=PAGE),),
        checksum=xxhash.xxh3_64_intdigest(SCRIPTED_PAGE),
    )
    devices = [
        DeviceState(
            device=state.key,
            payloads=tuple(
                Payload(kind=payload.SCHEMA.kind, version=payload.SCHEMA.version, data=encode_payload(payload))
                for payload in state.payloads
            ),
        )
        for state in machine.preflight()
    ]
    last: list[Message] = [
        RoundEnd(round=0, pages=2, zero_pages=1),
        Paused(),
        RoundEnd(round=1, pages=0, zero_pages=0),
        TimeOfDay(**attrs.asdict(machine.clock.export())),
        *devices,
        DevicesEnd(devices=len(devices)),
        ServerState(**attrs.asdict(machine.console.export())),
        Prepare(generation=2),
        Commit(generation=2),
        Released(generation=2),
    ]
    first = (
        Welcome(protocol_version=1, node="scripted", release="r6"),
        preamble_of(machine, RELEASES["r6"], "vm"),
    )
    return [*((message, b"") for message in first), (batch, SCRIPTED_PAGE), *((message, b"") for message in last)]


async def play_source(wire: Wire, script: Iterator[tuple[Message, bytes]], stop_in: Phase) -> None:
    """Be a good source until the conversation is in `stop_in`; what is left of `script` is what would come next."""
    while wire.conversation.phase is not stop_in:
        if SPEAKER[wire.conversation.phase] is Role.TARGET:
            heard = await wire.hear()
            assert heard is not None, f"the target hung up in phase {wire.conversation.phase}"
        else:
            await wire.say(*next(script))
