"""The real engines in conversation with a peer that says whatever the bytes of an input say.

An input is one byte of flags and then the peer's side of the byte stream, without the preface.  When the stream is at
its end the connection is lost.  Nothing is awaited, so an engine runs from its first line to its last in one go, and
what it says is not listened to.

With `FORGIVING`, checksums are put right before they are looked at, in frames and of page contents: they find faults,
and would keep a fuzzer from everything behind them.
"""

import time
from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Any, Final
from uuid import UUID

import attrs
import xxhash

from migrate.daemon.journal import VolatileJournal, journal_of_owner, journal_of_stranger
from migrate.engine.attempt import Attempt
from migrate.engine.handoff import Holding, Record
from migrate.engine.ownership import Hands, Ownership
from migrate.engine.ports import Pace
from migrate.engine.source import SourcePorts, SourceSettings, run_source
from migrate.engine.target import Arrived, ImageHeld, TargetPorts, TargetSettings, run_target, settle_image, tell_answer
from migrate.errors import (
    DeadlineExpired,
    LocalProtocolError,
    MachineCreationFailed,
    MigrationError,
    PeerFailed,
    RemoteProtocolError,
    TransportLost,
)
from migrate.protocol import frames
from migrate.protocol.conversation import Conversation, OutOfTurn
from migrate.protocol.messages import (
    STREAMS_MAX,
    Accept,
    Attach,
    Failure,
    Message,
    Preamble,
    RamContent,
    Role,
    Streams,
    Transcript,
)
from migrate.releases import NEWEST, builtin_releases
from sim_vmm.birth import Birth
from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import PciPath, Spec, SpecKey
from sim_vmm.spec.components import SerialNumber, SerialPort, VirtioNetworkBackend, VirtioNic
from tests.fuzzing.limits import CPU_S_MAX, SCALES, Finding, check_time, peak_memory
from tests.in_memory import SWITCH_OVER_ANYWAY
from tests.machines import make_spec

RELEASE: Final = builtin_releases()[NEWEST]
VM_ID: Final = UUID(int=0xF0220)
NAME: Final = "fuzzed"
HERE, THERE = "here", "there"
MEMORY_MB_MAX: Final = 64
"""RAM of a machine that the fuzzed target's host makes, at most."""
MESSAGES_MAX: Final = 2000
SPEC: Final = make_spec(
    {
        "com1": SerialPort(SerialNumber.COM1),
        "nic": VirtioNic(SpecKey.parse("nic-backend"), UUID(int=0xABCDEF), PciPath(0, 8, 0)),
        "nic-backend": VirtioNetworkBackend("opte0"),
    },
    cpus=1,
    memory_mb=1,
)
GENERATION: Final = 2
MEMORY_MAX: Final = 3 * Preamble.BODY_MAX
"""Bytes that a conversation may allocate at once beside guest RAM: its largest frame, and that frame decoded."""


class Flags(IntFlag):
    FORGIVING = 1
    """Checksums are put right."""
    COMMITTED = 2
    """The source has given the machine away, and heard nothing since."""
    HOLDS = 4
    """The target holds the complete image, and asks what becomes of it."""
    OWES = 8
    """The target runs the machine, and owes its source word of that."""


@attrs.define
class ScriptedLink:
    """A link (migrate/engine/ports.py) whose peer is a stream of bytes; `said_bytes` is what our side sent.

    `longest_s` is the longest that our side took over one message, by `clock`; `start` begins to count.
    """

    role: Role
    stream: memoryview
    forgiving: bool
    conversation: Conversation = attrs.field(factory=Conversation)
    said_bytes: bytearray = attrs.field(factory=bytearray)
    heard: list[Message] = attrs.field(factory=list)
    announced: bool = False
    clock: Callable[[], float] = time.perf_counter
    longest_s: float = 0.0
    _since: float = 0.0

    @property
    def transcript(self) -> int:
        """What has been said; a forgiving link believes what the stream claims, or nothing behind it would be tried."""
        claimed = next((said.digest for said in reversed(self.heard) if isinstance(said, Transcript)), None)
        return claimed if self.forgiving and claimed is not None else self.conversation.transcript

    async def send(self, message: Message) -> None:
        try:
            frame = frames.encode_frame(message)
            self.conversation.advance(self.role, message)
        except (OutOfTurn, ValueError) as error:
            raise LocalProtocolError(str(error)) from error
        self.conversation.note(frame[: frames.HEADER.size])
        self.said_bytes += frame

    async def ready_for_ram(self) -> None:
        """What is said goes nowhere, so there is always room for it."""

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        await self.send(batch)
        self.said_bytes += content

    async def receive(self) -> Message:
        """As the daemon's link, which tells its engine nothing of further connections; here, none ever come."""
        self.longest_s = max(self.longest_s, self.clock() - self._since)
        self._since = self.clock()
        message = self._receive()
        while isinstance(message, Streams):
            if self.announced or not 1 <= message.count <= STREAMS_MAX:
                raise RemoteProtocolError(f"{message.count} further connections announced")
            self.announced = True
            message = self._receive()
        if isinstance(message, Attach) or (isinstance(message, Accept) and self.announced):
            raise DeadlineExpired("further connections have not come, or belong to no conversation")
        return message

    def _read_frame(self) -> tuple[frames.Header, bytes]:
        while True:
            header = frames.decode_header(self._read(frames.HEADER.size))
            body = self._read(header.length)
            if self.forgiving:
                header = frames.decode_header(frames.encode_raw(header.type, body)[: frames.HEADER.size])
            if not header.skippable:
                return header, body
            frames.check_body(header, body)

    def _receive(self) -> Message:
        header, body = self._read_frame()
        message = frames.decode_body(header, body)
        try:
            self.conversation.advance(self.role.peer, message)
        except OutOfTurn as error:
            raise RemoteProtocolError(f"the {self.role.peer} sent {error}") from None
        self.conversation.note(frames.encode_raw(header.type, body)[: frames.HEADER.size])
        self.heard.append(message)
        if isinstance(message, Failure):
            raise PeerFailed(self.role.peer.value, message.phase, message.error, message.message)
        if self.forgiving and isinstance(message, RamContent):
            content = self.stream[: message.content_bytes]
            return attrs.evolve(message, checksum=xxhash.xxh3_64_intdigest(content))
        return message

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = self._read(len(buffer))

    def forbid_cancelling(self) -> None:
        """Nobody cancels."""

    def start(self) -> None:
        self._since = self.clock()

    def stop(self) -> None:
        self.longest_s = max(self.longest_s, self.clock() - self._since)

    def _read(self, length: int) -> bytes:
        if length > len(self.stream):
            raise TransportLost(f"the {self.role.peer} closed the connection")
        data, self.stream = bytes(self.stream[:length]), self.stream[length:]
        return data


@attrs.frozen
class _Clock:
    def monotonic_ns(self) -> int:
        return 10**9

    async def sleep(self, seconds: float) -> None:
        """No time passes."""


@attrs.frozen
class _Nobody:
    def tell(self, event: str, **facts: Any) -> None:
        """An observer that does not listen."""


@attrs.define
class _Guest:
    """The source's machine, whose guest does nothing."""

    machine: Machine

    @property
    def pace(self) -> Pace:
        return Pace(work=0.0, running_ns=0)

    def throttle(self, share: float) -> None:
        """It does nothing anyway."""

    async def pause(self) -> None:
        self.machine.pause()

    async def resume(self) -> None:
        if self.machine.state is MachineState.PAUSED:
            self.machine.resume()

    async def start_over(self) -> None:
        raise AssertionError("an image was doubted without a reason")

    async def stop(self) -> None:
        self.machine.stop()


@attrs.define
class Host:
    """The target's hypervisor and journal; `made` are all machines that it ever made, `discarded` those torn down."""

    journal: VolatileJournal = attrs.field(factory=journal_of_stranger)
    made: list[Machine] = attrs.field(factory=list)
    discarded: list[Machine] = attrs.field(factory=list)

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        if spec.board.memory_mb > MEMORY_MB_MAX:
            raise MachineCreationFailed(f"{spec.board.memory_mb} MiB of RAM; this host has {MEMORY_MB_MAX}")
        try:
            self.made.append(make_machine(spec, birth))
        except (ValueError, OSError) as error:
            raise MachineCreationFailed(str(error)) from error
        return self.made[-1]

    async def run(self, machine: Machine) -> None:
        machine.start()

    async def start_over(self, machine: Machine) -> None:
        raise AssertionError("an image was doubted without a reason")

    async def discard(self, machine: Machine) -> None:
        machine.stop()
        machine.close()
        self.discarded.append(machine)

    async def of(self, birth: Birth, name: str) -> VolatileJournal:
        return self.journal


def make_machine(spec: Spec = SPEC, birth: Birth | None = None) -> Machine:
    return Machine.create(
        spec,
        host_clock=ManualClock(monotonic=10**9, wall=1_700_000_000 * 10**9),
        counters=InjectionCounters(),
        birth=birth or RELEASE.birth(VM_ID),
    )


def outcome_of(engine: Any, link: ScriptedLink) -> Any:
    """What an engine returns, or the MigrationError that it raises; anything else is a finding."""
    link.start()
    try:
        engine.send(None)
    except StopIteration as finished:
        return finished.value
    except LocalProtocolError as error:
        raise Finding(f"the peer made the {link.role} break the protocol: {str(error)[:200]}") from error
    except MigrationError as error:
        return error
    except Exception as error:
        raise Finding(f"{type(error).__name__} left the {link.role}: {str(error)[:200]}") from error
    finally:
        link.stop()
    raise Finding(f"the {link.role} waits for something else than its peer")


class Sources:
    """Machines to be migrated away: one is used again as long as it stays what it was."""

    def __init__(self) -> None:
        self._machine: Machine | None = None

    def take(self) -> Machine:
        """A machine that runs and has never sent a page, or whose pages are all to be sent again."""
        if self._machine is None:
            self._machine = make_machine()
            self._machine.start()
            self._machine.memory.pages[3:5, :64] = 7
            self._machine.memory.dirty.mark_range(3, 5)
        machine, self._machine = self._machine, None
        return machine

    def give_back(self, machine: Machine) -> None:
        if machine.state is MachineState.RUNNING and machine.memory.dirty.count == 2:
            self._machine = machine
        else:
            if machine.state is not MachineState.STOPPED:
                machine.stop()
            machine.close()

    def close(self) -> None:
        if self._machine is not None:
            self._machine.close()
            self._machine = None


SOURCES: Final = Sources()


def converse_with_source(data: bytes, clock: Callable[[], float] = time.perf_counter) -> ScriptedLink:
    """A peer says `data` to a source.  Raises Finding: the source lost its machine, or runs one that it gave away."""
    flags = Flags(data[0] & 3) if data else Flags(0)
    machine = SOURCES.take()
    journal = journal_of_owner()
    if Flags.COMMITTED in flags:
        machine.pause()
        journal = VolatileJournal(Record(Holding.COMMITTED, GENERATION, peer=THERE, owned=1))
    link = ScriptedLink(Role.SOURCE, memoryview(data)[1:], Flags.FORGIVING in flags, clock=clock)
    ports = SourcePorts(link=link, guest=_Guest(machine), journal=journal, clock=_Clock(), observer=_Nobody())
    settings = SourceSettings(node=HERE, machine_name=NAME, release=RELEASE, policy=SWITCH_OVER_ANYWAY)
    dirty_before = machine.memory.dirty.count
    outcome = outcome_of(run_source(ports, settings, Attempt(side=Role.SOURCE, clock=_Clock())), link)
    holding = journal.record.holding
    if (machine.state is MachineState.RUNNING) is not (holding is Holding.OWNER):
        raise Finding(f"the source holds {journal.record}, and its machine is {machine.state}: {outcome!r}")
    if holding is Holding.OWNER and Flags.COMMITTED not in flags and machine.memory.dirty.count != dirty_before:
        raise Finding(f"{dirty_before - machine.memory.dirty.count} pages would be missing in the next attempt")
    if holding is not Holding.OWNER and Flags.COMMITTED not in flags:
        _require(link, "Ready", "Owned" if holding is Holding.NOT_OWNER else "Ready", by_inquiry=True)
    SOURCES.give_back(machine)
    return link


def converse_with_target(data: bytes, clock: Callable[[], float] = time.perf_counter) -> ScriptedLink:
    """A peer says `data` to a target.  Raises Finding: it leaves a machine behind, or runs what it was not given."""
    flags = Flags(data[0] & 13) if data else Flags(0)
    link = ScriptedLink(Role.TARGET, memoryview(data)[1:], Flags.FORGIVING in flags, clock=clock)
    host = Host()
    try:
        match flags & ~Flags.FORGIVING:
            case Flags.HOLDS:
                _ask(link, host)
            case Flags.OWES:
                _tell(link, host)
            case _:
                _receive(link, host)
    finally:
        for machine in host.made:
            if machine not in host.discarded:
                machine.close()
    return link


def _ports(link: ScriptedLink, host: Host) -> TargetPorts:
    return TargetPorts(link=link, hypervisor=host, journals=host, clock=_Clock(), observer=_Nobody())


_SETTINGS: Final = TargetSettings(node=THERE, release=RELEASE)


def _receive(link: ScriptedLink, host: Host) -> None:
    outcome = outcome_of(run_target(_ports(link, host), _SETTINGS, Attempt(side=Role.TARGET, clock=_Clock())), link)
    left = [machine for machine in host.made if machine not in host.discarded]
    holding = host.journal.record.holding
    if isinstance(outcome, Arrived):
        if (
            holding is not Holding.OWNER
            or left != [outcome.machine]
            or outcome.machine.state is not MachineState.RUNNING
        ):
            raise Finding(f"arrived, and the target holds {host.journal.record} and {left}")
        _require(link, "Prepare", "Commit")
        look_at(outcome.machine)
    elif isinstance(outcome, ImageHeld):
        if holding is not Holding.READY or left != [outcome.machine] or outcome.machine.state is MachineState.RUNNING:
            raise Finding(f"an image is held, and the target holds {host.journal.record} and {left}")
    elif left or holding not in (Holding.NOT_OWNER,):
        raise Finding(f"{outcome!r} left {left} behind, and the record {host.journal.record}")


def _ask(link: ScriptedLink, host: Host) -> None:
    """The target holds an image, and comes back to ask for it."""
    record = Record(Holding.READY, GENERATION, peer=HERE)
    host.journal = VolatileJournal(record)
    machine = make_machine()
    host.made.append(machine)
    machine.receive()
    held = ImageHeld(machine, NAME, record, TransportLost("cut"))
    attempt = Attempt(side=Role.TARGET, clock=_Clock())
    outcome = outcome_of(settle_image(_ports(link, host), _SETTINGS, host.journal, held, attempt), link)
    holding = host.journal.record.holding
    runs = machine.state is MachineState.RUNNING
    if runs is not (holding is Holding.OWNER) or runs is not isinstance(outcome, Arrived):
        raise Finding(f"{outcome!r}: the target holds {host.journal.record}, and its machine is {machine.state}")
    if runs:
        _require(link, "Commit", "Commit")
    if (machine in host.discarded) is not (holding is Holding.NOT_OWNER):
        raise Finding(f"{outcome!r}: the target holds {host.journal.record}, and its image is there or not")


def _tell(link: ScriptedLink, host: Host) -> None:
    """The target runs the machine, and tells its source so; it stops only if it is told that this is long over."""
    journal = host.journal = VolatileJournal(Record(Holding.OWNER, GENERATION, peer=HERE))
    machine = make_machine()
    host.made.append(machine)
    machine.start()

    async def stop() -> None:
        machine.stop()

    async def never(_: bool) -> None:
        raise AssertionError("who only tells lets nothing run")

    ownership = Ownership(
        node=THERE, machine=VM_ID, journal=journal, fence=None, observer=_Nobody(), hands=Hands(run=never, stop=stop)
    )
    outcome = outcome_of(tell_answer(link, ownership, NAME, GENERATION, HERE), link)
    runs = machine.state is MachineState.RUNNING
    if runs is not (journal.record.holding is Holding.OWNER):
        raise Finding(f"{outcome!r}: the target holds {journal.record}, and its machine is {machine.state}")
    if not runs:
        _require(link, "Gone", "Gone")


def _require(link: ScriptedLink, *names: str, by_inquiry: bool = False) -> None:
    """Raises Finding unless the peer has said all of `names`, or what a later connection may say in their place."""
    heard = {type(message).__name__ for message in link.heard}
    if not heard.issuperset(names) and not (by_inquiry and heard & {"Inquire", "Settle"}):
        raise Finding(f"the machine changed hands, and the peer said only {sorted(heard)}")


def look_at(machine: Machine) -> None:
    """A machine that a stranger filled is run: its devices look at their queues, and its state is exported."""
    for _ in range(3):
        machine.poll()
    machine.preflight()


def examine_conversation(converse: Callable[..., ScriptedLink], data: bytes) -> None:
    """Raises Finding as `converse`, or because our side took too long over one message, or too much memory for all."""
    if converse(data).longest_s > CPU_S_MAX:
        check_time(lambda: converse(data, time.thread_time).longest_s, "one message")
    if SCALES.take(len(data), MEMORY_MAX):
        with peak_memory() as peak:
            converse(data)
        if peak[0] > MEMORY_MAX:
            raise Finding(
                f"a conversation of {len(data)} bytes made us allocate {peak[0]}; at most {MEMORY_MAX} may be"
            )
