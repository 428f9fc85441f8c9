"""Virtual time is right: pre-copy of machines with modelled RAM against the closed form of the published runs.

V0 = RAM        Ti = Vi / B        Vi+1 = min(W, d * Ti)
"""

from itertools import product
from typing import Any, Final

import attrs
import pytest

from migrate.engine.policy import CAUTION, OnStall, PrecopyPolicy
from migrate.errors import NotConverging
from migrate.faults.injection import Injector
from migrate.faults.plan import Fault, InPhase, InRound, Kill, Plan, Reset, Throttle
from migrate.protocol.messages import Role
from migrate.simulation.audits import FULL_SPEED
from migrate.simulation.disk import SYNC_NS
from migrate.simulation.modelled import Workload
from migrate.simulation.node import SimulatedGuest
from sim_vmm.memory import PAGE_SIZE
from tests.modelled_worlds import ModelledWorld, migrated

LIMIT_MS: Final = 300.0
POLICY: Final = PrecopyPolicy(downtime_limit_ms=LIMIT_MS, rounds_max=200)
FLOOR_S: Final = 3 * SYNC_NS / 1e9
"""The link of these worlds has no latency, and the state of a light machine is a few hundred bytes."""

MEMORY_GIB: Final = (1, 4, 64, 256, 1024)
BANDWIDTHS: Final = (1.25e9, 12.5e9)  # 10 and 100 Gbit/s
RATES: Final = (0.05, 0.3, 0.6, 0.9, 1.5)  # of the bandwidth
WORKING_SETS: Final = (1 / 64, 0.45)  # of RAM
GRID: Final = list(product(MEMORY_GIB, BANDWIDTHS, RATES, WORKING_SETS))


@attrs.frozen
class Expected:
    """Volumes in bytes of all rounds; the last of them with the guest paused, if it `converges`."""

    volumes: list[float]
    converges: bool


def closed_form(ram: float, bandwidth: float, rate: float, working_set: float) -> Expected:
    """Rounds until what is left fits the limit and another would not halve it; written without the policy's code."""
    volumes, left_after, rates = [ram], [], []
    while len(volumes) < 200:
        took = volumes[-1] / bandwidth
        away = took + (SYNC_NS / 1e9 if len(volumes) == 1 else 0)  # after the first round a number is noted
        left = min(working_set, rate * away)
        left_after.append(left)
        rates.append(min(working_set, rate * took) / took)
        wait_s = left / bandwidth
        fits = FLOOR_S + wait_s <= LIMIT_MS / 1e3 / CAUTION
        next_s = min(max(left_after[-3:]), max(rates[-3:]) * wait_s) / bandwidth
        matters = wait_s >= max(0.1 * (FLOOR_S + wait_s), 0.5e-3)
        if fits and not (matters and next_s <= 0.5 * wait_s):
            return Expected([*volumes, left], converges=True)
        if len(left_after) > 3 and min(left_after[-3:]) > 0.95 * min(left_after[:-3]):
            return Expected(volumes, converges=False)
        volumes.append(left)
    raise AssertionError("neither")


@pytest.mark.parametrize(
    ("gib", "bandwidth", "rate_share", "set_share"),
    GRID,
    ids=[f"{gib}GiB-{bandwidth / 1.25e8:g}Gbps-{rate:g}B-{share:g}W" for gib, bandwidth, rate, share in GRID],
)
def test_rounds_take_what_the_closed_form_says(gib: int, bandwidth: float, rate_share: float, set_share: float) -> None:
    ram, rate = gib * 2.0**30, rate_share * bandwidth
    expected = closed_form(ram, bandwidth, rate, ram * set_share)
    workload = Workload(dirty_pages_per_s=rate / PAGE_SIZE, working_set_pages=int(ram * set_share / PAGE_SIZE))
    outcome = migrated(gib * 1024, workload, bandwidth=bandwidth, policy=POLICY)
    assert expected.converges == (rate < bandwidth or FLOOR_S + ram * set_share / bandwidth <= LIMIT_MS / 1e3 / CAUTION)
    assert len(outcome.rounds) == len(expected.volumes)
    for round_, volume in zip(outcome.rounds, expected.volumes, strict=True):
        for found in (round_.pages * PAGE_SIZE, round_.bytes, round_.duration_ns / 1e9 * bandwidth):
            assert found == pytest.approx(volume, rel=0.01, abs=PAGE_SIZE)
    if not expected.converges:
        assert isinstance(outcome.error, NotConverging)
        return
    *before, last = (volume / bandwidth * 1e3 for volume in expected.volumes)
    downtime_ms = last + FLOOR_S * 1e3
    assert outcome.error is None
    assert outcome.precopy["downtime_ms"] == pytest.approx(downtime_ms, rel=0.01)
    assert outcome.precopy["predicted_downtime_ms"] == pytest.approx(downtime_ms, rel=0.01)
    total_ms = sum(before) + SYNC_NS / 1e6 + downtime_ms
    assert outcome.precopy["total_ms"] == pytest.approx(total_ms, rel=0.01)
    assert outcome.precopy["predicted_total_ms"] == pytest.approx(total_ms, rel=0.01)
    assert outcome.precopy["downtime_ms"] <= LIMIT_MS


def test_the_grid_has_a_hundred_points_up_to_a_tebibyte() -> None:
    assert len(GRID) == 100
    assert max(GRID)[:2] == (1024, 12.5e9)


def test_a_tebibyte_takes_a_few_messages_a_round() -> None:
    workload = Workload(dirty_pages_per_s=1.5e6, working_set_pages=1 << 27)
    with ModelledWorld.of(1 << 20, workload, bandwidth=12.5e9, policy=POLICY) as world:
        result = world.run()
        assert result.owner == "target"
        assert result.steps < 500


def test_zero_pages_are_counted_and_take_no_time() -> None:
    outcome = migrated(4096, Workload(zero_share=0.75), bandwidth=1e9, policy=POLICY)
    first = outcome.rounds[0]
    assert first.pages == pytest.approx(1 << 20, rel=1e-3)
    assert first.zero_pages == pytest.approx(786_432, rel=1e-3)
    assert first.duration_ns == pytest.approx((1 << 30) / 1e9 * 1e9, rel=0.01)


def test_a_bandwidth_cap_is_kept_in_virtual_time() -> None:
    with ModelledWorld.of(1024, Workload(), bandwidth=1e10, policy=POLICY) as world:
        world.bandwidth = 1e9
        world.run()
    (attempt, _), *_ = world.attempts[Role.SOURCE]
    assert attempt.rounds[0].duration_ns == pytest.approx((1 << 30) / 1e9 * 1e9, rel=0.01)


# What goes wrong with a machine that is slowed down

FIGHTS: Final = Workload(dirty_pages_per_s=3e5, working_set_pages=500_000)  # 1.23 GB/s on a link of 1 GB/s
SLOWING: Final = attrs.evolve(POLICY, on_stall=OnStall.THROTTLE)


def slowed(**options: Any) -> ModelledWorld:
    return ModelledWorld.of(4096, FIGHTS, **{"bandwidth": 1e9, "policy": SLOWING, **options})


def test_a_guest_that_does_not_converge_is_slowed_until_it_does_and_runs_on_at_full_speed() -> None:
    with slowed() as world:
        result = world.run()
        assert (result.owner, result.violations) == ("target", ())
        assert world.target.life is not None
        assert world.target.life.guest is not None
        assert world.target.life.guest.throttled == 0
    ((attempt, error),) = world.attempts[Role.SOURCE]
    assert error is None
    shares = [round_.throttle for round_ in attempt.rounds]
    assert shares[:4] == [0, 0, 0, 0]
    assert max(shares) == 0.4
    precopy = attempt.as_json()["precopy"]
    assert precopy["throttle_max"] == 0.4
    assert precopy["downtime_ms"] <= LIMIT_MS
    assert not precopy["forced"]
    assert 0 < precopy["guest_slowdown"] < 0.5


FAULTS: Final = [
    *(Fault(when=InRound(round=number), do=Reset()) for number in (1, 6, 8)),
    *(Fault(when=InRound(round=number), do=Kill(side=Role.SOURCE)) for number in (6, 8)),
    *(Fault(when=InRound(round=number), do=Kill(side=Role.TARGET)) for number in (6, 8)),
    *(
        Fault(when=InPhase(phase=phase, side=Role.SOURCE, number=number), do=do)
        for phase, number in (("pre-flight", 2), ("pause", 1), ("last ram", 1), ("devices", 1), ("handoff", 1))
        for do in (Reset(), Kill(side=Role.SOURCE), Kill(side=Role.TARGET))
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault.do).__name__} {fault.when}")
@pytest.mark.parametrize("retries", [0, 2])
def test_a_throttle_is_lifted_whatever_happens(fault: Fault, retries: int) -> None:
    injector = Injector(Plan(faults=(fault,)))
    with slowed(hooks=injector, retries=retries) as world:
        result = world.run()
    assert result.violations == ()
    assert len(injector.fired) == 1


def test_a_link_that_gets_slow_makes_the_throttle_deeper() -> None:
    slow = Fault(when=InRound(round=2), do=Throttle(bytes_per_s=3e8))
    with slowed(hooks=Injector(Plan(faults=(slow,)))) as world:
        assert world.run().violations == ()
    ((attempt, _),) = world.attempts[Role.SOURCE]
    assert max(round_.throttle for round_ in attempt.rounds) > 0.5


def test_a_throttle_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_deeper(self: SimulatedGuest, share: float) -> None:
        if share:
            throttle(self, share)

    throttle = SimulatedGuest.throttle
    monkeypatch.setattr(SimulatedGuest, "throttle", only_deeper)
    injector = Injector(Plan(faults=(Fault(when=InRound(round=8), do=Reset()),)))
    with slowed(hooks=injector) as world:
        assert [violation.check for violation in world.run().violations] == [FULL_SPEED]


# The same checks as for real RAM


def test_after_a_failure_every_page_is_sent_again() -> None:
    fault = Fault(when=InRound(round=3), do=Reset())
    workload = Workload(dirty_pages_per_s=1e5, working_set_pages=200_000, zero_share=0.25)
    with ModelledWorld.of(
        4096, workload, bandwidth=1e9, policy=POLICY, hooks=Injector(Plan(faults=(fault,))), retries=1
    ) as world:
        assert world.run().violations == ()
    (failed, error), (again, none) = world.attempts[Role.SOURCE]
    assert error is not None
    assert none is None
    for attempt in (failed, again):
        first = attempt.rounds[0]
        assert first.pages == pytest.approx(1 << 20, abs=300)
        assert first.zero_pages == pytest.approx(1 << 18, abs=100)
