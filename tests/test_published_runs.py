"""Runs that others have published, with the inputs that they state, come out in simulation as they did.

A   Cloud Hypervisor, commit 39768704f: a guest that rewrites its working set faster than a round lasts
B   QEMU, commit 7ca1dfad: a guest whose dirty rate is above the bandwidth, without help and slowed down
"""

from itertools import accumulate
from typing import Any, Final

import attrs
import pytest

from migrate.engine.policy import OnStall, Outlook, PrecopyPolicy, SwitchoverCost
from migrate.engine.rounds import Round
from migrate.errors import NotConverging
from migrate.simulation.modelled import Workload
from migrate.simulation.modelled_ram import BandwidthOfRounds
from sim_vmm.machine import MIB
from sim_vmm.memory import PAGE_SIZE
from tests.modelled_worlds import Outcome, migrated

# A


@attrs.frozen
class Published:
    """MiB sent, MiB a second, seconds since the beginning."""

    size: float
    bandwidth: float
    elapsed: float


RUN_A: Final = [
    Published(6144, 1986.83, 3.11),
    Published(5418, 1824.44, 6.14),
    Published(5418, 1854.25, 9.12),
    Published(5428, 1799.43, 12.19),
    Published(5418, 1375.53, 16.19),
    Published(5418, 1727.60, 19.41),
    Published(5429, 1724.03, 22.62),
]
OVERHEAD_NS: Final = 60_000_000  # a round
EVERYWHERE: Final = Workload(dirty_pages_per_s=1e7, working_set_pages=5418 * MIB // PAGE_SIZE)
PATIENT: Final = PrecopyPolicy(stalled_after=len(RUN_A) - 1)


def run_a(policy: PrecopyPolicy) -> Outcome:
    bandwidths = [published.bandwidth * MIB for published in RUN_A]
    return migrated(
        6144,
        EVERYWHERE,
        bandwidth=bandwidths[0],
        hooks=BandwidthOfRounds([*bandwidths, 1799.98 * MIB]),
        latency_ns=OVERHEAD_NS // 2,
        policy=policy,
    )


@pytest.fixture(scope="module")
def a() -> Outcome:
    return run_a(PATIENT)


def test_run_a_has_the_published_rounds(a: Outcome) -> None:
    assert len(a.rounds) == len(RUN_A)
    elapsed = accumulate(round_.elapsed_ns / 1e9 for round_ in a.rounds)
    for round_, elapsed_s, published in zip(a.rounds, elapsed, RUN_A, strict=True):
        assert round_.bytes / MIB == pytest.approx(published.size, rel=0.005)
        assert elapsed_s == pytest.approx(published.elapsed, rel=0.03)


def test_run_a_does_not_converge(a: Outcome) -> None:
    assert isinstance(a.error, NotConverging)
    assert a.result.owner == "source"
    assert "no progress in 6 rounds" in str(a.error)
    assert "the limit is 300 ms" in str(a.error)


def test_run_a_has_the_published_downtime_estimates(a: Outcome) -> None:
    for number in range(1, len(a.rounds) + 1):
        outlook = Outlook.after(a.rounds[:number], a.rounds[number - 1].dirtied_pages, SwitchoverCost())
        assert 2.7 <= round(outlook.downtime_ms / 1e3, 1) <= 3.9
        assert PATIENT.remaining_ms(outlook, a.rounds[:number]) == float("inf")


def test_run_a_ends_as_published_if_it_is_forced() -> None:
    forced = run_a(attrs.evolve(PATIENT, on_stall=OnStall.FORCE))
    assert forced.error is None
    assert forced.precopy["forced"]
    assert len(forced.rounds) == len(RUN_A) + 1
    assert forced.bytes_sent / MIB == pytest.approx(44_339, rel=0.01)
    assert forced.precopy["downtime_ms"] == pytest.approx(3150, rel=0.08)  # 5668 MiB went last, not 5418
    assert forced.precopy["predicted_downtime_ms"] == pytest.approx(forced.precopy["downtime_ms"], rel=0.1)


@pytest.mark.parametrize("rounds", [4, 5, 6, 7])
def test_run_a_is_recognized_sooner_by_who_has_less_patience(rounds: int) -> None:
    assert len(run_a(attrs.evolve(PATIENT, stalled_after=rounds - 1)).rounds) == rounds


# B

GB: Final = 10**9
BANDWIDTH: Final = 383.7 * GB / 1487.5
DIRTY_PAGES_PER_S: Final = 67_551.0
LEFT: Final = 2.75 * GB
MEMORY: Final = 256 * GB
CONTENT: Final = 20 * GB
"""Not published; what was sent until the end with help, 28.2 GB, is above it."""
JAVA: Final = Workload(
    dirty_pages_per_s=DIRTY_PAGES_PER_S,
    working_set_pages=int(LEFT / PAGE_SIZE),
    zero_share=1 - CONTENT / MEMORY,
)
LIMIT_4_S: Final = PrecopyPolicy(downtime_limit_ms=4000, on_stall=OnStall.POSTPONE, time_max_s=1487.5)


def run_b(**options: Any) -> Outcome:
    policy = attrs.evolve(LIMIT_4_S, **options)
    return migrated(MEMORY // MIB, JAVA, bandwidth=BANDWIDTH, policy=policy)


def estimate_ms(rounds: list[Round]) -> float:
    return Outlook.after(rounds, rounds[-1].dirtied_pages, SwitchoverCost()).downtime_ms


def test_run_b_without_help_sends_what_was_published_and_never_meets_its_limit() -> None:
    outcome = run_b()
    assert isinstance(outcome.error, NotConverging)
    assert "1487.5 s are allowed" in str(outcome.error)
    assert f"the link carries {BANDWIDTH / 1e6:.1f} MB/s" in str(outcome.error)
    assert outcome.bytes_sent == pytest.approx(383.7 * GB, rel=0.02)
    estimates = [estimate_ms(outcome.rounds[:number]) for number in range(1, len(outcome.rounds) + 1)]
    assert min(estimates) > 4000
    assert outcome.rounds[-1].dirtied_pages * PAGE_SIZE == pytest.approx(LEFT, rel=0.01)


def test_run_b_is_refused_soon_by_who_is_not_told_to_go_on() -> None:
    outcome = run_b(on_stall=OnStall.REFUSE)
    assert isinstance(outcome.error, NotConverging)
    assert len(outcome.rounds) == 4


def test_run_b_completes_when_its_guest_is_slowed_down() -> None:
    outcome = run_b(on_stall=OnStall.THROTTLE)
    assert outcome.error is None
    assert outcome.result.owner == "target"
    assert outcome.precopy["throttle_max"] > 0
    assert outcome.precopy["downtime_ms"] <= 4000
    assert outcome.precopy["total_ms"] < 241.2e3 < 1487.5e3
    assert outcome.bytes_sent < 0.2 * 383.7 * GB
