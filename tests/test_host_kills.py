"""Hosts that are killed in the middle of twenty migrations, as processes: in the end each machine has one runner."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from migrate.daemon.host.client import Controller, Denied, HostGone, controlling
from migrate.daemon.host.requests import Boot, List
from migrate.daemon.host.sending import send_all
from migrate.specs.reading import parse_json
from tests.commands import EXAMPLE, Command, running

MACHINES: Final = 20
BOOT: Final = Boot(spec=parse_json(Path(EXAMPLE).read_bytes()), name="vm", count=MACHINES, guest="idle", memory_mb=2)

#: Which host is killed, and where, for the how manieth time.
KILLS: Final = [("source", "after write C#7"), ("target", "after write O#8")]
SOAK: Final = [
    (side, f"{when} write {record}#{number}")
    for side, records in (("source", "CN"), ("target", "RO"))
    for record in records
    for when in ("before", "after")
    for number in (1, 10, 20)
]


@asynccontextmanager
async def host(directory: Path, side: str, *options: str) -> AsyncIterator[tuple[Command, Controller]]:
    """A host that has been here before, if it has."""
    places = (
        "--state-dir",
        directory / side,
        "--storage",
        directory / "disks",
        "--control",
        directory / f"{side}.sock",
    )
    async with running("serve", *places, *options) as command:
        await command.says("controlled by")
        async with controlling(directory / f"{side}.sock") as control:
            yield command, control


async def machines(control: Controller) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await control.ask(List()))["machines"]
    return found


@pytest.mark.parametrize(("side", "point"), SOAK if os.environ.get("MIGRATE_SOAK") else KILLS)
async def test_a_host_that_is_killed_in_the_middle_of_many_migrations_settles_all_of_them(
    tmp_path: Path, side: str, point: str
) -> None:
    fatal = {side: ("--die-at", point)}
    new = ("--listen", "127.0.0.1:0", "--migrations-max", str(MACHINES))
    async with (
        host(tmp_path, "source", *new, *fatal.get("source", ())) as (source_process, source),
        host(tmp_path, "target", *new, *fatal.get("target", ())) as (target_process, target),
    ):
        booted = (await source.ask(BOOT))["machines"]
        ids = {machine["vm_id"] for machine in booted}
        try:
            await send_all(source, target, sorted(ids), retries=0)
        except* (HostGone, Denied):
            pass
        killed = source_process if side == "source" else target_process
        assert await killed.process.wait() < 0
        async with host(tmp_path, side) as (_, again):
            other = target if side == "source" else source
            with trio.fail_after(60):
                while True:
                    here, there = await machines(again), await machines(other)
                    runners = [one["vm_id"] for one in (*here, *there) if one["runs"]]
                    if len(here) + len(there) == MACHINES == len(runners):
                        break
                    await trio.sleep(0.1)
            assert set(runners) == ids, "each has one runner, and nobody has anything else of it"
            assert all(one["record"].startswith("O(") for one in (*here, *there))
