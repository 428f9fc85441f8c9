"""A process that has imported everything, and forks a command line whenever it is asked for one.

Python and its libraries take more than a second to start, which is too much for tests that need hundreds of daemons.
A child of the zygote is a process like any other: it has a pid and descriptors of its own, and may be killed.  What it
does not have of its own is the work of importing.  Nothing runs in the zygote but this file, and no thread.

It is asked over a socket, one datagram of JSON each: `{"arguments": [...]}`, along with the child's standard input,
output and error.  It answers `{"pid": n}` with a pidfd, and tells of every child that stops or ends,
`{"pid": n, "status": s}` with the status as from waitpid(2).  When the socket closes it kills its children and ends.
"""

import gc
import io
import json
import os
import select
import signal
import socket
import sys
from contextlib import redirect_stderr
from typing import Any, Final, NoReturn

import migrate.cli.app
from migrate.payloads import warm_up_payloads
from migrate.protocol.frames import warm_up_messages

REQUEST_BYTES_MAX: Final = 1 << 16
CHILD_CRASHED: Final = 70


def main() -> None:
    asked = socket.socket(fileno=int(sys.argv[1]))
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
            os.read(woken, 4096)
            tell_of(children, asked)
        if asked.fileno() in ready and not answer(asked, children):
            break
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def warm_up() -> None:
    """What is made once and kept, as the readers of messages and of command lines."""
    warm_up_payloads()
    warm_up_messages()
    with redirect_stderr(io.StringIO()):
        for command in ("source", "target"):
            migrate.cli.app.run([command])


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
    if not pid:
        become(request["arguments"], descriptors)
    children.add(pid)
    for descriptor in descriptors:
        os.close(descriptor)
    pidfd = os.pidfd_open(pid)  # here, where a child that has died waits to be waited for: no other has its number
    socket.send_fds(asked, [json.dumps({"pid": pid}).encode()], [pidfd])
    os.close(pidfd)
    return True


def become(arguments: list[str], descriptors: list[int]) -> NoReturn:
    """Carry out a command line in this new process."""
    code = CHILD_CRASHED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
        os.closerange(3, 256)
        code = migrate.cli.app.run(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
