"""Two hosts as processes on loopback, with machines on one of them that all migrate to the other.

The hosts are the same commands that a person would type, and are told what to do over their control sockets.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from migrate.daemon.host.client import Controller, controlling
from migrate.daemon.host.requests import Boot, Inspect, List, Status
from migrate.daemon.host.sending import send_all
from migrate.daemon.launching import end, lines_of
from migrate.daemon.pair import PROCESS_PATIENCE_S, DaemonDied, Event

Document = dict[str, Any]

COMPLAINTS_KEPT: Final = 100
WATCH_EVERY_S: Final = 1.0


@attrs.define(eq=False)
class HostProcess:
    """A host as a process, and whoever is in control of it.  `events` is the file that it writes them to."""

    side: str
    process: trio.Process
    events: Path
    control: Controller = attrs.field(init=False)
    complaints: list[str] = attrs.field(factory=list)
    _serves: trio.Event = attrs.field(factory=trio.Event)

    async def status(self) -> Document:
        return await self.control.ask(Status())

    async def listen(self) -> None:
        """What it says to people: first of all, that it is there."""
        assert self.process.stderr is not None
        async for line in lines_of(self.process.stderr):
            self.complaints.append(line.decode(errors="replace"))
            del self.complaints[:-COMPLAINTS_KEPT]
            self._serves.set()

    async def serves(self) -> None:
        """Raises DaemonDied: it does not come to that."""
        with trio.move_on_after(PROCESS_PATIENCE_S):
            await self._serves.wait()
        if not self.complaints or "controlled by" not in self.complaints[0]:
            with trio.move_on_after(PROCESS_PATIENCE_S):
                await self.process.wait()
            raise DaemonDied(self.side, self.process.returncode, self.complaints)

    def told(self) -> list[Event]:
        """Its events so far; all of them, once it has ended."""
        with self.events.open() as lines:
            return [json.loads(line) for line in lines]

    async def end(self) -> int:
        """Its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@asynccontextmanager
async def host_process(side: str, directory: Path, arguments: Sequence[str]) -> AsyncIterator[HostProcess]:
    """A host whose control socket and events are in `directory`; it is ended on leaving the block, or with us.

    Raises:
        DaemonDied: it did not come so far.
    """
    control, events = directory / f"{side}.control", directory / f"{side}.events"
    options = [*("--control", str(control), "--listen", "127.0.0.1:0", "--events", str(events)), *arguments]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "migrate", "serve", *options, "--attached"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
        host = HostProcess(side, process, events)
        nursery.start_soon(host.listen)
        try:
            await host.serves()
            async with controlling(control) as host.control:
                yield host
        finally:
            await end(process, PROCESS_PATIENCE_S)
            nursery.cancel_scope.cancel()


@attrs.frozen(kw_only=True)
class CrowdOptions:
    """`boot` is of all machines; `arguments` are of both hosts, by side: "source", "target"."""

    boot: Boot
    arguments: dict[str, list[str]]
    retries: int = 2


@attrs.frozen(kw_only=True)
class CrowdResult:
    """What came of each machine, and what both hosts told; `seconds` are of the migrations alone.

    `inspected` is what each host says of each machine that it has at the end, by side and id.
    """

    sent: list[Document]
    seconds: float
    boot_seconds: float
    events: dict[str, list[Event]]
    inspected: dict[str, dict[str, Document]]
    status: dict[str, list[Document]]
    """Of each host: before the machines are booted, before they go, after they have gone."""
    exit_codes: dict[str, int]


async def run_crowd(
    options: CrowdOptions, directory: Path, note: Callable[[Document], None], tell: Callable[[Document], None]
) -> CrowdResult:
    """Boot the machines, migrate all of them, look at each, and end both hosts.

    `note` is told of each machine as soon as it has moved or has not, `tell` now and then how the source is.

    Raises:
        DaemonDied: a host did not come so far.
        Denied: a host says no.
    """
    async with (
        host_process("source", directory, options.arguments["source"]) as source,
        host_process("target", directory, options.arguments["target"]) as target,
    ):
        hosts = {"source": source, "target": target}
        status: dict[str, list[Document]] = {side: [await host.status()] for side, host in hosts.items()}

        async def look() -> None:
            for side, host in hosts.items():
                status[side].append(await host.status())

        async with watching(source, tell):
            began = time.monotonic()
            booted = await source.control.ask(options.boot)
            boot_seconds = time.monotonic() - began
            await look()
            began = time.monotonic()
            machines = [machine["vm_id"] for machine in booted["machines"]]
            sent = await send_all(source.control, target.control, machines, options.retries, note)
            seconds = time.monotonic() - began
        await _all_have_left(source, sent)
        await look()
        inspected = {side: await _inspected(host) for side, host in hosts.items()}
        exit_codes = {side: await host.end() for side, host in hosts.items()}
        events = {side: host.told() for side, host in hosts.items()}
    return CrowdResult(
        sent=sent,
        seconds=seconds,
        boot_seconds=boot_seconds,
        events=events,
        inspected=inspected,
        status=status,
        exit_codes=exit_codes,
    )


async def _all_have_left(source: HostProcess, sent: list[Document]) -> None:
    """The target runs a machine before the source has heard so, and has let it go."""
    stay = sum(document["outcome"] != "migrated" for document in sent)
    with trio.move_on_after(PROCESS_PATIENCE_S):
        while (await source.status())["machines"] > stay:  # noqa: ASYNC110  # another process: it is asked, and gently
            await trio.sleep(0.1)


@asynccontextmanager
async def watching(host: HostProcess, tell: Callable[[Document], None]) -> AsyncIterator[None]:
    """Inside the block, `tell` is told every second how the host is."""

    async def watch() -> None:
        while True:
            tell(await host.status())
            await trio.sleep(WATCH_EVERY_S)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        yield
        nursery.cancel_scope.cancel()


async def _inspected(host: HostProcess) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for machine in (await host.control.ask(List()))["machines"]:
        if machine["vm_id"] is not None:
            found[machine["vm_id"]] = await host.control.ask(Inspect(machine=machine["vm_id"]))
    return found
