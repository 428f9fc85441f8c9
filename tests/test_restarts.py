"""Restarts after which a guest boots from its disks: nobody resumes an image that is lost, or may have been used.

A target that died between taking the storage's register and noting that it owns the machine need not ask: the register
alone says that the machine was given to it, even if the source is gone for ever.
"""

from pathlib import Path
from uuid import UUID

import pytest

from migrate.daemon.node import LISTENS_AT, SOURCE_AT
from migrate.daemon.state import StateDirectory
from migrate.engine.handoff import Holding, Record, taken_already
from migrate.protocol.messages import Inquire, Released, Standing
from sim_vmm.fence import Fence, Title
from tests.commands import running
from tests.test_resolve import OTHER, VM, comes_as, image, left_behind, record_in, write_register

O, C, R, N = Holding.OWNER, Holding.COMMITTED, Holding.READY, Holding.NOT_OWNER  # noqa: E741  # the design's letters
HELD = Record(R, 5, OTHER, session=7)


def title(owner: str, generation: int, machine: UUID = VM) -> Title:
    return Title(session=8, generation=generation, machine=machine, owner=owner)


@pytest.mark.parametrize(
    ("record", "found", "expected"),
    [
        (HELD, title("me", 5), True),
        (HELD, title("me", 4), False),
        (HELD, title(OTHER, 5), False),
        (HELD, title("", 5), False),
        (HELD, title("me", 5, UUID(int=99)), False),
        (HELD, None, False),
        (Record(O, 5), title("me", 5), False),
        (Record(C, 5, OTHER), title("me", 5), False),
        (Record(N, 5, OTHER), title("me", 5), False),
    ],
    ids=str,
)
def test_only_a_holder_whose_very_generation_is_in_the_register_need_not_ask(
    record: Record, found: Title | None, expected: bool
) -> None:
    assert taken_already(record, found, node="me", machine=VM) is expected


@pytest.mark.parametrize("kept", [None, image("another-boot")], ids=["no image", "an image of another boot"])
async def test_it_runs_without_asking_anybody(tmp_path: Path, kept: object) -> None:
    state, storage = tmp_path / "state", tmp_path / "storage"
    storage.mkdir()
    await left_behind(state, HELD, kept=image("another-boot") if kept else None, facts={SOURCE_AT: "127.0.0.1:1"})
    node = StateDirectory.look(state).node
    write_register(storage, Title(session=8, generation=5, machine=VM, owner=node))
    async with running("target", "--state-dir", state, "--storage", storage) as target:
        await target.says("web-server runs here now")
        assert not any("cannot reach a source" in line for line in target.lines)
        assert record_in(state) == "O(5)"
    fence = Fence(storage)
    assert fence.read() == Title(session=9, generation=5, machine=VM, owner=node)
    fence.close()


async def test_one_that_has_not_taken_it_declines_when_its_image_is_lost(tmp_path: Path) -> None:
    state, storage = tmp_path / "state", tmp_path / "storage"
    storage.mkdir()
    await left_behind(state, HELD, kept=image("another-boot"), facts={SOURCE_AT: "127.0.0.1:1"})
    write_register(storage, Title(session=7, generation=4, machine=VM, owner=OTHER))
    async with running("target", "--state-dir", state, "--storage", storage) as target:
        await target.says("the image of R(5) is lost: the host has been booted since")
        await target.says("cannot reach a source at 127.0.0.1:1")
        assert record_in(state) == "N(5)"


async def test_a_source_whose_image_is_lost_boots_from_its_disks_once_it_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    await left_behind(state, Record(C, 5, OTHER), kept=image("another-boot"), facts={LISTENS_AT: "127.0.0.1:0"})
    node = StateDirectory.look(state).node
    async with running("source", "--state-dir", state) as source:
        await source.says("is lost: the host has been booted since, so if it comes back it starts from its disks")
        listening = await source.says("is paused; waits for its target, at ")
        port = int(listening.rpartition(":")[2])
        declined = Inquire(
            machine=VM.bytes, name="web-server", generation=5, standing=Standing.DECLINED, node=OTHER, source=node
        )
        assert await comes_as(port, lambda _: declined, OTHER) == Released(generation=5)
        await source.says("the machine runs on here")
        assert record_in(state) == "O(5)"
