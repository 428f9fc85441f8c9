"""Hosts as processes: signals and exit codes, what is left behind, a crowd from its command line."""

import os
import signal
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio

from migrate.daemon.host.client import Controller, HostGone
from migrate.daemon.host.requests import Limit
from migrate.daemon.host.sending import send_all
from tests.commands import EXAMPLE, PATIENCE_S, start_within
from tests.test_host_kills import BOOT, host, machines

LOADED: Final = attrs.evolve(BOOT, guest="stamp", memory_mb=8, count=3)
"""Guests that have something in their RAM, so that a cap of the bandwidth keeps a migration where it is."""

SIGNALS: Final[dict[str, tuple[list[signal.Signals], str, int]]] = {
    "Ctrl-C drains": ([signal.SIGINT], "target", 130),
    "a second one aborts": ([signal.SIGTERM, signal.SIGTERM], "source", 0),
}
if os.environ.get("MIGRATE_SOAK"):  # the same but for its exit code
    SIGNALS["SIGTERM drains"] = ([signal.SIGTERM], "target", 0)


@pytest.mark.parametrize(("signals", "owner", "code"), SIGNALS.values(), ids=SIGNALS)
async def test_a_signal_completes_what_is_in_progress_and_a_second_one_undoes_it(
    tmp_path: Path, signals: list[signal.Signals], owner: str, code: int
) -> None:
    new = ("--listen", "127.0.0.1:0")
    async with (
        host(tmp_path, "source", *new) as (process, source),
        host(tmp_path, "target", *new) as (_, target),
    ):
        (machine, *_) = (await source.ask(LOADED))["machines"]
        await source.ask(Limit(bandwidth=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send, source, target, machine["vm_id"])
            with trio.fail_after(PATIENCE_S):
                while not any(one["phase"] == "ram" for one in await machines(source)):  # noqa: ASYNC110  # it is asked
                    await trio.sleep(0.02)
            for number, sent in enumerate(signals, 1):
                process.process.send_signal(sent)
                await process.says("once more ends the host" if number == 2 else "once more undoes")
            if len(signals) == 1:
                await source.ask(Limit(bandwidth=0))
            assert await process.ends() == code
        here = [one["vm_id"] for one in await machines(target) if one["runs"]]
        assert here == ([machine["vm_id"]] if owner == "target" else [])
        assert not (tmp_path / "source.sock").exists()
        left = 2 if owner == "target" else 3
        await process.says(f"ended: {left} machines are left, 0 of them in doubt")


async def _send(source: Controller, target: Controller, machine: str) -> None:
    try:
        await send_all(source, target, [machine], retries=0)
    except* HostGone:
        pass


def test_a_crowd_is_rehearsed_and_every_machine_is_audited() -> None:
    said = start_within(60, "crowd", EXAMPLE, "--machines", "4", "--at-once", "3", "--json")
    assert said.code == 0, said.err
    document = said.document
    assert document["outcomes"] == {"migrated": 4}
    assert document["failures"] == []
    assert document["audit"]["machines"] == 4
    assert document["audit"]["violations"] == []
    before, booted, after = document["hosts"]["source"]
    assert (before["machines"], booted["machines"], after["machines"]) == (0, 4, 0)
    assert booted["open_files"] > before["open_files"] >= after["open_files"]
    assert booted["tasks"] > before["tasks"] >= after["tasks"]
