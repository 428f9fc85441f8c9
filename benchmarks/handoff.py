"""What the durable handoff costs a blackout: migrations between two daemons over TCP, with and without a journal."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import uuid4

import attrs
import trio

from benchmarks.measure import Allowance
from benchmarks.rest import EXAMPLE
from migrate.daemon.address import Address
from migrate.daemon.events import EventLog
from migrate.daemon.guests import TrioHypervisor
from migrate.daemon.node import Node, new_node_name
from migrate.daemon.source import SourceDaemon
from migrate.daemon.state import StateDirectory
from migrate.daemon.target import TargetDaemon
from migrate.engine.attempt import Step
from migrate.engine.policy import PrecopyPolicy
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.releases import NEWEST, builtin_releases
from migrate.specs.files import read_spec_file
from sim_vmm.guest import StampGuest
from sim_vmm.spec import Spec, build_spec, host_cpuid

ALLOWED_S: Final = 0.005
"""What the journal may add to the downtime at the median (issue 4, "Must show" 6)."""
RUNS: Final = 25
MEMORY_MB: Final = 16


def results() -> Iterator[Allowance]:
    with tempfile.TemporaryDirectory(prefix="migrate-bench-") as directory:
        place = Path(directory)
        spec = small_machine()
        downtimes: dict[bool, list[float]] = {False: [], True: []}
        for number in range(RUNS + 1):
            for durable in (False, True):
                downtime = trio.run(downtime_s, spec, place / str(number) if durable else None)
                if number:  # the first pays for imports
                    downtimes[durable].append(downtime)
        without, with_journal = median(downtimes[False]), median(downtimes[True])
        pairs = zip(downtimes[True], downtimes[False], strict=True)
        added = median(durable - volatile for durable, volatile in pairs)
        sync_ms = sync_s(place) * 1e3
        yield Allowance(
            path=(
                f"the journal's part of the downtime: {with_journal * 1e3:.2f} ms with it, {without * 1e3:.2f} ms "
                f"without, in interleaved migrations; an fdatasync takes this medium {sync_ms:.2f} ms"
            ),
            ours_s=max(added, 1e-6),
            allowed_s=ALLOWED_S,
            runs=RUNS,
        )


def small_machine() -> Spec:
    spec = read_spec_file(EXAMPLE, None).spec
    board = attrs.evolve(spec.board, memory_mb=MEMORY_MB)
    return build_spec(board, spec.components, spec.smbios, host_cpuid=host_cpuid)


def sync_s(place: Path) -> float:
    """The median time that the medium takes to have 4 KiB in place."""
    times = []
    with (place / "sync").open("wb") as file:
        for _ in range(50):
            file.write(bytes(4096))
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return median(times)


async def downtime_s(spec: Spec, place: Path | None) -> float:
    """From the beginning of the pause at the source to the first step at the target."""
    release = builtin_releases()[NEWEST]
    async with trio.open_nursery() as nursery:
        here, there = (node_in(nursery, place, side) for side in ("source", "target"))
        runner, journal = await here.bear(spec, "machine", StampGuest(), release.birth(uuid4()))
        policy = PrecopyPolicy(downtime_limit_ms=1000)
        settings = SourceSettings(node=here.name, machine_name="machine", release=release, policy=policy)
        source = SourceDaemon(runner, journal, settings, here.events, node=here)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(source.serve, listeners)
        address = Address(host="127.0.0.1", port=listeners[0].socket.getsockname()[1])
        target = TargetDaemon(address, there, TargetSettings(node=there.name, release=release), there.events)
        arrived = await target.migrate_in()
        assert arrived is not None, target.attempts[-1].error
        await source.over.wait()
        steps: list[Step] = [*source.attempts[-1].attempt.steps, *target.attempts[-1].attempt.steps]
        assert there.hypervisor.runner is not None
        await there.hypervisor.runner.stop()
        for machine in (runner.machine, arrived.machine):
            machine.close()
        for node in (here, there):
            node.close()
        nursery.cancel_scope.cancel()
    named: dict[str, Any] = {step.step: step for step in steps}
    return float(named["run"].end_ns - named["pause"].start_ns) / 1e9


def node_in(nursery: trio.Nursery, place: Path | None, side: str) -> Node:
    release = builtin_releases()[NEWEST]
    hypervisor = TrioHypervisor(nursery)
    node = Node(name=new_node_name(), release=release, hypervisor=hypervisor, events=EventLog(side))
    if place is not None:
        state = node.state = StateDirectory.open(place / side)
        node.name = state.node
        hypervisor.ram_path = lambda birth: state.ram_path(birth.vm_id)
    return node
