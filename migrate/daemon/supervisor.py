"""Starts a source and a target as processes of their own, kills, freezes and restarts them, and stands between them.

    1.  The source is started; when it listens, the target is, and comes through a proxy (`proxy.py`).
    2.  Whatever is to go wrong goes wrong: `Faults` is told of every message, byte and failpoint, and acts.
    3.  When nothing more will happen by itself, all is made well: the link carries, who was halted goes on, and who is
        dead and has something left to do is started.
    4.  When all is quiet, both are asked to end.

Durations here are of the plan, and so are the daemons' deadlines: `pace` real seconds are one of theirs.
"""

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import trio

from migrate.daemon.address import Address
from migrate.daemon.failpoints import DATAGRAM_MAX
from migrate.daemon.launching import Launcher, lines_of
from migrate.daemon.lives import SIDES, Event, Life, Side, begin_life, other
from migrate.daemon.proxy import Proxy, Tap
from migrate.daemon.state import MachineState, StateDirectory, StateError
from migrate.daemon.wire import WireError, WireObserver, WireRecord, read_records, sender_of
from migrate.engine.handoff import Holding

LOOPBACK: Final = "127.0.0.1"
CALM_S: Final = 105.0
"""After so long, by the plan's clock, all is made well whatever is still under way: as in the simulation."""
PATIENCE_S: Final = 60.0
"""Real seconds: what takes longer than that, on a machine where all is well, never comes."""
FRAMES_TO_SHOW_LIFE: Final = 3
SHOW_LIFE_S: Final = 5.0


class Faults(Tap, Protocol):
    """What goes wrong."""

    def begin(self, supervisor: "Supervisor") -> None:
        """The source runs the machine, and the target is about to come."""

    async def asked(self, side: Side, at: str, name: str) -> dict[str, Any]:
        """A daemon waits at a failpoint; what to answer, see `failpoints.py`."""


@attrs.frozen(kw_only=True)
class Daemons:
    """Where both keep things, and what they are told beyond that.

    `source` is for the machine's birth and begins with its spec file; a source that goes on is told `as_source` only.

    With `has_hub_apart` the network is a process of its own: it must answer within milliseconds, however busy we are.
    Below `directory` are the sockets and what is left of the machine, and the state directories if they are not below
    `states`.
    """

    directory: Path
    storage: Path
    source: tuple[str, ...]
    as_source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    pace: float = 1.0
    have_failpoints: bool = True
    has_hub_apart: bool = False
    states: Path | None = None

    def state(self, side: Side) -> Path:
        return (self.directory if self.states is None else self.states) / side

    @property
    def left(self) -> Path:
        return self.directory / "left"

    @property
    def wire(self) -> Path:
        return self.directory / "wire"

    @property
    def failpoints(self) -> Path:
        return self.directory / "ask"


@attrs.define(eq=False)
class Supervisor:
    """See the module; use `supervising`.  `told` is what happened here, with the host's monotonic clock in ns."""

    daemons: Daemons
    faults: Faults
    launcher: Launcher
    nursery: trio.Nursery
    on_death: Callable[[Side], None]
    """Is told when a killed process is gone, before anything else happens."""
    watch: Callable[[Event], None] | None = None
    lives: list[Life] = attrs.field(factory=list)
    heard: list[WireRecord] = attrs.field(factory=list)
    told: list[tuple[int, str]] = attrs.field(factory=list)
    proxy: Proxy = attrs.field(init=False)
    is_calm: bool = False
    address: str = ""
    _news: trio.Event = attrs.field(factory=trio.Event)
    _later: int = 0

    def __attrs_post_init__(self) -> None:
        self.proxy = Proxy(self.source_address, self.faults)

    # What can be done

    async def start(self, side: Side) -> Life:
        """A process for `side`, with all that it needs to begin, or to go on from its state directory."""
        daemons = self.daemons
        command: list[str] = [side]
        if side == "target":
            command += [self.address, *daemons.target]
        else:
            has_listened = any(life.told("listening") for life in self.lives if life.side == side)
            command += [*(() if has_listened else daemons.source), "--listen", f"{LOOPBACK}:0", *daemons.as_source]
        for option, place in (
            ("--state-dir", daemons.state(side)),
            ("--storage", daemons.storage),
            ("--wire", daemons.wire),
            ("--artefacts", daemons.left),
        ):
            command += [option, str(place)]
        if daemons.have_failpoints:
            command += ["--failpoints", str(daemons.failpoints)]
        command += ["--pace", repr(daemons.pace), "--audited", *daemons.both]
        life = await begin_life(self.launcher, self.nursery, command, self.news, self.watch)
        self.lives.append(life)
        self.news()
        return life

    async def kill(self, side: Side) -> None:
        """Return when its process is gone; if there is one."""
        life = self.now(side)
        if life is None or life.is_over:
            return
        life.kill()
        await self.until(lambda: life.is_over)
        self.on_death(side)

    async def restart(self, side: Side) -> None:
        if (life := self.now(side)) is not None and life.is_over:
            await self.start(side)

    def halt(self, side: Side) -> None:
        """It does nothing until it may go on."""
        if life := self.now(side):
            life.halt()

    async def go_on(self, side: Side) -> None:
        if (life := self.now(side)) is not None and life.halted:
            life.go_on()

    def after(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        """Do something after so many seconds of the plan, unless all is well by then."""
        self._later += 1
        self.nursery.start_soon(self._do_after, seconds, action)

    async def _do_after(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        await trio.sleep(seconds * self.daemons.pace)
        if not self.is_calm:
            await action()
        self._later -= 1
        self.news()

    # The play

    async def play(self) -> None:
        """Everything, up to where both daemons rest and one of them runs the machine; whoever looks on may be unhappy.

        Raises:
            NotStarted: the source ended before it ran the machine.
            Stuck: it does not come to that.
        """
        source = await self.start("source")
        await self.until(lambda: source.told("listening") or source.is_over)
        if source.is_over:
            raise NotStarted(source)
        self.faults.begin(self)
        await self.start("target")
        with trio.move_on_after(CALM_S * self.daemons.pace):
            await self._wait_until(self.is_quiet)
        await self.calm()
        await self.until(self.is_at_rest)

    async def calm(self) -> None:
        """Everything is well again."""
        self.is_calm = True
        self.tell("all is well again")
        self.proxy.heal()
        for side in SIDES:
            await self.go_on(side)
        for side in SIDES:
            await self.until(lambda side=side: self._is_dying(side))  # type: ignore[misc]
            life = self.now(side)
            if life is not None and life.is_over and (life.was_killed or self.has_something_to_do(side)):
                await self.start(side)

    def _is_dying(self, side: Side) -> bool:
        life = self.now(side)
        return life is None or life.is_over or not life.killed_from_outside

    async def end(self, after_s: float = 0.0) -> None:
        """Both are asked to end, once whoever runs the machine has been heard, and after so many real seconds."""
        await trio.sleep(after_s)
        count, runners = len(self.heard), {life.pid for life in self.runners()}
        with trio.move_on_after(SHOW_LIFE_S):
            await self.until(
                lambda: sum(sender_of(record) in runners for record in self.heard[count:]) >= FRAMES_TO_SHOW_LIFE
            )
        for life in self.lives:
            life.end()
        await self.until(lambda: all(life.is_over for life in self.lives))

    # What is the matter

    def now(self, side: Side) -> Life | None:
        """The last life of a side."""
        return next((life for life in reversed(self.lives) if life.side == side), None)

    def runners(self) -> list[Life]:
        return [life for life in self.lives if life.status is None and life.is_running_a_guest]

    def source_address(self) -> Address | None:
        """Where the source listens, if it does."""
        life = self.now("source")
        told = None if life is None or life.is_over else life.told("listening")
        return None if told is None else Address.parse(told["address"])

    def is_quiet(self) -> bool:
        """Whether nothing more will happen by itself."""
        return not self._later and all(self._rests(side) for side in SIDES)

    def is_at_rest(self) -> bool:
        """One runs the machine, and has told of its last attempt; the other has nothing left to do."""
        now = [life for side in SIDES if (life := self.now(side)) is not None]
        ended = [life for life in now if life.is_over]
        busy = [life for life in now if life.is_in_attempt and not life.is_over]
        return len(self.runners()) == len(ended) == 1 and not busy

    def _rests(self, side: Side) -> bool:
        life, peer = self.now(side), self.now(other(side))
        if life is None or peer is None:
            return False
        if life.is_over or life.halted:
            return True
        if side == "source":
            return bool(life.told("listening")) and not life.is_in_attempt
        last = life.told("running", "in doubt", "still in doubt", "attempt", "attempt ended")
        is_waiting = last is not None and last["event"] in ("running", "in doubt", "still in doubt")
        return is_waiting and (peer.is_over or peer.halted)

    def kept(self, side: Side) -> MachineState | None:
        """What the state directory has of the machine; None if it has none, or cannot be believed."""
        try:
            with StateDirectory.look(self.daemons.state(side)) as state:
                machines = state.machines()
        except StateError:
            return None
        return machines[-1] if machines else None

    def has_something_to_do(self, side: Side) -> bool:
        kept = self.kept(side)
        return kept is not None and (kept.record.holding is not Holding.NOT_OWNER or bool(kept.debts))

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Return when something that was told, or an end, has made it so.

        Raises:
            Stuck: it never comes.
        """
        with trio.move_on_after(PATIENCE_S * (1 + self.daemons.pace)) as patience:
            await self._wait_until(is_so)
        if patience.cancelled_caught:
            raise Stuck(self)

    async def _wait_until(self, is_so: Callable[[], Any]) -> None:
        while not is_so():
            await self._news.wait()

    def hear(self, record: WireRecord) -> None:
        self.heard.append(record)
        self.news()

    def news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def tell(self, line: str) -> None:
        self.told.append((time.monotonic_ns(), line))

    def timeline(self) -> list[tuple[int, str, str]]:
        """What happened: ns of the host's monotonic clock, who, what; for a person, or a picture."""
        lines = [(at_ns, "world", line) for at_ns, line in self.told]
        for life in self.lives:
            lines.append((life.began_ns, life.side, f"process {life.pid} begins"))
            lines += [(event["at_ns"], life.side, _line(event)) for event in life.events if event["event"] not in DULL]
            if life.status is not None:
                lines.append((life.gone_ns, life.side, f"process {life.pid} has ended: {life.exit_code}"))
        return sorted(lines, key=lambda line: line[0])

    # Daemons that ask

    async def answer_failpoints(self, listener: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(self._answer, connection)

    async def _answer(self, connection: trio.socket.SocketType) -> None:
        with connection, suppress(OSError):
            side: Side = "source" if await connection.recv(DATAGRAM_MAX) == b"source" else "target"
            while said := await connection.recv(DATAGRAM_MAX):
                asked = json.loads(said)
                answer = await self.faults.asked(side, asked["at"], asked["name"])
                await connection.send(json.dumps(answer).encode())


class NotStarted(Exception):
    """The source could not make the machine, or was not told well: `life` says why in its last complaint."""

    def __init__(self, life: Life) -> None:
        self.life = life
        super().__init__(life.complaints[-1] if life.complaints else f"the source ended with {life.exit_code}")


class Stuck(Exception):
    """What must come does not."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.timeline = supervisor.timeline()
        super().__init__("nothing more happens, and nobody is at rest")


DULL: Final = ("round", "ram", "image", "point")
_FACTS_ASIDE: Final = ("event", "side", "at_ns", "guest", "payloads", "steps", "rounds", "image")


def _line(event: dict[str, Any]) -> str:
    facts = {key: value for key, value in event.items() if key not in _FACTS_ASIDE and value not in (None, [], {}, "")}
    return " ".join([event["event"], *(f"{key}={value}" for key, value in facts.items())])


@asynccontextmanager
async def supervising(
    daemons: Daemons,
    faults: Faults,
    on_death: Callable[[Side], None],
    launcher: Callable[[trio.Nursery], Launcher],
    watch: Callable[[Event], None] | None = None,
) -> AsyncIterator[Supervisor]:
    """Whatever still lives when the block is left is killed."""
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ask:
        await ask.bind(os.fspath(daemons.failpoints))
        ask.listen()
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor(daemons, faults, launcher(nursery), nursery, on_death, watch)
            supervisor.address = f"{LOOPBACK}:{listeners[0].socket.getsockname()[1]}"
            hub = None
            if daemons.has_hub_apart:
                hub = await begin_hub(supervisor.launcher, nursery, daemons.wire, supervisor.hear)
            else:
                await nursery.start(WireObserver(daemons.wire, supervisor.hear).serve)
            nursery.start_soon(supervisor.proxy.serve, listeners)
            nursery.start_soon(supervisor.answer_failpoints, ask)
            try:
                yield supervisor
            finally:
                with trio.CancelScope(shield=True):
                    for life in supervisor.lives:
                        life.kill()
                    try:
                        await supervisor.until(lambda: all(life.is_over for life in supervisor.lives))
                    finally:
                        for life in supervisor.lives:
                            life.close()
                        if hub is not None:
                            await hub.end()
            nursery.cancel_scope.cancel()
    daemons.failpoints.unlink(missing_ok=True)


@attrs.define(eq=False)
class Hub:
    """The network, as a process of its own (`wire.py`)."""

    stdin: int
    _ready: trio.Event = attrs.field(factory=trio.Event)
    _heard: trio.Event = attrs.field(factory=trio.Event)
    _gone: trio.Event = attrs.field(factory=trio.Event)

    @property
    def has_ended(self) -> bool:
        return self._gone.is_set() or self._heard.is_set()

    async def end(self) -> None:
        """Return when everything that it heard has been told."""
        os.close(self.stdin)
        await self._gone.wait()
        await self._heard.wait()

    def note_status(self, status: int) -> None:
        if not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            self._gone.set()

    async def listen(self, descriptor: int, note: Callable[[WireRecord], None]) -> None:
        try:
            async with trio.lowlevel.FdStream(descriptor) as stream:
                async for line in lines_of(stream):
                    for record in read_records([line.decode() + "\n"]):
                        note(record)
        finally:
            self._heard.set()

    async def complain(self, descriptor: int) -> None:
        try:
            async with trio.lowlevel.FdStream(descriptor) as stream:
                async for _ in lines_of(stream):
                    self._ready.set()
        finally:
            self._ready.set()


async def begin_hub(launcher: Launcher, nursery: trio.Nursery, path: Path, note: Callable[[WireRecord], None]) -> Hub:
    """Return when there is a network at `path`; `note` is told of every frame.

    Raises:
        WireError: there can be none.
    """
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = (os.pipe() for _ in range(3))
    hub = Hub(in_write)
    arguments = ["wire", str(path), "--record", "/dev/stdout", "--attached"]
    born = await launcher.launch(arguments, (in_read, out_write, err_write), hub.note_status)
    for descriptor in (in_read, out_write, err_write, born.pidfd):
        os.close(descriptor)
    nursery.start_soon(hub.listen, out_read, note)
    nursery.start_soon(hub.complain, err_read)
    try:
        await hub._ready.wait()
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await hub.end()
        raise
    if hub.has_ended:
        raise WireError(f"{path}: there can be no network")
    return hub
