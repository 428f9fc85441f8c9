"""A migration by the real engines with nothing between them but memory: no socket, no daemon.

Messages go through their frames and the table of moves, so what cannot be said on the wire cannot be said here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from migrate.daemon.clock import TrioClock
from migrate.daemon.journal import VolatileJournals, journal_of_owner
from migrate.engine.attempt import Attempt
from migrate.engine.dry_run import Trial, spent
from migrate.engine.policy import OnStall, PrecopyPolicy
from migrate.engine.ports import Pace
from migrate.engine.source import SourcePorts, SourceSettings, run_source
from migrate.engine.target import TargetPorts, TargetSettings, run_target
from migrate.errors import MigrationError, PeerFailed
from migrate.protocol.conversation import Conversation
from migrate.protocol.frames import HEADER, decode_body, decode_header, encode_frame
from migrate.protocol.messages import Failure, Message, RamContent, Role
from migrate.releases import Release
from sim_vmm.birth import Birth
from sim_vmm.clock import HostClock, ManualClock
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec
from sim_vmm.storage import Storage

SWITCH_OVER_ANYWAY = PrecopyPolicy(downtime_limit_ms=10_000, on_stall=OnStall.FORCE)


@attrs.define
class MemoryLink:
    """See `migrate.engine.ports.Link`."""

    role: Role
    out: "trio.MemorySendChannel[bytes]"
    into: "trio.MemoryReceiveChannel[bytes]"
    conversation: Conversation = attrs.field(factory=Conversation)
    _content: memoryview = attrs.field(factory=lambda: memoryview(b""))

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    async def send(self, message: Message) -> None:
        frame = encode_frame(message)
        self.conversation.advance(self.role, message)
        self.conversation.note(frame[: HEADER.size])
        await self.out.send(frame)

    async def receive(self) -> Message:
        frame = await self.into.receive()
        message = decode_body(decode_header(frame[: HEADER.size]), frame[HEADER.size :])
        self.conversation.advance(self.role.peer, message)
        self.conversation.note(frame[: HEADER.size])
        if isinstance(message, Failure):
            raise PeerFailed(self.role.peer.value, message.phase, message.error, message.message)
        return message

    async def ready_for_ram(self) -> None:
        """A channel in memory has room, or `send` waits for it."""

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        kept = bytes(content)
        await self.send(batch)
        if kept:  # a batch of zeros is followed by nothing
            await self.out.send(kept)

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            if not self._content:
                self._content = memoryview(await self.into.receive())
            buffer[:] = self._content[: len(buffer)]
            self._content = self._content[len(buffer) :]

    def forbid_cancelling(self) -> None:
        pass


@attrs.define
class StillGuest:
    """The source's machine; nobody makes its guest step.  `was_paused` tells whether it ever was."""

    machine: Machine
    was_paused: bool = False

    @property
    def pace(self) -> Pace:
        return Pace(work=0, running_ns=0)

    def throttle(self, share: float) -> None:
        """Nobody makes it step, at any pace."""

    async def pause(self) -> None:
        self.was_paused = True
        self.machine.pause()

    async def resume(self) -> None:
        if self.machine.state is MachineState.PAUSED:
            self.machine.resume()

    async def start_over(self) -> None:
        raise AssertionError("an image was doubted without a reason")

    async def stop(self) -> None:
        self.machine.stop()


@attrs.define
class MemoryHypervisor:
    """Makes machines on the target, over the disks in `storage`; `machine` is the last of them."""

    host_clock: HostClock
    storage: Storage
    machine: Machine | None = None

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        self.machine = Machine.create(
            spec, host_clock=self.host_clock, counters=spent(spec), birth=birth, storage=self.storage
        )
        return self.machine

    async def run(self, machine: Machine) -> None:
        machine.start()

    async def start_over(self, machine: Machine) -> None:
        raise AssertionError("an image was doubted without a reason")

    async def discard(self, machine: Machine) -> None:
        machine.close()
        self.machine = None


@attrs.frozen
class Hook:
    """An observer that does something at each event."""

    heard: Callable[[str], None]

    def tell(self, event: str, **_facts: Any) -> None:
        self.heard(event)


@attrs.frozen(kw_only=True)
class Migration:
    """What came of one; `arrived` is the machine that runs on the target, which is the caller's to close."""

    source: Attempt
    target: Attempt
    source_error: MigrationError | None
    target_error: MigrationError | None
    arrived: Machine | None
    was_paused: bool


def migrate(trial: Trial, release: Release, during: Callable[[str], None] = lambda _event: None) -> Migration:
    """Migrate the machine of `trial` to a target of `release`; `during` is called at each event of the source.

    The machine is whole here afterwards too, and runs, so that the next target can be tried.
    """
    return trio.run(_migrate, trial, release, during)


async def _migrate(trial: Trial, release: Release, during: Callable[[str], None]) -> Migration:
    to_target, from_source = trio.open_memory_channel[bytes](1000)
    to_source, from_target = trio.open_memory_channel[bytes](1000)
    clock = TrioClock()
    source, target = Attempt(side=Role.SOURCE, clock=clock), Attempt(side=Role.TARGET, clock=clock)
    guest = StillGuest(trial.machine)
    hypervisor = MemoryHypervisor(ManualClock(), trial.storage)
    errors: dict[Role, MigrationError] = {}

    async def here() -> None:
        ports = SourcePorts(
            link=MemoryLink(Role.SOURCE, to_target, from_target),
            guest=guest,
            journal=journal_of_owner(),
            clock=clock,
            observer=Hook(during),
        )
        settings = SourceSettings(node="here", machine_name="vm", release=trial.release, policy=SWITCH_OVER_ANYWAY)
        try:
            await run_source(ports, settings, source)
        except MigrationError as error:
            errors[Role.SOURCE] = error

    async def there() -> None:
        ports = TargetPorts(
            link=MemoryLink(Role.TARGET, to_source, from_source),
            hypervisor=hypervisor,
            journals=VolatileJournals(),
            clock=clock,
            observer=Hook(lambda _event: None),
        )
        try:
            await run_target(ports, TargetSettings(node="there", release=release), target)
        except MigrationError as error:
            errors[Role.TARGET] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(here)
        nursery.start_soon(there)
    if trial.machine.state is MachineState.PAUSED:
        trial.machine.resume()
        trial.machine.memory.dirty.mark_range(0, trial.machine.memory.page_count)
    return Migration(
        source=source,
        target=target,
        source_error=errors.get(Role.SOURCE),
        target_error=errors.get(Role.TARGET),
        arrived=hypervisor.machine,
        was_paused=guest.was_paused,
    )
