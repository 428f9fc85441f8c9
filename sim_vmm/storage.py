"""Where the disks of a machine keep their data, so that two daemons reach the same.

With a directory, every backend that lives outside the machine is a file or a directory in it, named after the backend's
key; a path that a spec names is never opened.  Both daemons of a migration are given the same directory.

    <key>.disk                         a file backend: the bytes of the disk
    <key>.region/data, /generation     a Crucible backend: the bytes, and which owner of the machine may write them
    fence                              whose I/O the disks take, if there is a fence

Names are percent-encoded, so that no key reaches out of the directory; a long one ends in its digest.

Without a directory a disk is in this process's memory only.  That is good for a rehearsal of everything but the disk:
as soon as the guest has written to it, the machine must not migrate, and `lost_on_migration` says so.

With a fence (sim_vmm/fence.py), every read, write and flush of a disk in the directory is done under its check, and is
refused with the fence's errors as soon as the register names another session: they are no OSError, so that they stop
the machine instead of reaching the guest.  Opening a disk is not fenced, as a machine is made before it owns anything;
it writes nothing but the size of a file that is empty, and the first generation of a region.

Blob backends are no business of this module: their bytes are state of the machine (`sim_vmm.devices.blob`).
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final
from urllib.parse import quote

import attrs

from sim_vmm.fence import Fence
from sim_vmm.platform import BlockBackend
from sim_vmm.spec.components import CrucibleStorageBackend, FileStorageBackend

#: Bytes of a disk about whose size nobody says anything; sparse, so it costs what is written.
DEFAULT_DISK_BYTES: Final = 64 << 20
#: Sizes in requests are capped at this: a sparse file of any size may still be more than the file system takes.
DISK_BYTES_MAX: Final = 1 << 40
SECTOR_BYTES: Final = 512
BLOCK_BYTES_MAX: Final = 65536
FIRST_GENERATION: Final = 1

NAME_BYTES_MAX: Final = 200
CHUNK_BYTES: Final = 4096

LOST: Final = "what the guest has written to it is in this process only; give both daemons the same --storage DIR"


@attrs.frozen
class Lost:
    """A backend whose content would be lost: its key, its kind, and why."""

    key: str
    kind: str
    reason: str


class FileDisk:
    """A disk in a file, made sparse if there is none; close it.  With a `fence`, I/O raises its errors: see there."""

    def __init__(self, path: Path, *, size: int, readonly: bool, block_size: int, fence: Fence | None = None) -> None:
        """An existing file keeps its size.

        Raises:
            OSError: the file cannot be made or opened.
        """
        self.readonly = readonly
        self.block_size = block_size
        self._check: Final[Callable[[], AbstractContextManager[None]]] = nullcontext if fence is None else fence.check
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        existing = os.fstat(self._file).st_size
        if existing == 0:
            os.ftruncate(self._file, size)
        self.size = (existing or size) // block_size * block_size

    def read(self, offset: int, length: int) -> bytes:
        """Raises OSError if the host cannot read it, ValueError if a byte of the range lies outside the disk."""
        _check_range(self.size, offset, length)
        with self._check():
            data = os.pread(self._file, length, offset)
        return data.ljust(length, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Raises OSError if the host cannot write it all, ValueError for a read-only disk or a range outside it."""
        if self.readonly:
            raise ValueError("this disk is read-only")
        _check_range(self.size, offset, len(data))
        done = 0
        with self._check():
            while done < len(data):
                done += os.pwrite(self._file, data[done:], offset + done)

    def flush(self) -> None:
        """Raises OSError if the host cannot say that all that was written is on the medium."""
        with self._check():
            os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


class RegionDisk(FileDisk):
    """A Crucible region: a directory with the data, and beside it the generation of the owner that may write.

    A region is born in generation 1; the handoff of a migration moves it on and fences the former owner off.
    """

    def __init__(
        self, directory: Path, *, size: int, readonly: bool, block_size: int, fence: Fence | None = None
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory: Final = directory
        self._generation: Final = directory / "generation"
        if not self._generation.exists():
            self._generation.write_text(f"{FIRST_GENERATION}\n")
        super().__init__(directory / "data", size=size, readonly=readonly, block_size=block_size, fence=fence)

    @property
    def generation(self) -> int:
        """Raises ValueError if the file holds no number."""
        return int(self._generation.read_text())


class VolatileDisk:
    """A disk in this process's memory; it does not travel."""

    def __init__(self, *, size: int, readonly: bool, block_size: int) -> None:
        self.readonly = readonly
        self.block_size = block_size
        self.size = size // block_size * block_size
        self._chunks: dict[int, bytearray] = {}

    @property
    def is_written(self) -> bool:
        return bool(self._chunks)

    def read(self, offset: int, length: int) -> bytes:
        """Raises ValueError if a byte of the range lies outside the disk."""
        _check_range(self.size, offset, length)
        first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
        empty = bytes(CHUNK_BYTES)
        data = b"".join(self._chunks.get(chunk, empty) for chunk in range(first, last + 1))
        return data[offset - first * CHUNK_BYTES :][:length]

    def write(self, offset: int, data: bytes) -> None:
        """Raises ValueError for a read-only disk or a range outside it; nothing is written."""
        if self.readonly:
            raise ValueError("this disk is read-only")
        _check_range(self.size, offset, len(data))
        done = 0
        while done < len(data):
            chunk, within = divmod(offset + done, CHUNK_BYTES)
            piece = data[done : done + CHUNK_BYTES - within]
            self._chunks.setdefault(chunk, bytearray(CHUNK_BYTES))[within : within + len(piece)] = piece
            done += len(piece)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Storage:
    """The disks of one machine outside of it.  `sizes` are bytes by backend key, where the spec's request says so.

    Without a `directory` they are volatile.  Each backend is opened once; close the storage to close them, and the
    `fence` of the directory after them.
    """

    def __init__(
        self, directory: Path | None = None, sizes: Mapping[str, int] | None = None, fence: Fence | None = None
    ) -> None:
        self.directory: Final = directory
        self.fence: Final = fence
        self._sizes: Final = dict(sizes or {})
        self._open: dict[str, tuple[str, FileDisk | VolatileDisk]] = {}

    def open(self, key: str, backend: CrucibleStorageBackend | FileStorageBackend) -> BlockBackend:
        """The disk of the backend `key`; the same one if it is open already.

        Raises:
            OSError: the host does not give it.
        """
        if key not in self._open:
            size = min(self._sizes.get(key, DEFAULT_DISK_BYTES), DISK_BYTES_MAX)
            self._open[key] = backend.KIND, self._make(key, backend, size)
        return self._open[key][1]

    def lost_on_migration(self) -> tuple[Lost, ...]:
        """The backends whose content would not be there on another host, in key order of opening."""
        return tuple(
            Lost(key, kind, LOST)
            for key, (kind, disk) in self._open.items()
            if isinstance(disk, VolatileDisk) and disk.is_written
        )

    def close(self) -> None:
        for _, disk in self._open.values():
            disk.close()
        self._open = {}
        if self.fence is not None:
            self.fence.close()

    def _make(
        self, key: str, backend: CrucibleStorageBackend | FileStorageBackend, size: int
    ) -> FileDisk | VolatileDisk:
        block_size = _block_size(backend)
        if self.directory is None:
            return VolatileDisk(size=size, readonly=backend.readonly, block_size=block_size)
        name = file_name(key)
        kind, suffix = (FileDisk, "disk") if isinstance(backend, FileStorageBackend) else (RegionDisk, "region")
        path = self.directory / f"{name}.{suffix}"
        return kind(path, size=size, readonly=backend.readonly, block_size=block_size, fence=self.fence)


def file_name(key: str) -> str:
    """The name under which the backend `key` lies in a storage directory; no two keys have the same."""
    name = quote(key, safe="")
    if len(name) <= NAME_BYTES_MAX:
        return name
    digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return f"{name[: NAME_BYTES_MAX - 40]}={digest}"


def _block_size(backend: CrucibleStorageBackend | FileStorageBackend) -> int:
    """Bytes of a block: as the spec says if that is a size that disks have, else a sector."""
    wanted = backend.block_size if isinstance(backend, FileStorageBackend) else SECTOR_BYTES
    is_usual = SECTOR_BYTES <= wanted <= BLOCK_BYTES_MAX and not wanted & (wanted - 1)
    return wanted if is_usual else SECTOR_BYTES


def _check_range(size: int, offset: int, length: int) -> None:
    if not 0 <= offset <= offset + length <= size:
        raise ValueError(f"bytes {offset} to {offset + length - 1} of a disk of {size}")
