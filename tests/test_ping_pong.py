"""A machine that goes to and fro between two daemons, over real sockets, files and a network, and keeps its ledger.

"Must show 2": after a hundred migrations the ledger is whole, with releases alternating where they can carry it.
"""

from collections.abc import Mapping
from itertools import cycle, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.daemon import guests
from migrate.daemon.artefacts import write_artefacts
from migrate.daemon.events import EventLog
from migrate.daemon.guests import GuestRunner, TrioHypervisor
from migrate.daemon.journal import journal_of_owner, journal_of_stranger
from migrate.daemon.source import SourceDaemon
from migrate.daemon.target import TargetDaemon
from migrate.daemon.wire import WireObserver, recorder
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.rehearsal.ledger import LedgerAudit
from migrate.rehearsal.leftovers import Leftovers, audit_leftovers
from migrate.releases import builtin_releases
from sim_vmm.birth import NIL_UUID
from sim_vmm.guest import LedgerGuest
from sim_vmm.spec import Spec
from sim_vmm.spec.components import Component
from tests.daemons import LOOPBACK, PATIENT, SWITCH_OVER_ANYWAY, port_of
from tests.ledgers import NVME, VIRTIO, House, ledger_of
from tests.machines import make_spec

RELEASES: Final = builtin_releases()
MIGRATIONS: Final = 100


@attrs.define
class Court:
    """Where daemons play: their common storage and network, and the guest that is there now."""

    nursery: trio.Nursery
    leftovers: Leftovers
    wire: Path

    def hypervisor(self) -> TrioHypervisor:
        return TrioHypervisor(self.nursery, wire=self.wire, storage=self.leftovers.storage)

    async def boot(self, spec: Spec, release: str) -> GuestRunner:
        machine = await self.hypervisor().create(spec, RELEASES[release].birth(NIL_UUID))
        LedgerGuest().boot(machine)
        machine.start()
        runner = GuestRunner(machine, LedgerGuest(), self.nursery)
        await runner.resume()
        return runner

    async def migrate(self, runner: GuestRunner, from_: str, to: str) -> GuestRunner:
        """From a source daemon of release `from_` to a target daemon of release `to`, over TCP."""
        asked = SourceSettings(node="here", machine_name="vm", release=RELEASES[from_], policy=SWITCH_OVER_ANYWAY)
        source = SourceDaemon(runner, journal_of_owner(), asked, EventLog("source"), deadlines=PATIENT)
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        hypervisor = self.hypervisor()
        target = TargetDaemon(
            LOOPBACK,
            port_of(listeners),
            hypervisor,
            journal_of_stranger(),
            TargetSettings(node="there", release=RELEASES[to]),
            EventLog("target"),
            deadlines=PATIENT,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.serve, listeners)
            arrived = await target.migrate_in()
            assert arrived is not None, [str(attempt.error) for attempt in target.attempts]
        assert hypervisor.runner is not None
        runner.machine.stop()
        runner.machine.close()
        return hypervisor.runner

    async def audit(self, runner: GuestRunner) -> LedgerAudit:
        """Stop the machine and have what is left of it read."""
        await runner.stop()
        write_artefacts(runner.machine, self.leftovers.left)
        audit = audit_leftovers(self.leftovers, runner.machine.spec)
        runner.machine.close()
        assert audit is not None
        return audit


async def records_are_made(runner: GuestRunner, count: int) -> None:
    """Return when the guest has acknowledged so many more records where it is now."""
    enough = ledger_of(runner.machine).acknowledged + count
    with trio.fail_after(10):
        while ledger_of(runner.machine).acknowledged < enough:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("components", "releases"),
    [(VIRTIO, ("r6", "r3", "r2")), (NVME, ("r1", "r6"))],
    ids=["virtio, born on r6", "nvme, born on r1"],
)
async def test_the_ledger_is_whole_after_a_hundred_migrations(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
    components: Mapping[str, Component],
    releases: tuple[str, ...],
) -> None:
    monkeypatch.setattr(guests, "STEP_EVERY_S", 0)
    with TemporaryDirectory(prefix="wire-") as short, (tmp_path / "wire.jsonl").open("w") as record:
        observer = WireObserver(Path(short) / "wire", recorder(record))
        await nursery.start(observer.serve)
        court = Court(
            nursery,
            Leftovers(left=tmp_path / "left", storage=tmp_path / "storage", wire=tmp_path / "wire.jsonl"),
            observer.path,
        )
        path = list(islice(cycle(releases), MIGRATIONS + 1))
        runner = await court.boot(make_spec(components), path[0])
        for here, there in pairwise(path):
            await records_are_made(runner, 2)
            runner = await court.migrate(runner, here, there)
        await records_are_made(runner, 2)
        audit = await court.audit(runner)
        assert audit.violations == ()
        assert audit.found == audit.acknowledged > 2 * MIGRATIONS
        nursery.cancel_scope.cancel()


@settings(max_examples=3, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 25), min_size=100, max_size=100))
def test_a_hundred_moves_in_memory_at_any_step_leave_the_ledger_whole(cuts: list[int]) -> None:
    with TemporaryDirectory(prefix="ledger-") as directory:
        house = House(Path(directory))
        machine = house.booted(LedgerGuest(moves_per_step=1, flush_every=3))
        for steps in cuts:
            house.run(machine, steps)
            machine = house.moved(machine)
        house.run(machine, 10)
        audit = house.audit(machine)
        house.close()
    assert audit.violations == ()
    assert audit.found == audit.acknowledged > sum(cuts) // 10
