"""Storage that two daemons share: files and regions in one directory, never where a spec says."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.spec.components import CrucibleStorageBackend, FileStorageBackend
from sim_vmm.storage import DEFAULT_DISK_BYTES, LOST, Lost, RegionDisk, Storage, VolatileDisk, file_name

FILE = FileStorageBackend("/etc/passwd", False, 512, None)
REGION = CrucibleStorageBackend("{}", False)
READ_ONLY = FileStorageBackend("/disk.raw", True, 4096, None)


@pytest.mark.parametrize("backend", [FILE, REGION], ids=["file", "region"])
def test_what_one_daemon_writes_the_other_reads(tmp_path: Path, backend: FileStorageBackend) -> None:
    here, there = Storage(tmp_path), Storage(tmp_path)
    source, target = here.open("disk", backend), there.open("disk", backend)
    source.write(1024, b"acknowledged")
    source.flush()
    assert target.read(1020, 20) == b"\0\0\0\0acknowledged\0\0\0\0"
    assert target.size == DEFAULT_DISK_BYTES
    here.close()
    there.close()


def test_disks_are_in_the_directory_and_sparse(tmp_path: Path) -> None:
    storage = Storage(tmp_path, {"data": 1 << 30})
    storage.open("boot", FILE)
    storage.open("data", REGION)
    assert storage.open("boot", FILE) is storage.open("boot", FILE)
    storage.close()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "boot.disk",
        "data.region",
        "data.region/data",
        "data.region/generation",
    ]
    data = (tmp_path / "data.region/data").stat()
    assert data.st_size == 1 << 30
    assert data.st_blocks < 100


def test_a_region_is_born_in_generation_1_and_keeps_a_later_one(tmp_path: Path) -> None:
    for expected in (1, 7):
        storage = Storage(tmp_path)
        region = storage.open("disk", REGION)
        assert isinstance(region, RegionDisk)
        assert region.generation == expected
        (tmp_path / "disk.region/generation").write_text("7\n")
        storage.close()


def test_an_existing_disk_keeps_its_size_in_whole_blocks(tmp_path: Path) -> None:
    (tmp_path / "disk.disk").write_bytes(b"image" * 2000)
    storage = Storage(tmp_path, {"disk": 1 << 20})
    disk = storage.open("disk", READ_ONLY)
    assert (disk.size, disk.block_size, disk.readonly) == (8192, 4096, True)
    assert disk.read(0, 5) == b"image"
    with pytest.raises(ValueError, match="read-only"):
        disk.write(0, b"x")
    storage.close()


@pytest.mark.parametrize("block_size", [0, 1, 511, 513, 131072, 0xFFFF_FFFF])
def test_a_block_size_that_no_disk_has_is_a_sector(block_size: int) -> None:
    assert Storage().open("disk", FileStorageBackend("", False, block_size, None)).block_size == 512


@pytest.mark.parametrize("directory", [True, False], ids=["file", "volatile"])
def test_bytes_outside_a_disk_are_refused(tmp_path: Path, directory: bool) -> None:
    storage = Storage(tmp_path if directory else None, {"disk": 8192})
    disk = storage.open("disk", FILE)
    for offset, length in ((8192, 1), (8191, 2), (-1, 1)):
        with pytest.raises(ValueError, match="of a disk of 8192"):
            disk.read(offset, length)
        with pytest.raises(ValueError, match="of a disk of 8192"):
            disk.write(offset, bytes(length))
    storage.close()


@given(st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=9000)), max_size=8))
def test_a_volatile_disk_is_a_row_of_bytes(writes: list[tuple[int, bytes]]) -> None:
    disk = VolatileDisk(size=32_768, readonly=False, block_size=512)
    model = bytearray(32_768)
    for offset, data in writes:
        model[offset : offset + len(data)] = data
        disk.write(offset, data)
    assert disk.read(0, 32_768) == model
    assert disk.read(4095, 2) == model[4095:4097]
    assert disk.is_written == bool(writes)


def test_a_volatile_disk_that_was_written_is_an_obstacle() -> None:
    storage = Storage()
    disk = storage.open("disk", REGION)
    storage.open("other", FILE)
    assert storage.lost_on_migration() == ()
    disk.write(0, b"x")
    assert storage.lost_on_migration() == (Lost("disk", "crucible_storage_backend", LOST),)


def test_a_shared_disk_that_was_written_is_none(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.open("disk", FILE).write(0, b"x")
    assert storage.lost_on_migration() == ()
    storage.close()


@pytest.mark.parametrize("key", ["..", ".", "", "/etc/passwd", "../../x", "a/b", "nul\0", "x" * 300, "é" * 300])
def test_no_key_reaches_out_of_the_directory(tmp_path: Path, key: str) -> None:
    storage = Storage(tmp_path, {key: 4096})
    storage.open(key, FILE)
    storage.open(f"{key}2", REGION)
    storage.close()
    assert len(list(tmp_path.iterdir())) == 2


@given(st.text(), st.text())
def test_two_keys_have_two_names(first: str, second: str) -> None:
    names = [file_name(key.encode("utf-8", "replace").decode()) for key in (first, second)]
    assert (names[0] == names[1]) == (first.encode("utf-8", "replace") == second.encode("utf-8", "replace"))


def test_long_keys_that_differ_at_the_end_have_different_names() -> None:
    assert file_name("k" * 400 + "a") != file_name("k" * 400 + "b")
