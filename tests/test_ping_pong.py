"""A machine that goes to and fro between two daemons, over real sockets, files and a network, and keeps its ledger.

"Must show 2": after a hundred migrations the ledger is whole, with releases alternating where they can carry it.
"""

from collections.abc import Iterator, Mapping
from itertools import count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate.daemon import guests
from migrate.daemon.address import Address
from migrate.daemon.artefacts import write_artefacts
from migrate.daemon.events import EventLog
from migrate.daemon.guests import GuestRunner, TrioHypervisor
from migrate.daemon.node import AnyJournal, Node
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


@attrs.define
class Court:
    """Where daemons play: their common storage and network, and the guest that is there now."""

    nursery: trio.Nursery
    leftovers: Leftovers
    wire: Path

    nodes: Iterator[int] = attrs.field(factory=count)

    def node(self, release: str) -> Node:
        """One more node."""
        hypervisor = TrioHypervisor(self.nursery, wire=self.wire, storage=self.leftovers.storage)
        name = f"node-{next(self.nodes)}"
        return Node(name=name, release=RELEASES[release], hypervisor=hypervisor, events=EventLog(name))

    async def boot(self, spec: Spec, release: str) -> "Home":
        node = self.node(release)
        birth = RELEASES[release].birth(NIL_UUID)
        runner, journal = await node.bear(spec, "vm", LedgerGuest(), birth)
        return Home(node, runner, journal)

    async def migrate(self, home: "Home", to: str) -> "Home":
        """From a source daemon where it is to a target daemon of release `to`, over TCP."""
        release = home.node.release
        asked = SourceSettings(node=home.node.name, machine_name="vm", release=release, policy=SWITCH_OVER_ANYWAY)
        source = SourceDaemon(home.runner, home.journal, asked, EventLog("source"), node=home.node, deadlines=PATIENT)
        listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
        node = self.node(to)
        settings = TargetSettings(node=node.name, release=RELEASES[to])
        address = Address(host=LOOPBACK, port=port_of(listeners))
        target = TargetDaemon(address, node, settings, EventLog("target"), deadlines=PATIENT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.serve, listeners)
            arrived = await target.migrate_in()
            assert arrived is not None, [str(attempt.error) for attempt in target.attempts]
        assert node.hypervisor.runner is not None
        home.runner.machine.stop()
        home.runner.machine.close()
        return Home(node, node.hypervisor.runner, target.journal)

    async def audit(self, runner: GuestRunner) -> LedgerAudit:
        """Stop the machine and have what is left of it read."""
        await runner.stop()
        write_artefacts(runner.machine, self.leftovers.left)
        audit = audit_leftovers(self.leftovers, runner.machine.spec)
        runner.machine.close()
        assert audit is not None
        return audit


@attrs.frozen
class Home:
    """Where the machine is now."""

    node: Node
    runner: GuestRunner
    journal: AnyJournal


async def records_are_made(runner: GuestRunner, count: int) -> None:
    """Return when the guest has acknowledged so many more records where it is now."""
    enough = ledger_of(runner.machine).acknowledged + count
    with trio.fail_after(10):
        while ledger_of(runner.machine).acknowledged < enough:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("components", "releases", "migrations"),
    [(VIRTIO, ("r6", "r3", "r2"), 100), (NVME, ("r1", "r6"), 40)],
    ids=["virtio, born on r6", "nvme, born on r1"],
)
async def test_the_ledger_is_whole_after_many_migrations(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nursery: trio.Nursery,
    components: Mapping[str, Component],
    releases: tuple[str, ...],
    migrations: int,
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
        path = list(islice(cycle(releases), migrations + 1))
        home = await court.boot(make_spec(components), path[0])
        for there in path[1:]:
            await records_are_made(home.runner, 2)
            home = await court.migrate(home, there)
        await records_are_made(home.runner, 2)
        assert str(home.journal.record) == f"O({1 + migrations})", "generations go on from node to node"
        audit = await court.audit(home.runner)
        assert audit.violations == ()
        assert audit.found == audit.acknowledged > 2 * migrations
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
