"""A simulated world without faults: the migration that it shows, and that nothing but its input decides it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from migrate.faults.explore import random_plan
from migrate.faults.injection import Injector
from migrate.faults.plan import Plan
from migrate.simulation.audits import AT_REST
from migrate.simulation.daemons import SourceDaemon
from migrate.simulation.fingerprint import fingerprint
from migrate.simulation.link import SimulatedLink
from migrate.simulation.machines import Foundry, LightMachines, RealMachines
from migrate.simulation.network import Pipe
from migrate.simulation.remembering import remembering
from migrate.simulation.scheduler import Scheduler, Signal, Wait
from migrate.simulation.world import Result
from sim_vmm.light_memory import LightMemory
from sim_vmm.machine import MIB
from sim_vmm.memory import GuestMemory
from tests.test_fingerprint import at_rest
from tests.worlds import run_world

each_foundry = pytest.mark.parametrize("foundry", [LightMachines(), RealMachines()], ids=["light", "real"])


@each_foundry
def test_an_undisturbed_migration_has_two_rounds_and_hands_over(foundry: Foundry) -> None:
    result = run_world(foundry=foundry, traced=True)
    assert result.violations == ()
    assert result.owner == "target"
    assert result.published == ("source: migrated", "target: migrated")
    said = [line.split(" ", 2)[2] for line in result.trace]
    assert [line for line in said if line.startswith("writes")] == [
        "writes R(2)",
        "writes C(2)",
        "writes O(2)",
        "writes N(2)",
    ]
    before_pause = said[: said.index("pauses")]
    assert len([line for line in before_pause if line.startswith("sends RoundEnd")]) == 2


@each_foundry
def test_the_same_world_twice_gives_the_same_trace(foundry: Foundry) -> None:
    first, second = (run_world(foundry=foundry, traced=True) for _ in range(2))
    assert first.trace == second.trace


def test_remembering_pure_functions_changes_nothing_but_the_time() -> None:
    plain = run_world(traced=True)
    with remembering():
        run_world()
        remembered = run_world(traced=True)
    assert remembered == plain


def read_from_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pipe, "take_message", lambda self, *, opens: None)


def go_round_the_loop(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "pass_until", lambda self, until_ns: False)
    patch.setattr(Scheduler, "let_arrive", lambda self, before_ns: False)


def use_real_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LightMemory, "lend", GuestMemory.create)


@pytest.mark.parametrize("without", [read_from_bytes, go_round_the_loop, use_real_memory])
def test_what_is_taken_for_speed_changes_nothing_but_the_time(
    without: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def results() -> list[Result]:
        with remembering():
            return [run_world(traced=True, hooks=Injector(plan)) for plan in plans]

    plans = [Plan(faults=()), *(random_plan(seed) for seed in range(40))]
    short = results()
    without(monkeypatch)
    for plan, one, other in zip(plans, short, results(), strict=True):
        assert attrs.evolve(one, steps=0) == attrs.evolve(other, steps=0), plan


def test_the_machine_moves_back_if_it_is_moved_once_more() -> None:
    result = run_world(once_more=True, traced=True)
    assert (result.violations, result.owner, result.published) == (
        (),
        "target",
        ("source: migrated", "target: migrated"),
    )
    said = [line.split(" ", 1)[1] for line in result.trace]
    back = said[said.index("world once more, from rack-7 to rack-3") :]
    assert [line for line in back if " writes " in line] == [
        "rack-3 writes R(3)",
        "rack-7 writes C(3)",
        "rack-3 writes O(3)",
        "rack-7 writes N(3)",
    ]


def test_a_connection_that_is_left_open_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: SimulatedLink) -> None:
        """It is not."""

    monkeypatch.setattr(SimulatedLink, "close", close)
    assert {violation.check for violation in run_world().violations} == {AT_REST}


def test_a_task_that_is_left_waiting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_for_ever(self: SourceDaemon) -> None:
        await Wait(Signal(self.life.world.scheduler))

    monkeypatch.setattr(SourceDaemon, "begin", both(SourceDaemon.begin, wait_for_ever))
    assert {violation.check for violation in run_world().violations} == {AT_REST}


def both(first: Any, second: Any) -> Any:
    async def one_after_the_other(self: Any) -> None:
        await first(self)
        await second(self)

    return one_after_the_other


PRINT_HASHES = "from tests.test_simulation import hashes; print(hashes())"


def hashes() -> list[str]:
    """Of a world at rest; of the trace of the undisturbed world, and of some in which something goes wrong.

    RAM goes over one connection, or over several.
    """
    plans = [(1, Plan(faults=())), *((1 + seed % 2, random_plan(seed, 1 + seed % 2)) for seed in range(6))]
    return [at_rest(fingerprint).hex()] + [
        run_world(traced=True, hooks=Injector(plan), streams=streams).trace_hash for streams, plan in plans
    ]


def test_a_trace_and_a_state_have_the_same_hash_in_any_process() -> None:
    printed = set()
    for seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", PRINT_HASHES],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        printed.add(process.stdout)
    assert printed == {f"{hashes()}\n"}
    assert len(set(hashes())) > 3


def test_processes_that_simulate_share_no_ram() -> None:
    with LightMemory.lend(MIB) as memory:
        memory.write(0, b"ours")
    child = os.fork()  # with the file above to be used again
    if child == 0:
        LightMemory.lend(MIB).write(0, b"theirs")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert LightMemory.lend(MIB).read(0, 6) == bytes(6)
