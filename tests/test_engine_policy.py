"""When the guest is paused: rounds written out, what is decided after them, and what holds of every decision."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.policy import (
    ABOVE_FLOOR,
    CAUTION,
    ROUNDS_MAX,
    STALLED_AFTER_ROUNDS,
    THROTTLE_MAX,
    Course,
    Decision,
    OnStall,
    Outlook,
    PrecopyPolicy,
    SwitchoverCost,
    first_export_ns,
    not_converging,
)
from migrate.engine.rounds import Round

ANOTHER, PAUSE, GIVE_UP = Decision.ANOTHER_ROUND, Decision.PAUSE, Decision.GIVE_UP
FREE = SwitchoverCost()

#: 4096 bytes in 4096 ns: a page takes 4.096 µs, so 24,414 pages take 100 ms.
NS_PER_BYTE = 1
LIMIT_100_MS = PrecopyPolicy(downtime_limit_ms=100 * CAUTION)


def sent(
    pages: int, dirtied: int, *, zero: int = 0, ns_per_byte: int = NS_PER_BYTE, throttle: float = 0.0, way_ns: int = 0
) -> Round:
    """A round of `pages`, `zero` of them zero, in which the guest dirtied others."""
    size = (pages - zero) * 4096
    return Round(
        number=0,
        pages=pages,
        zero_pages=zero,
        bytes=size,
        duration_ns=size * ns_per_byte + 1,
        receipt_ns=way_ns,
        dirtied_pages=dirtied,
        throttle=throttle,
    )


def leaving(*dirtied: int, throttle: float = 0.0) -> list[Round]:
    return [sent(100_000, pages, throttle=throttle) for pages in dirtied]


# Stop or go on


DECISIONS: list[tuple[str, list[Round], int, Decision]] = [
    ("nothing is dirty", [sent(1000, 0)], 0, PAUSE),
    ("nothing was ever dirty", [sent(0, 0)], 0, PAUSE),
    ("what is left fits", [sent(30_000, 24_414)], 24_414, PAUSE),
    ("what is left does not quite fit", [sent(30_000, 24_415)], 24_415, ANOTHER),
    ("the link is slow", [sent(3000, 2442, ns_per_byte=10)], 2442, ANOTHER),
    ("rounds get smaller", leaving(90_000, 80_000, 70_000, 60_000, 50_000), 50_000, ANOTHER),
    ("rounds stay alike, too few to tell", leaving(90_000, 90_000, 90_000), 90_000, ANOTHER),
    ("rounds stay alike", leaving(90_000, 90_000, 90_000, 90_000), 90_000, GIVE_UP),
    ("rounds grow", leaving(60_000, 70_000, 80_000, 90_000), 90_000, GIVE_UP),
    ("one of the last rounds was better", leaving(90_000, 95_000, 85_000, 95_000), 95_000, ANOTHER),
    ("it was not better by much", leaving(90_000, 95_000, 86_000, 95_000), 95_000, GIVE_UP),
    ("they were better, but no more", leaving(95_000, 40_000, 95_000, 95_000, 95_000), 95_000, GIVE_UP),
    ("rounds stay alike, and the rest fits after all", leaving(90_000, 90_000, 90_000, 90_000), 10, PAUSE),
    ("the last round that is allowed", leaving(*(int(5e6 * 0.9**n) for n in range(30))), 235_000, GIVE_UP),
    ("the last but one", leaving(*(int(5e6 * 0.9**n) for n in range(29))), 261_000, ANOTHER),
    ("only zeros were sent, so the link is unknown", [sent(5000, 100, zero=5000)], 100, ANOTHER),
    ("only zeros were sent, and nothing is dirty", [sent(5000, 0, zero=5000)], 0, PAUSE),
]


@pytest.mark.parametrize(
    ("rounds", "dirty", "decision"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS]
)
def test_the_guest_is_paused_when_the_rest_fits_and_left_alone_when_it_never_will(
    rounds: list[Round], dirty: int, decision: Decision
) -> None:
    assert LIMIT_100_MS.decide(rounds, dirty, 0, FREE).decision is decision


def test_the_numbers_in_the_table_above_are_the_policys() -> None:
    assert (STALLED_AFTER_ROUNDS, ROUNDS_MAX, CAUTION, ABOVE_FLOOR) == (3, 30, 1.2, 1.1)


def test_unless_told_otherwise_the_guest_may_be_away_for_300_ms_and_stays_if_that_cannot_be() -> None:
    policy = PrecopyPolicy()
    assert (policy.downtime_limit_ms, policy.on_stall, policy.time_max_s) == (300.0, OnStall.REFUSE, math.inf)


POLISHED: list[tuple[str, list[Round], int, SwitchoverCost, Decision]] = [
    ("an idle guest left much behind in a long first round", [sent(10**6, 20_000)], 20_000, FREE, ANOTHER),
    ("and then next to nothing", [sent(10**6, 20_000), sent(20_000, 100)], 100, FREE, PAUSE),
    ("the next round would leave as much", [sent(20_000, 20_000)], 20_000, FREE, PAUSE),
    ("the next round would leave half", [sent(40_000, 20_000)], 20_000, FREE, ANOTHER),
    ("a little more than half", [sent(39_000, 20_000)], 20_000, FREE, PAUSE),
    ("RAM is a tenth of the wait", [sent(10**6, 1250)], 1250, SwitchoverCost(export_ns=23_000_000), ANOTHER),
    ("it is less", [sent(10**6, 1250)], 1250, SwitchoverCost(export_ns=24_000_000), PAUSE),
    ("half a millisecond is not worth it", [sent(10**6, 120)], 120, FREE, PAUSE),
]


@pytest.mark.parametrize(
    ("rounds", "dirty", "cost", "decision"), [row[1:] for row in POLISHED], ids=[row[0] for row in POLISHED]
)
def test_a_guest_is_not_paused_for_nothing(
    rounds: list[Round], dirty: int, cost: SwitchoverCost, decision: Decision
) -> None:
    """As long as another round, while it runs, would at least halve what it would wait for RAM."""
    assert LIMIT_100_MS.decide(rounds, dirty, 0, cost).decision is decision


@pytest.mark.parametrize(("dirty", "decision"), [(0, PAUSE), (240, PAUSE), (250, GIVE_UP)])
def test_a_limit_that_handing_over_alone_exceeds_is_read_as_that_and_a_tenth(dirty: int, decision: Decision) -> None:
    policy = PrecopyPolicy(downtime_limit_ms=1.0)
    cost = SwitchoverCost(export_ns=2_000_000, journal_ns=2_000_000)  # 10 ms in all; 244 pages take one
    rounds = [sent(300, dirty)] * 4
    assert policy.decide(rounds, dirty, 0, cost).decision is decision
    assert policy.decide(rounds[:3], dirty, 0, cost).decision is ANOTHER  # the host may get quieter


CAPS: list[tuple[str, PrecopyPolicy, float, Decision]] = [
    ("time is left for another round", PrecopyPolicy(downtime_limit_ms=1, time_max_s=2.0), 1.5, ANOTHER),
    ("another round would not end in time", PrecopyPolicy(downtime_limit_ms=1, time_max_s=2.0), 1.6, GIVE_UP),
    ("time is up", PrecopyPolicy(downtime_limit_ms=1, time_max_s=2.0), 3.0, GIVE_UP),
    ("two rounds are allowed", PrecopyPolicy(downtime_limit_ms=1, rounds_max=2), 0.0, GIVE_UP),
    ("three are", PrecopyPolicy(downtime_limit_ms=1, rounds_max=3), 0.0, ANOTHER),
    ("the rest fits, though time is up", PrecopyPolicy(time_max_s=2.0, downtime_limit_ms=1000), 3.0, PAUSE),
]


@pytest.mark.parametrize(("policy", "elapsed_s", "decision"), [row[1:] for row in CAPS], ids=[row[0] for row in CAPS])
def test_caps_on_rounds_and_time_end_it(policy: PrecopyPolicy, elapsed_s: float, decision: Decision) -> None:
    rounds = leaving(110_000, 100_000)  # another takes 0.41 s
    course = policy.decide(rounds, 100_000, int(elapsed_s * 1e9), FREE)
    assert course.decision is decision
    forced = attrs.evolve(policy, on_stall=OnStall.FORCE).decide(rounds, 100_000, int(elapsed_s * 1e9), FREE)
    assert (forced.decision, forced.forced) == ((PAUSE, True) if decision is GIVE_UP else (decision, False))


def test_a_guest_that_may_take_its_time_has_rounds_without_end_but_not_more_than_it_is_given() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=1, on_stall=OnStall.POSTPONE)
    assert policy.decide(leaving(*[90_000] * 500), 90_000, 0, FREE).decision is ANOTHER
    assert attrs.evolve(policy, rounds_max=500).decide(leaving(*[9] * 500), 90_000, 0, FREE).decision is GIVE_UP
    assert attrs.evolve(policy, time_max_s=10).decide(leaving(*[9] * 5), 90_000, 10**10, FREE).decision is GIVE_UP


# No progress


def test_a_switchover_is_forced_where_the_least_is_left() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=1, on_stall=OnStall.FORCE)
    assert policy.decide(leaving(90_000, 95_000, 90_000, 99_000), 99_000, 0, FREE).decision is ANOTHER
    course = policy.decide(leaving(90_000, 95_000, 90_000, 99_000, 91_000), 91_000, 0, FREE)
    assert (course.decision, course.forced) == (PAUSE, True)


def test_nobody_waits_for_ever_for_a_better_moment() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=1, on_stall=OnStall.FORCE)
    growing = [int(90_000 * 1.1**n) for n in range(10)]
    decisions = [policy.decide(leaving(*growing[:n]), growing[n - 1], 0, FREE).decision for n in range(1, 8)]
    assert decisions == [ANOTHER] * 6 + [PAUSE]


def test_a_throttle_gets_deeper_by_steps_while_it_does_not_help_and_then_the_guest_is_left_alone() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=1, on_stall=OnStall.THROTTLE)
    rounds: list[Round] = []
    shares: list[float] = []
    course = Course(decision=ANOTHER, why="it begins")
    while course.decision is ANOTHER:
        rounds.append(sent(100_000, 90_000, throttle=course.throttle))
        course = policy.decide(rounds, 90_000, 0, FREE)
        shares.append(course.throttle)
    assert shares == [0, 0, 0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.99, 0.99, 0.99, 0.0]
    assert course.decision is GIVE_UP
    assert course.why == "no progress in 3 rounds, with the guest slowed by 99%"


def test_a_throttle_that_helps_is_left_as_it_is() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=1, on_stall=OnStall.THROTTLE)
    rounds = [*leaving(*[90_000] * 4), *leaving(80_000, throttle=0.2), *leaving(50_000, throttle=0.3)]
    assert policy.decide(rounds, 50_000, 0, FREE).throttle == 0.3


def test_who_is_refused_reads_how_fast_the_guest_writes_and_how_fast_the_link_carries() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=100)
    rounds = [sent(1_000_000, 900_000), *[sent(900_000, 900_000)] * 3]
    course = policy.decide(rounds, 900_000, 0, FREE)
    text = not_converging(policy, course, Outlook.after(rounds, 900_000, FREE), len(rounds))
    assert text == (
        "after 4 rounds the guest would be away for 3686 ms, and the limit is 100 ms (no progress in 3 rounds): it "
        "dirties 1000.0 MB/s of memory (244141 pages/s), and the link carries 1000.0 MB/s; raise the limit or the "
        "bandwidth, or let it be slowed, postponed or forced"
    )


# The outlook


ESTIMATES: list[tuple[str, list[Round], int, float]] = [
    ("nothing is dirty", [sent(1000, 0)], 0, 0.0),
    ("as the only round went", [sent(1000, 0)], 1000, 4.096),
    ("the last round counts twice as much", [sent(1000, 0), sent(1000, 0, ns_per_byte=4)], 1000, 3 * 4.096),
    ("and again", [sent(1000, 0), sent(1000, 0), sent(1000, 0, ns_per_byte=8)], 1000, 5 * 4.096),
    ("a small round counts less", [sent(1000, 0), sent(64, 0, ns_per_byte=4)], 1000, 2 * 4.096),
    ("zeros say nothing", [sent(1000, 0, zero=1000), sent(1000, 0)], 1000, 4.096),
    ("nothing but zeros", [sent(1000, 0, zero=1000)], 1, math.inf),
    ("what the way takes is not the bandwidth", [sent(1000, 0, way_ns=10**7)] * 2, 1000, 4.096 + 15),
    (
        "a receipt that came late is",
        [sent(1000, 0, way_ns=10**7), sent(1000, 0, way_ns=10**7 + 4096 * 1000)],
        1000,
        5 / 3 * 4.096 + 15,
    ),
]


@pytest.mark.parametrize(
    ("rounds", "dirty", "milliseconds"), [row[1:] for row in ESTIMATES], ids=[row[0] for row in ESTIMATES]
)
def test_the_downtime_is_estimated_from_what_rounds_have_shown(
    rounds: list[Round], dirty: int, milliseconds: float
) -> None:
    assert Outlook.after(rounds, dirty, FREE).downtime_ms == pytest.approx(milliseconds, rel=1e-3)


def test_the_floor_is_two_exports_three_records_the_state_and_the_way() -> None:
    cost = SwitchoverCost(state_bytes=1_000_000, export_ns=2_000_000, journal_ns=3_000_000)
    outlook = Outlook.after([sent(1000, 0, way_ns=200_000)], 0, cost)
    assert outlook.floor_ms == pytest.approx(1 + 2 * 2 + 3 * 3 + 1.5 * 0.2)


def test_with_a_fence_the_floor_has_two_turns_at_the_register() -> None:
    cost = SwitchoverCost(export_ns=2_000_000, register_ns=700_000)
    assert Outlook.after([sent(1000, 0)], 0, cost).floor_ms == pytest.approx(2 * 2 + 2 * 0.7)


@pytest.mark.parametrize(
    ("receipt_ms", "network_ms", "way_ms"),
    [(9.0, None, 9.0), (9.0, 0.5, 1.5), (0.8, 0.5, 0.8), (60.0, 40.0, 41.0)],
    ids=["nobody says", "the receipt of a long round", "a short one", "a long way"],
)
def test_the_way_is_the_shortest_receipt_or_what_the_network_says_and_a_ms_for_answering(
    receipt_ms: float, network_ms: float | None, way_ms: float
) -> None:
    cost = SwitchoverCost(way_ns=None if network_ms is None else round(network_ms * 1e6))
    outlook = Outlook.after([sent(1000, 0, way_ns=round(receipt_ms * 1e6))], 0, cost)
    assert outlook.floor_ms == pytest.approx(1.5 * way_ms)


@pytest.mark.parametrize(
    ("exports_ns", "expected_ns"),
    [([8], 8), ([8, 2], 8), ([8, 2, 3], 8), ([2, 3], 3), ([90, 2, 3], 8)],
    ids=["the first", "and once more", "and again", "the first was lucky", "something else held it up"],
)
def test_a_state_is_expected_to_take_as_long_as_the_first_time(exports_ns: list[int], expected_ns: int) -> None:
    """It is read for the first time at the target; what was exported before takes a quarter (the table's last row)."""
    assert first_export_ns(exports_ns) == expected_ns


def test_the_dirty_rate_is_the_highest_of_the_last_three_rounds_as_if_the_guest_were_not_throttled() -> None:
    fast, slow, throttled = sent(1000, 900), sent(1000, 300), sent(1000, 100, throttle=0.9)
    for rounds, per_round in (([fast, slow], 900), ([fast, slow, slow, slow], 300), ([slow, throttled], 1000)):
        rate = Outlook.after(rounds, 0, FREE).dirty_pages_per_s
        assert rate == pytest.approx(per_round / 4.096e-3, rel=1e-3)
    assert Outlook.after([slow, throttled], 0, FREE, 0.5).dirty_pages_per_s == pytest.approx(500 / 4.096e-3, rel=1e-3)


def test_what_is_to_come_follows_the_closed_form() -> None:
    policy = PrecopyPolicy(downtime_limit_ms=100 * CAUTION)
    rounds = [sent(1_000_000, 500_000), sent(500_000, 250_000)]
    outlook = Outlook.after(rounds, 250_000, FREE)
    expected = sum(pages * 4.096e-3 for pages in (250_000, 125_000, 62_500, 31_250, 15_625))
    assert policy.remaining_ms(outlook, rounds) == pytest.approx(expected, rel=1e-3)
    stuck = [sent(500_000, 500_000)] * 2
    assert policy.remaining_ms(Outlook.after(stuck, 500_000, FREE), stuck) == math.inf


def test_estimates_go_out_as_json_without_infinities() -> None:
    assert Outlook.after([sent(1000, 0, zero=1000)], 7, FREE).as_json() == {
        "dirty_pages": 7,
        "dirty_pages_per_s": 0,
        "bytes_per_s": 0,
        "floor_ms": 0.0,
        "downtime_ms": None,
    }


# What holds of every decision


@st.composite
def _rounds(draw: st.DrawFn) -> Round:
    pages = draw(st.integers(0, 10**6))
    return Round(
        number=0,
        pages=pages,
        zero_pages=(zero := draw(st.integers(0, pages))),
        bytes=(pages - zero) * 4096,
        duration_ns=draw(st.integers(0, 10**11)),
        receipt_ns=draw(st.integers(0, 10**8)),
        dirtied_pages=draw(st.integers(0, 10**6)),
        throttle=draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, THROTTLE_MAX])),
    )


ROUNDS = st.lists(_rounds(), min_size=1, max_size=12)
COSTS = st.builds(
    SwitchoverCost,
    state_bytes=st.integers(0, 10**7),
    export_ns=st.integers(0, 10**8),
    journal_ns=st.integers(0, 10**8),
)
SITUATIONS: dict[str, Any] = {
    "rounds": ROUNDS,
    "dirty": st.integers(0, 10**6),
    "elapsed_ns": st.integers(0, 10**12),
    "cost": COSTS,
}
POLICIES = st.builds(
    PrecopyPolicy,
    downtime_limit_ms=st.floats(0.01, 1e5),
    on_stall=st.sampled_from(list(OnStall)),
    rounds_min=st.integers(1, 3),
    rounds_max=st.none() | st.integers(1, 20),
    time_max_s=st.floats(0.1, 1e4) | st.just(math.inf),
)


@given(policy=POLICIES, **SITUATIONS)
def test_no_guest_is_paused_above_its_limit_unless_that_is_forced(
    policy: PrecopyPolicy, rounds: Sequence[Round], dirty: int, elapsed_ns: int, cost: SwitchoverCost
) -> None:
    course = policy.decide(rounds, dirty, elapsed_ns, cost)
    outlook = Outlook.after(rounds, dirty, cost)
    if course.decision is PAUSE:
        promise = max(policy.downtime_limit_ms, outlook.floor_ms * ABOVE_FLOOR)
        assert outlook.downtime_ms <= promise or (course.forced and policy.on_stall is OnStall.FORCE)
    assert not course.forced or course.decision is PAUSE
    assert (course.decision is GIVE_UP) <= (policy.on_stall is not OnStall.FORCE)
    assert (course.throttle > 0) <= (policy.on_stall is OnStall.THROTTLE or rounds[-1].throttle > 0)
    assert 0 <= course.throttle <= THROTTLE_MAX


@given(policy=POLICIES, higher=st.floats(1.0, 100.0), **SITUATIONS)
def test_a_higher_limit_never_delays_the_pause(
    policy: PrecopyPolicy, higher: float, rounds: Sequence[Round], dirty: int, elapsed_ns: int, cost: SwitchoverCost
) -> None:
    before = policy.decide(rounds, dirty, elapsed_ns, cost)
    laxer = attrs.evolve(policy, downtime_limit_ms=policy.downtime_limit_ms * higher)
    after = laxer.decide(rounds, dirty, elapsed_ns, cost)
    if before.decision is PAUSE and not before.forced:
        assert after.decision is PAUSE
    assert (after.decision is GIVE_UP) <= (before.decision is GIVE_UP)


@given(policy=POLICIES, fewer=st.integers(0, 10**6), **SITUATIONS)
def test_fewer_dirty_pages_never_make_a_pause_wrong(
    policy: PrecopyPolicy, fewer: int, rounds: Sequence[Round], dirty: int, elapsed_ns: int, cost: SwitchoverCost
) -> None:
    less = max(dirty - fewer, 0)
    if policy.fits(Outlook.after(rounds, dirty, cost)):
        assert policy.fits(Outlook.after(rounds, less, cost))
        assert policy.decide(rounds, less, elapsed_ns, cost).decision is not GIVE_UP


@given(rate=st.floats(0.01, 0.9), limit_ms=st.floats(1.0, 1000.0))
def test_a_guest_slower_than_the_link_is_always_paused_in_the_end(rate: float, limit_ms: float) -> None:
    policy = PrecopyPolicy(downtime_limit_ms=limit_ms, rounds_max=200)
    rounds, dirty = [sent(10**6, int(10**6 * rate))], int(10**6 * rate)
    while policy.decide(rounds, dirty, 0, FREE).decision is ANOTHER:
        rounds.append(sent(dirty, int(dirty * rate)))
        dirty = int(dirty * rate)
    assert policy.decide(rounds, dirty, 0, FREE).decision is PAUSE
    assert all(later.pages <= earlier.pages for earlier, later in pairwise(rounds))
