"""The command line as tests use it: called in this process, or run as the process that a person would start.

`Command` is a process that is followed by the lines of its standard error, so that a test acts on what it says and
never on how long something takes.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

from migrate.cli.app import run
from migrate.daemon.pair import lines_of

EXAMPLE: Final = "examples/web-server.json"
MIGRATE: Final = (str(Path(sys.executable).with_name("migrate")),)
"""The installed console script."""
MODULE: Final = (sys.executable, "-m", "migrate")

PATIENCE_S: Final = 30
"""No test waits that long unless it fails."""


@attrs.frozen
class Said:
    """How a command ended, and everything it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output; anything beside it is an error."""
        return json.loads(self.out)

    @property
    def complaint(self) -> str:
        """The only line on standard error."""
        (line,) = self.err.splitlines()
        return line


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Said:
    """One command line in this process: fast, and the same code."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Said(code, captured.out, captured.err)


def start(*arguments: str | Path, program: Sequence[str] = MIGRATE, **environment: str) -> Said:
    """One command line as a process of its own, to its end."""
    return start_within(PATIENCE_S, *arguments, program=program, **environment)


def start_within(
    patience_s: float, *arguments: str | Path, program: Sequence[str] = MIGRATE, **environment: str
) -> Said:
    """The same, for what starts processes of its own."""
    done = subprocess.run(
        [*program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | environment,
        timeout=patience_s,
        check=False,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@attrs.define
class Command:
    """A running command, by the lines of its standard error."""

    process: trio.Process
    lines: list[str] = attrs.field(factory=list)
    _news: trio.Condition = attrs.field(factory=trio.Condition)
    _silent: bool = False

    async def says(self, words: str) -> str:
        """The first line with these words in it, once it has been said."""
        with trio.fail_after(PATIENCE_S):
            async with self._news:
                while not (found := [line for line in self.lines if words in line]):
                    assert not self._silent, f"it ended without {words!r}: {self.lines}"
                    await self._news.wait()
        return found[0]

    async def ends(self) -> int:
        """The exit code, after its last line has been read."""
        with trio.fail_after(PATIENCE_S):
            async with self._news:
                while not self._silent:
                    await self._news.wait()
            return await self.process.wait()

    async def listen(self) -> None:
        assert self.process.stderr is not None
        async for line in lines_of(self.process.stderr):
            async with self._news:
                self.lines.append(line.decode())
                self._news.notify_all()
        async with self._news:
            self._silent = True
            self._news.notify_all()


@asynccontextmanager
async def running(*arguments: str | Path) -> AsyncIterator[Command]:
    """The command as a process that is killed on leaving the block, if it still runs."""
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*MIGRATE, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        command = Command(process)
        nursery.start_soon(command.listen)
        try:
            yield command
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


def processes_with(name: str, value: str) -> list[int]:
    """Processes that were started with this environment variable, by us or by one that we started."""
    wanted = f"{name}={value}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:  # gone, or somebody else's
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(process.name))
    return found


async def end_of(pid: int) -> None:
    """Return when a process that need not be our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(PATIENCE_S):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
