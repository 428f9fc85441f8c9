"""A host as a process: descriptors, signals, its sockets, the end.

SIGTERM, Ctrl-C and `stop` let what is in progress be completed; a second signal undoes what can still be undone; a
third ends the host at once, and what is in doubt then is settled by its next start.  Nothing new is begun from the
first on.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from migrate.daemon.address import Address, BadInput
from migrate.daemon.events import EventLog
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.host.control import Control, listen_for_control
from migrate.daemon.host.host import MACHINES_MAX, Ending, Host, HostSettings
from migrate.daemon.host.places import HostPlaces
from migrate.daemon.node import LISTENS_AT
from migrate.daemon.run import DEFAULT_LISTEN, listen, signaller_at
from migrate.daemon.warming import warm_up
from migrate.errors import JournalFailed

FILES_OF_MACHINE: Final = 12
"""Descriptors of a machine in migration: RAM and its mapping, journal, lock and witness, fence, disks, connection."""
FILES_BESIDE: Final = 256
PART_S: Final = 2.0
"""How long a host that ends waits for whoever asked for the end to hear of it."""

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class HostOptions:
    """`listen` as remembered if None.  `machines_max` as many as descriptors allow if None."""

    settings: HostSettings
    control: Path
    listen: Address | None = None
    machines_max: int | None = None
    attached: bool = False
    die_at: str | None = None


async def run_host(options: HostOptions, events: EventLog) -> tuple[ExitCode, Json]:
    """Be a host until somebody ends it; returns how that ended, and what is left.

    Raises:
        BadInput: a directory, a socket or an address cannot be had, or there are too few descriptors.
    """
    room = room_for(options.machines_max, options.settings.migrations_max * (options.settings.streams - 1))
    settings = attrs.evolve(options.settings, machines_max=room)
    if options.die_at is not None:
        events.listeners.append(signaller_at(options.die_at, signal.SIGKILL))
    state = settings.places.state
    places = None if state is None else await trio.to_thread.run_sync(HostPlaces.open, state)
    try:
        with control_socket(options.control) as control:
            return await _Process(options, settings, events, places).run(control)
    finally:
        if places is not None:
            places.own.close()


@attrs.define(eq=False)
class _Process:
    options: HostOptions
    settings: HostSettings
    events: EventLog
    places: HostPlaces | None
    _signals: int = 0
    _interrupted: bool = False
    _ending: trio.Event = attrs.field(factory=trio.Event)
    _at_once: trio.Event = attrs.field(factory=trio.Event)
    _drained: trio.Event = attrs.field(factory=trio.Event)
    _out_of_control: trio.Event = attrs.field(factory=trio.Event)
    _asked_to_stop: bool = False
    _how: Ending = Ending.DRAIN

    async def run(self, control: trio.SocketListener) -> tuple[ExitCode, Json]:
        warm_up()
        listeners = await listen(self._address(), self.settings.access)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as living:
                host = Host(self.settings, self.events, living, self.places)
                host.address = str(Address.parse(_name_of(listeners[0])))
                await self._remember(host)
                host.revive()
                nursery.start_soon(self._heed_signals, host)
                if self.options.attached:
                    nursery.start_soon(self._heed_parent)
                nursery.start_soon(trio.serve_listeners, host.door().answer, list(listeners))
                server = Control(self.options.control, host, lambda how: self._stop(host, how), resources)
                in_control = trio.CancelScope()
                nursery.start_soon(self._control, server, control, in_control)
                self.events.tell(
                    "serving", address=host.address, control=str(self.options.control), node=host.name, **_limits(host)
                )
                await self._ending.wait()
                await self._wind_up(host)
                self._drained.set()
                if self._asked_to_stop:
                    with trio.move_on_after(PART_S):
                        await server.parted.wait()
                in_control.cancel()
                await self._out_of_control.wait()  # a machine that is being born is born into this nursery
                living.cancel_scope.cancel()
            report = await host.close()
            nursery.cancel_scope.cancel()
        self.events.tell("ended", **{name: report[name] for name in ("moved", "in_doubt")}, left=len(report["left"]))
        if self._interrupted:
            return ExitCode.INTERRUPTED, report
        return ExitCode.NOT_DONE if report["in_doubt"] else ExitCode.DONE, report

    def _address(self) -> Address:
        remembered = None if self.places is None else self.places.own.fact(LISTENS_AT)
        if self.options.listen is not None or remembered is None:
            return self.options.listen or DEFAULT_LISTEN
        return Address.parse(remembered)

    async def _remember(self, host: Host) -> None:
        if self.places is None or self.places.own.fact(LISTENS_AT) == host.address:
            return
        try:
            await self.places.own.set_fact(LISTENS_AT, host.address)
        except JournalFailed as error:
            self.events.tell("not remembered", message=f"{LISTENS_AT} {host.address}: {error}")

    async def _wind_up(self, host: Host) -> None:
        """Return when nothing is in progress any more, or somebody has no more patience."""
        async with trio.open_nursery() as nursery:

            async def leave_at_once() -> None:
                await self._at_once.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(leave_at_once)
            await host.end(self._how)
            nursery.cancel_scope.cancel()

    async def _control(self, server: Control, listener: trio.SocketListener, scope: trio.CancelScope) -> None:
        try:
            with scope:
                await server.serve(listener)
        finally:
            self._out_of_control.set()

    async def _stop(self, host: Host, how: Ending) -> Json:
        """What `stop` answers."""
        self._asked_to_stop = True
        if how is Ending.ABORT and self._ending.is_set():
            host.abort()
        self._end(how)
        await self._drained.wait()
        return host.left()

    def _end(self, how: Ending) -> None:
        if not self._ending.is_set():
            self._how = how
            self._ending.set()

    async def _heed_signals(self, host: Host) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                self._interrupted |= number == signal.SIGINT
                self._signals += 1
                if self._signals == 1 and not self._ending.is_set():
                    self.events.tell("interrupt", message=f"{host.in_words()}; once more undoes what can be undone")
                    self._end(Ending.DRAIN)
                elif self._signals <= 2:
                    self.events.tell("interrupt", message="undoing what can be undone; once more ends the host anyway")
                    self._end(Ending.ABORT)
                    host.abort()
                else:
                    self._at_once.set()

    async def _heed_parent(self) -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            async for _ in stdin:
                pass
        self._end(Ending.ABORT)


@contextmanager
def control_socket(path: Path) -> Iterator[trio.SocketListener]:
    """It is there inside the block, and gone afterwards."""
    listener = listen_for_control(path)
    try:
        yield listener
    finally:
        listener.socket.close()
        path.unlink(missing_ok=True)


def room_for(machines: int | None, streams: int = 0) -> int:
    """How many machines there may be, after taking as many descriptors as the system gives.

    So many further connections may be open: `streams` of machines that come, and as many of those that go.

    Raises:
        BadInput: `machines` need more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    beside = FILES_BESIDE + 2 * streams
    room = MACHINES_MAX if hard == resource.RLIM_INFINITY else max(0, (hard - beside) // FILES_OF_MACHINE)
    if machines is None:
        return min(MACHINES_MAX, room)
    if machines > room and hard != resource.RLIM_INFINITY:
        instead = f"--machines-max {room}" if room else "fewer --streams or --migrations-max"
        raise BadInput(
            f"--machines-max {machines} takes {beside + machines * FILES_OF_MACHINE} open files, and this "
            f"process may have {hard}: raise the hard limit (ulimit -Hn, LimitNOFILE=), or give {instead}"
        )
    return machines


def resources() -> Json:
    """What this process takes: bytes, descriptors, tasks, and the processor so far."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123  # a read of some bytes, many times
        resident, shared = map(int, statm.read().split()[1:3])
    page = resource.getpagesize()
    return {
        "rss_bytes": resident * page,
        "rss_private_bytes": (resident - shared) * page,
        "open_files": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208  # the listing itself is one of them
        "cpu_s": time.process_time(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
    }


def _name_of(listener: trio.SocketListener) -> str:
    host, port = listener.socket.getsockname()[:2]
    return str(Address(host=host, port=port))


def _limits(host: Host) -> Json:
    settings = host.settings
    return {"machines_max": settings.machines_max, "migrations_max": settings.migrations_max}
