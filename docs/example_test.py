"""How a VMM's own tests rehearse a migration; `docs/testing-your-vmm.md` explains it line by line."""

from pathlib import Path

import pytest

from migrate.faults.plan import AtMessage, AtWrite, Fault, Kill, Moment, Plan, PowerLoss
from migrate.protocol.messages import Role
from migrate.testing import RealDaemons, SimulatedDaemons, assert_sound

HERE = Path(__file__).parent

#: The target dies as it is about to say that it holds the machine, and is back a second later.
TARGET_DIES = Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Kill(side=Role.TARGET))
#: The source loses power once it has noted that the machine is given away.
SOURCE_LOSES_POWER = Fault(
    when=AtWrite(side=Role.SOURCE, number=1, moment=Moment.AFTER), do=PowerLoss(side=Role.SOURCE)
)


@pytest.fixture
def migration_spec() -> Path:
    return HERE.parent / "examples" / "web-server.json"


@pytest.mark.migration_plans("plans/*.toml", TARGET_DIES, SOURCE_LOSES_POWER)
def test_whatever_goes_wrong_the_machine_runs_once_and_whole(
    simulated_daemons: SimulatedDaemons, migration_plan: Plan
) -> None:
    migration = simulated_daemons.migrate(migration_plan)
    assert migration.faults_fired, "a fault that never strikes tests nothing"
    assert_sound(migration)


def test_undisturbed_the_machine_moves_in_a_blink(real_daemons: RealDaemons) -> None:
    migration = real_daemons.migrate()
    assert_sound(migration, owner="target", outcome="migrated")
    (attempt,) = migration.timeline.attempts
    assert attempt.downtime_ms is not None
    assert attempt.downtime_ms < 10_000
