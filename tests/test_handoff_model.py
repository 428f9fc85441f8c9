"""The rule book, checked in every state of a small world (`tests.handoff_model`), and mistakes put into it on purpose.

A mistake that is not found would mean that the model lacks what it takes to see it.  Each is a rule book of its own,
made of the real one: a ruling in another order, or one answer that is another.

The bounds are those that take seconds.  With `HANDOFF_MODEL=soak` in the environment larger worlds are searched too,
for minutes: `make soak`.  Numbers of states are printed (`pytest -s`).
"""

import os
from collections.abc import Iterator
from typing import Final

import attrs
import pytest

from migrate.engine import handoff
from migrate.engine.handoff import Act, Claim, Effect, Granted, Holding, Record, Ruling, Say, Take, Write
from migrate.protocol.messages import Commit, Gone
from sim_vmm.fence import Title
from tests.handoff_model import Bounds, Nodes
from tests.model_check import HOPELESS, Move, State, Verdict, explore
from tests.model_node import FLOOR_SANK, NUMBER_REUSED, STALE_IMAGE, TWO_RUNNERS, Rules

FALSE_ALARM: Final = "a person is called for nothing"

SOAKS: Final = os.environ.get("HANDOFF_MODEL") == "soak"
SOAK: Final = pytest.mark.skipif(not SOAKS, reason="takes minutes: make soak")


def report(verdict: Verdict) -> Verdict:
    print(f"\n{verdict}")
    return verdict


# The rule book as it is

#: Nodes, whether the storage has a fence, and the bounds.
WORLDS: Final = [
    (2, False, Bounds(migrations=2, crashes=2, losses=2)),
    (2, False, Bounds(migrations=3, crashes=1, losses=2)),
    (3, False, Bounds(migrations=2, crashes=1, losses=1)),
    (3, False, Bounds(migrations=3, crashes=0, losses=1)),
    (2, True, Bounds(migrations=2, crashes=1, losses=1, reclaims=1)),
    (2, True, Bounds(migrations=1, crashes=2, losses=2, reclaims=2)),
    (2, True, Bounds(migrations=2, crashes=1, losses=1, outages=1)),
]
LARGE_WORLDS: Final = [
    (2, False, Bounds(migrations=3, crashes=3, losses=2)),
    (2, False, Bounds(migrations=3, crashes=2, losses=3)),
    (3, False, Bounds(migrations=3, crashes=1, losses=1)),
    (3, False, Bounds(migrations=2, crashes=2, losses=2)),
    (2, True, Bounds(migrations=2, crashes=2, losses=2, reclaims=1)),
    (3, True, Bounds(migrations=2, crashes=1, losses=1, reclaims=1)),
]


@pytest.mark.parametrize(
    ("count", "has_fence", "bounds"), [*WORLDS, *(pytest.param(*world, marks=SOAK) for world in LARGE_WORLDS)], ids=str
)
def test_one_node_runs_the_machine_and_everything_can_always_end_well(
    count: int, has_fence: bool, bounds: Bounds
) -> None:
    verdict = report(explore(Nodes(count, bounds, has_fence=has_fence)))
    assert not verdict.broken, str(verdict)


def test_with_a_fence_one_node_runs_even_if_the_link_never_heals() -> None:
    bounds = Bounds(migrations=2, losses=2, reclaims=2)
    verdict = report(explore(Nodes(2, bounds, has_fence=True, link_heals=False)))
    assert not verdict.broken, str(verdict)


def test_a_target_that_died_between_the_register_and_its_journal_needs_no_link_to_run() -> None:
    """Its record says nothing of the commit, but the register does."""
    bounds = Bounds(migrations=1, crashes=1, losses=1, reclaims=2)
    verdict = report(explore(Nodes(2, bounds, has_fence=True, link_heals=False)))
    assert not verdict.broken, str(verdict)


def test_without_a_look_at_the_register_it_would_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.handoff_model.taken_already", lambda *_, **__: False)
    bounds = Bounds(migrations=1, crashes=1, losses=1, reclaims=2)
    verdict = report(explore(Nodes(2, bounds, has_fence=True, link_heals=False)))
    assert verdict.broken == HOPELESS
    assert verdict.trace[-2:] == (
        "B hears Commit(2): B takes session 2 (take over)",
        "B dies as R(2), before it writes O(2)",
    )


class Quiet(Nodes):
    """A world in which nobody may be called for nothing."""

    def moves(self, state: State) -> Iterator[Move]:
        for move in super().moves(state):
            calls = any(word in move.label for word in ("alarm", "Gone", "refuses"))
            yield move._replace(broken=move.broken or FALSE_ALARM) if calls else move


@pytest.mark.parametrize(
    ("count", "has_fence", "bounds"),
    [
        (2, False, Bounds(migrations=2, crashes=2, losses=1)),
        (2, True, Bounds(migrations=2, crashes=1, losses=1, reclaims=1)),
        pytest.param(3, False, Bounds(migrations=2, crashes=1, losses=1), marks=SOAK),
    ],
    ids=str,
)
def test_no_alarm_is_raised_while_the_journals_are_whole(count: int, has_fence: bool, bounds: Bounds) -> None:
    verdict = report(explore(Quiet(count, bounds, has_fence=has_fence), hope=False))
    assert not verdict.broken, str(verdict)


def test_but_for_a_word_that_is_overtaken_by_the_machine_on_its_way_round_three_nodes() -> None:
    """B says that it runs 2, and before A hears it B and C have passed the machine on to A.  The debt is told again."""
    verdict = report(explore(Quiet(3, Bounds(migrations=3)), hope=False))
    assert verdict.broken == FALSE_ALARM
    assert verdict.trace[-1] == "A hears Owned(2): alarm"


# Journals that were lost, or went backwards: nothing unsafe may come of it, and that is all that is promised


@pytest.mark.parametrize(
    ("count", "has_fence", "bounds"),
    [
        (2, False, Bounds(migrations=2, crashes=2, losses=1, forgets=1)),
        (2, True, Bounds(migrations=2, crashes=1, losses=1, forgets=1, reclaims=1)),
        pytest.param(3, False, Bounds(migrations=2, crashes=1, losses=1, forgets=1), marks=SOAK),
    ],
    ids=str,
)
def test_a_node_whose_journal_is_lost_does_no_harm(count: int, has_fence: bool, bounds: Bounds) -> None:
    verdict = report(explore(Nodes(count, bounds, has_fence=has_fence), hope=False))
    assert not verdict.broken, str(verdict)


def test_without_a_fence_an_owner_whose_journal_went_backwards_runs_beside_the_next_one() -> None:
    """Why the journal has a witness, and why there is a fence: the records alone cannot tell."""
    bounds = Bounds(migrations=1, crashes=1, losses=1, saves=1, restores=1)
    verdict = report(explore(Nodes(2, bounds), hope=False))
    assert verdict.broken == TWO_RUNNERS
    assert "the journal of A, C(2), is replaced by an older one, O(1)" in verdict.trace


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(migrations=1, crashes=1, losses=1, reclaims=1, saves=1, restores=1),
        Bounds(migrations=1, crashes=2, outages=1, saves=1, restores=1),
        pytest.param(Bounds(migrations=2, crashes=1, losses=1, saves=1, restores=1), marks=SOAK),
        pytest.param(Bounds(migrations=2, crashes=2, losses=1, saves=1, restores=1), marks=SOAK),
    ],
    ids=str,
)
def test_with_a_fence_a_journal_that_went_backwards_does_no_harm(bounds: Bounds) -> None:
    """A machine that still executes while the disks refuse its I/O is not counted: the guest's history is not its."""
    verdict = report(explore(Nodes(2, bounds, has_fence=True), hope=False))
    assert not verdict.broken, str(verdict)


# Mistakes


def moved_before(ruling: Ruling, moved: object, mark: object) -> Ruling:
    """`ruling` with one effect before another; both by their class, or an act by itself."""
    kinds: list[object] = [effect if isinstance(effect, Act) else type(effect) for effect in ruling]
    if moved not in kinds or mark not in kinds:
        return ruling
    effect = ruling[kinds.index(moved)]
    rest: list[Effect] = [other for other in ruling if other is not effect]
    kinds.remove(moved)
    at = kinds.index(mark)
    return (*rest[:at], effect, *rest[at:])


def commit_is_said_before_it_is_written(
    record: Record, generation: int, sender: str, *, preparing: int | None, highest: int
) -> Ruling:
    ruling = handoff.on_ready(record, generation, sender, preparing=preparing, highest=highest)
    return moved_before(ruling, Say, Write)


def ready_is_said_before_it_is_written(record: Record, generation: int, sender: str, session: int) -> Ruling:
    return moved_before(handoff.on_prepare(record, generation, sender, session), Say, Write)


def the_machine_runs_before_its_owner_is_written(record: Record, generation: int, sender: str) -> Ruling:
    return moved_before(handoff.on_commit(record, generation, sender), Act.RUN, Write)


def the_number_of_a_failed_attempt_is_used_again(record: Record, highest: int) -> int:
    return record.generation + 1


def ready_is_forgotten_without_a_floor(record: Record) -> Ruling:
    before = attrs.evolve(record, holding=Holding.NOT_OWNER, generation=record.generation - 1)
    return Write(before), Act.DROP


def unknown_is_taken_for_declined(record: Record, generation: int, sender: str) -> Ruling:
    return handoff.on_declined(record, generation, sender)


def silence_is_taken_for_declined(record: Record) -> Ruling:
    return Take(Claim.RESUME), Write(attrs.evolve(record, holding=Holding.OWNER, owned=record.generation)), Act.RUN


def the_last_okay_hands_over(
    record: Record, generation: int, sender: str, *, preparing: int | None, highest: int
) -> Ruling:
    if preparing != generation:
        return handoff.on_ready(record, generation, sender, preparing=preparing, highest=highest)
    over = attrs.evolve(record, holding=Holding.NOT_OWNER, generation=generation, peer=sender)
    return Write(over), Act.DROP, Say(Commit(generation=generation))


def what_was_owned_is_forgotten(record: Record, generation: int, sender: str) -> Ruling:
    if record.holding is Holding.NOT_OWNER:
        record = attrs.evolve(record, owned=0)
    return handoff.on_commit(record, generation, sender)


def an_image_of_a_failed_attempt_is_called_gone(
    record: Record, generation: int, sender: str, *, preparing: int | None, highest: int
) -> Ruling:
    if record.holding is Holding.NOT_OWNER and generation <= record.generation:
        return (Say(Gone(generation=generation)),)
    return handoff.on_ready(record, generation, sender, preparing=preparing, highest=highest)


def the_higher_generation_wins(claim: Claim, found: Title | None, record: Record, **who: object) -> Granted | None:
    granted = handoff.granted(Claim.FORCE, found, record, **who)  # type: ignore[arg-type]
    assert granted is not None, "force always gets it"
    if found is not None and granted.title.generation < found.generation:
        return None
    return Granted(granted.title, image_is_good=claim is not Claim.COLD_START)


ONCE: Final = Bounds(migrations=2, crashes=1, losses=1)

#: A rule book with a mistake; whether the world has a fence, nodes, bounds; what breaks, and after how many moves.
MISTAKES: Final = [
    pytest.param(
        Rules(on_ready=commit_is_said_before_it_is_written), False, 2, ONCE, TWO_RUNNERS, 11, id="commit said"
    ),
    pytest.param(Rules(on_prepare=ready_is_said_before_it_is_written), False, 2, ONCE, HOPELESS, 3, id="ready said"),
    pytest.param(
        Rules(on_commit=the_machine_runs_before_its_owner_is_written), False, 2, ONCE, STALE_IMAGE, 16, id="run first"
    ),
    pytest.param(
        Rules(next_number=the_number_of_a_failed_attempt_is_used_again), False, 2, ONCE, NUMBER_REUSED, 5, id="reused"
    ),
    pytest.param(Rules(declining=ready_is_forgotten_without_a_floor), False, 2, ONCE, FLOOR_SANK, 4, id="no floor"),
    pytest.param(
        Rules(on_unknown=unknown_is_taken_for_declined),
        False,
        2,
        Bounds(migrations=1, crashes=1, losses=1, forgets=1),
        STALE_IMAGE,
        17,
        id="unknown",
    ),
    pytest.param(Rules(on_silence=silence_is_taken_for_declined), False, 2, ONCE, TWO_RUNNERS, 11, id="lost answer"),
    pytest.param(Rules(on_ready=the_last_okay_hands_over), False, 2, ONCE, HOPELESS, 4, id="last okay"),
    pytest.param(Rules(on_commit=what_was_owned_is_forgotten), False, 3, ONCE, TWO_RUNNERS, 27, id="fork"),
    pytest.param(
        Rules(on_ready=an_image_of_a_failed_attempt_is_called_gone),
        False,
        3,
        Bounds(migrations=2, losses=1),
        HOPELESS,
        4,
        id="gone",
    ),
    pytest.param(
        Rules(granted=the_higher_generation_wins),
        True,
        2,
        Bounds(migrations=1, crashes=1, losses=1, reclaims=1),
        TWO_RUNNERS,
        12,
        id="higher wins",
    ),
]


@pytest.mark.parametrize(("rules", "has_fence", "count", "bounds", "broken", "moves"), MISTAKES)
def test_a_mistake_in_the_rule_book_is_found(
    rules: Rules, has_fence: bool, count: int, bounds: Bounds, broken: str, moves: int
) -> None:
    """Where a journal may be lost nothing but safety is claimed, and the rule book as it is keeps it (see above)."""
    verdict = report(explore(Nodes(count, bounds, has_fence=has_fence, rules=rules), hope=bounds.forgets == 0))
    assert (verdict.broken, len(verdict.trace)) == (broken, moves), str(verdict)


def test_a_floor_is_there_because_without_one_nobody_may_ever_run_the_machine() -> None:
    rules = Rules(declining=ready_is_forgotten_without_a_floor)
    verdict = report(explore(Nodes(2, ONCE, rules=rules, keeps_laws=False)))
    assert verdict.broken == HOPELESS


def test_the_same_search_ends_well_with_every_rule_as_it_is() -> None:
    """So what is found above is found because of the mistake."""
    for count, has_fence, bounds in (
        (2, False, ONCE),
        (2, True, Bounds(migrations=1, crashes=1, losses=1, reclaims=1)),
    ):
        verdict = explore(Nodes(count, bounds, has_fence=has_fence))
        assert not verdict.broken, str(verdict)
