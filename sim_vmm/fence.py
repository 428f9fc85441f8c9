"""The fence of a storage directory: whose I/O the disks take.

Two hosts may each hold an image of the same machine, and each believe that it is the owner.  What must never happen is
that both write to its disks.  So the directory of the disks has a *register* that names one session as theirs, and
every I/O looks at it: a session whose title is not in the register is fenced off, however sure it is of itself.

A session is one run of a machine, from a start or a resume on.  Each has a number that no other ever has, so a title
in the register is never mistaken for an older one that looks like it.  "The higher number wins" would not do: an old
image on the target would then always beat the source that has resumed.  The register is moved by compare-and-swap only.

The register is the file `fence`, one small record, empty until the first swap.  Two locks of the kind of flock(2) on it
order everything, each on a file description of its own:

    shared       held around every I/O, from the look at the register until the I/O is done
    exclusive    held by a swap, from the comparison until the record is on the medium

Invariants:

- Swaps exclude each other on one host: of two with the same expectation one wins, and the other raises `TitleMoved`.
- When a swap has returned, no I/O of an earlier session is under way, and none will be let through.
- The record is written in place, by one write within one sector.  A process killed at any instant leaves the old
  register or the new one, and its locks go with it.

On failure: nobody waits for ever.  A process that is frozen in the middle of an I/O holds its lock, and a swap then
raises `FenceBusy`: whoever wants the disks must see to it that the process dies, since the rest of its I/O would land
when it thaws.  I/O in turn raises `FenceBusy` if a process is frozen in the middle of a swap.  A swap that raises
OSError has written the new register or left the old one: `read` tells which.  A register that cannot be read, or was
removed, lets no I/O through.

None of these errors is an OSError.  Devices answer an OSError of a disk with an I/O error of the guest, which would go
on running; these come out of whatever the machine was doing, and it must stop.

Elsewhere: who may take the disks, and what becomes of a machine that is fenced off, is the business of those who run
machines.  Opening a disk is not fenced (sim_vmm/storage.py), since a machine is made before it becomes an owner.  Where
the flock of a file system does not reach across hosts, only the processes of one host are fenced.
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import attrs
import xxhash

from sim_vmm.integers import U64_MAX

#: What a register is called in the directory of the disks; no disk has this name.
FILE_NAME: Final = "fence"
FIRST_SESSION: Final = 1
OWNER_BYTES_MAX: Final = 128
#: A swap or an I/O that is in the way lasts microseconds, and a flush as long as the medium takes.
WAIT_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.001

MAGIC: Final = b"simfence"
#: Session, generation, machine, bytes of the owner, owner padded with zeros.  Then a checksum: within one sector.
TITLE: Final = struct.Struct("<8sQQ16sB128s")
CHECKSUM_BYTES: Final = 16
RECORD_BYTES: Final = TITLE.size + CHECKSUM_BYTES


@attrs.frozen(kw_only=True)
class Title:
    """Who may use the disks: what the register holds."""

    session: int = attrs.field(validator=[attrs.validators.ge(FIRST_SESSION), attrs.validators.le(U64_MAX)])
    """Rises by one with every start and every resume of a machine on these disks, and is never used again."""
    generation: int = attrs.field(validator=[attrs.validators.ge(0), attrs.validators.le(U64_MAX)])
    """Of the machine's ownership."""
    machine: UUID
    """The `vm_id` of the machine's birth."""
    owner: str = attrs.field()
    """The node, at most 128 bytes in UTF-8; empty when the last machine ended in order and nobody uses the disks."""

    @owner.validator
    def _check_owner(self, _: object, owner: str) -> None:
        length = len(owner.encode())
        if length > OWNER_BYTES_MAX:
            raise ValueError(f"an owner's name of {length} bytes: at most {OWNER_BYTES_MAX}")

    def __str__(self) -> str:
        owner = self.owner or "nobody"
        return f"session {self.session} of machine {self.machine}, generation {self.generation}, owned by {owner}"


class FenceError(Exception):
    """The fence does not let something through."""


@attrs.frozen(str=False)
class TitleMoved(FenceError):
    """A compare-and-swap lost: the register holds something else, and was left so."""

    expected: Title | None
    found: Title | None

    def __str__(self) -> str:
        return f"the register of the disks holds {_name(self.found)}, not {_name(self.expected)}"


@attrs.frozen(str=False)
class FencedOff(FenceError):
    """I/O of a session that is not the register's; nothing was read or written.  The machine must stop."""

    held: Title | None
    found: Title | None

    def __str__(self) -> str:
        return f"I/O as {_name(self.held)} is refused: the disks belong to {_name(self.found)}"


@attrs.frozen(str=False)
class FenceDamaged(FenceError):
    """The register cannot be read; only a person can tell whose the disks are."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"the register {self.path} is damaged: {self.reason}"


@attrs.frozen(str=False)
class FenceBusy(FenceError):
    """Another process has kept its lock for all of `waited_seconds`; nothing has happened.  See the module."""

    path: Path
    waited_seconds: float

    def __str__(self) -> str:
        return f"a process has held a lock of {self.path} for {self.waited_seconds} s: is it frozen?"


class Fence:
    """The register of one directory, as one process uses it; close it.

    I/O goes through `check` from one thread at a time, and not from within another.  A swap may come from any thread.
    """

    def __init__(self, directory: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
        """`directory` exists.  Whoever meets a lock tries again for `wait_seconds`.

        Raises:
            OSError: the file of the register cannot be made or opened.
        """
        self.path: Final = directory / FILE_NAME
        self.wait_seconds: Final = wait_seconds
        self._held: Title | None = None
        self._held_record: bytes | None = None
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._passage: Final = _Passage(self)

    @property
    def held(self) -> Title | None:
        """Under which this process does I/O; None: it may not do any."""
        return self._held

    def read(self) -> Title | None:
        """What the register holds; None if there was no swap yet.

        Raises:
            FenceDamaged, FenceBusy: see the module.
            OSError: the host cannot read it.
        """
        with self._locked(fcntl.LOCK_SH) as file:
            return self._decode(_record_in(file))

    def swap(self, expected: Title | None, new: Title) -> None:
        """Put `new` into the register if it holds `expected`.  It is on the medium when this returns.

        Raises:
            ValueError: the session of `new` is not the next after that of `expected`, or 1 if there is none.
            TitleMoved: the register holds something else.
            FenceDamaged, FenceBusy: see the module.
            OSError: the host cannot write it; the register holds `expected` or `new`.
        """
        session = FIRST_SESSION if expected is None else expected.session + 1
        if new.session != session:
            raise ValueError(f"session {new.session} after {_name(expected)}: it must be {session}")
        self._replace(expected, new)

    def take(self, expected: Title | None, new: Title) -> None:
        """`swap`, and do I/O under `new` from now on.

        Raises:
            ValueError: `new` names no owner; or as `swap`, as all its other errors.  What is held stays as it was.
        """
        if not new.owner:
            raise ValueError("disks are taken by an owner: the title names none")
        self.swap(expected, new)
        self._held, self._held_record = new, _encode(new)

    def hold(self, title: Title | None) -> None:
        """Do I/O under `title`, which this process has taken before with another object of this register."""
        self._held, self._held_record = title, None if title is None else _encode(title)

    def release(self) -> None:
        """The machine has ended in order: nobody uses the disks, if they were still ours.  Nothing is held afterwards.

        Raises:
            FenceDamaged, FenceBusy, OSError: as `swap`; the register may go on naming the title that was held.
        """
        held, self._held, self._held_record = self._held, None, None
        if held is None:
            return
        with suppress(TitleMoved):  # then they are somebody else's, who did not wait for our word
            self._replace(held, attrs.evolve(held, owner=""))

    def check(self) -> AbstractContextManager[None]:
        """To be held around one I/O; on entering it:

        Raises:
            FencedOff: the register does not hold what is `held`, or nothing is.
            FenceDamaged, FenceBusy: see the module.
            OSError: the host cannot read the register.
            ValueError: this fence is closed.
        """
        return self._passage

    def close(self) -> None:
        """No more I/O from here.  The register goes on naming what was held: ending in order is `release`."""
        if self._file < 0:
            return
        os.close(self._file)
        self._file = -1
        self._held = self._held_record = None

    def _replace(self, expected: Title | None, new: Title) -> None:
        with self._locked(fcntl.LOCK_EX) as file:
            found = self._decode(_record_in(file))
            if found != expected:
                raise TitleMoved(expected, found)
            if os.pwrite(file, _encode(new), 0) != RECORD_BYTES:
                raise OSError(errno.EIO, "the register was written in part", str(self.path))
            os.fdatasync(file)
            if expected is None:
                self._make_name_lasting()

    def _make_name_lasting(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self, operation: int) -> Iterator[int]:
        """The register's file, locked, on a description of its own: a lock on the I/O's would end that of the I/O."""
        self._check_open()
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FenceDamaged(self.path, "it was removed") from error
        try:
            self._lock(file, operation)
            if not os.path.sameopenfile(file, self._file):
                raise FenceDamaged(self.path, "it was replaced by another file")
            yield file
        finally:
            os.close(file)

    def _lock(self, file: int, operation: int) -> None:
        """Never blocks in the kernel: flock(2) would wait for a frozen process for ever."""
        deadline: float | None = None
        while True:
            try:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                now = time.monotonic()
                deadline = now + self.wait_seconds if deadline is None else deadline
                if now >= deadline:
                    raise FenceBusy(self.path, self.wait_seconds) from None
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _enter(self) -> None:
        self._check_open()
        self._lock(self._file, fcntl.LOCK_SH)
        try:
            record = _record_in(self._file)
            if record != self._held_record:
                raise FencedOff(self._held, self._decode(record))
            if not os.fstat(self._file).st_nlink:
                raise FenceDamaged(self.path, "it was removed")
        except BaseException:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            raise

    def _leave(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def _check_open(self) -> None:
        if self._file < 0:
            raise ValueError("this fence is closed")

    def _decode(self, record: bytes) -> Title | None:
        if not record:
            return None
        if len(record) != RECORD_BYTES:
            raise FenceDamaged(self.path, f"expected {RECORD_BYTES} bytes")
        if not record.startswith(MAGIC):
            raise FenceDamaged(self.path, "it does not begin as a register does")
        if record[TITLE.size :] != xxhash.xxh3_128_digest(record[: TITLE.size]):
            raise FenceDamaged(self.path, "its checksum is wrong")
        _, session, generation, machine, length, owner = TITLE.unpack_from(record)
        try:
            return Title(
                session=session, generation=generation, machine=UUID(bytes=machine), owner=owner[:length].decode()
            )
        except ValueError as error:
            raise FenceDamaged(self.path, f"it holds no title: {error}") from error


class _Passage:
    """What `Fence.check` gives: an object made once, because a generator for each I/O costs as much as its lock."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence

    def __enter__(self) -> None:
        self._fence._enter()

    def __exit__(self, *_: object) -> None:
        self._fence._leave()


def _record_in(file: int) -> bytes:
    """All of a register's file, or one byte more than a record has."""
    return os.pread(file, RECORD_BYTES + 1, 0)


def _encode(title: Title) -> bytes:
    owner = title.owner.encode()
    fields = TITLE.pack(MAGIC, title.session, title.generation, title.machine.bytes, len(owner), owner)
    return fields + xxhash.xxh3_128_digest(fields)


def _name(title: Title | None) -> str:
    return "nobody" if title is None else str(title)
