"""The state directory as a whole: who holds it, whether its journal can be believed, and what is in it.

One daemon at a time: `lock` is locked for as long as the daemon lives, and the lock goes with it however it dies.

Opening believes nothing.  The journal is read as a whole, checked against its own digest and against the witness, and
only then opened for writing; until then no byte of it is changed, not even by recovery.  If it cannot be believed, the
daemon does not start: a person decides, and `accept_journal` is that person's word.  An accepted journal becomes
another database, with an id of its own, so that the one that it replaces is noticed if it ever comes back.

Making a directory: first `seen`, at transaction 0, then the database, under another name until it is whole.  A process
that is killed in between leaves `seen` at 0 and no database, in which nothing can have been written; it is made then.

Looking changes nothing.  Beside a daemon the database is read as any second reader of SQLite's would; without one a
copy is read, as SQLite could not help but make files beside the original.
"""

import fcntl
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import attrs

from migrate.daemon.state.contents import (
    ATTEMPTS_KEPT,
    Attempt,
    Contents,
    Debt,
    Kept,
    KnownMachine,
    PauseImage,
)
from migrate.daemon.state.database import COMPANIONS, Database, DiskTrouble, create, read_contents, replace_identity
from migrate.daemon.state.errors import JournalDamaged, StateError
from migrate.daemon.state.journal import Committer, DurableJournal, refuse_large
from migrate.daemon.state.witness import Seen, Witness, read_seen, sync_directory, write_seen
from migrate.engine.handoff import Record

LOCK, JOURNAL, SEEN, RAM = "lock", "journal.sqlite", "seen", "ram"
#: Somebody who only looks is gone within this time.
LOCK_TRIES: Final = 50
LOCK_RETRY_SECONDS: Final = 0.01
WAY_OUT: Final = "start with an empty directory, or see `migrate resolve --force-own`"


@cache
def current_boot_id() -> str:
    """Changes with every boot of the host, so never while this process lives."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@attrs.frozen(kw_only=True)
class MachineState:
    """What the node knows of one machine.  `machine` is None if there is only a record; `attempts` counts history."""

    vm_id: UUID
    machine: KnownMachine | None
    record: Record
    highest: int
    image: PauseImage | None
    debts: tuple[Debt, ...]
    attempts: int


class StateDirectory:
    """An open state directory.  What was read from it stays readable without I/O; a daemon's can be written."""

    def __init__(self, path: Path, contents: Contents, held_by: int | None) -> None:
        """Use `open` or `look`."""
        self.path, self.held_by = path, held_by
        self._contents = contents
        self._committer: Committer | None = None
        self._closing: list[Callable[[], None]] = []

    @classmethod
    def open(
        cls, path: Path, *, accept_journal: bool = False, node: str | None = None, ram: Path | None = None
    ) -> Self:
        """For a daemon.  The directory is made if it is missing, readable for its owner only.

        `node` is the id that a new directory is given; one of its own if None.  With `ram`, files of guest RAM lie in a
        directory of its own below that one, for good: in memory, if it is such a file system.

        With `accept_journal` a journal that cannot be believed is used all the same if it is whole, and otherwise moved
        aside for one in which no machine is known; the node keeps its id if it can be read anywhere.

        Raises:
            JournalDamaged: the journal cannot be believed.
            StateError: another daemon holds it, or the host cannot give what is needed.
        """
        path = path.absolute()
        with _host(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _taken_lock(path)
        try:
            with _host(path):
                _place_ram(path, ram)
                contents = _believed(path, accept_journal=accept_journal, node=node)
                witness = Witness(path / SEEN)
            try:
                database = Database(path / JOURNAL, contents, witness)
            except BaseException:
                witness.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        directory = cls(path, contents, held_by=os.getpid())
        directory._committer = Committer(database)
        directory._closing = [database.close, witness.close, lambda: _released(lock)]
        return directory

    @classmethod
    def look(cls, path: Path) -> Self:
        """As it is at this moment, also while a daemon holds it; nothing is created or changed.

        Raises:
            JournalDamaged: the journal cannot be believed.
            StateError: there is no state directory, or the host cannot read it.
        """
        path = path.absolute()
        if not (path / SEEN).exists() and not (path / JOURNAL).exists():
            raise StateError(f"{path} is not a state directory: no daemon has kept its state there")
        with _host(path), _readable(path) as (journal, held_by):
            seen = read_seen(path / SEEN)  # before the database, which a daemon may be moving on
            return cls(path, _checked(path, seen, journal), held_by)

    @property
    def node(self) -> str:
        """The node's id, given once."""
        return self._now.node

    @property
    def on_point(self) -> Callable[[str], None] | None:
        """Is told "before X" and "after X" around every X that is made durable: "write O", "new generation", ..."""
        return self._writing.on_point

    @on_point.setter
    def on_point(self, visit: Callable[[str], None] | None) -> None:
        self._writing.on_point = visit

    def meet(self, trouble: DiskTrouble) -> None:
        """The next change of the journal finds its disk so."""
        self._writing.database.trouble = trouble

    def machines(self) -> tuple[MachineState, ...]:
        """All that there is a record of, by name."""
        states = map(self._state, self._now.machines.values())
        return tuple(sorted(states, key=lambda state: (state.machine.name if state.machine else "", state.vm_id)))

    def machine(self, vm_id: UUID) -> MachineState | None:
        """None if nothing is known of it."""
        kept = self._now.machines.get(vm_id)
        return None if kept is None else self._state(kept)

    def journal(self, vm_id: UUID) -> DurableJournal:
        """Of any machine; one that is unknown has never been owned here."""
        return DurableJournal(self._writing, vm_id)

    async def birth(self, machine: KnownMachine, record: Record) -> DurableJournal:
        """Note a machine together with its first record.

        Raises:
            JournalFailed, StateError: as `DurableJournal.write`.
        """
        journal = self.journal(machine.vm_id)
        await journal.write_as("birth", record, machine=machine)
        return journal

    async def note_attempt(
        self,
        vm_id: UUID,
        *,
        side: str,
        outcome: str,
        phase: str,
        generation: int,
        peer: str,
        error: str | None,
        at: int,
    ) -> None:
        """Add to the machine's history, which keeps the last 1000; `at` is wall time in ns.

        Raises:
            JournalFailed, StateError: as `DurableJournal.write`.
        """
        refuse_large(generation)

        def noted(contents: Contents) -> Contents:
            before = contents.attempts.get(vm_id, ())
            attempt = Attempt(
                number=before[-1].number + 1 if before else 1,
                side=side,
                outcome=outcome,
                phase=phase,
                generation=generation,
                peer=peer,
                error=error,
                at=at,
            )
            kept = (*before, attempt)[-ATTEMPTS_KEPT:]
            return attrs.evolve(contents, attempts={**contents.attempts, vm_id: kept})

        await self._writing.commit("note attempt", noted)

    def history(self, vm_id: UUID) -> tuple[Attempt, ...]:
        """The last attempts, oldest first."""
        return self._now.attempts.get(vm_id, ())

    async def set_fact(self, name: str, value: str) -> None:
        """Keep something small about the node itself, as the address at which it listens.

        Raises:
            JournalFailed, StateError: as `DurableJournal.write`.
        """
        await self._writing.commit(
            "set fact", lambda contents: attrs.evolve(contents, facts={**contents.facts, name: value})
        )

    def fact(self, name: str) -> str | None:
        return self._now.facts.get(name)

    def ram_path(self, vm_id: UUID) -> Path:
        """A path for a RAM file, never given before; nothing is there yet."""
        return self.path / RAM / f"{vm_id}-{secrets.token_hex(8)}"

    def forget_unused_ram(self, in_use: Collection[Path]) -> None:
        """Delete every RAM file that is neither in `in_use` nor part of an image in the journal.

        Raises:
            OSError: the host refuses.
        """
        names = {path.name for path in in_use}
        names |= {kept.image.ram for kept in self._now.machines.values() if kept.image is not None}
        for file in (self.path / RAM).iterdir():
            if file.name not in names:
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the directory; no write may be under way."""
        self._contents, self._committer = self._now, None
        closing, self._closing = self._closing, []
        for close in closing:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _now(self) -> Contents:
        return self._contents if self._committer is None else self._committer.database.contents

    @property
    def _writing(self) -> Committer:
        assert self._committer is not None, f"{self.path} is not open for writing"
        return self._committer

    def _state(self, kept: Kept) -> MachineState:
        return MachineState(
            vm_id=kept.vm_id,
            machine=kept.machine,
            record=kept.record,
            highest=kept.highest,
            image=kept.image,
            debts=kept.debts,
            attempts=len(self.history(kept.vm_id)),
        )


# Where guest RAM lies


def _place_ram(path: Path, ram: Path | None) -> None:
    """Raises StateError if files of guest RAM are elsewhere already."""
    place = path / RAM
    if place.is_symlink():  # what it leads to may have gone with the host's memory
        there = place.resolve()
        there.mkdir(mode=0o700, exist_ok=True)
        if ram is not None and there.parent != ram.resolve():
            raise StateError(f"guest RAM of {path} is in {there} already; start without --ram-dir")
    elif ram is None:
        place.mkdir(mode=0o700, exist_ok=True)
    elif place.exists():
        raise StateError(f"guest RAM of {path} is in {place} already; start without --ram-dir")
    else:
        place.symlink_to(mkdtemp(prefix=f"migrate-ram-{path.name}-", dir=ram.resolve(strict=True)))


# Who holds it


def _taken_lock(path: Path) -> int:
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for tries_left in reversed(range(LOCK_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise StateError(
                        f"another daemon holds {path}: process {_pid(descriptor) or 'unknown'}; stop it, or give this "
                        "one a directory of its own"
                    ) from None
                time.sleep(LOCK_RETRY_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _released(lock: int) -> None:
    with suppress(OSError):
        os.ftruncate(lock, 0)
    os.close(lock)


def _pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


@contextmanager
def _readable(path: Path) -> Iterator[tuple[Path, int | None]]:
    """The journal to read from, and who holds the directory.  No daemon starts while a copy is being made."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = None
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path / JOURNAL, _pid(descriptor)
                return
        with tempfile.TemporaryDirectory() as copy:
            for companion in ("", "-wal"):
                with suppress(FileNotFoundError):
                    shutil.copy(path / (JOURNAL + companion), copy)
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            yield Path(copy) / JOURNAL, None
    finally:
        if descriptor is not None:
            os.close(descriptor)


# Whether the journal can be believed


def _believed(path: Path, *, accept_journal: bool, node: str | None) -> Contents:
    """What the journal says; a new directory's says nothing yet."""
    try:
        seen = read_seen(path / SEEN)
        missing = not (path / JOURNAL).exists()
        if seen is None and missing and not (path / f"{JOURNAL}-wal").exists():
            seen = Seen(secrets.token_bytes(16), 0, node or _new_node())
            write_seen(path / SEEN, seen)
            sync_directory(path.parent)
        if seen is not None and seen.sequence == 0 and missing:
            create(path / JOURNAL, _nothing_yet(seen))
        return _checked(path, seen, path / JOURNAL)
    except JournalDamaged:
        if not accept_journal:
            raise
        return _accepted(path)


def _checked(path: Path, seen: Seen | None, journal: Path) -> Contents:
    """What `journal` says, which is that of `path` or a copy, if it is whole and as new as what was seen."""
    if not journal.exists():
        told = "there is none" if seen is None else f"{seen.sequence} transactions were seen of it"
        raise JournalDamaged(f"{path / JOURNAL} is gone, and {told}: put nothing older in its place; {WAY_OUT}")
    try:
        contents = read_contents(journal)
    except JournalDamaged as error:
        text = str(error).replace(str(journal), str(path / JOURNAL))
        raise JournalDamaged(f"{text}; put nothing older in its place; {WAY_OUT}") from error
    if seen is None:
        raise JournalDamaged(
            f"{path / SEEN} is gone, and nothing else tells whether the journal at {contents.sequence} is the last "
            f"one: {WAY_OUT}"
        )
    if contents.database_id != seen.database_id:
        raise JournalDamaged(
            f"{path / JOURNAL} is another journal ({contents.database_id.hex()[:8]} at {contents.sequence}) than was "
            f"seen here ({seen.database_id.hex()[:8]} at {seen.sequence}): put the right one back, or {WAY_OUT}"
        )
    if contents.sequence < seen.sequence:
        raise JournalDamaged(
            f"the journal {path / JOURNAL} went backwards: it says {contents.sequence} where {seen.sequence} was seen, "
            f"so it knows less than this node has said and done; restore nothing over it; {WAY_OUT}"
        )
    return contents


def _accepted(path: Path) -> Contents:
    """A person's word that this journal, or none, is to be used."""
    journal, seen, found = path / JOURNAL, None, None
    with suppress(JournalDamaged):
        seen = read_seen(path / SEEN)
    if journal.exists():
        with suppress(JournalDamaged):
            found = read_contents(journal)
    if found is not None:
        sequence = max(found.sequence, 0 if seen is None else seen.sequence) + 1
        accepted = attrs.evolve(found, database_id=secrets.token_bytes(16), sequence=sequence)
        replace_identity(journal, found, accepted)
        write_seen(path / SEEN, Seen(accepted.database_id, accepted.sequence, accepted.node))
        return accepted
    _move_aside(journal)
    fresh = Seen(secrets.token_bytes(16), 0, _new_node() if seen is None else seen.node)
    write_seen(path / SEEN, fresh)
    create(journal, _nothing_yet(fresh))
    return _nothing_yet(fresh)


def _move_aside(journal: Path) -> None:
    number = 1
    while any(journal.with_name(f"{JOURNAL}.damaged-{number}{companion}").exists() for companion in COMPANIONS):
        number += 1
    for companion in COMPANIONS:
        with suppress(FileNotFoundError):
            journal.with_name(JOURNAL + companion).rename(journal.with_name(f"{JOURNAL}.damaged-{number}{companion}"))


def _nothing_yet(seen: Seen) -> Contents:
    return Contents(database_id=seen.database_id, node=seen.node, sequence=seen.sequence)


def _new_node() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "node"
    return f"{host}-{secrets.token_hex(8)}"


@contextmanager
def _host(path: Path) -> Iterator[None]:
    """What the host refuses, as one line."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise StateError(f"{path} cannot hold the state: {error.filename} is not a directory; give another") from error
    except OSError as error:
        where = error.filename if error.filename is not None else path
        raise StateError(
            f"{path} cannot hold the state: {where}: {error.strerror}; put that right, or give another directory"
        ) from error
