"""A source and a target as processes of their own on loopback, and everything they tell.

The daemons are the same commands that a person would type.  They write their events to standard output, one JSON object
a line; each ends when its standard input does, so that none outlives this process however that dies.
"""

import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from migrate.daemon.launching import Child, InterpreterLauncher, Launcher, Launching, child_of, end, lines_of
from migrate.daemon.wire import WireObserver, recorder

Event = dict[str, Any]

#: What one process may take to say where it listens, or to end when told to; seconds.
PROCESS_PATIENCE_S = 60.0


class DaemonDied(Exception):
    """A daemon process ended before it had told how things went: `last_words` is the last line of its complaints."""

    def __init__(self, side: str, exit_code: int | None, complaints: Sequence[str]) -> None:
        self.exit_code = exit_code
        said = (line.strip(" |+-") for line in reversed(complaints))  # which frame the tracebacks of groups
        self.last_words = next(filter(None, said), "it said nothing")
        super().__init__(f"the {side} daemon ended too early (exit code {exit_code}): {self.last_words}")


@attrs.define
class DaemonProcess:
    """One daemon: its process, and its events so far."""

    side: str
    process: Child
    watch: Callable[[Event], None]
    events: list[Event] = attrs.field(factory=list)
    complaints: list[str] = attrs.field(factory=list)
    _news: trio.Event = attrs.field(factory=trio.Event)
    _silent: bool = False
    _uncomplaining: bool = False

    async def until(self, *names: str) -> Event | None:
        """The first event of one of these names, or None if the process ends without one."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event["event"] in names:
                    return event
            seen = len(self.events)
            if self._silent:
                return None
            await self._news.wait()

    def last(self, name: str) -> Event | None:
        return next((event for event in reversed(self.events) if event["event"] == name), None)

    def all(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]

    def ask_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def silence(self) -> None:
        """Return when all that it said has been heard, or nobody listens any more."""
        while not (self._silent and self._uncomplaining):
            await self._news.wait()

    async def read_events(self) -> None:
        try:
            async for line in lines_of(self.process.stdout):
                self.events.append(json.loads(line))
                self._tell()
                self.watch(self.events[-1])
        finally:
            self._silent = True
            self._tell()

    async def read_complaints(self) -> None:
        try:
            async for line in lines_of(self.process.stderr):
                self.complaints.append(line.decode(errors="replace"))
        finally:
            self._uncomplaining = True
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def daemon(
    side: str, arguments: Sequence[str], watch: Callable[[Event], None], launcher: Launcher | None = None
) -> AsyncIterator[DaemonProcess]:
    """A daemon process; on leaving the block it is told to end, and killed if it does not."""
    async with trio.open_nursery() as nursery:
        async with child_of(
            launcher or InterpreterLauncher(nursery), [side, *arguments, "--events", "-", "--attached"]
        ) as process:
            child = DaemonProcess(side, process, watch)
            nursery.start_soon(child.read_events)
            nursery.start_soon(child.read_complaints)
            try:
                yield child
            finally:
                await end(process, PROCESS_PATIENCE_S)
                with trio.CancelScope(shield=True):
                    await child.silence()
        nursery.cancel_scope.cancel()


@attrs.frozen(kw_only=True)
class PairOptions:
    """Arguments of the two daemons beyond the addresses; `after_s` is how long the guest runs on where it ended up.

    `wire` is the path of a network to carry meanwhile, if any, and `wire_record` the file to note its frames in.
    """

    source_arguments: tuple[str, ...]
    target_arguments: tuple[str, ...]
    after_s: float
    wire: Path | None = None
    wire_record: Path | None = None


@attrs.frozen(kw_only=True)
class PairResult:
    """Everything both daemons told, and how their processes ended."""

    source: list[Event]
    target: list[Event]
    exit_codes: dict[str, int]


async def run_pair(
    options: PairOptions, watch: Callable[[Event], None], launching: Launching = InterpreterLauncher
) -> PairResult:
    """Start both, let them migrate, let the guest run on for a moment, end both.

    Raises:
        DaemonDied: a daemon ended before it had told how the attempt ended.
        WireError: there can be no network at that path.
    """
    async with network(options.wire, options.wire_record), trio.open_nursery() as nursery:
        result = await _run_pair(options, watch, launching(nursery))
        nursery.cancel_scope.cancel()
    return result


@asynccontextmanager
async def network(path: Path | None, record: Path | None) -> AsyncIterator[None]:
    """Inside the block, frames on the wire at `path` are carried and noted, if there is a path."""
    if path is None or record is None:
        yield
        return
    with record.open("w") as stream:
        async with trio.open_nursery() as nursery:
            await nursery.start(WireObserver(path, recorder(stream)).serve)
            yield
            nursery.cancel_scope.cancel()


async def _run_pair(options: PairOptions, watch: Callable[[Event], None], launcher: Launcher) -> PairResult:
    async with daemon("source", options.source_arguments, watch, launcher) as source:
        with trio.move_on_after(PROCESS_PATIENCE_S):
            listening = await source.until("listening")
        if source.last("listening") is None:
            raise await died(source)
        assert listening is not None
        async with daemon("target", (listening["address"], *options.target_arguments), watch, launcher) as target:
            arrived = await target.until("image")
            if arrived is None and not target.all("attempt ended"):
                raise await died(target)
            if arrived is not None and await source.until("image") is None:
                raise await died(source)
            await trio.sleep(options.after_s)
            for child in (target, source):
                if child is target or arrived is None:  # a source that has handed over ends by itself
                    child.ask_to_end()
            for child in (target, source):
                if await child.until("ended") is None:
                    raise await died(child)
                await child.process.wait()
    codes = {child.side: child.process.returncode or 0 for child in (source, target)}
    return PairResult(source=source.events, target=target.events, exit_codes=codes)


async def died(child: DaemonProcess) -> DaemonDied:
    """What to say of a process that has closed its output."""
    with trio.move_on_after(PROCESS_PATIENCE_S):
        await child.process.wait()
    return DaemonDied(child.side, child.process.returncode, child.complaints)
