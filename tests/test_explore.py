"""Exploring: what is tried, that the real engines stand it, and that every known mistake is found."""

import gc
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import pytest

from migrate.engine import source
from migrate.faults import campaign as campaigns
from migrate.faults.campaign import (
    Campaign,
    CampaignError,
    Kind,
    Order,
    carry_on,
    leave_worker,
    prepare_worker,
)
from migrate.faults.explore import (
    Experiment,
    first_faults,
    pairs_after,
    random_plan,
    shrink,
    single_plans,
)
from migrate.faults.futures import Foresight
from migrate.faults.pairs import alike, try_alike
from migrate.faults.plan import AtMessage, AtWrite, Fault, Freeze, Kill, Plan, Reset
from migrate.protocol.messages import Role
from migrate.simulation import remembering
from migrate.simulation.machines import RealMachines
from tests.mistakes import MISTAKES
from tests.worlds import SPEC

EXPERIMENT = Experiment(spec=SPEC)
UNDISTURBED = Plan(faults=())


@pytest.fixture
def fast() -> Iterator[None]:
    with remembering.remembering():
        yield


@pytest.fixture(scope="module")
def singles() -> list[Plan]:
    return list(single_plans(EXPERIMENT))


def test_single_faults_are_everywhere(singles: list[Plan]) -> None:
    triggers = {plan.faults[0].when for plan in singles}
    messages = {trigger.message for trigger in triggers if isinstance(trigger, AtMessage)}
    assert {"Hello", "Preamble", "RamPages", "Paused", "DeviceState", "Prepare", "Ready", "Commit", "Owned"} < messages
    assert len([trigger for trigger in triggers if isinstance(trigger, AtWrite)]) == 8
    assert len(singles) > 1900
    assert len(set(singles)) == len(singles)


@pytest.mark.usefixtures("fast")
def test_of_all_single_faults_every_eighth_is_stood(singles: list[Plan]) -> None:
    foresight = Foresight(experiment=EXPERIMENT)
    for plan in singles[::8]:
        tried = foresight.run(plan)
        assert tried.violations == (), plan
        assert tried.fired == 1, plan


@pytest.mark.usefixtures("fast")
def test_an_emulated_machine_comes_to_the_same_end_as_a_light_one(singles: list[Plan]) -> None:
    real = Experiment(spec=SPEC, foundry=RealMachines())
    for plan in singles[::60]:
        if isinstance(plan.faults[0].when, AtMessage) and plan.faults[0].when.number == 1:
            light, emulated = EXPERIMENT.run(plan), real.run(plan)
            assert emulated.violations == ()
            assert emulated.outcome == light.outcome, plan


@pytest.mark.usefixtures("fast")
def test_of_pairs_a_sample_is_stood_and_both_strike() -> None:
    random, foresight = Random(1), Foresight(experiment=EXPERIMENT)
    found = alike(EXPERIMENT, random.sample(first_faults(EXPERIMENT), 12))
    count = 0
    for pairs in random.sample(found, 120):
        for tried in try_alike(foresight, pairs):
            count += 1
            assert tried.violations == (), tried.plan
            assert tried.fired == 2, tried.plan
    assert count > 150


@pytest.mark.usefixtures("fast")
def test_random_plans_are_stood() -> None:
    foresight = Foresight(experiment=EXPERIMENT, counts=True)
    for seed in range(200):
        assert foresight.run(random_plan(seed)).violations == (), seed


@pytest.mark.usefixtures("fast")
def test_over_several_connections_faults_are_stood_as_well() -> None:
    experiment = Experiment(spec=SPEC, streams=2, seed=1)
    foresight = Foresight(experiment=experiment)
    plans = list(single_plans(experiment))
    on_stream = [plan for plan in plans if getattr(plan.faults[0].when, "stream", 0) == 1]
    assert len(plans) > 4000
    assert len(on_stream) > 1000
    for plan in (*on_stream[::25], *plans[::40]):
        tried = foresight.run(plan)
        assert (tried.violations, tried.fired) == ((), 1), plan


@pytest.mark.usefixtures("fast")
def test_random_plans_over_several_connections_are_stood() -> None:
    for streams in (2, 3):
        foresight = Foresight(experiment=Experiment(spec=SPEC, streams=streams), counts=True)
        for seed in range(100):
            assert foresight.run(random_plan(seed, streams)).violations == (), seed


# Making plans smaller

AT_READY = AtMessage(message="Ready", side=Role.TARGET)
AT_COMMIT = AtMessage(message="Commit", side=Role.SOURCE)


def test_a_plan_is_made_smaller_as_long_as_it_violates() -> None:
    noise = Fault(when=AT_READY, do=Freeze(side=Role.TARGET))
    cause = Fault(when=AT_COMMIT, do=Kill(side=Role.SOURCE, restart_s=None))

    def violates(plan: Plan) -> bool:
        return any(fault.when == AT_COMMIT and isinstance(fault.do, Kill) for fault in plan.faults)

    smallest = shrink(Plan(faults=(noise, cause, noise), seed=5), violates)
    assert smallest == Plan(faults=(Fault(when=AT_COMMIT, do=Kill(side=Role.SOURCE)),), seed=5)


def test_what_strikes_is_replaced_by_something_plainer() -> None:
    plan = Plan(faults=(Fault(when=AT_COMMIT, do=Freeze(side=Role.SOURCE)),))
    assert shrink(plan, lambda plan: bool(plan.faults)) == Plan(faults=(Fault(when=AT_COMMIT, do=Reset()),))


# Campaigns


class Here:
    """Carries out in this process what it is given."""

    def submit(self, function: Any, *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


class Interrupted(Exception):
    pass


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(campaigns, "CHUNK_PLANS", 8)
    prepare_worker(EXPERIMENT)
    yield
    leave_worker()


@pytest.mark.usefixtures("prepared")
def test_a_campaign_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    order = Order(kind=Kind.RANDOM, seed=3, random=30)
    whole = Campaign(order=order)
    carry_on(whole, EXPERIMENT, Here(), ahead=1, after_chunk=lambda campaign, total: None)
    assert whole.schedules == 30
    assert whole.runs <= 30
    path = tmp_path / "campaign.json"

    def interrupt(campaign: Campaign, total: int) -> None:
        campaign.save(path)
        if campaign.chunks_done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        carry_on(Campaign(order=order), EXPERIMENT, Here(), ahead=1, after_chunk=interrupt)
    resumed = Campaign.load(path, order)
    assert (resumed.chunks_done, resumed.schedules) == (2, 16)
    carry_on(resumed, EXPERIMENT, Here(), ahead=1, after_chunk=lambda campaign, total: None)
    assert resumed == whole


@pytest.mark.usefixtures("prepared")
def test_a_violation_is_in_the_campaign_with_its_smallest_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = next(mistake for mistake in MISTAKES if mistake.name == "the console is not taken over")
    mistake.apply(monkeypatch)
    order = Order(kind=Kind.RANDOM, seed=1, random=3)
    campaign = Campaign(order=order)
    carry_on(campaign, EXPERIMENT, Here(), ahead=1, after_chunk=lambda campaign, total: None)
    assert {found.check for found in campaign.violations} == {"nothing lost", "ledger whole"}
    assert {found.plan.faults for found in campaign.violations} == {()}
    campaign.save(tmp_path / "campaign.json")
    assert Campaign.load(tmp_path / "campaign.json", order) == campaign


def test_another_campaigns_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "campaign.json"
    Campaign(order=Order(kind=Kind.PAIRS)).save(path)
    with pytest.raises(CampaignError, match="holds another campaign"):
        Campaign.load(path, Order(kind=Kind.SINGLES))
    path.write_text(json.dumps({"order": 1}))
    with pytest.raises(CampaignError, match="is no campaign file"):
        Campaign.load(path, Order(kind=Kind.SINGLES))


@pytest.mark.usefixtures("prepared")
def test_all_pairs_are_tried_and_of_those_that_are_alike_one_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [fault for fault in first_faults(EXPERIMENT) if isinstance(fault.do, Reset)][10:12]
    monkeypatch.setattr(campaigns, "first_faults", lambda experiment: few)
    campaign = Campaign(order=Order(kind=Kind.PAIRS))
    carry_on(campaign, EXPERIMENT, Here(), ahead=1, after_chunk=lambda campaign, total: None)
    assert campaign.schedules == sum(len(list(pairs_after(EXPERIMENT, first))) for first in few)
    assert 0 < campaign.runs < 0.7 * campaign.schedules
    assert campaign.checked > 0
    assert campaign.violations == []


def test_a_worker_that_is_left_remembers_nothing() -> None:
    before = (vars(source)["encode_payload"], gc.get_threshold(), gc.get_freeze_count())
    prepare_worker(EXPERIMENT)
    assert vars(source)["encode_payload"] is not before[0]
    leave_worker()
    assert (vars(source)["encode_payload"], gc.get_threshold(), gc.get_freeze_count()) == before
