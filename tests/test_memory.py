"""Guest RAM: where it lies, how it is written, what of it is dirty."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sim_vmm.memory import HIGH_RAM_BASE, LOW_RAM_MAX, PAGE_SIZE, GuestAddressError, GuestMemory, RamRegion, ram_layout
from tests.other_process import RAM_BYTES, fill_ram, heard, process

MIB = 1 << 20
GIB = 1 << 30
LOW_PAGES = LOW_RAM_MAX // PAGE_SIZE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(MIB) as memory:
        yield memory


@pytest.fixture
def split() -> Iterator[GuestMemory]:
    """A machine with RAM on both sides of the hole."""
    with GuestMemory.create(5 * GIB) as memory:
        yield memory


@pytest.mark.parametrize(
    ("memory_bytes", "layout"),
    [
        (PAGE_SIZE, (RamRegion(0, PAGE_SIZE),)),
        (3 * GIB, (RamRegion(0, 3 * GIB),)),
        (3 * GIB + PAGE_SIZE, (RamRegion(0, 3 * GIB), RamRegion(4 * GIB, PAGE_SIZE))),
        (128 * GIB, (RamRegion(0, 3 * GIB), RamRegion(4 * GIB, 125 * GIB))),
    ],
)
def test_ram_beyond_three_gib_goes_on_above_the_hole(memory_bytes: int, layout: tuple[RamRegion, ...]) -> None:
    assert ram_layout(memory_bytes) == layout


@pytest.mark.parametrize("memory_bytes", [0, -PAGE_SIZE, PAGE_SIZE + 1])
def test_ram_that_is_not_whole_pages_is_refused(memory_bytes: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 4096"):
        GuestMemory.create(memory_bytes)


@pytest.mark.parametrize(
    ("gpa", "page"),
    [
        (0, 0),
        (4095, 0),
        (4096, 1),
        (3 * GIB - 1, LOW_PAGES - 1),
        (4 * GIB, LOW_PAGES),
        (6 * GIB - 1, 5 * GIB // 4096 - 1),
    ],
)
def test_addresses_and_pages_correspond(split: GuestMemory, gpa: int, page: int) -> None:
    assert split.page_of(gpa) == page
    assert split.pages_of(np.array([gpa])).tolist() == [page]
    assert split.gpa_of(page) == gpa // PAGE_SIZE * PAGE_SIZE


@pytest.mark.parametrize("gpa", [-1, 3 * GIB, 4 * GIB - 1, 6 * GIB, 1 << 60])
def test_an_address_that_is_not_ram_is_refused_by_name(split: GuestMemory, gpa: int) -> None:
    for refused in (
        lambda: split.page_of(gpa),
        lambda: split.pages_of(np.array([0, gpa])),
        lambda: split.read(gpa, 1),
        lambda: split.write(gpa, b"x"),
    ):
        with pytest.raises(GuestAddressError, match=f"guest address {gpa:#x} are not RAM; RAM is at 0x0-0xbfffffff"):
            refused()
    assert split.dirty.count == 0


def test_a_write_into_the_hole_writes_nothing(split: GuestMemory) -> None:
    with pytest.raises(GuestAddressError):
        split.write(LOW_RAM_MAX - 2, b"abcd")
    assert split.read(LOW_RAM_MAX - 2, 2) == b"\0\0"


@pytest.mark.parametrize("page", [-1, 256])
def test_a_page_outside_the_machine_is_refused(memory: GuestMemory, page: int) -> None:
    with pytest.raises(GuestAddressError, match="has pages 0 to 255"):
        memory.gpa_of(page)
    with pytest.raises(GuestAddressError, match="has pages 0 to 255"):
        memory.write_pages(np.array([0, page]), np.ones((2, PAGE_SIZE), dtype=np.uint8))
    assert memory.dirty.count == 0


def test_what_is_written_is_read_and_dirty(split: GuestMemory) -> None:
    split.write(HIGH_RAM_BASE + 4090, b"across pages")
    assert split.read(HIGH_RAM_BASE + 4088, 14) == b"\0\0across pages"
    assert split.dirty.dirty_pages().tolist() == [LOW_PAGES, LOW_PAGES + 1]


def test_an_empty_write_makes_nothing_dirty(memory: GuestMemory) -> None:
    memory.write(100, b"")
    assert memory.dirty.count == 0


def test_whole_pages_are_written_at_once(memory: GuestMemory) -> None:
    values = np.arange(2 * PAGE_SIZE, dtype=np.uint64).astype(np.uint8).reshape(2, PAGE_SIZE)
    memory.write_pages(np.array([7, 3]), values)
    assert memory.read(3 * PAGE_SIZE, PAGE_SIZE) == values[1].tobytes()
    assert memory.dirty.dirty_pages().tolist() == [3, 7]


def test_a_migration_receives_unwatched_and_then_marks(memory: GuestMemory) -> None:
    memory.view[5 * PAGE_SIZE : 5 * PAGE_SIZE + 3] = b"abc"
    memory.pages[6] = 1
    assert memory.read(5 * PAGE_SIZE, 3) == b"abc"
    assert memory.dirty.count == 0
    memory.mark_dirty(np.array([5, 6]))
    assert memory.dirty.dirty_pages().tolist() == [5, 6]


def test_a_huge_machine_costs_only_what_it_touches() -> None:
    with GuestMemory.create(128 * GIB) as memory:
        memory.write(100 * GIB, b"x")
        assert memory.dirty.begin_round() == 1
        assert memory.dirty.take(256).tolist() == [memory.page_of(100 * GIB)]
        blocks_of_512 = os.fstat(memory._file).st_blocks
        assert blocks_of_512 * 512 <= 4 * MIB


def test_closing_gives_everything_back_and_may_be_repeated() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    memory = GuestMemory.create(MIB)
    memory.snapshot()
    memory.close()
    memory.close()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(ValueError, match="closed"):
        memory.write(0, b"x")


def test_closing_leaves_borrowed_pages_readable() -> None:
    memory = GuestMemory.create(MIB)
    memory.write(0, b"x")
    borrowed = memory.pages
    memory.close()
    assert borrowed[0, 0] == ord("x")


# RAM in a file


@pytest.fixture(params=["disk", "memory"])
def ram_file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A path on a disk, or in a file system in memory."""
    if request.param == "disk":
        yield tmp_path / "ram"
        return
    if not Path("/dev/shm").is_dir():
        pytest.skip("this host has no file system in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory) / "ram"


def digest_of(memory: GuestMemory) -> str:
    with memory.snapshot() as snapshot:
        return snapshot.digest()


def test_every_byte_that_a_killed_process_wrote_is_found(ram_file: Path) -> None:
    with process(fill_ram, ram_file) as writer:
        assert heard(writer) == "written"
        writer.kill()
        writer.wait()
    with GuestMemory.open(ram_file, RAM_BYTES) as found, GuestMemory.create(RAM_BYTES) as expected:
        expected.write(PAGE_SIZE - 3, b"across")
        expected.write(700 * PAGE_SIZE, b"\xab" * PAGE_SIZE)
        expected.write(900 * PAGE_SIZE, b"\xab" * PAGE_SIZE)
        expected.write(RAM_BYTES - 1, b"z")
        assert bytes(found.view) == bytes(expected.view)
        # The page of zeros that it wrote is no content.
        assert found.dirty.dirty_pages().tolist() == [0, 1, 700, 900, RAM_BYTES // PAGE_SIZE - 1]
        assert digest_of(found) == digest_of(expected)


def test_ram_in_a_file_is_for_its_user_and_sparse(ram_file: Path) -> None:
    with GuestMemory.create(128 * GIB, ram_file) as memory:
        assert list(memory.data_ranges()) == []
        memory.write(100 * GIB, b"x")
        assert list(memory.data_ranges()) == [range(99 * GIB, 99 * GIB + PAGE_SIZE)]
        found = ram_file.stat()
        assert (found.st_mode & 0o777, found.st_size) == (0o600, 128 * GIB)
        assert found.st_blocks * 512 <= MIB
    with GuestMemory.open(ram_file, 128 * GIB) as memory:
        assert memory.dirty.dirty_pages().tolist() == [memory.page_of(100 * GIB)]


@pytest.mark.parametrize("sync", [False, True], ids=["fresh", "written back"])
def test_a_digest_is_of_content_wherever_the_ram_lies(ram_file: Path, sync: bool) -> None:
    with GuestMemory.create(600 * PAGE_SIZE, ram_file) as memory, GuestMemory.create(600 * PAGE_SIZE) as other:
        for each in (memory, other):
            each.write(3 * PAGE_SIZE, b"a page")
            each.write(300 * PAGE_SIZE - 1, b"two")
            each.write(599 * PAGE_SIZE, bytes(PAGE_SIZE))
        assert memory.read(400 * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
        if sync:
            os.fsync(memory._file)
        assert digest_of(memory) == digest_of(other)
        data = {address // PAGE_SIZE for found in memory.data_ranges() for address in found[::PAGE_SIZE]}
        assert data >= {3, 299, 300}
    with GuestMemory.open(ram_file, 600 * PAGE_SIZE) as memory:
        assert memory.dirty.dirty_pages().tolist() == [3, 299, 300]


def test_blocks_smaller_than_a_page_make_ranges_of_whole_pages(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [(1024, 2048), (3072, 4096), (9216, 10240), (MIB - 512, MIB)]

    def seek(_file: int, offset: int, whence: int) -> int:
        start, end = next((start, end) for start, end in data if end > offset)
        return max(start, offset) if whence == os.SEEK_DATA else end

    monkeypatch.setattr("sim_vmm.memory.os.lseek", seek)
    assert list(memory.data_ranges()) == [
        range(4096),
        range(8192, 12288),
        range(MIB - PAGE_SIZE, MIB),
    ]


def test_new_ram_takes_the_place_of_a_file_without_touching_it(ram_file: Path) -> None:
    with GuestMemory.create(MIB, ram_file) as old:
        old.write(0, b"old")
        with GuestMemory.create(MIB, ram_file) as new:
            assert list(new.data_ranges()) == []
            assert new.read(0, 3) == b"\0\0\0"
            assert new.dirty.count == 0
            new.write(0, b"new")
        assert old.read(0, 3) == b"old"


def test_two_mappings_of_a_file_are_the_same_ram(ram_file: Path) -> None:
    with GuestMemory.create(MIB, ram_file) as here, GuestMemory.open(ram_file, MIB) as there:
        here.write(5000, b"x")
        assert there.read(5000, 1) == b"x"


@pytest.mark.parametrize("memory_bytes", [MIB - PAGE_SIZE, MIB + PAGE_SIZE])
def test_ram_of_another_size_is_not_opened(ram_file: Path, memory_bytes: int) -> None:
    GuestMemory.create(MIB, ram_file).close()
    with pytest.raises(ValueError, match=f"has {MIB} bytes, not {memory_bytes}"):
        GuestMemory.open(ram_file, memory_bytes)


def test_ram_that_is_not_there_is_not_opened(ram_file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GuestMemory.open(ram_file, MIB)
    for memory_bytes in (0, PAGE_SIZE + 1):
        with pytest.raises(ValueError, match="positive multiple of 4096"):
            GuestMemory.open(ram_file, memory_bytes)
        with pytest.raises(ValueError, match="positive multiple of 4096"):
            GuestMemory.create(memory_bytes, ram_file)
    assert not ram_file.exists()


def test_ram_that_cannot_be_made_leaves_no_file(ram_file: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    for memory_bytes in (1 << 62, 1 << 63, (2**64 - 1) * MIB):  # the last is what a spec can ask for
        with pytest.raises(OSError, match=r"guest RAM|memory|large|Invalid"):
            GuestMemory.create(memory_bytes, ram_file)
    assert not ram_file.exists()
    GuestMemory.create(MIB, ram_file).close()
    with pytest.raises(ValueError, match="bytes, not"):
        GuestMemory.open(ram_file, 2 * MIB)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
