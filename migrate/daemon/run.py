"""The two daemons as processes: signals, events, the end.

Ctrl-C ends the attempt that is in progress and leaves the machine where it is; with none in progress, or a second time,
it ends the daemon.  Once ownership has moved an attempt can only be completed.  SIGTERM ends the daemon at once and in
order.  A daemon started with `attached` ends when its standard input does, so that it never outlives its parent.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from enum import IntEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import attrs
import trio

from migrate.daemon.artefacts import write_artefacts
from migrate.daemon.deadlines import Deadlines
from migrate.daemon.events import EventLog
from migrate.daemon.guest_facts import guest_facts
from migrate.daemon.guests import GuestRunner, TrioHypervisor
from migrate.daemon.images import Image
from migrate.daemon.journal import journal_of_owner, journal_of_stranger
from migrate.daemon.outcome import AttemptOutcome, Cancelling, Outcome
from migrate.daemon.source import SourceDaemon
from migrate.daemon.target import TargetDaemon
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.errors import MachineCreationFailed
from migrate.releases import Release
from sim_vmm.guest import GuestDoesNotFit, GuestProgram, read_heartbeat
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec


class ExitCode(IntEnum):
    """The command-line contract's."""

    DONE = 0
    NOT_DONE = 1
    BAD_INPUT = 2
    AUDIT_VIOLATED = 3
    INTERRUPTED = 130


class BadInput(Exception):
    """Something that was asked for cannot be: one clear line, exit code 2."""


@attrs.frozen(kw_only=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`HOST:PORT`, an IPv6 address in brackets.

        Raises:
            BadInput: anything else.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
            raise BadInput(f"{text!r} is no address: expected HOST:PORT, such as 127.0.0.1:4600 or [::1]:4600")
        return cls(host=host, port=int(port))

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def require_loopback(self, insecure: bool) -> None:
        """Off loopback anybody could take or give a machine, so it has to be asked for in so many words.

        Raises:
            BadInput: not on loopback, and not told to.
        """
        if not self.is_loopback and not insecure:
            raise BadInput(
                f"{self} is not on loopback, where a migration is neither encrypted nor authenticated; use 127.0.0.1, "
                "or say --insecure"
            )


_INTERRUPT_MESSAGES: Final = {
    Cancelling.CANCELLED: "cancelling the migration; Ctrl-C again ends the daemon",
    Cancelling.TOO_LATE: "the machine is changing hands, which must be completed; Ctrl-C again ends the daemon anyway",
    Cancelling.NOTHING_TO_CANCEL: "ending",
}


@attrs.define
class Process:
    """What both daemons have in common: events, signals, and one way to end."""

    events: EventLog
    attached: bool
    exit_code: ExitCode | None = None
    _done: trio.Event = attrs.field(factory=trio.Event)

    def end(self, code: ExitCode) -> None:
        """Finish with `code`, unless the end has begun already."""
        if self.exit_code is None:
            self.exit_code = code
            self._done.set()

    async def run(
        self, main: Callable[[trio.Nursery], Awaitable[None]], cancel_attempt: Callable[[], Cancelling]
    ) -> None:
        """Run `main` until it or somebody else calls `end`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_signals, cancel_attempt)
            if self.attached:
                nursery.start_soon(self._heed_parent)
            nursery.start_soon(main, nursery)
            await self._done.wait()
            nursery.cancel_scope.cancel()

    async def _heed_signals(self, cancel_attempt: Callable[[], Cancelling]) -> None:
        too_late_before = False
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if number == signal.SIGTERM:
                    self.end(ExitCode.DONE)
                    continue
                came_of_it = cancel_attempt()
                if came_of_it is Cancelling.NOTHING_TO_CANCEL or too_late_before:
                    self.end(ExitCode.INTERRUPTED)
                too_late_before = came_of_it is Cancelling.TOO_LATE
                self.events.tell("interrupt", message=_INTERRUPT_MESSAGES[came_of_it])

    async def _heed_parent(self) -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            async for _ in stdin:
                pass
        self.end(ExitCode.DONE)


@attrs.frozen(kw_only=True)
class SourceOptions:
    """`wire` is a network, `storage` the directory of the disks; into `artefacts` goes what is left of the machine."""

    spec: Spec
    listen: Address
    settings: SourceSettings
    program: GuestProgram
    attached: bool = False
    audited: bool = False
    wire: Path | None = None
    storage: Path | None = None
    artefacts: Path | None = None
    deadlines: Deadlines = attrs.field(factory=Deadlines)


@attrs.frozen(kw_only=True)
class TargetOptions:
    """`listen`: be a source in turn, once the machine is here.  The paths are as in `SourceOptions`."""

    source: Address
    settings: TargetSettings
    retries: int = 0
    listen: Address | None = None
    as_source: SourceSettings | None = None
    attached: bool = False
    audited: bool = False
    wire: Path | None = None
    storage: Path | None = None
    artefacts: Path | None = None
    deadlines: Deadlines = attrs.field(factory=Deadlines)


async def run_source_daemon(options: SourceOptions, events: EventLog) -> tuple[ExitCode, dict[str, Any]]:
    """Boot the machine, serve it until it is handed over or somebody ends it, and report.

    Raises:
        BadInput: the machine cannot be made, or the address cannot be listened on.
    """
    process = Process(events, options.attached)
    daemons: list[SourceDaemon] = []

    async def main(nursery: trio.Nursery) -> None:
        hypervisor = TrioHypervisor(nursery, wire=options.wire, storage=options.storage)
        listeners = await listen(options.listen)
        machine = await boot(options.spec, options.program, hypervisor, options.settings.release)
        runner = GuestRunner(machine, options.program, nursery)
        await runner.resume()
        daemon = SourceDaemon(runner, journal_of_owner(), options.settings, events, deadlines=options.deadlines)
        daemons.append(daemon)
        await serve(daemon, listeners, events, options.audited)
        process.end(ExitCode.DONE)

    await process.run(main, lambda: daemons[0].cancel_attempt() if daemons else Cancelling.NOTHING_TO_CANCEL)
    assert process.exit_code is not None
    daemon = daemons[0]
    report = await finish(daemon.runner, daemon.attempts, events, options.artefacts)
    code = process.exit_code
    in_doubt = daemon.attempts and daemon.attempts[-1].outcome is Outcome.IN_DOUBT
    return (ExitCode.NOT_DONE if code is ExitCode.DONE and in_doubt else code), report


async def serve(daemon: SourceDaemon, listeners: list[trio.SocketListener], events: EventLog, audited: bool) -> None:
    """Serve until the machine is handed over; with `audited`, tell what it was."""
    host, port = listeners[0].socket.getsockname()[:2]
    events.tell("listening", address=str(Address(host=host, port=port)), machine=daemon.settings.machine_name)
    await daemon.serve(listeners)
    if audited:
        events.tell("image", image=await Image.of(daemon.runner.machine).facts())


async def run_target_daemon(options: TargetOptions, events: EventLog) -> tuple[ExitCode, dict[str, Any]]:
    """Migrate a machine in, run it until somebody ends it or it is migrated away, and report."""
    process = Process(events, options.attached)
    targets: list[TargetDaemon] = []
    sources: list[SourceDaemon] = []

    async def main(nursery: trio.Nursery) -> None:
        listeners = await listen(options.listen) if options.listen is not None else []
        hypervisor = TrioHypervisor(nursery, audited=options.audited, wire=options.wire, storage=options.storage)
        journal = journal_of_stranger()
        source = options.source
        target = TargetDaemon(
            source.host,
            source.port,
            hypervisor,
            journal,
            options.settings,
            events,
            retries=options.retries,
            deadlines=options.deadlines,
        )
        targets.append(target)
        arrived = await target.migrate_in()
        if arrived is None:
            process.end(ExitCode.INTERRUPTED if target.cancelled else ExitCode.NOT_DONE)
            return
        assert hypervisor.runner is not None, "the hypervisor has just run the machine"
        events.tell("running", machine=arrived.machine_name)
        await tell_blackout(hypervisor, events)
        if not arrived.settled:
            nursery.start_soon(target.keep_telling, arrived)
        if hypervisor.image is not None:
            events.tell("image", image=await hypervisor.image.facts())
        if options.as_source is not None:
            settings = attrs.evolve(options.as_source, machine_name=arrived.machine_name)
            daemon = SourceDaemon(hypervisor.runner, journal, settings, events, deadlines=options.deadlines)
            sources.append(daemon)
            await serve(daemon, listeners, events, options.audited)
            process.end(ExitCode.DONE)

    def cancel_attempt() -> Cancelling:
        daemons: list[SourceDaemon | TargetDaemon] = [*sources, *targets]
        return daemons[0].cancel_attempt() if daemons else Cancelling.NOTHING_TO_CANCEL

    await process.run(main, cancel_attempt)
    assert process.exit_code is not None
    runner = targets[0].hypervisor.runner if targets else None
    attempts = [*(targets[0].attempts if targets else ()), *(sources[0].attempts if sources else ())]
    return process.exit_code, await finish(runner, attempts, events, options.artefacts)


async def tell_blackout(hypervisor: TrioHypervisor, events: EventLog) -> None:
    """How long the guest was away by its own clock: from its last step there to its first step here."""
    last, runner = hypervisor.arrived_with, hypervisor.runner
    if last is None or runner is None:
        return
    while (now := read_heartbeat(runner.machine.memory)) == last:
        await trio.lowlevel.checkpoint()
    assert now is not None, "a guest that was there has not gone"
    events.tell("guest resumed", blackout_ms=(now.uptime_ns - last.uptime_ns) / 1e6)


async def listen(address: Address) -> list[trio.SocketListener]:
    """Raises BadInput if nobody can listen there."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadInput(f"cannot listen on {address}: {reason}; choose another port, or 0 for any") from error


async def boot(spec: Spec, program: GuestProgram, hypervisor: TrioHypervisor, release: Release) -> Machine:
    """A machine born on this release, its guest booted.  Raises BadInput if the spec makes no machine here."""
    try:
        machine = await hypervisor.create(spec, release.birth(uuid4()))
    except MachineCreationFailed as error:
        raise BadInput(f"this machine cannot be made: {error}") from error
    try:
        program.boot(machine)
    except GuestDoesNotFit as error:
        machine.close()
        raise BadInput(f"guest program {program.name!r} does not fit this machine: {error}") from error
    machine.start()
    return machine


async def finish(
    runner: GuestRunner | None, attempts: list[AttemptOutcome], events: EventLog, artefacts: Path | None
) -> dict[str, Any]:
    """Stop the machine if it is here, leave its artefacts, and say how everything ended."""
    runs_here = runner is not None and runner.machine.state is MachineState.RUNNING
    report: dict[str, Any] = {
        "outcome": attempts[-1].outcome.value if attempts else "none",
        "runs_here": runs_here,
        "attempts": [attempt.as_json() for attempt in attempts],
        "guest": guest_facts(runner.program, runner.machine) if runner is not None else None,
    }
    if runner is not None:
        await runner.stop()
        if runs_here and artefacts is not None:
            try:
                write_artefacts(runner.machine, artefacts)
            except OSError as error:
                events.tell("no artefacts", error=str(error))
        runner.machine.close()
    events.tell("ended", runs_here=runs_here, guest=report["guest"])
    return report
