"""The journal as a SQLite database: one writer, each transaction durable when it is over.

Write-ahead log, `synchronous=FULL`: a commit is one append and one sync.  Everything in the database is in memory too
(`contents`), so that nothing but a commit waits for the disk.

A failed commit is the hard part.  SQLite says "failed", and goes on as if nothing had been written; but if all of the
bytes reached the log and only the sync failed, a restart would find the *new* record.  What counts is what a restart
would find, so that is looked up: the connection is closed, and the database opened again as after a crash, from its
files alone (with locking mode EXCLUSIVE, which needs no `-shm` file, for which a full disk would have no room).

- The old contents are there: `JournalFailed`; nothing happened.
- The new ones are there: the old ones are written back, and then the same.  Only the highest generation is kept.
- They cannot be written back: the new ones count, and the commit did succeed after all.
- The database cannot be read any more: nobody knows.  That is a `StateError`, now and for every later commit, and
  the daemon must stop: going on as if either were true could make a machine run twice.

After that a checkpoint must move the log into the database before anything else is written: frames that follow one
which was never synced would be lost with it.  Until it succeeds every commit is a `JournalFailed`.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import attrs

from migrate.daemon.state.contents import (
    OF_MACHINE,
    SCHEMA,
    Attempt,
    Contents,
    Kept,
    Row,
    Statement,
    creation,
    differences,
    digest_of,
    fingerprint_of_rows,
)
from migrate.daemon.state.errors import JournalDamaged, StateError
from migrate.daemon.state.witness import Seen, Witness, sync_directory
from migrate.errors import JournalFailed

LAYOUT: Final = 1
#: A reader of `migrate status` is done in milliseconds.
BUSY_SECONDS: Final = 5.0
#: Errors that speak of the bytes in the file.  All others speak of the host.
DAMAGE: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
)
#: More than the records and images of a few migrations.
LOG_BYTES: Final = 512 << 10
ROOM: Final = 64
#: The files that SQLite has beside a database.
COMPANIONS: Final = ("", "-wal", "-shm", "-journal")


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """`mode` is that of SQLite's URIs: "ro", "rw" or "rwc"."""
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS
    )


def read_contents(path: Path) -> Contents:
    """Everything that is in the database, none of which is changed.

    Raises:
        JournalDamaged: it is not a database of ours, or not whole.
        StateError: a newer build wrote it, or the host cannot read it.
    """
    # An empty or cut file is to SQLite a new database, and the log beside it of no more use: it would delete it.
    try:
        if path.stat().st_size < 512:
            raise JournalDamaged(f"{path} is damaged: it has {path.stat().st_size} bytes")
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror}") from error
    with _explaining(path), closing(connect(path, "ro")) as connection:
        return _load(connection, path)


def create(path: Path, contents: Contents) -> None:
    """A new database that holds `contents`, which has no machines; `path` appears when it is whole.

    Raises:
        StateError: the host cannot.
    """
    new = path.with_name(f"{path.name}.new")
    for companion in COMPANIONS:
        new.with_name(new.name + companion).unlink(missing_ok=True)
    with _explaining(path):
        with closing(connect(new, "rwc")) as connection:
            _prepare(connection)
            _transact(connection, [*creation(contents), (f"PRAGMA user_version = {LAYOUT}", ())])
        descriptor = os.open(new, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
        sync_directory(path.parent)


def replace_identity(path: Path, contents: Contents, new: Contents) -> None:
    """Make the database that holds `contents` another one, that of `new`.

    Raises:
        StateError: the host cannot.
    """
    with _explaining(path), closing(connect(path, "rw")) as connection:
        _prepare(connection)
        _transact(connection, differences(contents, new))


class DiskTrouble(StrEnum):
    """What may be made to happen to a commit, for rehearsals of it."""

    FULL = "disk full"
    SYNC = "sync error"
    """All bytes were written, and could not be synced."""


class Database:
    """The open journal.  `commit` is for one thread at a time; `contents` may be read by any.

    `trouble` is what the next commit is to meet.
    """

    contents: Contents
    trouble: DiskTrouble | None = None

    def __init__(self, path: Path, contents: Contents, witness: Witness) -> None:
        """Open `path`, which holds `contents`.

        Raises:
            StateError: the host cannot.
        """
        self._path, self._witness = path, witness
        self.contents = contents
        self._in_doubt: StateError | None = None
        with _explaining(path):
            self._connection: sqlite3.Connection | None = self._opened()
        self._note()

    def commit(self, change: Callable[[Contents], Contents]) -> Contents:
        """Write what `change` makes of the contents, whole or not at all; return it when it is durable.

        Raises:
            JournalFailed: it was not written, and what there was before stands.
            StateError: nobody knows whether it was written; the daemon must stop.
        """
        if self._in_doubt is not None:
            raise StateError(*self._in_doubt.args)
        old, (trouble, self.trouble) = self.contents, (self.trouble, None)
        new = attrs.evolve(change(old), sequence=old.sequence + 1)
        try:
            if self._connection is None:
                self._connection = self._opened()
            _transact(self._connection, differences(old, new), trouble)
            self.contents = new
        except _CommitFailed as failed:
            self.contents = self._after_failed_commit(old, new)
            if self.contents.sequence != new.sequence:
                raise self._failure(failed.error) from failed.error
        except sqlite3.Error as error:  # before the commit: nothing was written
            if _code(error) != sqlite3.SQLITE_FULL:  # whatever ails the connection ends with it
                self._close()
            raise self._failure(error) from error
        finally:
            self._note()
        return self.contents

    def close(self) -> None:
        self._close()

    def _opened(self) -> sqlite3.Connection:
        connection = connect(self._path, "rw")
        try:
            _prepare(connection)
            _checkpoint(connection)
            _give_blocks(self._path.with_name(f"{self._path.name}-wal"))
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _note(self) -> None:
        self._witness.note(Seen(self.contents.database_id, self.contents.sequence, self.contents.node))

    def _failure(self, error: sqlite3.Error) -> JournalFailed:
        return JournalFailed(f"{self._path}: {error}: nothing was written, and the record before it stands")

    def _after_failed_commit(self, old: Contents, new: Contents) -> Contents:
        """What a restart would find: `old`, or `old` written back over `new`, or `new`."""
        self._close()
        found = self._found_after_crash()
        if found.sequence == new.sequence:
            back = _written_back(old, found)
            with suppress(sqlite3.Error, _CommitFailed), closing(self._as_after_crash()) as connection:
                _transact(connection, differences(found, back))
            found = self._found_after_crash()
        with suppress(sqlite3.Error):  # the next commit tries again
            self._connection = self._opened()
        return found

    def _found_after_crash(self) -> Contents:
        try:
            with closing(self._as_after_crash()) as connection:
                return _load(connection, self._path)
        except (sqlite3.Error, JournalDamaged) as error:
            self._in_doubt = StateError(
                f"{self._path}: {error}: whether the last record was written cannot be told; stop this daemon, and "
                "start it again when the disk is well"
            )
            raise self._in_doubt from error

    def _as_after_crash(self) -> sqlite3.Connection:
        connection = connect(self._path, "rw")
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection


class _CommitFailed(Exception):
    """What was to be committed may have been written nevertheless."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.error = error


def _transact(
    connection: sqlite3.Connection, statements: Iterable[Statement], trouble: DiskTrouble | None = None
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement, values in statements:
            connection.execute(statement, values)
        if trouble is DiskTrouble.FULL:
            raise _trouble(sqlite3.SQLITE_FULL, "database or disk is full")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.rollback()
        raise
    try:
        connection.execute("COMMIT")
        if trouble is DiskTrouble.SYNC:
            raise _trouble(sqlite3.SQLITE_IOERR, "disk I/O error")
    except sqlite3.Error as error:
        raise _CommitFailed(error) from error


def _trouble(code: int, message: str) -> sqlite3.OperationalError:
    """As SQLite would raise it."""
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def _prepare(connection: sqlite3.Connection) -> None:
    ((mode,),) = connection.execute("PRAGMA journal_mode = WAL").fetchall()
    if mode != "wal":
        raise sqlite3.OperationalError(f"the file system takes no write-ahead log, only {mode!r}")
    connection.execute("PRAGMA synchronous = FULL").fetchall()
    connection.execute("PRAGMA secure_delete = OFF").fetchall()  # an image that goes need not be wiped in the blackout


def _checkpoint(connection: sqlite3.Connection) -> None:
    ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if busy:
        raise sqlite3.OperationalError("a reader is in the way")


def _give_blocks(log: Path) -> None:
    """An empty log gets its blocks now, so that a commit in the blackout syncs data only, and no length.

    SQLite takes zeros, as frames of an earlier round, for the end of the log.
    """
    with suppress(OSError), log.open("r+b", buffering=0) as file:
        free = os.fstatvfs(file.fileno())
        has_room = free.f_bavail * free.f_frsize >= LOG_BYTES * ROOM  # a disk that is nearly full keeps its blocks
        if has_room and file.seek(0, os.SEEK_END) == 0:
            file.write(bytes(LOG_BYTES))
            os.fsync(file.fileno())


def _written_back(old: Contents, found: Contents) -> Contents:
    """`old`, to be written over `found`.  A generation that may have been used stays used."""
    machines = {
        vm_id: attrs.evolve(old.kept(vm_id), highest=max(old.kept(vm_id).highest, kept.highest))
        for vm_id, kept in found.machines.items()
    }
    return attrs.evolve(found, sequence=found.sequence + 1, machines=machines)


def _load(connection: sqlite3.Connection, path: Path) -> Contents:
    connection.execute("BEGIN")
    ((layout,),) = connection.execute("PRAGMA user_version").fetchall()
    if layout > LAYOUT:
        raise StateError(
            f"{path} was written by a newer build (layout {layout}, this one knows {LAYOUT}): run that build, or start "
            "with an empty directory"
        )
    tables = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    if layout != LAYOUT or tables != list(SCHEMA.values()):
        raise JournalDamaged(f"{path} is not a journal of ours")
    if (complaints := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
        raise JournalDamaged(f"{path} is damaged: {' '.join(str(complaints[0][0]).split())}")
    rows: dict[str, list[Any]] = {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() for table in SCHEMA
    }
    connection.execute("END")
    try:
        return _contents(rows)
    except (TypeError, ValueError) as error:
        raise JournalDamaged(f"{path} is damaged: its rows are not those of one transaction") from error


def _contents(rows: dict[str, list[Any]]) -> Contents:
    """ValueError if the digest does not match."""
    ((_, database_id, node, sequence, digest),) = rows["directory"]
    machines: dict[bytes, dict[str, list[Row]]] = {}
    for table in OF_MACHINE:
        for row in rows[table]:
            machines.setdefault(row[0], {table: [] for table in OF_MACHINE})[table].append(row)
    if digest != digest_of(database_id, node, sequence, rows["facts"], map(fingerprint_of_rows, machines.values())):
        raise ValueError("the digest does not match")
    attempts: dict[UUID, list[Attempt]] = {}
    for key, *values in rows["attempts"]:
        attempts.setdefault(UUID(bytes=key), []).append(Attempt(**dict(zip(_ATTEMPT, values, strict=True))))
    kept = (
        Kept.from_rows(UUID(bytes=key), {table: tuple(of_table) for table, of_table in of_machine.items()})
        for key, of_machine in machines.items()
    )
    return Contents(
        database_id=database_id,
        node=node,
        sequence=sequence,
        machines={one.vm_id: one for one in kept},
        facts=dict(rows["facts"]),
        attempts={vm_id: tuple(of_machine) for vm_id, of_machine in attempts.items()},
    )


_ATTEMPT: Final = tuple(field.name for field in attrs.fields(Attempt))


def _code(error: sqlite3.Error) -> int:
    """Without its extension; an error of the module itself has none, and is as good as one of the host."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except (sqlite3.Error, _CommitFailed) as caught:
        error = caught.error if isinstance(caught, _CommitFailed) else caught
        if _code(error) in DAMAGE:
            raise JournalDamaged(f"{path} is damaged: {error}") from error
        raise StateError(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise StateError(f"{path} cannot be used: {error.strerror}") from error
