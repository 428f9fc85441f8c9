"""A process that has imported everything, and forks a command line whenever it is asked for one.

Python and its libraries take a second to start, for each of the daemons of a rehearsal as well as for the rehearsal
itself.  A child of the zygote is a process like any other: it has a pid, a session and descriptors of its own, and may
be killed.  What it does not have of its own is the work of importing.  Nothing runs in the zygote but this file, and no
thread.

It is asked over a socket, one datagram of JSON each: `{"arguments": [...]}`, along with the child's standard input,
output and error; or `{}` for another zygote, along with the socket to ask that one over.  It answers `{"pid": n}` with
a pidfd, and tells of every child that stops or ends, `{"pid": n, "status": s}` with the status as from waitpid(2).
When the socket closes it ends its children, and itself.
"""

import gc
import io
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from migrate.daemon.launching import ForkLauncher, Launching
from migrate.daemon.warming import warm_up as warm_up_readers

REQUEST_BYTES_MAX: Final = 1 << 16
CHILD_CRASHED: Final = 70
COMM_MAX: Final = 15
GRACE_S: Final = 5.0


@contextmanager
def forking() -> Iterator[Launching]:
    """Whoever launches has processes forked by a zygote, until the block is left: a fork of this process.

    This process must have no other thread, and no event loop that is running.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        serve_and_exit(theirs)
    theirs.close()
    try:
        with ours:
            yield lambda nursery: ForkLauncher(nursery, ours)
    finally:
        os.waitpid(pid, 0)


def serve_and_exit(asked: socket.socket) -> NoReturn:
    code = CHILD_CRASHED
    try:
        os.setsid()  # Ctrl-C is for whoever asks
        serve(asked)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve(asked: socket.socket) -> None:
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    children: set[int] = set()
    warm_up()
    gc.freeze()  # a child that collects would copy every page
    while True:
        ready, _, _ = select.select([asked.fileno(), woken], [], [])
        if woken in ready:
            drain(woken)
            tell_of(children, asked)
        if asked.fileno() in ready and not answer(asked, children):
            break
    end(children, woken)


def drain(woken: int) -> None:
    with suppress(BlockingIOError):
        while os.read(woken, 4096):
            pass


def end(children: set[int], woken: int) -> None:
    """In order, if they can; they are not left alone."""
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        for pid in children:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)  # who is halted hears nothing
        deadline = None if patience_s is None else time.monotonic() + patience_s
        while children and (deadline is None or time.monotonic() < deadline):
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                children.remove(pid)
            else:
                select.select([woken], [], [], None if deadline is None else max(deadline - time.monotonic(), 0))
                drain(woken)


def warm_up() -> None:
    """What is made once and kept, as the readers of messages and of command lines."""
    from migrate.cli.app import run  # which imports us

    warm_up_readers()
    with redirect_stderr(io.StringIO()):
        for command in ("source", "target"):
            run([command])


def tell_of(children: set[int], asked: socket.socket) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not pid:
            return
        if not os.WIFSTOPPED(status) and not os.WIFCONTINUED(status):
            children.remove(pid)
        asked.send(json.dumps({"pid": pid, "status": status}).encode())


def answer(asked: socket.socket, children: set[int]) -> bool:
    """False if nobody asks any more."""
    message, descriptors, _, _ = socket.recv_fds(asked, REQUEST_BYTES_MAX, 3)
    if not message:
        return False
    request: dict[str, Any] = json.loads(message)
    pid = os.fork()
    if not pid and "arguments" in request:
        become(request["arguments"], descriptors)
    if not pid:
        asked.close()
        serve_and_exit(socket.socket(fileno=descriptors[0]))
    children.add(pid)
    for descriptor in descriptors:
        os.close(descriptor)
    pidfd = os.pidfd_open(pid)  # here, where a child that has died waits to be waited for: no other has its number
    socket.send_fds(asked, [json.dumps({"pid": pid}).encode()], [pidfd])
    os.close(pidfd)
    return True


def become(arguments: list[str], descriptors: list[int]) -> NoReturn:
    """Carry out a command line in this new process."""
    from migrate.cli.app import run

    code = CHILD_CRASHED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has those ignore that it puts behind
        os.setsid()
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
        os.closerange(3, 256)
        # What the parent has not written yet is not ours to write.
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115  # by number
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        Path("/proc/self/comm").write_text(f"migrate {arguments[0]}"[:COMM_MAX])  # for ps and pkill
        code = run(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody listens any more
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    from migrate.cli.app import import_all

    import_all()
    serve_and_exit(socket.socket(fileno=int(sys.argv[1])))
