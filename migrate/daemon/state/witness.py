"""The witness: how far the journal had come, so that a journal that went backwards is noticed.

After every commit the number of the transaction is written into the file `seen`, beside the random id of the database.
A database that is behind it is an older copy, or has lost its tail, or was torn; another id is another database; and a
database without `seen`, or the other way round, has lost its other half.  All of these would make a node answer from
a record that it has outlived, which is how a machine comes to run twice.

`seen` is one line of fixed length with a checksum of its own, written in place in one piece, after the commit that it
tells of.  So `seen` is never ahead of a database that is whole, and a process that is killed between the two leaves a
database that is ahead by one, which is fine.  The line is not synced each time: kill -9 loses nothing that was written
to a file, and a loss of power may leave an older line, which notices less and accuses nobody falsely.

Not noticed: a directory of which all files together went back to an older copy.  Nothing in the directory can tell.
The peers can, and the fence of a shared storage.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import xxhash

from migrate.daemon.state.errors import JournalDamaged

#: Within one sector of any medium.
LINE_BYTES: Final = 256
_LINE: Final = re.compile(r"migrate-seen 1 ([0-9a-f]{32}) (\d{1,20}) ([A-Za-z0-9._-]+) ", re.ASCII)


@attrs.frozen
class Seen:
    """Transaction `sequence` of the database `database_id` was committed; `node` is the node's id."""

    database_id: bytes
    sequence: int
    node: str

    def line(self) -> bytes:
        facts = f"migrate-seen 1 {self.database_id.hex()} {self.sequence} {self.node}"
        return f"{facts} {_checksum(facts)}".ljust(LINE_BYTES - 1).encode("ascii") + b"\n"


def read_seen(path: Path) -> Seen | None:
    """What was seen last; None if there is no such file.

    Raises:
        JournalDamaged: the file is not one that was written here.
        OSError: the host cannot read it.
    """
    try:
        line = path.read_bytes()
    except FileNotFoundError:
        return None
    match = _LINE.match(line.decode("latin-1"))
    seen = None if match is None else Seen(bytes.fromhex(match[1]), int(match[2]), match[3])
    if seen is None or seen.line() != line:
        raise JournalDamaged(
            f"{path} is damaged, and nothing else tells whether the journal beside it is the last one: keep both, and "
            "start with an empty directory, or see `migrate resolve --force-own`"
        )
    return seen


def write_seen(path: Path, seen: Seen) -> None:
    """Replace the file as a whole, durably: for the first line and for a new database.

    Raises:
        OSError: the host cannot; the file is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(seen.line())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Witness:
    """The open file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def note(self, seen: Seen) -> None:
        """Write `seen` in place.  A host that cannot makes the witness weaker by this, and no record less durable."""
        with suppress(OSError):
            os.pwrite(self._descriptor, seen.line(), 0)

    def close(self) -> None:
        os.close(self._descriptor)


def _checksum(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode("latin-1"))
