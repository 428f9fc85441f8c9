"""The fence: one session at a time has the disks, whatever the other processes believe, and however they end."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest
import xxhash

from sim_vmm.fence import RECORD_BYTES, TITLE, Fence, FenceBusy, FenceDamaged, FencedOff, FenceError, Title, TitleMoved
from sim_vmm.spec.components import CrucibleStorageBackend, FileStorageBackend
from sim_vmm.storage import Storage
from tests.other_process import (
    BACKEND,
    MACHINE,
    RACES,
    be_in_the_middle_of_io,
    heard,
    process,
    race,
    swap_for_ever,
    title,
    write_until_fenced_off,
)

ONE, TWO = title(1), title(2, "there")
REGION = CrucibleStorageBackend("{}", False)


@pytest.fixture
def fence(tmp_path: Path) -> Iterator[Fence]:
    made = Fence(tmp_path, wait_seconds=0)
    yield made
    made.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Fence]:
    """The fence of the same directory, as another process has it."""
    made = Fence(tmp_path, wait_seconds=0)
    yield made
    made.close()


# The register


def test_a_new_directory_has_no_title(fence: Fence, tmp_path: Path) -> None:
    assert fence.read() is None
    assert fence.held is None
    assert fence.path == tmp_path / "fence"


@pytest.mark.parametrize("owner", ["here", "", "é" * 64, "x" * 128, "a\0b"])
def test_what_one_process_swaps_in_the_other_reads(fence: Fence, other: Fence, owner: str) -> None:
    new = Title(session=1, generation=2**64 - 1, machine=UUID(int=2**128 - 1), owner=owner)
    fence.swap(None, new)
    assert other.read() == new
    assert fence.held is None


def test_a_register_lies_in_one_sector_as_it_always_will(fence: Fence) -> None:
    fence.swap(None, ONE)
    record = fence.path.read_bytes()
    fields = (
        b"simfence"
        + (1).to_bytes(8, "little")
        + (7).to_bytes(8, "little")
        + bytes.fromhex("00000000000000000000000000001234")
        + b"\4here"
        + bytes(124)
    )
    assert record == fields + xxhash.xxh3_128_digest(fields)
    assert len(record) == 185
    assert fence.path.stat().st_mode & 0o777 == 0o600


BAD_TITLES: dict[str, dict[str, Any]] = {
    "session 0": {"session": 0},
    "a session below 0": {"session": -1},
    "a session of 65 bits": {"session": 2**64},
    "a generation below 0": {"generation": -1},
    "a generation of 65 bits": {"generation": 2**64},
    "an owner of 129 bytes": {"owner": "x" * 129},
    "an owner of 65 letters of two bytes": {"owner": "é" * 65},
    "an owner that is no text": {"owner": "\ud800"},
}


@pytest.mark.parametrize("change", BAD_TITLES.values(), ids=BAD_TITLES)
def test_a_title_that_fits_in_no_register_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        attrs.evolve(ONE, **change)


@pytest.mark.parametrize(("expected", "session"), [(None, 2), (ONE, 1), (ONE, 3), (title(5), 4)])
def test_sessions_are_counted_one_by_one(fence: Fence, expected: Title | None, session: int) -> None:
    with pytest.raises(ValueError, match=f"session {session} after .*: it must be"):
        fence.swap(expected, title(session))
    assert fence.read() is None


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, ONE),
        (ONE, None),
        (TWO, ONE),
        (ONE, title(1, "there")),
        (ONE, attrs.evolve(ONE, generation=8)),
        (ONE, attrs.evolve(ONE, machine=UUID(int=5))),
    ],
)
def test_a_swap_that_expected_something_else_changes_nothing(
    fence: Fence, found: Title | None, expected: Title | None
) -> None:
    for session in range(found.session if found else 0):
        fence.swap(fence.read(), found if found and session + 1 == found.session else title(session + 1))
    with pytest.raises(TitleMoved) as caught:
        fence.take(expected, title(1 if expected is None else expected.session + 1, "late"))
    assert (caught.value.expected, caught.value.found) == (expected, found)
    assert fence.read() == found
    assert fence.held is None


def test_errors_say_who_is_who(fence: Fence, other: Fence) -> None:
    fence.take(None, ONE)
    other.take(ONE, TWO)
    name = "machine 00000000-0000-0000-0000-000000001234, generation 7"
    with pytest.raises(FencedOff) as fenced, fence.check():
        pass
    assert str(fenced.value) == (
        f"I/O as session 1 of {name}, owned by here is refused: the disks belong to session 2 of {name}, owned by there"
    )
    with pytest.raises(TitleMoved) as moved:
        other.swap(None, ONE)
    assert str(moved.value) == f"the register of the disks holds session 2 of {name}, owned by there, not nobody"


@pytest.mark.parametrize("error", [TitleMoved, FencedOff, FenceDamaged, FenceBusy])
def test_no_error_of_a_fence_is_one_of_a_disk(error: type[Exception]) -> None:
    assert issubclass(error, FenceError)
    assert not issubclass(error, OSError)


# Holding and releasing


def test_who_holds_the_title_does_io(fence: Fence) -> None:
    fence.take(None, ONE)
    assert fence.held == ONE
    for _ in range(2):
        with fence.check():
            pass


def test_who_holds_nothing_does_none(fence: Fence) -> None:
    for found in (None, ONE):
        with pytest.raises(FencedOff) as caught, fence.check():
            pass
        assert (caught.value.held, caught.value.found) == (None, found)
        if found is None:
            fence.swap(None, ONE)


def test_who_has_lost_the_title_does_none(fence: Fence, other: Fence) -> None:
    fence.take(None, ONE)
    other.take(ONE, TWO)
    with pytest.raises(FencedOff) as caught, fence.check():
        pass
    assert (caught.value.held, caught.value.found) == (ONE, TWO)
    with other.check():
        pass


def test_a_resume_takes_the_disks_from_its_own_session(fence: Fence) -> None:
    fence.take(None, ONE)
    fence.take(ONE, title(2))
    with fence.check():
        pass


def test_disks_are_taken_by_somebody(fence: Fence) -> None:
    with pytest.raises(ValueError, match="names none"):
        fence.take(None, title(1, ""))
    assert fence.read() is None


def test_an_orderly_end_leaves_the_title_without_an_owner(fence: Fence, other: Fence) -> None:
    fence.take(None, ONE)
    fence.release()
    fence.release()
    assert fence.held is None
    assert other.read() == title(1, "")
    with pytest.raises(FencedOff), fence.check():
        pass
    other.take(title(1, ""), TWO)
    assert fence.read() == TWO


def test_a_late_end_leaves_the_next_session_alone(fence: Fence, other: Fence) -> None:
    fence.take(None, ONE)
    other.take(ONE, TWO)
    fence.release()
    assert fence.held is None
    assert other.read() == TWO
    with other.check():
        pass


def test_an_io_error_within_a_check_gives_the_lock_back(fence: Fence, other: Fence) -> None:
    fence.take(None, ONE)
    with pytest.raises(OSError, match="broken"), fence.check():
        raise OSError("broken")
    other.take(ONE, TWO)
    with pytest.raises(FencedOff), fence.check():
        pass
    other.take(TWO, title(3))


def test_closing_leaves_the_title_and_may_be_repeated(tmp_path: Path, other: Fence) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    fence = Fence(tmp_path)
    fence.take(None, ONE)
    fence.close()
    fence.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert other.read() == ONE
    for use in (fence.read, fence.check().__enter__, lambda: fence.swap(ONE, TWO)):
        with pytest.raises(ValueError, match="closed"):
            use()


# A register that cannot be read


def flipped(position: int) -> Callable[[bytes], bytes]:
    return lambda record: record[:position] + bytes([record[position] ^ 1]) + record[position + 1 :]


def with_fields(*fields: object) -> Callable[[bytes], bytes]:
    packed = TITLE.pack(b"simfence", *fields)
    return lambda _: packed + xxhash.xxh3_128_digest(packed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one byte less": lambda record: record[:-1],
    "one byte more": lambda record: record + b"\0",
    "one byte": lambda record: record[:1],
    "all zero": lambda record: bytes(len(record)),
    "another magic": flipped(0),
    "another session": flipped(8),
    "another generation": flipped(16),
    "another machine": flipped(30),
    "another length of the owner": flipped(40),
    "another owner": flipped(41),
    "another checksum": flipped(RECORD_BYTES - 1),
    "session 0": with_fields(0, 7, MACHINE.bytes, 1, b"x"),
    "an owner longer than there is room": with_fields(1, 7, MACHINE.bytes, 255, b"\xff" * 128),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_register_lets_nothing_through(fence: Fence, damage: Callable[[bytes], bytes]) -> None:
    fence.take(None, ONE)
    fence.path.write_bytes(damage(fence.path.read_bytes()))
    damaged = fence.path.read_bytes()
    for use in (fence.read, fence.check().__enter__, lambda: fence.swap(ONE, TWO), fence.release):
        with pytest.raises(FenceDamaged, match=str(fence.path)):
            use()
    assert fence.path.read_bytes() == damaged


@pytest.mark.parametrize("replacement", [None, b""], ids=["removed", "replaced"])
def test_a_register_that_was_removed_lets_nothing_through(fence: Fence, replacement: bytes | None) -> None:
    fence.take(None, ONE)
    fence.path.unlink()
    if replacement is not None:
        fence.path.write_bytes(replacement)
    for use in (fence.read, fence.check().__enter__, lambda: fence.swap(ONE, TWO), fence.release):
        with pytest.raises(FenceDamaged, match="was re"):
            use()


# Other processes


def test_a_swap_waits_for_the_io_that_is_under_way(
    tmp_path: Path, fence: Fence, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence.take(None, ONE)
    patient = Fence(tmp_path, wait_seconds=3600)
    under_way = ExitStack()
    under_way.enter_context(fence.check())
    order = []

    def time_passes(_seconds: float) -> None:
        order.append(patient.path.read_bytes()[8])
        under_way.close()

    monkeypatch.setattr("sim_vmm.fence.time.sleep", time_passes)
    patient.swap(ONE, TWO)
    assert order == [1]
    assert patient.read() == TWO
    patient.close()


@pytest.mark.parametrize("wait_seconds", [0, 2])
def test_a_swap_does_not_wait_for_ever(
    tmp_path: Path, fence: Fence, monkeypatch: pytest.MonkeyPatch, wait_seconds: float
) -> None:
    now = 1000.0

    def time_passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("sim_vmm.fence.time.monotonic", lambda: now)
    monkeypatch.setattr("sim_vmm.fence.time.sleep", time_passes)
    fence.take(None, ONE)
    other = Fence(tmp_path, wait_seconds=wait_seconds)
    with fence.check(), pytest.raises(FenceBusy, match=f"for {wait_seconds} s: is it frozen"):
        other.swap(ONE, TWO)
    assert now == pytest.approx(1000 + wait_seconds, abs=0.01)
    assert other.read() == ONE
    other.close()


def test_a_process_frozen_in_the_middle_of_io_keeps_the_disks_until_it_is_killed(fence: Fence) -> None:
    with process(be_in_the_middle_of_io, fence.path.parent) as io:
        assert heard(io) == "in the middle"
        io.send_signal(signal.SIGSTOP)
        with pytest.raises(FenceBusy):
            fence.take(ONE, TWO)
        assert fence.read() == ONE
        io.kill()
        io.wait()
        fence.take(ONE, TWO)
    with fence.check():
        pass


def test_nothing_lands_on_a_disk_once_a_swap_has_returned(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    with process(write_until_fenced_off, tmp_path) as writer:
        assert heard(writer) == "writing"
        fence.take(title(1, "the other"), TWO)
        after_swap = (tmp_path / "disk.disk").read_bytes()
        assert heard(writer) == str(TWO)
        assert writer.wait() == 0
    assert (tmp_path / "disk.disk").read_bytes() == after_swap
    assert len({after_swap[start : start + 8] for start in range(0, 512, 8)}) == 1
    fence.close()


def test_every_session_is_won_by_one_process(tmp_path: Path) -> None:
    with ExitStack() as stack:
        racers = [stack.enter_context(process(race, tmp_path)) for _ in range(3)]
        won = [int(session) for racer in racers for session in heard(racer).split()]
    assert sorted(won) == list(range(1, RACES + 1))


def test_a_process_killed_at_any_instant_leaves_the_old_title_or_the_new(tmp_path: Path) -> None:
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        with process(swap_for_ever, directory) as swapper:
            for _ in range(1 + 7 * attempt):
                said = heard(swapper)
            swapper.kill()
            assert swapper.stdout is not None
            rest = swapper.stdout.read().split("\n")
        acknowledged = int(([said] + [line for line in rest[:-1] if line])[-1])
        fence = Fence(directory, wait_seconds=0)
        found = fence.read()
        assert found in [title(session, f"{session}" * 5) for session in (acknowledged, acknowledged + 1)]
        fence.take(found, title(found.session + 1))
        fence.close()


# Disks


@pytest.mark.parametrize("backend", [BACKEND, REGION], ids=["file", "region"])
def test_every_use_of_a_disk_is_fenced(
    tmp_path: Path, fence: Fence, other: Fence, backend: FileStorageBackend | CrucibleStorageBackend
) -> None:
    storage = Storage(tmp_path, {"disk": 8192}, fence)
    disk = storage.open("disk", backend)
    fence.take(None, ONE)
    disk.write(0, b"before" + bytes(506))
    disk.flush()
    other.take(ONE, TWO)
    uses: list[Callable[[], object]] = [
        lambda: disk.read(0, 512),
        lambda: disk.write(0, b"after" + bytes(507)),
        disk.flush,
    ]
    for use in uses:
        with pytest.raises(FencedOff):
            use()
    here = Storage(tmp_path)
    assert here.open("disk", backend).read(0, 6) == b"before"
    here.close()
    other.release()
    fence.take(title(2, ""), title(3))
    assert disk.read(0, 6) == b"before"
    storage.close()
    with pytest.raises(ValueError, match="closed"):
        fence.read()
