"""The pytest plugin, as the tests of somebody else see it: each test here runs a pytest of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from migrate import testing
from migrate.faults.plan import AtMessage, Cut, Fault, Kill, Plan, PlanError, Reset
from migrate.faults.toml import write_plan
from migrate.protocol.messages import Role
from migrate.testing import (
    NO_FAULTS,
    CannotMigrate,
    Migration,
    RealDaemons,
    SimulatedDaemons,
    Violation,
    assert_sound,
    plans_from,
)
from tests.commands import EXAMPLE

ROOT: Final = Path(__file__).parents[1]
SPEC: Final = ROOT / EXAMPLE
TARGET_DIES: Final = Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Kill(side=Role.TARGET))
AT_COMMIT: Final = Fault(when=AtMessage(message="Commit", side=Role.SOURCE), do=Cut())

CONFIGURED: Final = f"[pytest]\nmigration_spec = {SPEC}\naddopts = -p no:cacheprovider -p no:trio -p no:xdist\n"


class Project:
    """Somebody's tests, in a directory of their own, run by a pytest of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "pytest.ini").write_text(CONFIGURED)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / f"{name}.py").write_text(text)

    def run(self, *arguments: str, plugin: bool = True) -> tuple[int, str]:
        """Exit code and output."""
        loaded = ["-p", "migrate.pytest_plugin"] if plugin else []
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *loaded, *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# The documents


def test_the_example_of_the_documents_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "migrate.pytest_plugin",
            "-p",
            "no:cacheprovider",
            "docs/example_test.py",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_quotes_the_example_as_it_is() -> None:
    document, example = (ROOT / "docs/testing-your-vmm.md").read_text(), (ROOT / "docs/example_test.py").read_text()
    blocks = re.findall(r"<!-- from example_test.py -->\n```python\n(.*?)```", document, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        assert block in example


# Plans as parameters


def test_a_test_runs_once_for_each_plan(project: Project) -> None:
    plans = project.directory / "plans"
    (plans / "deep").mkdir(parents=True)
    (plans / "a.toml").write_text(write_plan(Plan(faults=(TARGET_DIES,))))
    (plans / "deep" / "b.toml").write_text(write_plan(Plan(faults=(AT_COMMIT,))))
    project.write(
        test_plans="""
import pytest
from migrate.faults.plan import AtMessage, Cut, Fault, Plan
from migrate.protocol.messages import Role
from migrate.testing import assert_sound

CUT = Fault(when=AtMessage(message="Commit", side=Role.SOURCE), do=Cut())

@pytest.mark.migration_plans("plans/**/*.toml", CUT, Plan(faults=()))
def test_it(simulated_daemons, migration_plan):
    assert_sound(simulated_daemons.migrate(migration_plan))
"""
    )
    code, said = project.run("-v")
    assert code == 0, said
    ids = re.findall(r"test_it\[(.*?)\] PASSED", said)
    assert ids == ["plans/a", "plans/deep/b", "cut – before Commit 1, source".replace("–", r"\u2013"), "plan2"]


CANNOT_BE_HAD: Final = {
    "": "test_it asks for migration_plan, and no migration_plans mark says which",
    '@pytest.mark.migration_plans("plans/*.toml")': "no file matches 'plans/*.toml' in ",
    '@pytest.mark.migration_plans("bad.toml")': "bad.toml: this is no TOML: ",
    "@pytest.mark.migration_plans(5)": "5 is no plan, fault or name of files",
}


def test_plans_that_cannot_be_had_are_said_at_collection(project: Project) -> None:
    (project.directory / "bad.toml").write_text("[[fault]")
    for number, mark in enumerate(CANNOT_BE_HAD):
        project.write(**{f"test_{number}": f"import pytest\n\n{mark}\ndef test_it(migration_plan): pass\n"})
    code, said = project.run()
    assert code != 0
    for number, words in enumerate(CANNOT_BE_HAD.values()):
        _, _, of_this = said.partition(f" ERROR collecting test_{number}.py ")
        assert words in of_this.partition(" ERROR collecting ")[0], said
    assert "migrate/pytest_plugin.py" not in said


def test_without_a_spec_it_says_how_to_name_one(project: Project) -> None:
    (project.directory / "pytest.ini").write_text(CONFIGURED.replace("migration_spec", "#"))
    project.write(test_it="def test_it(simulated_daemons): pass\n")
    code, said = project.run()
    assert code == 1
    assert "no machine to migrate: say migration_spec = FILE in pytest's configuration" in said
    assert "migrate/pytest_plugin.py" not in said


# What a failure shows

FAILING: Final = """
import pytest
from migrate.faults.plan import AtMessage, Cut, Fault, Kill, Plan
from migrate.protocol.messages import Role
from migrate.testing import assert_sound

@pytest.mark.migration_plans(Fault(when=AtMessage(message="Ready", side=Role.TARGET), do=Kill(side=Role.TARGET)))
def test_it_moves(simulated_daemons, migration_plan):
    assert_sound(simulated_daemons.migrate(migration_plan), owner="target", outcome="migrated")
"""


def test_a_failure_prints_the_timeline_of_both_sides(project: Project) -> None:
    project.write(test_failing=FAILING)
    code, said = project.run()
    assert code == 1
    lines = [line.removeprefix("E").strip() for line in said.splitlines() if line.startswith("E ")]
    assert lines[0] == "AssertionError: the owner is 'source', expected 'target'"
    assert lines[1] == "the outcome is 'Restarted', expected 'migrated'"
    assert "plan: kill target – before Ready 1, target" in lines
    assert any(re.fullmatch(r"ms +rack-3 \(source\) +rack-7 \(target\)", line) for line in lines)
    assert any(line.endswith(">>> kill target – before Ready 1, target") for line in lines)
    assert any("sends Prepare" in line for line in lines)
    assert any("starts again" in line for line in lines)
    assert "migrate/testing.py" not in said  # the failure is shown where the test asserts it


def test_the_assertion_names_every_violation() -> None:
    migration = SimulatedDaemons.from_file(SPEC).migrate()
    assert_sound(migration, owner="target", outcome="migrated")
    spoiled = Migration(
        plan=NO_FAULTS,
        owner="nobody",
        outcome="migrated",
        faults_fired=(),
        violations=(Violation("one in the end", "none"), Violation("at rest", "waits")),
        timeline=migration.timeline,
    )
    with pytest.raises(AssertionError) as caught:
        assert_sound(spoiled)
    assert str(caught.value).splitlines()[:3] == [
        "audit violated: one in the end: none",
        "audit violated: at rest: waits",
        "",
    ]


# The pairs


def test_the_same_plan_gives_the_same_simulated_migration() -> None:
    daemons = SimulatedDaemons.from_file(SPEC)
    plan = Plan(faults=(TARGET_DIES,))
    one, other = daemons.migrate(plan), daemons.migrate(plan)
    assert one == other
    assert one.text == other.text
    assert one.faults_fired == ("kill target – before Ready 1, target",)
    assert SimulatedDaemons.from_file(SPEC, real_machine=True).migrate(plan).outcome == one.outcome


def test_a_plan_for_several_connections_is_played_over_so_many() -> None:
    loses_a_stream = Fault(when=AtMessage(message="RoundEnd", side=Role.SOURCE, stream=1), do=Reset())
    migration = SimulatedDaemons.from_file(SPEC).migrate(Plan(faults=(loses_a_stream,), streams=2))
    assert_sound(migration, owner="target", outcome="migrated")
    assert migration.faults_fired == ("reset – before RoundEnd 1, source, stream 1",)
    assert {flight.connection for flight in migration.timeline.flights()} == {0, 1, 2, 3}, "of two attempts"
    with pytest.raises(PlanError, match="fault 1: stream is 1, and there is none; say streams = 2 in the plan"):
        SimulatedDaemons.from_file(SPEC).migrate(Plan(faults=(loses_a_stream,)))


def test_a_real_pair_that_cannot_begin_says_why(tmp_path: Path) -> None:
    with pytest.raises(CannotMigrate, match=r"exit code 2: .*no-such\.json: cannot be read: No such file or directory"):
        RealDaemons(spec_file=tmp_path / "no-such.json").migrate()


def test_a_real_pair_that_takes_too_long_is_ended() -> None:
    with pytest.raises(CannotMigrate, match=r"took more than 0\.2 s"):
        RealDaemons(spec_file=SPEC, patience_s=0.2).migrate()


def test_plans_have_names(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(write_plan(Plan(faults=(AT_COMMIT,))))
    plans = plans_from(NO_FAULTS, TARGET_DIES, "*.toml", tmp_path / "x.toml", below=tmp_path)
    assert list(plans) == ["plan0", "kill target – before Ready 1, target", "x", str(tmp_path / "x")]
    with pytest.raises(PlanError, match="no file matches"):
        plans_from("*.plan", below=tmp_path)


def test_what_is_public_is_there_and_documented() -> None:
    for name in testing.__all__:
        thing = getattr(testing, name)
        assert name == "NO_FAULTS" or (thing.__doc__ or "").strip(), name


# Beside other people's tests


def test_it_costs_other_tests_nothing(project: Project) -> None:
    project.write(
        test_other="""
import sys

def test_nothing_of_ours_is_imported():
    heavy = {"numpy", "trio", "attrs", "cbor2", "cattrs", "cyclopts", "rich", "sim_vmm"} & set(sys.modules)
    ours = {name for name in sys.modules if name.split(".")[0] == "migrate"}
    assert (heavy, ours) == (set(), {"migrate", "migrate.pytest_plugin"})
"""
    )
    code, said = project.run("-p", "no:hypothesispytest", "-W", "error", "--strict-markers")
    assert code == 0, said


def test_it_can_be_named_beside_the_entry_point(project: Project) -> None:
    project.write(test_other="def test_it(): pass\n")
    code, said = project.run("-p", "migrate.pytest_plugin", "--markers")
    assert code == 0, said
    assert said.count("@pytest.mark.migration_plans(*plans)") == 1
