"""kill -9 before and after every journal write, every change of the fence's register and every handoff message.

What is killed is two real daemons over shared disks; how it is judged is in tests/killing.py.  Where they are killed
nobody wrote down: an undisturbed migration, and restarts that settle what a death left open, tell their points, and at
each of them somebody dies.  A point that is new in the code is therefore one where somebody dies, or, if none of these
runs passes it, one that fails `test_somebody_dies_at_every_point_there_is`.

By default a sample with a fixed seed is played, in which each side dies at each point of an undisturbed migration.
With MIGRATE_SOAK=1 (`make soak`) it is everything:

    alone        each side at each point, with the fence and without
    both         each pair of points, either back first
    settling     each side at each point that it passes while a death is being settled
    link         the line cut for good at each point, with the fence and without
    damage       the state directory, between a death and the restart
    full disk    at each write
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from random import Random
from typing import Final

import attrs
import pytest
import trio

from migrate.daemon.link import HANDOFF_TYPES
from migrate.daemon.lives import SIDES, Side
from migrate.daemon.state.journal import WRITES
from migrate.protocol.conversation import NEXT
from migrate.protocol.messages import Declined, Gone, Role, Settle, Unknown
from tests.commands import zygote
from tests.killing import (
    DAMAGES,
    Damage,
    Kill,
    Relapse,
    Scenario,
    Verdict,
    act,
    act_cut,
    act_damaged,
    act_full,
    act_stillborn,
    act_unsure,
    small_disk,
)

SOAK: Final = os.environ.get("MIGRATE_SOAK") == "1"
SEED: Final = 20
#: Each kind of scenario is dealt out to that many tests, for as many processes as there are.
SHARES: Final = 100 if SOAK else 4
SHARE: Final = pytest.mark.parametrize("share", range(SHARES))
SEEDS_OF_DAMAGE: Final = range(8) if SOAK else range(1)

SETTLED: Final[dict[str, Scenario]] = {
    "the source has kept it": Scenario((Kill("target", "after write R"),)),
    "the source has given it away": Scenario((Kill("source", "after write C"),)),
    "the target has taken it": Scenario((Kill("target", "after write O"),)),
    "the target declines it": Scenario((Kill("target", "after receive Commit"),), loses_image=True),
    "the source was about to take it back": Scenario(
        (Kill("target", "after receive Commit"), Kill("source", "after take#2")), reclaims=True
    ),
}
"""Deaths that leave something to be settled.  Those who are back pass points that nobody passes without."""

RECLAIMING: Final = tuple(
    f"{when} {what}#2" for what in ("new generation", "take", "write O") for when in ("before", "after")
)
"""Of a source whose target is dead; the first time was before that."""

Points = dict[Side, list[str]]


@pytest.fixture(scope="module")
def asked() -> Iterator[socket.socket]:
    with zygote() as asked:
        yield asked


@attrs.frozen
class Passed:
    """The points that the code passed: undisturbed, and by what there was to settle."""

    undisturbed: Points
    settling: dict[str, Points]


@pytest.fixture(scope="module")
def passed(asked: socket.socket, tmp_path_factory: pytest.TempPathFactory) -> Passed:
    """Recorded once for all processes of a test run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.getbasetemp()
    file = (base if run is None else base.parent) / f"points-{run}.json"
    with file.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if not file.stat().st_size:
            settling = {name: played(asked, scenario).points for name, scenario in SETTLED.items()}
            json.dump({"undisturbed": played(asked, Scenario()).points, "settling": settling}, stream)
            stream.flush()
        return Passed(**json.loads(file.read_text()))


def played(asked: socket.socket, scenario: Scenario) -> Verdict:
    try:
        verdict = trio.run(act, asked, scenario)
    except BaseException as error:
        error.add_note(f"in: {scenario}")
        raise
    assert not verdict.objections, f"{scenario}: {verdict.objections}\n{verdict.story}"
    return verdict


def play_all(asked: socket.socket, scenarios: Sequence[Scenario], record_property: object) -> None:
    verdicts = [played(asked, scenario) for scenario in scenarios]
    assert callable(record_property)
    record_property("kills", [(verdict.killed, verdict.settled_s, str(verdict.scenario)) for verdict in verdicts])


# Which points there are


def test_an_undisturbed_migration_passes_what_makes_a_handoff(passed: Passed) -> None:
    must: dict[Side, list[str]] = {
        "source": [
            *around("write O", "set fact", "new generation"),
            *("before send Prepare", "after send Prepare", "after receive Ready"),
            *around("write C"),
            *("before send Commit", "after send Commit", "after receive Owned"),
            *around("write N"),
            *("before send Released", "after send Released"),
        ],
        "target": [
            "after receive Prepare",
            *around("write R"),
            *("before send Ready", "after send Ready", "after receive Commit"),
            *around("take", "write O"),
            *("before send Owned", "after send Owned", "after receive Released"),
            *around("settle debt"),
        ],
    }
    for side in SIDES:
        assert [point for point in passed.undisturbed[side] if point in must[side]] == must[side]


def around(*whats: str) -> list[str]:
    return [f"{when} {what}" for what in whats for when in ("before", "after")]


def test_somebody_dies_at_every_point_there_is(passed: Passed) -> None:
    there_are = {(side, point) for side in SIDES for point in around("take")}
    for kind, role in {(kind, role) for _, role, kind in NEXT if kind.TYPE in HANDOFF_TYPES}:
        there_are |= {(role.value, f"{when} send {kind.__name__}") for when in ("before", "after")}
        there_are.add((role.peer.value, f"after receive {kind.__name__}"))
    written = {point for what in WRITES for point in around(what)}
    somebody_dies = {
        (side, point.partition("#")[0])
        for points in (passed.undisturbed, *passed.settling.values())
        for side in SIDES
        for point in points[side]
    }
    somebody_dies |= {("source", point.partition("#")[0]) for point in RECLAIMING}
    never = {
        kind.__name__: role
        for kind, role in (
            (Settle, Role.TARGET),  # of targets before generations had nodes
            (Gone, Role.SOURCE),  # of journals that contradict each other: see `DAMAGES`
            (Unknown, Role.SOURCE),
            (Unknown, Role.TARGET),
        )
    }
    missing = {(side, point) for side, point in there_are - somebody_dies if point.split(" ")[-1] not in never}
    assert not missing
    assert written - {point for _, point in somebody_dies} == set(around("birth"))  # no daemon's word for it
    assert Declined.__name__ not in never


# Who dies


def alone(passed: Passed) -> list[Scenario]:
    """By default mostly without the fence, which is a second line that would hide a mistake of the first."""
    with_fence = [Scenario((kill,)) for kill in kills_in(passed.undisturbed)]
    without = [attrs.evolve(scenario, fenced=False) for scenario in with_fence if not needs_fence(scenario)]
    takes = [scenario for scenario in with_fence if needs_fence(scenario)]
    return without + takes + sampled([scenario for scenario in with_fence if scenario not in takes], 4)


def both(passed: Passed) -> list[Scenario]:
    pairs = product(*([Kill(side, point) for point in passed.undisturbed[side]] for side in SIDES))
    scenarios = [
        Scenario(pair, first=first, fenced=fenced) for pair in pairs for first in SIDES for fenced in (True, False)
    ]
    return sampled([scenario for scenario in scenarios if scenario.fenced or not needs_fence(scenario)], 5)


def settling(passed: Passed) -> list[Scenario]:
    scenarios = [
        attrs.evolve(SETTLED[name], again=(kill,))
        for name, points in passed.settling.items()
        for kill in kills_in(points)
    ]
    return sampled(scenarios, 6)


def reclaiming() -> list[Scenario]:
    return sampled(
        [
            Scenario((Kill("target", "after receive Commit"), Kill("source", point)), first=first, reclaims=True)
            for point in RECLAIMING
            for first in SIDES
        ],
        4,
    )


def kills_in(points: Points) -> list[Kill]:
    return [Kill(side, point) for side in SIDES for point in points[side]]


def needs_fence(scenario: Scenario) -> bool:
    return any(" take" in kill.point for kill in scenario.kills)


def sampled(scenarios: list[Scenario], count: int) -> list[Scenario]:
    return scenarios if SOAK else Random(SEED).sample(scenarios, count)


@SHARE
def test_one_that_dies_anywhere_leaves_one_runner_and_a_whole_ledger(
    asked: socket.socket, passed: Passed, share: int, record_property: object
) -> None:
    play_all(asked, alone(passed)[share::SHARES], record_property)


@SHARE
def test_two_that_die_anywhere_leave_one_runner_and_a_whole_ledger(
    asked: socket.socket, passed: Passed, share: int, record_property: object
) -> None:
    play_all(asked, both(passed)[share::SHARES], record_property)


@SHARE
def test_one_that_dies_while_a_death_is_settled_leaves_one_runner_and_a_whole_ledger(
    asked: socket.socket, passed: Passed, share: int, record_property: object
) -> None:
    play_all(asked, settling(passed)[share::SHARES], record_property)


@SHARE
def test_a_source_that_dies_while_it_takes_the_machine_back_leaves_one_runner(
    asked: socket.socket, share: int, record_property: object
) -> None:
    play_all(asked, reclaiming()[share::SHARES], record_property)


# The link


@SHARE
def test_without_a_link_one_runs_or_a_person_is_told_of_a_doubt(
    asked: socket.socket, passed: Passed, share: int
) -> None:
    """With the fence it is always one; without, the doubt has a name, and the source still holds the machine."""
    starts = {"source": "before new generation", "target": "after receive Prepare"}
    cuts = [
        (Kill(side, point), fenced)
        for side in SIDES
        for point in passed.undisturbed[side][passed.undisturbed[side].index(starts[side]) :]
        for fenced in (True, False)
        if fenced or " take" not in point
    ]
    dealt = cuts if SOAK else Random(SEED).sample(cuts, 6)
    for cut, fenced in dealt[share::SHARES]:
        ending = trio.run(partial(act_cut, asked, cut, fenced=fenced))
        assert not ending.objections, f"{cut}: {ending.objections}\n{ending.story}"
        in_doubt = (ending.ran, ending.holdings, ending.outcome) == ([], ("C", "R"), "in doubt")
        assert len(ending.ran) == 1 or (not fenced and in_doubt), f"{cut}: {ending}\n{ending.story}"


def test_a_commit_that_is_lost_for_ever_leaves_the_source_in_doubt_without_a_fence(asked: socket.socket) -> None:
    ending = trio.run(partial(act_cut, asked, Kill("source", "before send Commit"), fenced=False))
    assert (ending.ran, ending.holdings, ending.outcome) == ([], ("C", "R"), "in doubt")


def test_a_commit_that_is_lost_for_ever_gives_the_source_the_machine_back_by_the_fence(asked: socket.socket) -> None:
    ending = trio.run(partial(act_cut, asked, Kill("source", "before send Commit"), fenced=True))
    assert (ending.ran, ending.holdings) == (["source"], ("O", "R"))


# The state directory


RELAPSES: Final = (
    Relapse("source", "before new generation", "after write C"),
    Relapse("source", "before new generation", "before note attempt"),
    Relapse("source", "after write C", "before note attempt"),
    Relapse("target", "after set fact", "after receive Commit"),
    Relapse("target", "after set fact", "before note attempt"),
    Relapse("target", "after write R", "before note attempt"),
)

REFUSALS: Final[dict[str, tuple[str, ...]]] = {
    "journal deleted": ("journal.sqlite is gone, and",),
    "witness deleted": ("seen is gone, and nothing else tells",),
    "log deleted": ("went backwards: it says", "is damaged"),
    "all deleted": ("holds no machine that could be started",),
    "journal rolled back": ("went backwards: it says",),
    "all rolled back": ("storage is held in session",),
    "byte of the journal flipped": ("is damaged", "holds no machine that could be started"),
    "byte of the log flipped": ("went backwards: it says", "is damaged", "holds no machine that could be started"),
    "byte of the witness flipped": ("seen is damaged",),
    "journal torn": ("is damaged", "holds no machine that could be started"),
    "log torn": ("went backwards: it says", "is damaged", "holds no machine that could be started"),
}
"""What may be said by whom does not start.  A source that had handed the machine over has none to start."""
ALWAYS_REFUSED: Final = {"journal deleted", "witness deleted", "all deleted", "journal rolled back"}


def damaged() -> list[tuple[Relapse, Damage, int]]:
    cases = [(relapse, damage, seed) for relapse in RELAPSES for damage in DAMAGES for seed in SEEDS_OF_DAMAGE]
    return cases if SOAK else Random(SEED).sample(cases, 8)


@SHARE
def test_a_damaged_state_directory_is_refused_by_name_or_does_no_harm(asked: socket.socket, share: int) -> None:
    for relapse, damage, seed in damaged()[share::SHARES]:
        restart = trio.run(act_damaged, asked, relapse, damage, seed)
        what = f"{relapse}, {damage}, seed {seed}: {restart}\n{restart.story}"
        assert not restart.objections, what
        assert restart.code in (None, 0, 1, 2), what
        assert restart.code == 2 or damage.name not in ALWAYS_REFUSED, what
        if restart.code == 2:
            assert any(words in restart.complaint for words in REFUSALS[damage.name]), what
        assert restart.runners <= 1, what


def test_a_source_whose_directory_went_back_is_fenced_off_and_says_so(asked: socket.socket) -> None:
    damage = next(damage for damage in DAMAGES if damage.name == "all rolled back")
    restart = trio.run(act_damaged, asked, RELAPSES[1], damage, 0)
    assert (restart.code, restart.runners, restart.objections) == (2, 1, []), restart.story
    assert "it must not run here" in restart.complaint
    assert any("the journal here went backwards" in alarm for alarm in restart.alarms)


def test_a_source_whose_directory_went_back_before_the_commit_raises_an_alarm_and_keeps_the_machine(
    asked: socket.socket,
) -> None:
    damage = next(damage for damage in DAMAGES if damage.name == "all rolled back")
    restart = trio.run(act_damaged, asked, RELAPSES[0], damage, 0)
    assert (restart.code, restart.runners, restart.objections) == (None, 1, []), restart.story
    (alarm,) = restart.alarms
    assert "no generation above 1 was ever used: the journal here went backwards" in alarm


def test_a_machine_that_cannot_be_born_is_not_in_the_way_of_the_next(asked: socket.socket) -> None:
    """Its guest is booted after the record was written that it is owned here."""
    verdict = trio.run(act_stillborn, asked)
    assert not verdict.objections, f"{verdict.objections}\n{verdict.story}"


# The disk


WRITTEN: Final = {
    "source": ("write O", "set fact", "new generation", "write C", "write N", "note attempt"),
    "target": ("set fact", "expect", "write R", "write O", "settle debt", "note attempt"),
}
FULL: Final = [Kill(side, f"before {what}") for side in SIDES for what in WRITTEN[side]]


@pytest.fixture(scope="module")
def _mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        with small_disk(tmp_path_factory.mktemp("disk") / "small"):
            pass
    except OSError as error:
        pytest.skip(f"a small disk is a file system that must be mounted: {error}")


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize("full", FULL, ids=str)
def test_a_disk_that_is_full_at_a_write_leaves_one_runner_and_a_whole_ledger(asked: socket.socket, full: Kill) -> None:
    verdict = trio.run(act_full, asked, full)
    assert not verdict.objections, f"{full}: {verdict.objections}\n{verdict.story}"


def test_the_disk_is_full_at_every_write_of_a_migration(passed: Passed) -> None:
    for side in SIDES:
        written = [point.removeprefix("before ") for point in passed.undisturbed[side] if point.startswith("before ")]
        assert tuple(what for what in written if what in WRITES) == WRITTEN[side]


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize("write", [Kill("source", "before write C"), Kill("target", "before write O")], ids=str)
def test_a_daemon_that_cannot_know_whether_it_wrote_stops_and_says_so(asked: socket.socket, write: Kill) -> None:
    life, objections = trio.run(act_unsure, asked, write)
    assert objections == []
    assert life.exit_code == 1
    assert "whether the last record was written cannot be told" in life.complaints[-1]
    assert not life.is_running_a_guest
