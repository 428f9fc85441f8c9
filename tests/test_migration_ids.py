"""Migration ids: known to both sides, one connection at a time, once, and remembered across the death of a process."""

from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
import trio

from migrate.daemon.invitation import GIVEN_BACK, USED, IdUsed, Invitation, UsedIds
from migrate.daemon.outcome import Outcome
from migrate.daemon.pair import PairOptions, run_pair
from migrate.daemon.state import StateDirectory
from migrate.errors import Refused
from migrate.protocol.messages import Commit, Hello, HelloFor, Owned, Ready, Role, RoundStored
from tests.commands import EXAMPLE, call, start
from tests.daemons import (
    ENDLESS,
    Ending,
    Fault,
    Neighbourhood,
    Source,
    Target,
    assert_identical,
    everything,
    half,
    nothing,
    until,
)
from tests.specimens import SPECIMENS

AN_ID: Final = UUID("5f2b6c1e-8f0a-4a57-9d6e-3f1c2b7a9e01")
LISTEN: Final = ("--listen", "127.0.0.1:0")
ANOTHER: Final = UUID("0a3de1b2-17c4-4f6f-8a55-6b0f7d2c9e02")

#: What the source was given, what the target, and what the refusal says, if there is one.
COMBINATIONS: Final[dict[str, tuple[UUID | None, UUID | None, str | None]]] = {
    "both the same": (AN_ID, AN_ID, None),
    "neither": (None, None, None),
    "another one": (AN_ID, ANOTHER, "migration: id is another one; needed: the id that both sides were given"),
    "the source only": (AN_ID, None, "migration: id is missing; needed: the id that both sides were given"),
    "the target only": (None, AN_ID, "migration: id is given to the target only; needed: one that the source was"),
}


def refusal(target: Target) -> str:
    (attempt,) = target.daemon.attempts
    assert isinstance(attempt.error, Refused)
    assert [reason.component for reason in attempt.error.reasons] == ["migration"]
    return str(attempt.error)


@pytest.mark.parametrize(("of_source", "of_target", "says"), COMBINATIONS.values(), ids=COMBINATIONS)
async def test_a_migration_takes_place_if_both_were_given_the_same_id(
    neighbourhood: Neighbourhood, of_source: UUID | None, of_target: UUID | None, says: str | None
) -> None:
    source = await neighbourhood.source(invitation=Invitation(of_source))
    target = neighbourhood.target(source.port, migration=of_target, retries=2)
    arrived = await target.daemon.migrate_in()
    if says is None:
        assert arrived is not None
        await assert_identical(source, target)
    else:
        assert refusal(target).startswith(says)
        assert source.daemon.attempts == [], "the machine was not occupied for a moment"
        for given in (of_source, of_target):
            assert str(given) not in str(source.told)
        right = neighbourhood.target(source.port, owner="right", migration=of_source)
        assert await right.daemon.migrate_in() is not None


async def waiting_in_ram(neighbourhood: Neighbourhood, nursery: trio.Nursery) -> tuple[Source, Target]:
    source = await neighbourhood.source(invitation=Invitation(AN_ID), deadlines=ENDLESS, bandwidth=100.0)
    target = neighbourhood.target(source.port, migration=AN_ID, deadlines=ENDLESS)
    nursery.start_soon(target.daemon.migrate_in)
    await until(lambda: any(event.get("phase") == "ram" for event in target.told))
    return source, target


async def test_a_second_connection_for_an_id_is_refused_and_the_first_is_undisturbed(
    neighbourhood: Neighbourhood, nursery: trio.Nursery
) -> None:
    source, first = await waiting_in_ram(neighbourhood, nursery)
    second = neighbourhood.target(source.port, owner="second", migration=AN_ID)
    assert await second.daemon.migrate_in() is None
    assert refusal(second).startswith("migration: id is in use on another connection")
    assert source.daemon.attempts == [] == first.daemon.attempts, "it goes on"
    nursery.cancel_scope.cancel()


async def test_an_attempt_that_was_undone_gives_the_id_back_so_that_it_may_be_tried_again(
    neighbourhood: Neighbourhood,
) -> None:
    source = await neighbourhood.source(invitation=Invitation(AN_ID))
    tap = await neighbourhood.tap(source.port, Fault(Role.TARGET, RoundStored, half, Ending.RESET))
    target = neighbourhood.target(tap.port, migration=AN_ID, retries=1)
    assert await target.daemon.migrate_in() is not None
    assert [attempt.outcome for attempt in target.daemon.attempts] == [Outcome.FAILED, Outcome.MIGRATED]


async def test_an_id_is_used_up_when_the_machine_was_given_away_even_if_it_came_back(
    neighbourhood: Neighbourhood,
) -> None:
    """The target holds an image and asks; it needs no id for that, and the old one is of no more use."""
    source = await neighbourhood.source(invitation=Invitation(AN_ID))
    tap = await neighbourhood.tap(source.port, Fault(Role.SOURCE, Commit, nothing, Ending.RESET))
    target = neighbourhood.target(tap.port, migration=AN_ID)
    with trio.fail_after(20):
        assert await target.daemon.migrate_in() is not None
    assert source.daemon.invitation.is_used
    assert target.daemon.invitation.is_used
    with pytest.raises(IdUsed):
        await target.daemon.migrate_in()


async def test_a_lost_handoff_is_settled_without_an_id(neighbourhood: Neighbourhood) -> None:
    source = await neighbourhood.source(invitation=Invitation(AN_ID))
    tap = await neighbourhood.tap(source.port, Fault(Role.TARGET, Owned, nothing, Ending.RESET))
    target = neighbourhood.target(tap.port, migration=AN_ID)
    with trio.fail_after(20):
        arrived = await target.daemon.migrate_in()
        assert arrived is not None
        if not arrived.settled:
            await target.tell()
        await source.daemon.over.wait()
    assert source.daemon.journal.record.generation == 2


async def test_while_a_handoff_is_in_doubt_its_id_is_of_no_use_to_anybody_else(
    neighbourhood: Neighbourhood,
) -> None:
    source = await neighbourhood.source(invitation=Invitation(AN_ID))
    tap = await neighbourhood.tap(source.port, Fault(Role.TARGET, Ready, everything, Ending.PARTED))
    target = neighbourhood.target(tap.port, migration=AN_ID)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.daemon.migrate_in)
        await until(lambda: source.daemon.attempts)
        assert source.daemon.attempts[0].outcome is Outcome.IN_DOUBT
        nursery.cancel_scope.cancel()
    replay = neighbourhood.target(source.port, owner="replay", migration=AN_ID)
    assert await replay.daemon.migrate_in() is None
    assert refusal(replay).startswith("migration: id is used already; needed: a new one")


# What is remembered


def hello_for(migration: UUID) -> HelloFor:
    return HelloFor(protocol_versions=(1,), node="n", release="r", migration=migration.bytes)


async def test_ids_outlive_the_process_in_its_state_directory_and_are_not_written_there(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    used = UsedIds(state)
    await used.note(AN_ID, USED)
    await used.note(ANOTHER, USED)
    await used.note(ANOTHER, GIVEN_BACK)
    state.close()
    again = StateDirectory.open(tmp_path / "state")
    invitation = Invitation(AN_ID, UsedIds(again))
    assert invitation.is_used
    objection = invitation.objection(hello_for(AN_ID))
    assert objection is not None
    assert objection.have == "used already"
    assert not Invitation(ANOTHER, UsedIds(again)).is_used
    again.close()
    for path in (tmp_path / "state").iterdir():
        if path.is_file():
            content = path.read_bytes()
            for form in (AN_ID.bytes, AN_ID.hex.encode(), str(AN_ID).encode()):
                assert form not in content, path


def test_an_id_is_not_in_what_is_printed_of_a_message_or_an_option() -> None:
    assert AN_ID.hex not in repr(hello_for(AN_ID))
    assert str(AN_ID) not in repr(Invitation(AN_ID))
    assert Invitation(None).objection(SPECIMENS[Hello]) is None  # type: ignore[arg-type]


async def test_an_id_that_was_used_before_is_refused_at_the_start_of_either_side(tmp_path: Path) -> None:
    options = ("--migration-id", str(AN_ID), "--memory-mb", "16")
    pair = PairOptions(
        source_arguments=(
            EXAMPLE,
            *options,
            "--listen",
            "127.0.0.1:0",
            "--state-dir",
            str(tmp_path / "a"),
            "--audited",
        ),
        target_arguments=(*options[:2], "--state-dir", str(tmp_path / "b"), "--audited"),
        after_s=0,
    )
    with trio.fail_after(60):
        result = await run_pair(pair, lambda _: None)
    assert [event["outcome"] for event in result.target if event["event"] == "attempt ended"] == ["migrated"]
    again = start("source", EXAMPLE, *options, *LISTEN, "--state-dir", tmp_path / "a")
    assert again.code == 2
    assert "this migration id was used before" in again.complaint


@pytest.mark.parametrize(
    "arguments", [["--migration-id", str(AN_ID), "--listen", "127.0.0.1:0"], ["--onward-id", str(AN_ID)]]
)
def test_who_is_a_source_in_turn_is_given_another_id(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    said = call(capsys, "target", "127.0.0.1:1", *arguments)
    assert said.code == 2
    assert "a migration away with --listen has an id of its own, --onward-id" in said.complaint
