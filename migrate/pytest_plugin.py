"""Rehearse migrations in pytest: fixtures for pairs of daemons, and a marker that takes plans of faults.

    @pytest.mark.migration_plans("plans/*.toml")
    def test_nothing_is_lost(simulated_daemons, migration_plan):
        assert_sound(simulated_daemons.migrate(migration_plan))

The fixtures migrate the machine whose spec the fixture `migration_spec` names: override it, or say `migration_spec =
FILE` in pytest's configuration.  `migrate.testing` has the rest.

This module is imported by every run of pytest in an environment where we are installed.  So it imports nothing but
pytest; the daemons are imported when a test asks for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from migrate.testing import RealDaemons, SimulatedDaemons

MARKER = "migration_plans"
SPEC = "migration_spec"
PLAN = "migration_plan"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(SPEC, "spec of the machine that migrates, relative to the directory of the configuration", default="")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*plans): run the test once for each plan of faults, which it gets as `{PLAN}`: names of TOML files "
        "relative to the test's file, with * as in a shell, or values of migrate.faults.plan.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a plan runs once for each plan of its marker."""
    if PLAN not in metafunc.fixturenames:
        return
    test = metafunc.definition
    wanted = [plan for marker in test.iter_markers(MARKER) for plan in marker.args]
    if not wanted:
        raise pytest.Collector.CollectError(f"{test.nodeid} asks for {PLAN}, and no {MARKER} mark says which")
    from migrate.faults.plan import PlanError
    from migrate.testing import plans_from

    try:
        plans = plans_from(*wanted, below=test.path.parent)
    except PlanError as error:
        raise pytest.Collector.CollectError(f"{test.nodeid}: {error}") from None
    metafunc.parametrize(PLAN, plans.values(), ids=plans.keys())


@pytest.fixture
def migration_spec(pytestconfig: pytest.Config) -> Path:
    """The spec file of the machine that migrates.  Override it to have another."""
    configured = pytestconfig.getini(SPEC)
    if not configured:
        wanted = f"say {SPEC} = FILE in pytest's configuration, or override the fixture {SPEC}"
        pytest.fail(f"no machine to migrate: {wanted}", pytrace=False)
    return pytestconfig.rootpath / str(configured)


@pytest.fixture
def simulated_daemons(migration_spec: Any) -> "SimulatedDaemons":
    """A source and a target in virtual time: milliseconds a migration, and every fault."""
    from migrate.testing import SimulatedDaemons

    return SimulatedDaemons.from_file(migration_spec)


@pytest.fixture
def real_daemons(migration_spec: Any) -> "RealDaemons":
    """A source and a target as processes on loopback: seconds a migration."""
    from migrate.testing import RealDaemons

    return RealDaemons(spec_file=Path(migration_spec))
