"""The state directory through kill -9, damage and full disks: the old record or the new one, whole; never an older one.

Processes that die are real ones (`tests/state_victim.py`).  Disks that fail are connections that fail, at the commit or
before it, whether or not the bytes had arrived; and one real file system without room, where the host allows a mount.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import UUID

import attrs
import pytest
import trio

from migrate.daemon.state import (
    Attempt,
    Debt,
    DiskTrouble,
    JournalDamaged,
    MachineState,
    PauseImage,
    StateDirectory,
    StateError,
    current_boot_id,
    database,
)
from migrate.daemon.state import journal as journals
from migrate.daemon.state.contents import Contents
from migrate.engine.handoff import NEVER_HAD, Holding, Record
from migrate.errors import JournalFailed
from tests.state_victim import COMMITTED_IMAGE, MACHINE, OWED, PLACES, READY_IMAGE, STORY, VM, play

ROOT: Final = Path(__file__).parents[1]
OTHER: Final = UUID(int=2)


def state_of(record: Record, highest: int, **others: Any) -> MachineState:
    usual = {"machine": MACHINE, "image": None, "debts": (), "attempts": 0}
    return MachineState(vm_id=VM, record=record, highest=highest, **{**usual, **others})


GIVEN: Final = Record(Holding.COMMITTED, 2, peer="south", owned=1, session=4)
LET_GO: Final = Record(Holding.NOT_OWNER, 2, peer="south", owned=1)
RECEIVED: Final = Record(Holding.READY, 3, peer="south", owned=1)
OWNED: Final = Record(Holding.OWNER, 3, peer="south", owned=3)

#: What is to be found after so many steps of the story.
AFTER: Final[list[MachineState | None]] = [
    None,
    state_of(Record(Holding.OWNER, 1, owned=1), 1),
    state_of(Record(Holding.OWNER, 1, owned=1), 2),
    state_of(GIVEN, 2, image=COMMITTED_IMAGE),
    state_of(LET_GO, 2),
    state_of(RECEIVED, 3, image=READY_IMAGE),
    state_of(OWNED, 3, debts=(OWED,)),
    state_of(OWNED, 3),
    state_of(OWNED, 3, attempts=1),
    state_of(OWNED, 3, attempts=1),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def lived(path: Path) -> None:
    """A directory with the whole story in it."""
    with StateDirectory.open(path) as state:
        await play(state, lambda _: None)


def victim(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.state_victim", str(path), *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def doomed(path: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A victim that does not outlive the block."""
    with victim(path, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


# Killed


def test_after_a_kill_at_any_point_the_old_or_the_new_state_is_there_whole(tmp_path: Path) -> None:
    with victim(tmp_path, "everywhere") as process:
        told, _ = process.communicate()
    assert told.splitlines() == [f"{place} {signal.SIGKILL:d}" for place in PLACES]
    for place in PLACES:
        number, when = place.split(" ")
        expected = AFTER[int(number) + (when != "before")]
        assert StateDirectory.look(tmp_path / place).machine(VM) == expected, f"looking, {place}"
        with StateDirectory.open(tmp_path / place) as state:
            assert state.machine(VM) == expected, place


@pytest.mark.parametrize("lines", [1, 2, 7, 40])
def test_a_generation_that_was_told_is_never_given_again_after_a_kill_from_outside(path: Path, lines: int) -> None:
    with doomed(path, "count") as process:
        for _ in range(lines):
            told = int(line_of(process))
    with StateDirectory.open(path) as state:
        assert state.journal(VM).highest >= told
        assert trio.run(state.journal(VM).new_generation) > told


@pytest.mark.parametrize("when", ["no files", "seen only", "half a database"])
def test_a_directory_whose_making_was_cut_short_is_made_anew(path: Path, when: str) -> None:
    with StateDirectory.open(path) as state:
        node = state.node
    (path / "journal.sqlite").unlink()
    if when == "half a database":
        (path / "journal.sqlite.new").write_bytes(b"SQLite format 3\0 and no more")
    if when == "no files":
        (path / "seen").unlink()
    with StateDirectory.open(path) as state:
        assert (state.node == node) == (when != "no files")
        assert state.machines() == ()
    assert not list(path.glob("*.new*"))


# Held


def test_a_second_daemon_is_refused_and_told_who_holds_the_directory(path: Path) -> None:
    with doomed(path, "hold") as process:
        assert line_of(process) == "held"
        with pytest.raises(StateError, match=rf"another daemon holds .*: process {process.pid};"):
            StateDirectory.open(path)
    StateDirectory.open(path).close()


async def test_looking_sees_what_a_daemon_has_written_so_far_and_changes_nothing(path: Path) -> None:
    with StateDirectory.open(path) as state:
        for number, (_, step) in enumerate(STORY, 1):
            await step(state)
            before = listing(path)
            seen = StateDirectory.look(path)
            assert (seen.held_by, seen.machine(VM), seen.node) == (os.getpid(), AFTER[number], state.node)
            assert listing(path) == before
    before = listing(path)
    seen = StateDirectory.look(path)
    assert (seen.held_by, seen.machines(), seen.fact("listens")) == (None, (AFTER[-1],), "192.0.2.1:4400")
    assert listing(path) == before


def test_looking_after_a_kill_reads_the_log_and_changes_nothing(path: Path) -> None:
    with doomed(path, "count") as process:
        while int(line_of(process)) < 3:
            pass
    before = listing(path)
    assert "journal.sqlite-wal" in before
    seen = StateDirectory.look(path)
    found = seen.machine(VM)
    assert found is not None
    assert found.highest >= 3
    assert seen.held_by is None
    assert listing(path) == before


def listing(path: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and its time; SQLite's index in shared memory is no state."""
    return {
        file.name: (file.stat().st_size, file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if not file.name.endswith("-shm")
    }


def test_looking_never_makes_a_directory(path: Path) -> None:
    with pytest.raises(StateError, match="is not a state directory"):
        StateDirectory.look(path)
    assert not path.exists()


@pytest.mark.parametrize("place", ["state", "above"])
def test_a_file_where_the_directory_should_be_is_named(tmp_path: Path, place: str) -> None:
    file = tmp_path / "above"
    file.write_text("")
    with pytest.raises(StateError, match=r"is not a directory; give another"):
        StateDirectory.open(file if place == "above" else file / "state")


# What is kept


async def test_what_nobody_has_told_of_is_unknown(path: Path) -> None:
    with StateDirectory.open(path) as state:
        journal = state.journal(OTHER)
        assert (journal.record, journal.highest, journal.debts) == (NEVER_HAD, 0, ())
        assert state.machine(OTHER) is None
        assert await journal.new_generation() == 1
        assert journal.record == NEVER_HAD
        assert state.journal(OTHER).highest == 1


async def test_a_node_keeps_its_name(path: Path) -> None:
    with StateDirectory.open(path) as state:
        node = state.node
    host, _, number = node.rpartition("-")
    assert host
    assert len(number) == 16
    with StateDirectory.open(path) as state:
        assert state.node == node


def test_the_directory_is_for_its_owner_only(path: Path) -> None:
    StateDirectory.open(path).close()
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        (Record(Holding.COMMITTED, 2, owned=1), True),
        (Record(Holding.READY, 2, owned=1), True),
        (Record(Holding.OWNER, 2), False),
        (Record(Holding.NOT_OWNER, 2, owned=1), False),
        (Record(Holding.READY, 3, owned=1), False),
    ],
    ids=str,
)
async def test_an_image_stays_only_while_its_generation_is_given_or_received(
    path: Path, record: Record, kept: bool
) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        await journal.write(GIVEN, image=COMMITTED_IMAGE)
        await journal.write(record)
    with StateDirectory.open(path) as state:
        found = state.machine(VM)
        assert found is not None
        assert (found.record, found.image) == (record, COMMITTED_IMAGE if kept else None)


async def test_debts_outlive_the_record_and_are_settled_one_by_one(path: Path) -> None:
    debts = [Debt(generation=n, peer=peer, address="a:1", owned=n > 2) for n, peer in [(2, "x"), (3, "x"), (3, "y")]]
    with StateDirectory.open(path) as state:
        for debt in debts:
            await state.journal(VM).write(Record(Holding.OWNER, debt.generation), debt=debt)
        await state.journal(VM).write(Record(Holding.OWNER, 4), debt=attrs.evolve(debts[0], address="b:2"))
        await state.journal(VM).settle_debt(3, "x")
        await state.journal(VM).settle_debt(3, "z")
    with StateDirectory.open(path) as state:
        assert state.journal(VM).debts == (debts[2], attrs.evolve(debts[0], address="b:2"))


async def test_history_keeps_the_last_thousand_attempts_of_each_machine(path: Path) -> None:
    async def note(state: StateDirectory, vm_id: UUID, generation: int) -> None:
        await state.note_attempt(
            vm_id, side="source", outcome="failed", phase="ram", generation=generation, peer="x", error="lost", at=5
        )

    with StateDirectory.open(path) as state:
        await note(state, OTHER, 1)
        for generation in range(1003):
            await note(state, VM, generation)
        assert state.machines() == (), "an attempt alone says nothing of a machine"
    history = StateDirectory.look(path).history(VM)
    assert [attempt.generation for attempt in history] == list(range(3, 1003))
    assert history[0] == Attempt(
        number=4, side="source", outcome="failed", phase="ram", generation=3, peer="x", error="lost", at=5
    )
    assert len(StateDirectory.look(path).history(OTHER)) == 1


async def test_ram_files_that_nobody_needs_are_deleted(path: Path) -> None:
    with StateDirectory.open(path) as state:
        used, imaged, unused = (state.ram_path(VM) for _ in range(3))
        for file in (used, imaged, unused):
            file.write_bytes(b"ram")
        image = PauseImage(frames=b"", ram=imaged.name, boot_id=current_boot_id(), generation=2)
        await state.journal(VM).write(GIVEN, image=image)
        state.forget_unused_ram([used])
        assert {file.name for file in used.parent.iterdir()} == {used.name, imaged.name}


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A file system that is gone when the host is booted."""
    memory = tmp_path / "memory"
    memory.mkdir()
    return memory


def test_guest_ram_can_lie_in_memory_and_is_found_there_by_whoever_opens_the_directory(
    path: Path, memory: Path
) -> None:
    with StateDirectory.open(path, ram=memory) as state:
        file = state.ram_path(VM)
        file.write_bytes(b"ram")
    (there,) = memory.iterdir()
    assert (there.stat().st_mode & 0o777, [found.name for found in there.iterdir()]) == (0o700, [file.name])
    for ram in (None, memory):
        with StateDirectory.open(path, ram=ram) as state:
            assert (state.path / "ram" / file.name).read_bytes() == b"ram"
    assert list(memory.iterdir()) == [there]


def test_two_directories_never_share_the_place_of_their_guest_ram(path: Path, tmp_path: Path, memory: Path) -> None:
    with StateDirectory.open(path, ram=memory) as one, StateDirectory.open(tmp_path / "other", ram=memory) as other:
        assert one.ram_path(VM).parent.resolve() != other.ram_path(VM).parent.resolve()


def test_a_host_that_was_booted_has_the_place_again_but_not_what_lay_there(path: Path, memory: Path) -> None:
    with StateDirectory.open(path, ram=memory) as state:
        state.ram_path(VM).write_bytes(b"ram")
    shutil.rmtree(next(memory.iterdir()))
    with StateDirectory.open(path) as state:
        state.forget_unused_ram([])
        state.ram_path(VM).write_bytes(b"new")


@pytest.mark.parametrize("first", [True, False], ids=["in another memory", "in the directory itself"])
def test_guest_ram_that_is_elsewhere_already_stays_there_and_the_error_says_so(
    path: Path, tmp_path: Path, memory: Path, first: bool
) -> None:
    StateDirectory.open(path, ram=memory if first else None).close()
    other = tmp_path / "elsewhere"
    other.mkdir()
    with pytest.raises(StateError, match=r"guest RAM of .* is in .* already; start without --ram-dir"):
        StateDirectory.open(path, ram=other)
    assert list(other.iterdir()) == []
    StateDirectory.open(path).close()


@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1])
async def test_a_generation_beyond_the_journal_is_refused_before_anything_is_written(path: Path, number: int) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        with pytest.raises(JournalFailed, match=f"up to 9223372036854775807 and not {number}"):
            await journal.write(Record(Holding.READY, number))
        assert journal.record == Record(Holding.OWNER, 1)
        await journal.write(Record(Holding.READY, (1 << 63) - 1, owned=1))
        with pytest.raises(JournalFailed, match="9223372036854775808"):
            await journal.new_generation()


async def test_generations_taken_at_once_are_all_different(path: Path) -> None:
    taken: list[int] = []

    async def take(state: StateDirectory) -> None:
        taken.append(await state.journal(VM).new_generation())

    with StateDirectory.open(path) as state:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(take, state)
    assert sorted(taken) == list(range(1, 21))


@pytest.mark.parametrize(
    ("before_ms", "what", "is_spared"),
    [
        (1, "write R", False),
        (1, "write C", False),
        (1, "write O", False),
        (1, "new generation", False),
        (1, "write N", True),
        (1, "note attempt", True),
        (10, "write R", True),
        (None, "write R", True),
    ],
)
async def test_a_write_of_the_blackout_takes_no_thread_while_the_disk_is_brisk(
    monkeypatch: pytest.MonkeyPatch, before_ms: int | None, what: str, is_spared: bool
) -> None:
    here, clock = threading.get_ident(), SimpleNamespace(now_ns=0)
    monkeypatch.setattr(journals, "time", SimpleNamespace(monotonic_ns=lambda: clock.now_ns))
    disk = SlowDisk(clock)
    committer = journals.Committer(disk)  # type: ignore[arg-type]
    if before_ms is not None:
        disk.takes_ns = before_ms * 1_000_000
        await committer.commit("new generation", unchanged)
    await committer.commit(what, unchanged)
    assert (disk.threads[-1] != here) == is_spared
    assert all(thread != here for thread in disk.threads[:-1])


async def test_a_disk_that_has_failed_is_not_taken_for_brisk_however_soon_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, clock = threading.get_ident(), SimpleNamespace(now_ns=0)
    monkeypatch.setattr(journals, "time", SimpleNamespace(monotonic_ns=lambda: clock.now_ns))
    disk = SlowDisk(clock)
    committer = journals.Committer(disk)  # type: ignore[arg-type]
    await committer.commit("note attempt", unchanged)
    disk.fails = True
    with pytest.raises(JournalFailed):
        await committer.commit("write R", unchanged)
    disk.fails = False
    await committer.commit("write R", unchanged)
    await committer.commit("write R", unchanged)
    assert [thread == here for thread in disk.threads] == [False, True, False, True]


@attrs.define
class SlowDisk:
    """A database whose commits take as long as it is told, on `clock`; notes in which threads they were made."""

    clock: SimpleNamespace
    takes_ns: int = 0
    fails: bool = False
    threads: list[int] = attrs.field(factory=list)

    def commit(self, change: Callable[[Contents], Contents]) -> Contents:
        self.clock.now_ns += self.takes_ns
        self.threads.append(threading.get_ident())
        if self.fails:
            raise JournalFailed("the disk is full")
        return change(Contents(database_id=b"", node="n"))


def unchanged(contents: Contents) -> Contents:
    return contents


async def test_a_write_whose_task_is_cancelled_meanwhile_is_brought_to_its_end(path: Path) -> None:
    with StateDirectory.open(path) as state:
        with trio.CancelScope() as scope:
            state.on_point = lambda point: scope.cancel() if point == "before write R" else None
            await state.journal(VM).write(RECEIVED, image=READY_IMAGE, machine=MACHINE)
        assert state.machine(VM) == AFTER[5]
        assert StateDirectory.look(path).machine(VM) == AFTER[5]


# Damage


def rolled_back(path: Path, old: Path) -> None:
    shutil.copy(old / "journal.sqlite", path / "journal.sqlite")


def deleted(path: Path, old: Path) -> None:
    (path / "journal.sqlite").unlink()


def emptied(path: Path, old: Path) -> None:
    (path / "journal.sqlite").write_bytes(b"")


def overwritten(path: Path, old: Path) -> None:
    (path / "journal.sqlite").write_text("shopping list\n" * 1000)


def of_another_program(path: Path, old: Path) -> None:
    deleted(path, old)
    connection = sqlite3.connect(path / "journal.sqlite")
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


def of_another_node(path: Path, old: Path) -> None:
    other = path.with_name("other")
    trio.run(lived, other)
    shutil.copy(other / "journal.sqlite", path / "journal.sqlite")


def edited(path: Path, old: Path) -> None:
    connection = sqlite3.connect(path / "journal.sqlite", isolation_level=None)
    connection.execute("UPDATE records SET holding = 'N'")
    connection.close()


def unwitnessed(path: Path, old: Path) -> None:
    (path / "seen").unlink()


def witness_torn(path: Path, old: Path) -> None:
    (path / "seen").write_bytes((path / "seen").read_bytes()[:100])


DAMAGES: Final[list[tuple[Callable[[Path, Path], None], str]]] = [
    (rolled_back, "went backwards: it says 2 where 9 was seen.*restore nothing over it"),
    (deleted, r"journal.sqlite is gone, and 9 transactions were seen of it"),
    (emptied, "journal.sqlite is damaged: it has 0 bytes"),
    (overwritten, "journal.sqlite is damaged: file is not a database"),
    (of_another_program, "journal.sqlite is not a journal of ours"),
    (of_another_node, r"is another journal \(.{8} at 9\) than was seen here \(.{8} at 9\)"),
    (edited, "journal.sqlite is damaged: its rows are not those of one transaction"),
    (unwitnessed, "seen is gone, and nothing else tells whether the journal at 9 is the last one"),
    (witness_torn, "seen is damaged"),
]


def two_ages(tmp_path: Path) -> tuple[Path, Path]:
    """A directory in which the story was lived, and a copy from after its second step."""
    path, old = tmp_path / "state", tmp_path / "old"

    async def live() -> None:
        with StateDirectory.open(path) as state:
            for _, step in STORY[:2]:
                await step(state)
        shutil.copytree(path, old)
        with StateDirectory.open(path) as state:
            for _, step in STORY[2:]:
                await step(state)

    trio.run(live)
    return path, old


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_journal_that_cannot_be_believed_stops_the_daemon_until_a_person_accepts_it(
    tmp_path: Path, damage: Callable[[Path, Path], None], said: str
) -> None:
    path, old = two_ages(tmp_path)
    node = StateDirectory.look(path).node
    damage(path, old)
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    for way_in in (StateDirectory.open, StateDirectory.look):
        with pytest.raises(JournalDamaged, match=said) as caught:
            way_in(path)
        assert "\n" not in str(caught.value)
    after = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    assert {name: after[name] for name in before if name != "lock"} == {n: b for n, b in before.items() if n != "lock"}

    whole: dict[Any, MachineState | None] = dict.fromkeys([of_another_node, unwitnessed, witness_torn], AFTER[-1])
    whole[rolled_back] = AFTER[2]
    with StateDirectory.open(path, accept_journal=True) as state:
        assert state.machine(VM) == whole.get(damage)
        assert (state.node == node) == (damage is not of_another_node)
        trio.run(state.journal(VM).new_generation)
    with StateDirectory.open(path) as state:
        assert state.journal(VM).highest == (4 if whole.get(damage) == AFTER[-1] else 3 if damage in whole else 1)
    aside = path / "journal.sqlite.damaged-1"
    assert aside.exists() == (damage not in whole and damage is not deleted)


def test_the_journal_that_was_replaced_by_an_accepted_one_is_noticed_if_it_comes_back(tmp_path: Path) -> None:
    path, old = two_ages(tmp_path)
    newest = (path / "journal.sqlite").read_bytes()
    rolled_back(path, old)
    StateDirectory.open(path, accept_journal=True).close()
    (path / "journal.sqlite").write_bytes(newest)
    with pytest.raises(JournalDamaged, match="another journal"):
        StateDirectory.open(path)


def test_accepting_a_journal_that_is_well_changes_nothing(path: Path) -> None:
    trio.run(lived, path)
    seen = (path / "seen").read_bytes()
    with StateDirectory.open(path, accept_journal=True) as state:
        assert state.machine(VM) == AFTER[-1]
    assert (path / "seen").read_bytes() == seen


def test_a_journal_of_a_newer_build_is_left_alone(path: Path) -> None:
    trio.run(lived, path)
    connection = sqlite3.connect(path / "journal.sqlite")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    for accept in (False, True):
        with pytest.raises(StateError, match=r"written by a newer build \(layout 2, this one knows 1\)"):
            StateDirectory.open(path, accept_journal=accept)


def killed(tmp_path: Path) -> Path:
    """The story lived to its end, and the process killed: most of it stands in the log."""
    path = tmp_path / PLACES[-1]
    with victim(tmp_path, "everywhere") as process:
        process.communicate()
    assert (path / "journal.sqlite-wal").stat().st_size > 0
    return path


def test_an_old_database_under_a_newer_log_is_noticed(path: Path, tmp_path: Path) -> None:
    """Pages of two ages, each of them whole: what the log holds is newest, and the rest is what it was."""
    with StateDirectory.open(path) as state:
        trio.run(_set_up_two_machines, state)
    old = (path / "journal.sqlite").read_bytes()
    with StateDirectory.open(path) as state:
        trio.run(state.journal(VM).write, Record(Holding.NOT_OWNER, 5))
        trio.run(state.set_fact, "padding", "x" * 20_000)
    with doomed(path, "count") as process:  # writes the record of one machine only, into the log
        line_of(process)
    before = (path / "journal.sqlite-wal").read_bytes()
    assert before
    (path / "journal.sqlite").write_bytes(old)
    for way_in in (StateDirectory.look, StateDirectory.open):
        with pytest.raises(JournalDamaged):
            way_in(path)
    assert (path / "journal.sqlite-wal").read_bytes() == before, "the log may be all that is left"


async def _set_up_two_machines(state: StateDirectory) -> None:
    await state.journal(VM).write(Record(Holding.OWNER, 4))
    await state.journal(OTHER).write(Record(Holding.OWNER, 1))


def flipped(content: bytes, at: random.Random) -> bytes:
    place = at.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << at.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, at: random.Random) -> bytes:
    return content[: at.randrange(len(content))]


def smeared(content: bytes, at: random.Random) -> bytes:
    place = at.randrange(len(content))
    return content[:place] + at.randbytes(512) + content[place + 512 :]


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "seen"])
@pytest.mark.parametrize("how", [flipped, cut, smeared])
def test_torn_at_any_byte_it_is_noticed_or_does_not_matter(
    tmp_path: Path, name: str, how: Callable[[bytes, random.Random], bytes]
) -> None:
    path = killed(tmp_path)
    if name != "journal.sqlite-wal":  # all of it in the database
        StateDirectory.open(path).close()
    for seed in range(30):
        torn = tmp_path / "torn"
        shutil.copytree(path, torn)
        (torn / name).write_bytes(how((path / name).read_bytes(), random.Random(seed)))
        for way_in in (StateDirectory.look, StateDirectory.open):
            try:
                state = way_in(torn)
            except StateError:
                continue
            assert state.machine(VM) == AFTER[-1], f"seed {seed}"
            state.close()
        shutil.rmtree(torn)


# Disks that fail


class FailingConnection(sqlite3.Connection):
    """Fails as `failures` says, one entry for each statement that matters: see `failing`."""

    failures: list[str]

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        kind = "checkpoint" if "checkpoint" in statement else statement.split(" ", 1)[0].lower()
        if self.failures and self.failures[0].startswith(f"{kind}, "):
            if self.failures.pop(0) == "commit, written":
                super().execute(statement, *values)
            elif kind == "commit":
                super().execute("ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *values)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What fails next, in this order: a statement by its first word, a commit with what became of its bytes."""
    script: list[str] = []

    def connect(path: Path, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            factory=FailingConnection,
        )
        assert isinstance(connection, FailingConnection)
        connection.failures = script if mode == "rw" else []
        return connection

    monkeypatch.setattr(database, "connect", connect)
    return script


@pytest.mark.parametrize(
    ("script", "is_written"),
    [
        (["begin, "], False),
        (["insert, "], False),
        (["update, "], False),
        (["commit, lost"], False),
        (["commit, written"], False),  # and written back
        (["commit, written", "commit, lost"], True),  # cannot be written back
        (["commit, written", "commit, written"], False),  # the writing back failed and is there nevertheless
    ],
    ids=str,
)
async def test_a_write_that_fails_leaves_the_old_record_or_counts(
    path: Path, failures: list[str], script: list[str], is_written: bool
) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        await journal.new_generation()
        failures += script
        if is_written:
            await journal.write(GIVEN, image=COMMITTED_IMAGE)
        else:
            with pytest.raises(JournalFailed, match=r"journal.sqlite: disk I/O error: nothing was written"):
                await journal.write(GIVEN, image=COMMITTED_IMAGE)
        assert failures == []
        expected = AFTER[3] if is_written else AFTER[2]
        assert state.machine(VM) == expected
        assert StateDirectory.look(path).machine(VM) == expected
        await journal.write(LET_GO)
        assert state.machine(VM) == AFTER[4]
    with StateDirectory.open(path) as state:
        assert state.machine(VM) == AFTER[4]


@pytest.mark.parametrize(
    ("trouble", "says"), [(DiskTrouble.FULL, "database or disk is full"), (DiskTrouble.SYNC, "disk I/O error")], ids=str
)
async def test_trouble_that_was_asked_for_is_met_once_and_leaves_the_old_record(
    path: Path, trouble: DiskTrouble, says: str
) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        await journal.new_generation()
        state.meet(trouble)
        with pytest.raises(JournalFailed, match=f"{says}: nothing was written"):
            await journal.write(GIVEN, image=COMMITTED_IMAGE)
        assert state.machine(VM) == StateDirectory.look(path).machine(VM) == AFTER[2]
        await journal.write(GIVEN, image=COMMITTED_IMAGE)
        assert state.machine(VM) == AFTER[3]


async def test_a_generation_whose_writing_failed_is_passed_over(path: Path, failures: list[str]) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        failures.append("commit, written")
        with pytest.raises(JournalFailed):
            await journal.new_generation()
        assert await journal.new_generation() == 3


async def test_a_journal_that_cannot_be_read_back_stops_the_daemon_for_good(path: Path, failures: list[str]) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        failures += ["commit, written", "pragma, "]
        for _ in range(2):
            with pytest.raises(
                StateError, match="whether the last record was written cannot be told; stop this daemon"
            ):
                await journal.write(GIVEN, image=COMMITTED_IMAGE)
    with StateDirectory.open(path) as state:
        assert state.machine(VM) == AFTER[3]


async def test_nothing_is_written_after_a_failed_commit_before_the_log_is_in_the_database(
    path: Path, failures: list[str]
) -> None:
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        failures += ["commit, lost", "checkpoint, "]
        with pytest.raises(JournalFailed):
            await journal.new_generation()
        failures += ["checkpoint, "]
        with pytest.raises(JournalFailed):
            await journal.new_generation()
        assert failures == []
        assert await journal.new_generation() == 2


async def test_reading_back_needs_no_room_for_an_index(
    path: Path, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = path / "journal.sqlite-shm"
    connect = database.connect

    def connect_without_room(journal: Path, mode: str) -> sqlite3.Connection:
        index.unlink(missing_ok=True)
        index.symlink_to("nowhere")  # which SQLite does not follow
        return connect(journal, mode)

    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        await journal.new_generation()
        with monkeypatch.context() as patching:
            patching.setattr(database, "connect", connect_without_room)
            failures.append("commit, lost")
            for _ in range(2):
                with pytest.raises(JournalFailed):
                    await journal.write(GIVEN, image=COMMITTED_IMAGE)
                assert state.machine(VM) == AFTER[2]
        index.unlink(missing_ok=True)
        await journal.write(GIVEN, image=COMMITTED_IMAGE)
        assert state.machine(VM) == AFTER[3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, check=False)
    if mounting.returncode:
        pytest.skip(f"this host mounts no tmpfs: {mounting.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return ballast


async def test_a_full_disk_leaves_the_old_record_readable_and_the_next_write_works_when_there_is_room(
    small_disk: Path,
) -> None:
    path = small_disk / "state"
    with StateDirectory.open(path) as state:
        journal = await state.birth(MACHINE, Record(Holding.OWNER, 1))
        await journal.new_generation()
        ballast = fill(small_disk)
        big = attrs.evolve(COMMITTED_IMAGE, frames=bytes(300_000))
        for _ in range(3):
            with pytest.raises(JournalFailed, match="nothing was written, and the record before it stands"):
                await journal.write(GIVEN, image=big)
            assert state.machine(VM) == AFTER[2]
        ballast.unlink()
        assert StateDirectory.look(path).machine(VM) == AFTER[2]
        await journal.write(GIVEN, image=COMMITTED_IMAGE)
        assert state.machine(VM) == AFTER[3]
    with StateDirectory.open(path) as state:
        assert state.machine(VM) == AFTER[3]


def test_a_full_disk_has_no_room_for_a_new_directory_and_says_so(small_disk: Path) -> None:
    ballast = fill(small_disk)
    with pytest.raises(StateError, match=r"No space left on device|disk is full|disk I/O error"):
        StateDirectory.open(small_disk / "state")
    ballast.unlink()
    StateDirectory.open(small_disk / "state").close()
