"""Migrations of machines whose RAM is only reckoned, and what the engines said of them."""

from typing import Any, Self

import attrs

from migrate.engine.attempt import Attempt
from migrate.engine.policy import PrecopyPolicy
from migrate.engine.rounds import Round
from migrate.errors import MigrationError
from migrate.protocol.messages import Role
from migrate.simulation.hooks import NO_FAULTS, Hooks
from migrate.simulation.link import SimulatedLink
from migrate.simulation.modelled import ModelledMachines, Workload
from migrate.simulation.modelled_ram import ModelledRam
from migrate.simulation.network import Speed
from migrate.simulation.node import Life
from migrate.simulation.scheduler import NS_PER_S
from migrate.simulation.world import Result, World
from sim_vmm.machine import Machine
from tests.worlds import SPEC


@attrs.define(kw_only=True, eq=False)
class ModelledWorld(World):
    """Keeps what each side published, and the estimates that the source told."""

    attempts: dict[Role, list[tuple[Attempt, MigrationError | None]]] = attrs.field(
        factory=lambda: {role: [] for role in Role}
    )

    @classmethod
    def of(
        cls,
        memory_mb: int,
        workload: Workload,
        *,
        bandwidth: float,
        policy: PrecopyPolicy,
        hooks: Hooks = NO_FAULTS,
        latency_ns: int = 0,
        retries: int = 0,
    ) -> Self:
        """A machine of `memory_mb`, whose guest touches modelled RAM only, on a link of `bandwidth` bytes a second."""
        return cls(
            spec=attrs.evolve(SPEC, board=attrs.evolve(SPEC.board, memory_mb=memory_mb)),
            foundry=ModelledMachines(workload),
            ram=ModelledRam(),
            program=rest,
            speed=Speed(bandwidth=bandwidth, latency_ns=latency_ns),
            policy=policy,
            hooks=hooks,
            retries=retries,
        )

    async def connect(self, life: Life) -> SimulatedLink:
        """After a while in which the guest has been left alone."""
        await self.scheduler.sleep(NS_PER_S)
        return await super().connect(life)

    def note_outcome(self, life: Life, attempt: Attempt, error: MigrationError | None) -> None:
        super().note_outcome(life, attempt, error)
        self.attempts[attempt.side].append((attempt, error))


def rest(_machine: Machine) -> None:
    """The program of a guest that has other things to do than the simulated machines' own."""


@attrs.frozen
class Outcome:
    """Of the source's only attempt."""

    result: Result
    attempt: Attempt
    error: MigrationError | None

    @property
    def rounds(self) -> list[Round]:
        return self.attempt.rounds

    @property
    def precopy(self) -> dict[str, Any]:
        told: dict[str, Any] = self.attempt.as_json()["precopy"]
        return told

    @property
    def bytes_sent(self) -> int:
        return sum(round_.bytes for round_ in self.rounds)


def migrated(*args: Any, **options: Any) -> Outcome:
    """What came of one migration in which nothing goes wrong; see `ModelledWorld.of`."""
    with ModelledWorld.of(*args, **options) as world:
        result = world.run()
    assert result.violations == ()
    ((attempt, error),) = world.attempts[Role.SOURCE]
    return Outcome(result, attempt, error)
