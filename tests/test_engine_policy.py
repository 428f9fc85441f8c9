"""When the guest is paused: rounds written out, and what is decided after them."""

import math

import pytest

from migrate.engine.policy import ROUNDS_MAX, STALLED_AFTER_ROUNDS, Decision, OnStall, PrecopyPolicy
from migrate.engine.rounds import Round

ANOTHER, PAUSE, GIVE_UP = Decision.ANOTHER_ROUND, Decision.PAUSE, Decision.GIVE_UP

#: 4096 bytes in 4096 ns: a page takes 4.096 µs, so 24,414 pages take 100 ms.
NS_PER_BYTE = 1
LIMIT_100_MS = PrecopyPolicy(downtime_limit_ms=100)


def sent(pages: int, dirtied: int, *, zero: int = 0, ns_per_byte: int = NS_PER_BYTE) -> Round:
    """A round of `pages`, `zero` of them zero, in which the guest dirtied others."""
    size = (pages - zero) * 4096
    return Round(
        number=0, pages=pages, zero_pages=zero, bytes=size, duration_ns=size * ns_per_byte + 1, dirtied_pages=dirtied
    )


def shrinking(*dirtied: int) -> list[Round]:
    return [sent(100_000, pages) for pages in dirtied]


DECISIONS: list[tuple[str, list[Round], int, Decision]] = [
    ("nothing is dirty", [sent(1000, 0)], 0, PAUSE),
    ("nothing was ever dirty", [sent(0, 0)], 0, PAUSE),
    ("what is left fits", [sent(100_000, 24_414)], 24_414, PAUSE),
    ("what is left does not quite fit", [sent(100_000, 24_415)], 24_415, ANOTHER),
    ("the link is slow", [sent(100_000, 2442, ns_per_byte=10)], 2442, ANOTHER),
    ("rounds get smaller", shrinking(90_000, 80_000, 70_000, 60_000, 50_000), 50_000, ANOTHER),
    ("rounds stay alike, too few to tell", shrinking(90_000, 90_000, 90_000), 90_000, ANOTHER),
    ("rounds stay alike", shrinking(90_000, 90_000, 90_000, 90_000), 90_000, GIVE_UP),
    ("rounds grow", shrinking(60_000, 70_000, 80_000, 90_000), 90_000, GIVE_UP),
    ("one of the last rounds was better", shrinking(90_000, 95_000, 89_999, 95_000), 95_000, ANOTHER),
    ("they were better, but no more", shrinking(95_000, 40_000, 95_000, 95_000, 95_000), 95_000, GIVE_UP),
    ("rounds stay alike, and the rest fits after all", shrinking(90_000, 90_000, 90_000, 90_000), 10, PAUSE),
    ("the last round that is allowed", shrinking(*range(90_000, 60_000, -1000)), 61_000, GIVE_UP),
    ("the last but one", shrinking(*range(90_000, 61_000, -1000)), 62_000, ANOTHER),
    ("only zeros were sent, so the link is unknown", [sent(5000, 100, zero=5000)], 100, ANOTHER),
    ("only zeros were sent, and nothing is dirty", [sent(5000, 0, zero=5000)], 0, PAUSE),
]


@pytest.mark.parametrize(
    ("rounds", "dirty", "decision"), [row[1:] for row in DECISIONS], ids=[row[0] for row in DECISIONS]
)
def test_the_guest_is_paused_when_the_rest_fits_and_left_alone_when_it_never_will(
    rounds: list[Round], dirty: int, decision: Decision
) -> None:
    assert LIMIT_100_MS.decide(rounds, dirty) is decision
    forced = PrecopyPolicy(downtime_limit_ms=100, on_stall=OnStall.FORCE)
    assert forced.decide(rounds, dirty) is (PAUSE if decision is GIVE_UP else decision)


def test_the_numbers_of_rounds_in_the_table_above_are_the_policys() -> None:
    assert (STALLED_AFTER_ROUNDS, ROUNDS_MAX) == (3, 30)


ESTIMATES: list[tuple[list[Round], int, float]] = [
    ([sent(1000, 0)], 0, 0.0),
    ([sent(1000, 0)], 1000, 4.096),
    ([sent(1000, 0), sent(1000, 0, ns_per_byte=3)], 1000, 8.192),
    ([sent(1000, 0, zero=1000), sent(1000, 0)], 1000, 4.096),
    ([sent(1000, 0, zero=1000)], 1, math.inf),
    ([], 1, math.inf),
    ([], 0, 0.0),
]


@pytest.mark.parametrize(("rounds", "dirty", "milliseconds"), ESTIMATES)
def test_the_downtime_is_estimated_from_the_bandwidth_measured(
    rounds: list[Round], dirty: int, milliseconds: float
) -> None:
    assert PrecopyPolicy().estimated_downtime_ms(rounds, dirty) == pytest.approx(milliseconds, rel=1e-3)


def test_unless_told_otherwise_the_guest_may_be_away_for_300_ms() -> None:
    assert PrecopyPolicy() == PrecopyPolicy(downtime_limit_ms=300.0, on_stall=OnStall.REFUSE)
