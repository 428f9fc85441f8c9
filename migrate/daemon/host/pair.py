"""Two hosts as processes on loopback, with machines on one of them that all migrate to the other.

The hosts are the same commands that a person would type, and are told what to do over their control sockets.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from migrate.daemon.host.client import Controller, controlling
from migrate.daemon.host.requests import Boot, Inspect, List, Status
from migrate.daemon.host.sending import send_all
from migrate.daemon.pair import PROCESS_PATIENCE_S, DaemonProcess, Event, daemon, died

Document = dict[str, Any]


@attrs.frozen
class HostProcess:
    """A host, and whoever is in control of it."""

    process: DaemonProcess
    control: Controller

    async def status(self) -> Document:
        return await self.control.ask(Status())


@asynccontextmanager
async def host_process(
    side: str, directory: Path, arguments: Sequence[str], watch: Callable[[Event], None]
) -> AsyncIterator[HostProcess]:
    """A host whose control socket and state are below `directory`; it is ended on leaving the block.

    Raises:
        DaemonDied: it did not come so far.
    """
    control = directory / f"{side}.control"
    command = [*("--control", str(control), "--listen", "127.0.0.1:0"), *arguments]
    async with daemon("serve", command, watch) as process:
        with trio.move_on_after(PROCESS_PATIENCE_S):
            await process.until("serving")
        if process.last("serving") is None:
            raise await died(process)
        async with controlling(control) as controller:
            yield HostProcess(process, controller)


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
    options: CrowdOptions, directory: Path, watch: Callable[[Event], None], note: Callable[[Document], None]
) -> CrowdResult:
    """Boot the machines, migrate all of them, look at each, and end both hosts.

    `watch` is told of the events of both, `note` of each machine as soon as it has moved or has not.

    Raises:
        DaemonDied: a host did not come so far.
        Denied: a host says no.
    """
    async with (
        host_process("source", directory, options.arguments["source"], watch) as source,
        host_process("target", directory, options.arguments["target"], watch) as target,
    ):
        hosts = {"source": source, "target": target}
        status: dict[str, list[Document]] = {side: [await host.status()] for side, host in hosts.items()}

        async def look() -> None:
            for side, host in hosts.items():
                status[side].append(await host.status())

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
        for host in hosts.values():
            host.process.ask_to_end()
        for host in hosts.values():
            await host.process.process.wait()
            await host.process.until("never told")  # everything that it told has been read
    return CrowdResult(
        sent=sent,
        seconds=seconds,
        boot_seconds=boot_seconds,
        events={side: host.process.events for side, host in hosts.items()},
        inspected=inspected,
        status=status,
        exit_codes={side: host.process.process.returncode or 0 for side, host in hosts.items()},
    )


async def _all_have_left(source: HostProcess, sent: list[Document]) -> None:
    """The target runs a machine before the source has heard so, and has let it go."""
    stay = sum(document["outcome"] != "migrated" for document in sent)
    with trio.move_on_after(PROCESS_PATIENCE_S):
        while len((await source.control.ask(List()))["machines"]) > stay:
            await trio.sleep(0.05)


async def _inspected(host: HostProcess) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for machine in (await host.control.ask(List()))["machines"]:
        if machine["vm_id"] is not None:
            found[machine["vm_id"]] = await host.control.ask(Inspect(machine=machine["vm_id"]))
    return found
