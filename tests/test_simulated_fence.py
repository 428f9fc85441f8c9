"""A machine on shared storage: with the fence one node runs it though the link never heals, and it is the right one."""

from random import Random

import pytest

from migrate.engine import ownership, source
from migrate.faults.explore import Experiment, first_faults, pairs_after, random_plan, single_plans
from migrate.faults.plan import (
    Action,
    AtMessage,
    AtTake,
    AtWrite,
    Cut,
    DiskFull,
    Fault,
    Hang,
    Kill,
    Moment,
    Plan,
    PowerLoss,
    StorageOutage,
    Trigger,
)
from migrate.protocol.messages import Role
from migrate.simulation.audits import ITS_OWN_DISKS, ONE_RUNNER, RUNS_WITHOUT_LINK
from migrate.simulation.daemons import SourceDaemon
from migrate.simulation.remembering import remembering
from tests.worlds import SPEC

FENCED = Experiment(spec=SPEC, fenced=True)
FOR_GOOD = Cut(for_s=1000.0)

BEFORE_COMMIT = AtMessage(message="Commit", side=Role.SOURCE)
COMMIT_ARRIVED = AtMessage(message="Commit", side=Role.SOURCE, moment=Moment.RECEIVED)
BEFORE_TAKE = AtTake(side=Role.TARGET)
AFTER_TAKE = AtTake(side=Role.TARGET, moment=Moment.AFTER)
BEFORE_O = AtWrite(side=Role.TARGET, number=2)


def plan_of(*faults: tuple[Trigger, Action]) -> Plan:
    return Plan(faults=tuple(Fault(when=when, do=do) for when, do in faults))


def runs_before_the_link_is_back(trace: tuple[str, ...]) -> str:
    """Which node has set the machine going last."""
    lines = trace[: next(index for index, line in enumerate(trace) if "the link is back" in line)]
    return [line.split()[1] for line in lines if " takes " in line][-1]


SETTLED: list[tuple[str, Plan, str]] = [
    ("the target is never told", plan_of((BEFORE_COMMIT, FOR_GOOD)), "source"),
    ("the target has been told", plan_of((COMMIT_ARRIVED, FOR_GOOD)), "target"),
    (
        "the target dies with its image",
        plan_of((BEFORE_COMMIT, FOR_GOOD), (BEFORE_COMMIT, Hang(side=Role.TARGET))),
        "source",
    ),
    ("it has only taken the register", plan_of((AFTER_TAKE, FOR_GOOD), (AFTER_TAKE, Kill(side=Role.TARGET))), "target"),
    (
        "it has only taken the register, and its image is lost",
        plan_of((AFTER_TAKE, FOR_GOOD), (AFTER_TAKE, PowerLoss(side=Role.TARGET))),
        "target",
    ),
    (
        "it could not note that it has taken the register",
        plan_of((COMMIT_ARRIVED, FOR_GOOD), (BEFORE_O, DiskFull(side=Role.TARGET))),
        "target",
    ),
    (
        "the target cannot reach the storage",
        plan_of((COMMIT_ARRIVED, FOR_GOOD), (BEFORE_TAKE, StorageOutage(side=Role.TARGET, for_s=1000.0))),
        "source",
    ),
    (
        "the source cannot reach the storage at first",
        plan_of((BEFORE_COMMIT, FOR_GOOD), (BEFORE_COMMIT, StorageOutage(side=Role.SOURCE, for_s=50.0))),
        "source",
    ),
]


@pytest.mark.parametrize(("plan", "runner"), [row[1:] for row in SETTLED], ids=[row[0] for row in SETTLED])
def test_without_a_link_one_node_runs_the_machine(plan: Plan, runner: str) -> None:
    tried = FENCED.run(plan)
    assert tried.violations == ()
    assert tried.fired == len(plan.faults)
    assert runs_before_the_link_is_back(FENCED.trace(plan)) == {"source": "rack-3", "target": "rack-7"}[runner]


@pytest.mark.parametrize("for_s", [1.0, 1000.0])
def test_a_source_whose_storage_goes_away_while_it_resumes_goes_on_in_the_session_that_it_had(for_s: float) -> None:
    """Found by pairs: only where the register could not even be read it went on; else it stayed paused, for good."""
    lost = (AtMessage(message="DeviceState", side=Role.SOURCE, number=2), PowerLoss(side=Role.TARGET))
    out = (AtTake(side=Role.SOURCE), StorageOutage(side=Role.SOURCE, for_s=for_s))
    tried = FENCED.run(plan_of(lost, out))
    assert tried.violations == ()
    assert tried.fired == 2
    assert "source: StorageUnreachable" not in tried.published


def test_a_source_that_cannot_reach_the_storage_before_the_pause_gives_the_machine_away_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It only wants to know how long a look takes, and says that it does not."""
    look, seen = source._Source.look_at_register, list[tuple[int, list[str]]]()

    async def watched(self: source._Source) -> int:
        register_ns = await look(self)
        seen.append((register_ns, list(self.attempt.warnings)))
        return register_ns

    monkeypatch.setattr(source._Source, "look_at_register", watched)
    out = (AtMessage(message="RoundStored", side=Role.TARGET), StorageOutage(side=Role.SOURCE, for_s=1000.0))
    tried = FENCED.run(plan_of(out))
    assert (tried.violations, tried.fired, tried.owner) == ((), 1, "target")
    (register_ns, (warning,)), (register_back_ns, nothing) = seen
    assert register_ns == 0
    assert warning.startswith("the predicted downtime leaves out the storage's register: ")
    assert register_back_ns > 0, "on the way back there is nothing to warn of"
    assert nothing == []


def test_a_source_that_never_asks_the_fence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: SourceDaemon) -> None:
        """It waits for its target, as without a fence."""

    monkeypatch.setattr(SourceDaemon, "_reclaim", nothing)
    tried = FENCED.run(plan_of((BEFORE_COMMIT, FOR_GOOD)))
    assert RUNS_WITHOUT_LINK in {violation.check for violation in tried.violations}


def test_who_runs_without_the_register_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None:
        """The register is not taken."""

    monkeypatch.setattr(ownership.Ownership, "_take", nothing)
    found = {violation.check for violation in FENCED.run(Plan(faults=())).violations}
    assert found == {ITS_OWN_DISKS}
    found = {violation.check for violation in FENCED.run(plan_of((COMMIT_ARRIVED, FOR_GOOD))).violations}
    assert ONE_RUNNER in found


def test_of_all_faults_of_a_fenced_machine_a_sample_is_stood() -> None:
    random = Random(2)
    with remembering():
        plans = random.sample(list(single_plans(FENCED)), 60)
        for first in random.sample(first_faults(FENCED), 5):
            pairs = list(pairs_after(FENCED, first))
            plans += random.sample(pairs, min(6, len(pairs)))
        plans += map(random_plan, range(40))
        for plan in plans:
            assert FENCED.run(plan).violations == (), plan


def test_singles_strike_at_the_register() -> None:
    triggers = {plan.faults[0].when for plan in single_plans(FENCED)}
    assert {BEFORE_TAKE, AFTER_TAKE} < triggers
