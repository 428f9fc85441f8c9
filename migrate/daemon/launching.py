"""Processes that carry out command lines of ours.

Who makes them is a `Launcher`: one starts an interpreter, the other has a process forked that has imported everything
already, which takes a tenth of the time.
"""

import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol, Self

import attrs
import trio

MESSAGE_BYTES_MAX: Final = 4096


@attrs.frozen
class Born:
    """A new process; whoever gets it closes `pidfd`."""

    pid: int
    pidfd: int


class Launcher(Protocol):
    """Makes processes that carry out command lines of ours."""

    async def launch(
        self, arguments: Sequence[str], descriptors: Sequence[int], note_status: Callable[[int], None]
    ) -> Born:
        """A process with these arguments and standard input, output and error.

        `note_status` is told, as by waitpid(2), whenever it stops, goes on, or ends; not before this has returned.
        """


Launching = Callable[[trio.Nursery], Launcher]
"""A launcher that may have tasks in this nursery."""


@attrs.define(eq=False)
class InterpreterLauncher:
    """Starts `python -m migrate`.  `nursery` lasts as long as what it has started, whoever cancels it."""

    nursery: trio.Nursery

    async def launch(
        self, arguments: Sequence[str], descriptors: Sequence[int], note_status: Callable[[int], None]
    ) -> Born:
        stdin, stdout, stderr = descriptors
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "migrate", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
        self.nursery.start_soon(self._wait, process, note_status)
        return Born(process.pid, os.pidfd_open(process.pid))

    async def _wait(self, process: trio.Process, note_status: Callable[[int], None]) -> None:
        with trio.CancelScope(shield=True):
            code = await process.wait()
        note_status(-code if code < 0 else code << 8)


@attrs.define(eq=False)
class ForkLauncher:
    """Has a zygote fork (`migrate.cli.zygote`), which is asked over a socket.

    It is listened to in `nursery`, which lasts as long as what was forked, whoever cancels it: whoever ends a process
    waits to hear that it has ended.
    """

    nursery: trio.Nursery
    asked: socket.socket
    _pids: list[tuple[int, int]] = attrs.field(factory=list)
    _notes: dict[int, Callable[[int], None]] = attrs.field(factory=dict)
    _early: dict[int, list[int]] = attrs.field(factory=dict)
    _living: set[int] = attrs.field(factory=set)
    _news: trio.Event = attrs.field(factory=trio.Event)
    _turn: trio.Lock = attrs.field(factory=trio.Lock)
    _listening: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self.nursery.start_soon(self._listen)

    @trio.lowlevel.enable_ki_protection
    async def _listen(self) -> None:
        with self._listening:
            while True:
                await trio.lowlevel.wait_readable(self.asked)
                message, descriptors, _, _ = socket.recv_fds(self.asked, MESSAGE_BYTES_MAX, 1)
                if not message:
                    raise RuntimeError("the process that forks others has ended")
                told = json.loads(message)
                if "status" in told:
                    self._note_status(told["pid"], told["status"])
                else:
                    self._pids.append((told["pid"], descriptors[0]))
                    self._living.add(told["pid"])
                    self._news.set()

    def _note_status(self, pid: int, status: int) -> None:
        if not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            self._living.discard(pid)
            self._listening.shield = bool(self._living)
        if pid in self._notes:
            self._notes[pid](status)
        else:
            self._early.setdefault(pid, []).append(status)

    async def launch(
        self, arguments: Sequence[str], descriptors: Sequence[int], note_status: Callable[[int], None]
    ) -> Born:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):  # it takes a moment, and a process that nobody knows of cannot be ended
            async with self._turn:
                self._news = trio.Event()
                self._listening.shield = True
                socket.send_fds(self.asked, [json.dumps({"arguments": list(arguments)}).encode()], list(descriptors))
                await self._news.wait()
                pid, pidfd = self._pids.pop()
        self._notes[pid] = note_status
        for status in self._early.pop(pid, ()):
            note_status(status)
        return Born(pid, pidfd)


@attrs.define(eq=False)
class Child:
    """A process, its pipes, and how it ended: `returncode` is None as long as it lives, -N if signal N killed it."""

    pid: int
    stdout: trio.lowlevel.FdStream
    stderr: trio.lowlevel.FdStream
    _pidfd: int
    returncode: int | None = None
    _gone: trio.Event = attrs.field(factory=trio.Event)

    def send_signal(self, number: signal.Signals) -> None:
        """Unless it has ended, which we may not have heard yet."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        await self._gone.wait()
        assert self.returncode is not None, "it is known by now"
        return self.returncode

    def note_status(self, status: int) -> None:
        if not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            self.returncode = os.waitstatus_to_exitcode(status)
            self._gone.set()


class Process(Protocol):
    """What has to be done to a process to end it; `trio.Process` can, too."""

    def send_signal(self, number: signal.Signals) -> None:
        """Unless it has ended."""

    def kill(self) -> None: ...

    async def wait(self) -> int: ...


async def end(process: Process, patience_s: float) -> None:
    """Tell a process to end, and kill it if it does not within `patience_s`; whoever cancels that waits."""
    process.send_signal(signal.SIGTERM)
    with trio.move_on_after(patience_s, shield=True) as patience:
        await process.wait()
    if patience.cancelled_caught:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def child_of(launcher: Launcher, arguments: Sequence[str], *, silent: bool = False) -> AsyncIterator[Child]:
    """A process whose standard input says nothing, and is open until the block is left; not even that if `silent`."""
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = (os.pipe() for _ in range(3))
    noting: list[Callable[[int], None]] = []
    born = await launcher.launch(arguments, (in_read, out_write, err_write), lambda status: noting[0](status))
    for descriptor in (in_read, out_write, err_write, *([in_write] if silent else [])):
        os.close(descriptor)
    child = Child(born.pid, trio.lowlevel.FdStream(out_read), trio.lowlevel.FdStream(err_read), born.pidfd)
    noting.append(child.note_status)
    try:
        async with child.stdout, child.stderr:
            yield child
    finally:
        if not silent:
            os.close(in_write)
        os.close(born.pidfd)


def lines_of(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Whole lines, without their ends; a last one without an end is left out.

    No generator: whoever is cancelled between two lines would leave one unfinished, for the garbage collector to find.
    """
    return _Lines(stream)


class _Lines:
    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._whole: deque[bytes] = deque()
        self._rest = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._whole:
            *lines, self._rest = (self._rest + await self._stream.__anext__()).split(b"\n")
            self._whole += lines
        return self._whole.popleft()
