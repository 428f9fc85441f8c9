"""The connection fails at every single operation of either side: whatever the moment, one machine, and one runner.

Before the source writes `C(n)` a failure is undone, and the machine can go to another target as if nothing had been.
After it, the two journals and one more connection bring exactly one runner, and no further failure changes that.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product

import pytest

from migrate.engine.handoff import Holding, Record
from migrate.engine.target import Arrived, ImageHeld
from migrate.errors import HandoffInDoubt, MigrationError, PeerFailed, Refused, RemoteProtocolError
from migrate.protocol.messages import Commit, Declined, Hello, Message, Owned, Refuse, Released, Role, Settle
from sim_vmm.lifecycle import MachineState
from tests.engine_world import Facts, Fault, Loss, Target, World

each_side = pytest.mark.parametrize("side", list(Role))
each_loss = pytest.mark.parametrize("loss", list(Loss))

OWNER_BEFORE = "O(1)"


def count_operations() -> dict[Role, int]:
    """How often each side uses the link in an undisturbed migration: everywhere it may fail."""
    with World() as world:
        assert world.migrate(world.new_target()) is None
        return {role: link.operations for role, link in world.links.items()}


OPERATIONS = count_operations()
LAST_OPERATIONS = 12
"""Only these may leave a handoff open: it is checked with every fault."""


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


def settle_without_faults(world: World, target: Target) -> None:
    """As the daemon does: come back as long as something is open."""
    if is_open(target):
        world.settle(target)


def is_open(target: Target) -> bool:
    return isinstance(target.result, ImageHeld) or (isinstance(target.result, Arrived) and not target.result.settled)


def assert_settled(world: World, target: Target) -> None:
    """Nothing is open between the two, and the machine runs at exactly one place, which the journals name."""
    assert world.runners == 1
    held = (world.journal.record.holding, target.journal.record.holding)
    if world.source_runs:
        assert held == (Holding.OWNER, Holding.NOT_OWNER)
        assert {machine.state for machine in target.made} <= {MachineState.STOPPED}
    else:
        assert held == (Holding.NOT_OWNER, Holding.OWNER)
        assert isinstance(target.result, Arrived)
        assert target.result.settled
        assert target.facts_at_start is not None
        assert target.facts_at_start.ram == Facts.of(world.machine).ram


def assert_kept_its_word(world: World, target: Target, source_error: MigrationError | None) -> None:
    """What each side reports is what its record says."""
    match world.journal.record.holding:
        case Holding.OWNER:
            assert isinstance(source_error, MigrationError)
            assert not isinstance(source_error, HandoffInDoubt)
            assert world.source_runs
            assert not target.is_running
        case Holding.COMMITTED:
            assert isinstance(source_error, HandoffInDoubt)
            assert not world.source_runs
        case _:
            assert source_error is None
            assert target.is_running
    match target.journal.record.holding:
        case Holding.READY:
            assert isinstance(target.result, ImageHeld)
            assert not target.is_running
        case Holding.OWNER:
            assert isinstance(target.result, Arrived)
            assert target.is_running
        case _:
            assert isinstance(target.result, MigrationError)
            assert {machine.state for machine in target.made} <= {MachineState.STOPPED}


@each_loss
@each_side
def test_whatever_operation_fails_one_runner_is_left_once_the_two_have_spoken_again(side: Role, loss: Loss) -> None:
    undone = 0
    for operation in range(OPERATIONS[side]):
        with World() as world:
            target = world.new_target()
            error = world.migrate(target, Fault(side, operation, loss))
            assert_kept_its_word(world, target, error)
            assert operation >= OPERATIONS[side] - LAST_OPERATIONS or not is_open(target)
            settle_without_faults(world, target)
            assert_settled(world, target)
            committed = "source writes C(2)" in world.events
            assert (world.source_runs, target.is_running) == (not committed, committed)
            if world.source_runs:
                undone += 1
                assert_nothing_is_left_behind(world, target)
    assert OPERATIONS[side] / 2 < undone < OPERATIONS[side], "most failures are undone, some come too late for that"


def assert_nothing_is_left_behind(world: World, first: Target) -> None:
    """The attempt with `first` has failed, and the machine moves to another target as if it had never been."""
    memory = world.machine.memory
    assert set(memory.dirty.dirty_pages().tolist()) >= {
        page for page in range(memory.page_count) if memory.pages[page].any()
    }
    second = world.new_target()
    assert world.migrate(second) is None
    assert Facts.of(second.made[0]) == Facts.of(world.machine)
    assert not first.is_running
    assert world.runners == 1


@each_side
def test_a_target_that_was_promised_nothing_may_ask_after_the_machine_has_gone_to_another(side: Role) -> None:
    asked = 0
    for operation, loss in product(range(OPERATIONS[side] - LAST_OPERATIONS, OPERATIONS[side]), Loss):
        with World() as world:
            first = world.new_target()
            world.migrate(first, Fault(side, operation, loss))
            if str(world.journal.record) == OWNER_BEFORE and is_open(first):
                assert_nothing_is_left_behind(world, first)
                settle_without_faults(world, first)
                assert (world.runners, first.is_running) == (1, False)
                asked += 1
    assert asked


#: Faults of the first conversation that leave the handoff open, by what the two sides hold then.
OPEN_ENDS = {
    "the commitment was lost": ("C(2)", "R(2)"),
    "the promise was lost": ("O(1)", "R(2)"),
    "the target's answer was lost": ("C(2)", "O(2)"),
    "the last acknowledgement was lost": ("N(2)", "O(2)"),
}


@cache
def open_ends() -> dict[tuple[str, str], list[Fault]]:
    """Every fault that leaves the two with something to settle, by what they hold then: see `LAST_OPERATIONS`."""
    found: dict[tuple[str, str], list[Fault]] = {}
    for side, loss in product(Role, Loss):
        for operation in range(OPERATIONS[side] - LAST_OPERATIONS, OPERATIONS[side]):
            fault = Fault(side, operation, loss)
            with World() as world:
                target = world.new_target()
                world.migrate(target, fault)
                if is_open(target):
                    found.setdefault((str(world.journal.record), str(target.journal.record)), []).append(fault)
    return found


def test_these_are_all_the_ways_in_which_a_handoff_stays_open() -> None:
    assert set(open_ends()) == set(OPEN_ENDS.values())


@pytest.mark.parametrize("held", OPEN_ENDS.values(), ids=OPEN_ENDS)
def test_settling_may_itself_fail_at_every_operation_and_be_repeated(held: tuple[str, str]) -> None:
    first = open_ends()[held][0]
    for side, operation, loss in product(Role, range(6), Loss):
        with World() as world:
            target = world.new_target()
            world.migrate(target, first)
            assert (str(world.journal.record), str(target.journal.record)) == held
            world.settle(target, Fault(side, operation, loss))
            settle_without_faults(world, target)
            settle_without_faults(world, target)
            assert_settled(world, target)


def in_doubt(world: World) -> Target:
    """The source has given the machine away and its `Commit` was lost; the target holds the image."""
    target = world.new_target()
    (fault, *_) = [
        fault
        for fault in open_ends()["C(2)", "R(2)"]
        if fault.side is Role.SOURCE and fault.loss is Loss.NOTHING_ARRIVES
    ]
    error = world.migrate(target, fault)
    assert isinstance(error, HandoffInDoubt)
    assert str(world.journal.record) == "C(2)"
    assert isinstance(target.result, ImageHeld)
    return target


def test_while_a_handoff_is_in_doubt_nobody_runs_and_a_stranger_is_refused(world: World) -> None:
    first, stranger = in_doubt(world), world.new_target()
    assert world.runners == 0
    error = world.migrate(stranger)
    assert isinstance(error, Refused)
    assert [reason.message for reason in stranger.result.reasons] == [
        "machine: ownership is given away in generation 2, with no answer from the target yet; "
        "needed: that target to come back"
    ]
    assert world.runners == 0, "the refusal must not resume a machine that was given away"
    world.settle(first)
    assert_settled(world, first)
    assert first.is_running


@pytest.mark.parametrize("owned", [False, True])
def test_a_target_that_asks_about_another_machine_gets_no_answer_about_this_one(world: World, owned: bool) -> None:
    target = in_doubt(world)
    answers: list[Message | MigrationError] = []
    link = world.connect()

    async def asks() -> None:
        await link.send(Settle(machine="mail-server", generation=2, owned=owned))
        try:
            answers.append(await link.receive())
        except PeerFailed as failure:
            answers.append(failure)

    error, _ = world.converse(asks(), link)
    assert isinstance(error, RemoteProtocolError)
    assert str(error) == "the target asks about machine 'mail-server'; here is 'web-server'"
    assert [str(answer) for answer in answers] == [
        f"the target failed in phase 'handoff': {error} (RemoteProtocolError)".replace("target failed", "source failed")
    ]
    assert str(world.journal.record) == "C(2)"
    world.settle(target)
    assert_settled(world, target)


def test_a_target_that_comes_back_for_a_dead_generation_is_told_to_discard_its_image(world: World) -> None:
    late, other = world.new_target(), world.new_target()
    world.migrate(late, open_ends()["O(1)", "R(2)"][0])
    assert is_open(late)
    assert world.migrate(other) is None
    error = world.settle(late)
    assert isinstance(error, Refused)
    assert "generation is 2, held by the target; needed: the one in the journal here: N(3)" in str(error)
    assert late.result is None, "nothing arrived, and nothing is held"
    assert str(late.journal.record) == "N(2)"
    assert other.is_running
    assert world.runners == 1


def test_a_target_that_declines_gives_the_machine_back(world: World) -> None:
    target = in_doubt(world)
    link = world.connect()

    async def declines() -> None:
        await link.send(Settle(machine="web-server", generation=2, owned=False))
        assert await link.receive() == Commit(generation=2)
        await link.send(Declined(generation=2))
        assert await link.receive() == Released(generation=2)

    error, ended_well = world.converse(declines(), link)
    assert isinstance(error, PeerFailed)
    assert ended_well is None
    assert str(world.journal.record) == "O(2)"
    assert world.source_runs
    assert world.migrate(world.new_target()) is None
    assert str(world.journal.record) == "N(3)"
    assert target.is_running is False


def test_an_answer_for_another_generation_leaves_the_handoff_in_doubt(world: World) -> None:
    in_doubt(world)
    link = world.connect()

    async def confused() -> None:
        await link.send(Settle(machine="web-server", generation=2, owned=False))
        await link.receive()
        await link.send(Owned(generation=1))

    error, _ = world.converse(confused(), link)
    assert isinstance(error, HandoffInDoubt)
    assert str(world.journal.record) == "C(2)"
    assert world.runners == 0


def test_a_generation_that_the_target_has_seen_before_is_refused(world: World) -> None:
    """A source whose journal went backwards must not fork the machine."""
    target = world.new_target()
    target.journal.journal.record = Record(Holding.NOT_OWNER, 2)
    error = world.migrate(target)
    assert isinstance(error, PeerFailed)
    assert "generation 2 is not above N(2): the source's journal went backwards" in str(error)
    assert world.source_runs
    assert not target.is_running


def test_the_source_is_told_apart_from_a_stranger_by_its_first_word(world: World) -> None:
    link = world.connect()

    async def asks() -> object:
        await link.send(Hello(protocol_versions=(), node="n", release="r"))
        return await link.receive()

    error, answer = world.converse(asks(), link)
    assert isinstance(answer, Refuse)
    assert isinstance(error, Refused)
    assert world.source_runs
