"""The command line as tests use it: called in this process, or run as the process that a person would start.

`Command` is a process that is followed by the lines of its standard error, so that a test acts on what it says and
never on how long something takes.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

from migrate.cli.app import run
from migrate.daemon.launching import Child, ForkLauncher, InterpreterLauncher, child_of, lines_of

EXAMPLE: Final = "examples/web-server.json"
MIGRATE: Final = (str(Path(sys.executable).with_name("migrate")),)
"""The installed console script."""
MODULE: Final = (sys.executable, "-m", "migrate")

ENVIRONMENT: Final = dict(os.environ)
"""What a test has not changed."""

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


def start(*arguments: str | Path, program: Sequence[str] | None = None, **environment: str) -> Said:
    """One command line as a process of its own, to its end.

    It is forked from one that has imported everything, unless a test says which program is to be executed, or where.
    """
    return start_within(PATIENCE_S, *arguments, program=program, **environment)


def start_within(
    patience_s: float, *arguments: str | Path, program: Sequence[str] | None = None, **environment: str
) -> Said:
    """The same, for what starts processes of its own."""
    if program is None and not environment:
        with ThreadPoolExecutor(1) as elsewhere:  # for a test that has an event loop
            return elsewhere.submit(trio.run, _forked, patience_s, arguments).result()
    program = MIGRATE if program is None else program
    done = subprocess.run(
        [*program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=os.environ | environment,
        timeout=patience_s,
        check=False,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


async def _forked(patience_s: float, arguments: Sequence[str | Path]) -> Said:
    heard: list[bytes] = [b"", b""]

    async def hear(place: int, stream: trio.abc.ReceiveStream) -> None:
        async for chunk in stream:
            heard[place] += chunk

    async with forked(arguments) as child:
        with trio.move_on_after(patience_s) as patience:
            async with trio.open_nursery() as hearing:
                hearing.start_soon(hear, 0, child.stdout)
                hearing.start_soon(hear, 1, child.stderr)
            code = await child.wait()
        if patience.cancelled_caught:
            child.kill()
            raise AssertionError(f"it did not end within {patience_s:g} s, and has said {heard}")
    return Said(code, *(said.decode() for said in heard))


@asynccontextmanager
async def fork_launcher() -> AsyncIterator[ForkLauncher]:
    """Somebody who starts processes by forking them, which spares each of them its imports."""
    with another_zygote() as asked:
        async with trio.open_nursery() as nursery:
            yield ForkLauncher(nursery, asked)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def forked(arguments: Sequence[str | Path]) -> AsyncIterator[Child]:
    words = list(map(str, arguments))
    async with fork_launcher() as launcher, child_of(launcher, words, silent=True) as child:
        yield child


@asynccontextmanager
async def interpreted(arguments: Sequence[str | Path]) -> AsyncIterator[Child]:
    words = list(map(str, arguments))
    async with trio.open_nursery() as nursery, child_of(InterpreterLauncher(nursery), words, silent=True) as child:
        yield child


def another_zygote() -> socket.socket:
    """For one who starts processes; it ends when the socket is closed."""
    first = zygote_of_this_process()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(first, [b"{}"], [theirs.fileno()])
    while True:
        told, descriptors, _, _ = socket.recv_fds(first, 4096, 1)
        for descriptor in descriptors:
            os.close(descriptor)
        if "status" not in json.loads(told):  # else it is one that has ended
            return ours


@cache
def zygote_of_this_process() -> socket.socket:
    """It ends with this process, which is the only one that has the other end."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(zygote())


@contextmanager
def zygote() -> Iterator[socket.socket]:
    """A zygote, until the block is left; the socket to ask it over.

    It is a new interpreter: a process that tests run in has threads, and cannot be forked.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            command = [sys.executable, "-m", "migrate.cli.zygote", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=ENVIRONMENT)
        with process:
            try:
                yield ours
            finally:
                ours.shutdown(socket.SHUT_RDWR)


@attrs.define
class Command:
    """A running command, by the lines of its standard error."""

    process: Child
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
        async for line in lines_of(self.process.stderr):
            async with self._news:
                self.lines.append(line.decode())
                self._news.notify_all()
        async with self._news:
            self._silent = True
            self._news.notify_all()


@asynccontextmanager
async def running(*arguments: str | Path, executed: bool = False) -> AsyncIterator[Command]:
    """The command as a process that is killed on leaving the block, if it still runs: forked, unless `executed`."""
    async with (interpreted if executed else forked)(arguments) as child, trio.open_nursery() as nursery:
        command = Command(child)
        nursery.start_soon(command.listen)
        nursery.start_soon(drain, child.stdout)
        try:
            yield command
        finally:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()
            nursery.cancel_scope.cancel()


async def drain(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass


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
