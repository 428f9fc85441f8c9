"""What tests of migrations use: a pair of daemons, simulated or real, that migrates under a plan of faults.

    def test_it_survives(simulated_daemons):
        migration = simulated_daemons.migrate(plan)
        assert_sound(migration, owner="target")

The names here, and the fixtures of `migrate.pytest_plugin`, are what others may build upon.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import attrs

from migrate.faults.explore import Experiment
from migrate.faults.plan import Fault, Plan, PlanError
from migrate.faults.toml import read_plan_file, write_plan
from migrate.faults.words import fault_words
from migrate.reports.recording import record
from migrate.reports.text import timeline_text
from migrate.reports.timeline import Timeline
from migrate.reports.told import timeline_of
from migrate.simulation.machines import LightMachines, RealMachines
from migrate.specs.files import read_spec_file
from sim_vmm.spec import Spec

__all__ = [
    "NO_FAULTS",
    "CannotMigrate",
    "Migration",
    "RealDaemons",
    "SimulatedDaemons",
    "Violation",
    "assert_sound",
    "plans_from",
]

NO_FAULTS: Final = Plan(faults=())
"""The plan of an undisturbed migration."""

SIMULATED_MEMORY_MB: Final = 1
"""A simulated machine has as much RAM as its guest uses, whatever its spec says."""
PATIENCE_S: Final = 300.0


class CannotMigrate(Exception):
    """No migration took place, because what was asked for cannot be done: which, and why."""


@attrs.frozen
class Violation:
    """What an audit has found: the name of the check, and what it objects to."""

    check: str
    message: str


@attrs.frozen(kw_only=True)
class Migration:
    """What came of one migration.

    Attributes:
        plan: what was to go wrong.
        owner: who has the machine in the end: "source", "target" or "nobody".
        outcome: "migrated", or what the last attempt ended with.
        faults_fired: the faults that struck, in words, in that order.
        violations: what the audits found; they know nothing of the plan.
        timeline: everything that happened, as values.
    """

    plan: Plan
    owner: str
    outcome: str
    faults_fired: tuple[str, ...]
    violations: tuple[Violation, ...]
    timeline: Timeline = attrs.field(repr=False)

    @classmethod
    def of(cls, plan: Plan, timeline: Timeline) -> "Migration":
        return cls(
            plan=plan,
            owner=timeline.owner,
            outcome=timeline.outcome,
            faults_fired=tuple(event.text for event in timeline.faults),
            violations=tuple(Violation(check, message) for check, message in timeline.violations),
            timeline=timeline,
        )

    @property
    def text(self) -> str:
        """The timeline of both sides, a line for each thing that happened."""
        return timeline_text(self.timeline)


@attrs.frozen(kw_only=True)
class SimulatedDaemons:
    """A source and a target in virtual time: the real engines, codec and rules, and nothing else that is real.

    With `real_machine` every device of the spec is emulated, which takes longer than to migrate it.
    """

    spec: Spec
    real_machine: bool = False

    @classmethod
    def from_file(cls, path: str | Path, *, real_machine: bool = False) -> "SimulatedDaemons":
        """Raises SpecFileError or ParseError, which name the file."""
        return cls(spec=read_spec_file(Path(path)).spec, real_machine=real_machine)

    def migrate(self, plan: Plan = NO_FAULTS) -> Migration:
        """One migration, disturbed as `plan` says; the same plan gives the same migration, to the byte.

        Raises:
            PlanError: it strikes a stream that it does not have.
        """
        spec = attrs.evolve(self.spec, board=attrs.evolve(self.spec.board, memory_mb=SIMULATED_MEMORY_MB))
        foundry = RealMachines() if self.real_machine else LightMachines()
        plan = plan.over(1)
        experiment = Experiment(spec=spec, foundry=foundry, streams=plan.streams)
        return Migration.of(plan, record(experiment, plan).timeline)


@attrs.frozen(kw_only=True)
class RealDaemons:
    """A source and a target as processes on loopback, as `migrate rehearse` runs them.

    `options` are further ones of that command, such as `("--from", "r3", "--guest", "dirty:100M,64M")`.
    """

    spec_file: Path
    options: tuple[str, ...] = ()
    patience_s: float = PATIENCE_S

    def migrate(self, plan: Plan = NO_FAULTS, *options: str) -> Migration:
        """One rehearsal, with its audit.

        Raises:
            CannotMigrate: it could not begin (a bad spec or option), or took longer than `patience_s`.
        """
        with TemporaryDirectory(prefix="migrate-test-") as directory:
            events, plan_file = Path(directory, "events.jsonl"), Path(directory, "plan.toml")
            command = [sys.executable, "-m", "migrate", "rehearse", str(self.spec_file), "--json"]
            command += ["--events", str(events), *self.options, *options]
            if plan.faults:
                plan_file.write_text(write_plan(plan))
                command += ["--faults", str(plan_file)]
            document = self._rehearsed(command)
            told = [json.loads(line) for line in events.read_text().splitlines()]
        planned = tuple(map(fault_words, plan.faults))
        return Migration.of(plan, timeline_of(document, told, planned=planned))

    def _rehearsed(self, command: list[str]) -> dict[str, Any]:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.patience_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise CannotMigrate(f"the rehearsal of {self.spec_file} took more than {self.patience_s:g} s") from None
        try:
            document: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            complaint = (done.stderr.strip() or "it said nothing").splitlines()[-1].removeprefix("migrate: ")
            raise CannotMigrate(f"migrate rehearse ended with exit code {done.returncode}: {complaint}") from None
        return document


def assert_sound(migration: Migration, *, owner: str | None = None, outcome: str | None = None) -> None:
    """No audit is violated; and, where said, who has the machine and how it ended.

    Raises:
        AssertionError: it is not so; the message ends with the timeline of both sides.
    """
    __tracebackhide__ = True
    objections = [f"audit violated: {found.check}: {found.message}" for found in migration.violations]
    for what, wanted, had in (("owner", owner, migration.owner), ("outcome", outcome, migration.outcome)):
        if wanted is not None and wanted != had:
            objections.append(f"the {what} is {had!r}, expected {wanted!r}")
    if objections:
        raise AssertionError("\n".join([*objections, "", *_plan_lines(migration.plan), migration.text]))


def _plan_lines(plan: Plan) -> Iterable[str]:
    return [*(f"plan: {fault_words(fault)}" for fault in plan.faults), ""] if plan.faults else []


def plans_from(*wanted: "str | Path | Plan | Fault", below: Path) -> dict[str, Plan]:
    """Plans by name, from patterns of file names below a directory, plans, and single faults.

    Raises:
        PlanError: a pattern matches no file, a file holds no plan, or something is neither.
    """
    plans: dict[str, Plan] = {}
    for number, one in enumerate(wanted):
        match one:
            case Plan():
                plans[f"plan{number}"] = one
            case Fault():
                plans[fault_words(one)] = Plan(faults=(one,))
            case str() | Path():
                files = sorted(glob(str(one), root_dir=below, recursive=True))  # noqa: PTH207  # absolute names, too
                if not files:
                    raise PlanError(f"no file matches {str(one)!r} in {below}")
                plans |= {str(Path(file).with_suffix("")): read_plan_file(below / file) for file in files}
            case _:
                raise PlanError(f"{one!r} is no plan, fault or name of files")
    return plans
