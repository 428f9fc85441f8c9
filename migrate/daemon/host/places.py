"""The state directory of a host, which holds those of its machines.

    lock, journal.sqlite, seen, ram/    the host's own, as of any node: its name, and where it listens
    machines/VM_ID/                     the state directory of each machine that is here, in doubt, or to be told of
    departed/VM_ID/                     of those that were here: their records keep old images from ever running again
    ids/DIGEST                          a file for each migration id that was used here

A restart looks at `machines` only, so it takes as long as there are machines, however many have passed through.  A
machine that comes back moves back.  Moving is one rename: a process that dies before it finds a machine that is settled
in `machines`, and moves it then.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import UUID

import attrs
import trio

from migrate.daemon.address import BadInput
from migrate.daemon.invitation import USED, digest_of_id
from migrate.daemon.state import StateDirectory, StateError
from migrate.daemon.state.witness import sync_directory
from migrate.errors import JournalFailed, MigrationError

MACHINES, DEPARTED, IDS = "machines", "departed", "ids"


class NotKept(MigrationError):
    """What must be remembered of a machine cannot be kept here."""


@attrs.define
class HostPlaces:
    """An open state directory of a host.  `own` is what is the host's own in it."""

    path: Path
    own: StateDirectory

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises BadInput: it cannot be used, or is that of a daemon with one machine."""
        try:
            own = StateDirectory.open(path)
        except StateError as error:
            raise BadInput(str(error)) from error
        places = cls(own.path, own)
        try:
            if own.machines():
                raise BadInput(
                    f"{path} holds the machine of a daemon with one machine; give the host another directory"
                )
            for directory in (MACHINES, DEPARTED, IDS):
                (own.path / directory).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            own.close()
            raise BadInput(f"{path} cannot hold the state: {error.filename}: {error.strerror}") from error
        except BaseException:
            own.close()
            raise
        return places

    def found(self) -> Iterator[UUID]:
        """The machines that were here when the host ended, in order of their ids."""
        for entry in sorted((self.path / MACHINES).iterdir()):
            with suppress(ValueError):
                yield UUID(entry.name)

    async def open_machine(self, vm_id: UUID) -> StateDirectory:
        """Of a machine that is here, comes, or comes back.

        Raises:
            NotKept: the host cannot, or what is there cannot be believed.
        """
        try:
            return await trio.to_thread.run_sync(self._open, vm_id)
        except (StateError, OSError) as error:
            raise NotKept(str(error)) from error

    def _open(self, vm_id: UUID) -> StateDirectory:
        path, departed = self.path / MACHINES / str(vm_id), self.path / DEPARTED / str(vm_id)
        if departed.exists() and not path.exists():
            departed.rename(path)
        state = StateDirectory.open(path, node=self.own.node)
        if state.node != self.own.node:
            state.close()
            raise StateError(f"{path} is of node {state.node}, and this host is {self.own.node}: put it back there")
        return state

    async def open_departed(self, vm_id: UUID) -> StateDirectory | None:
        """What is remembered of a machine that was here; None if it never was."""
        if not (self.path / DEPARTED / str(vm_id)).exists():
            return None
        return await self.open_machine(vm_id)

    def depart(self, vm_id: UUID) -> None:
        """Its directory is closed, and nothing in it is in doubt.  What the host refuses is done by its next start."""
        with suppress(OSError):
            (self.path / MACHINES / str(vm_id)).rename(self.path / DEPARTED / str(vm_id))

    def ids(self) -> "IdFiles":
        return IdFiles(self.path / IDS)


@attrs.define
class IdFiles:
    """See `migrate.daemon.invitation.KnownIds`: a file for each, so that none costs more than the first."""

    directory: Path

    def __contains__(self, migration: UUID) -> bool:
        return (self.directory / digest_of_id(migration)).exists()

    async def note(self, migration: UUID, what: str) -> None:
        """Raises JournalFailed."""
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._note, self.directory / digest_of_id(migration), what)
        except OSError as error:
            raise JournalFailed(f"{self.directory}: {error.strerror}: the migration id cannot be noted") from error

    def _note(self, file: Path, what: str) -> None:
        if what == USED:
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        else:
            file.unlink(missing_ok=True)
        sync_directory(self.directory)
