"""Two hosts' clocks laid together: what is told of their difference holds, whatever the network did."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.rehearsal.clocks import Exchange, Exchanges, Offset, exchanges_in

MS = 10**6
delays = st.integers(0, 10**9)


@st.composite
def conversations(draw: st.DrawFn, offset_ns: int) -> tuple[Exchanges, Exchanges]:
    """Requests, answers, and how long each was on its way, as both sides note them."""
    source, target, now = {}, {}, draw(st.integers(0, 10**12))
    for number in range(draw(st.integers(1, 6))):
        there, busy, back, rest = (draw(delays) for _ in range(4))
        asked, heard, answered = now, now + there, now + there + busy
        now = answered + back
        source[f"round {number}"] = Exchange(sent_ns=asked, heard_ns=now)
        target[f"round {number}"] = Exchange(sent_ns=answered + offset_ns, heard_ns=heard + offset_ns)
        now += rest
    return source, target


@given(st.data(), st.integers(-(10**15), 10**15))
def test_the_true_offset_is_within_the_error_whatever_takes_how_long(data: st.DataObject, offset_ns: int) -> None:
    source, target = data.draw(conversations(offset_ns))
    found = Offset.between(source, target)
    assert found is not None
    assert abs(found.offset_ns - offset_ns) <= found.error_ns


@given(st.data())
def test_one_clock_is_never_taken_for_two(data: st.DataObject) -> None:
    found = Offset.between(*data.draw(conversations(0)))
    assert found is not None
    assert found.is_one_clock


@given(st.data(), st.integers(-(10**12), 10**12))
def test_more_exchanges_never_tell_less(data: st.DataObject, offset_ns: int) -> None:
    source, target = data.draw(conversations(offset_ns))
    names = list(source)
    first = [{name: source[name] for name in names[:count]} for count in range(1, len(names) + 1)]
    errors = [found.error_ns for some in first if (found := Offset.between(some, target)) is not None]
    assert len(errors) == len(names)
    assert all(more <= less for less, more in pairwise(errors))


def test_an_answer_at_once_tells_all() -> None:
    source = {"ready": Exchange(sent_ns=5 * MS, heard_ns=5 * MS)}
    target = {"ready": Exchange(sent_ns=905 * MS, heard_ns=905 * MS)}
    assert Offset.between(source, target) == Offset(offset_ns=900 * MS, error_ns=0)
    assert Offset(offset_ns=900 * MS, error_ns=0).as_json() == {"offset_ms": 900.0, "error_ms": 0.0}


def test_half_of_the_way_there_and_back_is_what_cannot_be_known() -> None:
    source = {"ready": Exchange(sent_ns=0, heard_ns=10 * MS)}
    target = {"ready": Exchange(sent_ns=1006 * MS, heard_ns=1002 * MS)}
    assert Offset.between(source, target) == Offset(offset_ns=999 * MS, error_ns=3 * MS)


def test_nothing_in_common_tells_nothing() -> None:
    noted = Exchange(sent_ns=0, heard_ns=0)
    assert Offset.between({"round 0": noted}, {"round 1": noted}) is None
    assert Offset.between({}, {}) is None


def test_views_of_two_conversations_are_told_apart() -> None:
    source = {"round 0": Exchange(sent_ns=0, heard_ns=10), "round 1": Exchange(sent_ns=20, heard_ns=30)}
    target = {"round 0": Exchange(sent_ns=8, heard_ns=2), "round 1": Exchange(sent_ns=900, heard_ns=800)}
    with pytest.raises(ValueError, match="2 exchanges allow no difference of the clocks"):
        Offset.between(source, target)


def test_exchanges_are_found_in_what_a_side_tells_and_older_builds_tell_none() -> None:
    told = {"started_ns": 7 * MS, "exchanges": {"ready": {"sent_ms": 1.5, "heard_ms": 2.25}}}
    assert exchanges_in(told) == {"ready": Exchange(sent_ns=8_500_000, heard_ns=9_250_000)}
    assert exchanges_in({"started_ns": 7 * MS}) == {}
