"""The downtime ledger: what both sides timed is laid on one axis, and what the guest waited for is cut into parts."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.rehearsal.downtime import FIRST_FRAME, FIRST_STEP, ON_TARGET, WentOn, ledger_of

Json = dict[str, Any]
MS: Final = 10**6


def step(side: str, name: str, start_ms: float, end_ms: float) -> Json:
    return {"side": side, "step": name, "start_ms": start_ms, "duration_ms": end_ms - start_ms}


def view(side: str, started_ms: float, *steps: tuple[str, float, float], **facts: Any) -> Json:
    """How `side` saw an attempt; `steps` since it began."""
    return {"started_ns": round(started_ms * MS), "steps": [step(side, *one) for one in steps], **facts}


SOURCE: Final = view(
    "source",
    1000.0,
    ("pause", 30.0, 31.0),
    ("last ram", 31.0, 33.0),
    ("devices", 33.0, 36.0),
    ("ready", 36.0, 41.0),
    ("commit: journal", 41.0, 43.0),
    ("commit", 41.0, 50.0),
    stopped_ms=27.0,
    devices={"com1": 0.5, "nic": 1.5},
)
TARGET: Final = view(
    "target",
    990.0,
    ("last ram", 42.0, 44.5),
    ("devices", 44.5, 47.0),
    ("ready", 47.0, 51.0),
    ("commit", 51.0, 53.5),
    ("own", 53.5, 56.0),
    ("run", 56.0, 57.0),
    devices={"com1": 0.25, "nic": 2.0},
)
WENT_ON: Final = WentOn(step_ns=1048 * MS, frames_ns=(1010 * MS, 1026 * MS, 1053 * MS, 1060 * MS))

#: Of the example, on the source's axis: the target began 10 ms earlier.
PARTS: Final = {
    "before the pause": 3.0,
    "pause": 1.0,
    "last ram": 3.5,
    "devices": 2.5,
    "ready": 4.0,
    "commit": 2.5,
    "own": 2.5,
    "run": 1.0,
    "first step": 1.0,
}


def moved(target: Json, ms: float) -> Json:
    """The same on a host whose clock shows so much more."""
    return target | {"started_ns": target["started_ns"] + round(ms * MS)}


def parts_of(ledger: Json) -> dict[str, float]:
    return {part["step"]: part["ms"] for part in ledger["blackout"]["parts"]}


def test_what_the_guest_waited_for_adds_up_from_its_last_step_to_its_first() -> None:
    ledger = ledger_of(SOURCE, TARGET, WENT_ON)
    assert parts_of(ledger) == pytest.approx(PARTS)
    assert ledger["blackout"]["total_ms"] == pytest.approx(48.0 - 27.0)
    assert ledger["downtime_ms"] == pytest.approx(47.0 - 30.0)


def test_each_device_is_in_the_ledger_with_what_it_took_on_either_side() -> None:
    ledger = ledger_of(SOURCE, TARGET, WENT_ON)
    assert ledger["devices"] == {
        "com1": {"export_ms": 0.5, "import_ms": 0.25},
        "nic": {"export_ms": 1.5, "import_ms": 2.0},
    }


def test_the_first_step_and_the_first_frame_count_from_where_the_machine_was_let_go() -> None:
    """Frames before that were the source's."""
    steps = {found["step"]: found for found in ledger_of(SOURCE, TARGET, WENT_ON)["steps"]}
    assert steps[FIRST_STEP] == step("target", FIRST_STEP, 47.0, 48.0)
    assert steps[FIRST_FRAME] == step("target", FIRST_FRAME, 47.0, 53.0)


def test_a_guest_that_sends_nothing_has_no_first_frame() -> None:
    told = {"first_ns": 1048 * MS}
    assert WentOn.of(told) == WentOn(step_ns=1048 * MS)
    names = [found["step"] for found in ledger_of(SOURCE, TARGET, WentOn.of(told))["steps"]]
    assert FIRST_STEP in names
    assert FIRST_FRAME not in names


@pytest.mark.parametrize("resumed", [None, {"blackout_ms": 3.0}], ids=["not resumed", "told by an older build"])
def test_without_a_first_step_nobody_knows_how_long_the_guest_waited(resumed: Json | None) -> None:
    ledger = ledger_of(SOURCE, TARGET, WentOn.of(resumed))
    assert ledger["blackout"] is None
    assert ledger["downtime_ms"] == pytest.approx(17.0)


def test_of_a_guest_that_was_not_seen_to_stop_nobody_knows_either() -> None:
    assert ledger_of(SOURCE | {"stopped_ms": None}, TARGET, WENT_ON)["blackout"] is None


def test_clocks_of_two_hosts_are_laid_together_by_the_exchanges_of_the_attempt() -> None:
    source = SOURCE | {"exchanges": {"ready": {"sent_ms": 36.0, "heard_ms": 41.0}}}
    target = TARGET | {"exchanges": {"ready": {"sent_ms": 51.0, "heard_ms": 46.0}}}
    far = moved(target, 72_000.0)
    went_on = WentOn(step_ns=WENT_ON.step_ns + 72_000 * MS)
    here, there = ledger_of(source, target, WENT_ON), ledger_of(source, far, went_on)
    assert here["clock"] == {"offset_ms": 0.0, "error_ms": 0.0}
    assert there["clock"] == {"offset_ms": 72_000.0, "error_ms": 0.0}
    assert parts_of(there) == pytest.approx(parts_of(here))


def test_views_that_no_two_clocks_fit_are_laid_together_as_they_are() -> None:
    source = SOURCE | {"exchanges": {"round 0": {"sent_ms": 0.0, "heard_ms": 1.0}}}
    target = TARGET | {"exchanges": {"round 0": {"sent_ms": 19.0, "heard_ms": 12.0}}}
    ledger = ledger_of(source, target, WENT_ON)
    assert ledger["clock"] is None
    assert ledger["downtime_ms"] == pytest.approx(17.0)


times = st.integers(0, 1000).map(float)


@given(st.lists(times, min_size=len(ON_TARGET), max_size=len(ON_TARGET)), times, times, times)
def test_the_parts_are_never_negative_and_always_add_up(
    ends: list[float], stopped: float, paused: float, away: float
) -> None:
    """Whatever was done ahead of its turn, or seems to have been because of the clocks."""
    target = view("target", 0.0, *((name, 0.0, end) for name, end in zip(ON_TARGET, ends, strict=True)))
    source = view("source", 0.0, ("pause", paused, paused), stopped_ms=stopped)
    first_ms = stopped + away
    blackout = ledger_of(source, target, WentOn(step_ns=round(first_ms * MS)))["blackout"]
    whole = max(first_ms, ends[-1]) - stopped  # the run ends before the guest steps
    assert all(part["ms"] >= 0 for part in blackout["parts"])
    assert sum(part["ms"] for part in blackout["parts"]) == pytest.approx(blackout["total_ms"], abs=1e-6)
    assert blackout["total_ms"] == pytest.approx(whole, abs=1e-5)
