"""What is not run because it is known: it is what a run would have come to, and a wrong guess is found."""

from collections.abc import Iterator
from random import Random

import attrs
import pytest

from migrate.faults import futures
from migrate.faults.explore import Experiment, first_faults, pairs_after, random_plan, single_plans
from migrate.faults.futures import SAME_FUTURE, Foresight
from migrate.faults.pairs import alike, try_alike
from migrate.faults.plan import AtMessage, Fault, Kill, Plan, Reset
from migrate.protocol.messages import Role
from migrate.simulation.network import ORDERS
from migrate.simulation.remembering import remembering
from migrate.simulation.scheduler import Scheduler
from tests.mistakes import MISTAKES
from tests.mistakes_table import applied
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)
FENCED = Experiment(spec=SPEC, fenced=True)
STREAMED = Experiment(spec=SPEC, streams=2)
NEVER = Plan(faults=(Fault(when=AtMessage(message="Hello", side=Role.TARGET, number=9), do=Kill(side=Role.SOURCE)),))


@pytest.fixture(autouse=True)
def fast() -> Iterator[None]:
    with remembering():
        yield


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of all runs until now, in its one item."""
    taken = [0]
    run = Scheduler.run

    def counting(self: Scheduler, steps_max: int) -> bool:
        before = self.steps
        try:
            return run(self, steps_max)
        finally:
            taken[0] += self.steps - before

    monkeypatch.setattr(Scheduler, "run", counting)
    return taken


def mixed(experiment: Experiment, number: int) -> list[Plan]:
    plans = list(single_plans(experiment))
    Random(5).shuffle(plans)
    return plans[:number]


@pytest.mark.parametrize(
    ("experiment", "plans", "counts"),
    [
        (EXPERIMENT, mixed(EXPERIMENT, 100), False),
        (FENCED, mixed(FENCED, 40), False),
        (STREAMED, mixed(STREAMED, 60), False),
        (EXPERIMENT, [random_plan(seed) for seed in range(80)], True),
        (STREAMED, [random_plan(seed, 2) for seed in range(0, 80 * ORDERS, ORDERS)], True),
    ],
    ids=["single faults", "with a fence", "over two connections", "random", "random over two connections"],
)
def test_what_is_known_is_what_a_run_comes_to(
    experiment: Experiment, plans: list[Plan], counts: bool, steps: list[int]
) -> None:
    foresight = Foresight(experiment=experiment, counts=counts)
    tried = [foresight.run(plan) for plan in plans]
    shortened, steps[0] = steps[0], 0
    for it, plan in zip(tried, plans, strict=True):
        assert it.came == experiment.run(plan).came, plan
    assert shortened < 0.85 * steps[0]


def test_a_plan_of_which_nothing_will_strike_is_not_run_at_all() -> None:
    foresight = Foresight(experiment=EXPERIMENT, counts=True)
    tried = foresight.run(NEVER)
    assert (tried.fired, tried.owner, foresight.runs) == (0, "target", 0)
    assert tried.came == EXPERIMENT.run(NEVER).came


@pytest.mark.parametrize("experiment", [EXPERIMENT, attrs.evolve(STREAMED, seed=1)], ids=["one", "two connections"])
def test_pairs_that_are_alike_come_to_the_same(experiment: Experiment) -> None:
    firsts = [fault for fault in first_faults(experiment) if isinstance(fault.do, Reset)][8:16]
    found = alike(experiment, firsts)
    for first in firsts[::4]:
        mine = [pair.plan for pairs in found for pair in pairs if pair.plan.faults[0] == first]
        assert len(set(mine)) == len(mine)
        assert set(mine) == set(pairs_after(experiment, first))
    count = sum(map(len, found))
    assert len(found) < 0.6 * count
    foresight = Foresight(experiment=experiment)
    for pairs in Random(4).sample([pairs for pairs in found if len(pairs) > 1], 25):
        few = [pairs[0], pairs[-1]]
        for tried in try_alike(foresight, few):
            assert tried.came == experiment.run(tried.plan).came, tried.plan


# If something were wrong with it


def test_if_states_were_taken_for_the_same_that_are_not_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures, "fingerprint", lambda world, *more: b"the same" if world.is_calm else b"all alike")
    monkeypatch.setattr(futures, "CHECKED_OF", 1)
    foresight = Foresight(experiment=EXPERIMENT)
    found = [foresight.run(plan) for plan in mixed(EXPERIMENT, 20)]
    assert {violation.check for tried in found for violation in tried.violations} == {SAME_FUTURE}
    assert foresight.checks == 20


def test_a_fixed_share_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(futures, "CHECKED_OF", 7)
    foresight = Foresight(experiment=EXPERIMENT)
    for number in range(3):
        foresight.begin(number)
        for plan in mixed(EXPERIMENT, 9):
            foresight.run(plan)
    assert (foresight.runs, foresight.checks) == (27, 3)


@pytest.mark.parametrize("name", ["a generation is used again", "the source stays paused after a failure"])
def test_a_mistake_is_found_by_the_same_plans(name: str) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == name)
    plans = mixed(EXPERIMENT, 25)
    with applied(mistake):
        foresight = Foresight(experiment=EXPERIMENT)
        found = [foresight.run(plan).violations for plan in plans]
        assert found == [EXPERIMENT.run(plan).violations for plan in plans]
        assert any(found)
