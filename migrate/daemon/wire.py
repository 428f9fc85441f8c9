"""A network between processes: unix datagram sockets, and a hub in their middle that writes down who spoke when.

The wire at PATH is a hub's socket at PATH and, for each NIC that is on it, a socket in the directory `PATH.ends`.  A
NIC sends its frames to PATH; the hub notes each and passes it to every other end.  That directory is all there is of
a registry, so hubs and daemons may come and go in any order, and nothing has to be told twice.

Like a cable, an end never waits and never fails: what it sends while nobody listens is lost.  If the hub is there but
busy (a kernel queues only a few datagrams) frames wait in order, and go out with the next look at the wire.

Who may write to PATH and read its directory is on the wire: the sockets are made with the rights of our process alone.
"""

import json
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, TextIO

import attrs
import trio

from sim_vmm.wire import BACKLOG_FRAMES_MAX, FRAME_BYTES_MAX, HEADER, SequencedFrame, mac_text

ENDS_SUFFIX: Final = ".ends"
#: The longest path that a unix socket can have on Linux (unix(7)), without the zero byte.
PATH_BYTES_MAX: Final = 107
#: Bytes of the name of an end: address, process id, number.
END_NAME_BYTES: Final = len(ENDS_SUFFIX) + len("/aabbccddeeff-4194304-99999")
#: Frames that an end takes in at one look.
FRAMES_AT_ONCE: Final = 256
PRIVATE: Final = 0o077

_numbers = count(1)


class WireError(Exception):
    """A wire cannot be where it was asked to be."""


def ends_of(path: Path) -> Path:
    """The directory of the ends of the wire at `path`."""
    return path.with_name(path.name + ENDS_SUFFIX)


def check_path(path: Path) -> None:
    """Raises WireError if no socket can have a path that begins so."""
    room = PATH_BYTES_MAX - END_NAME_BYTES
    if len(os.fsencode(path)) > room:
        raise WireError(f"{path}: {len(os.fsencode(path))} bytes are too long for a wire; it can have {room}")


class SocketWire:
    """The end of the wire at `path` for the NIC with address `mac`; a Wire (sim_vmm/platform.py).

    It is on the wire from its first `receive` on: see sim_vmm/wire.py.  `dropped` counts frames that were lost here on
    their way out.
    """

    def __init__(self, path: Path, mac: bytes) -> None:
        """Raises WireError: the path is too long."""
        check_path(path)
        self.dropped = 0
        self._hub: Final = os.fspath(path)
        self._end: Final = ends_of(path) / f"{mac.hex()}-{os.getpid()}-{next(_numbers)}"
        self._backlog: Final[deque[bytes]] = deque()
        self._socket: Final = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._is_bound = False

    def send(self, frame: bytes) -> None:
        if len(self._backlog) >= BACKLOG_FRAMES_MAX:
            self.dropped += 1
        else:
            self._backlog.append(frame)
        self.flush()

    def receive(self) -> Iterable[bytes]:
        self._bind()
        self.flush()
        frames = []
        for _ in range(FRAMES_AT_ONCE):
            try:
                frames.append(self._socket.recv(FRAME_BYTES_MAX + 1))
            except BlockingIOError:
                break
        return frames

    def flush(self) -> bool:
        """Send what waits, until the hub is busy again; whether nothing waits any more."""
        while self._backlog:
            try:
                self._socket.sendto(self._backlog[0], self._hub)
            except BlockingIOError:
                return False
            except OSError:  # nobody listens, or the frame is larger than the kernel carries
                self.dropped += 1
            self._backlog.popleft()
        return True

    def close(self) -> None:
        """Off the wire.  What still waits is lost."""
        self.dropped += len(self._backlog)
        self._backlog.clear()
        self._socket.close()
        if self._is_bound:
            self._is_bound = False
            self._end.unlink(missing_ok=True)

    def _bind(self) -> None:
        """Be found by the hub; an end that cannot be bound hears nothing, and tries again at the next look."""
        if self._is_bound:
            return
        with suppress(OSError), _private():
            self._end.parent.mkdir(exist_ok=True)
            self._socket.bind(os.fspath(self._end))
            self._is_bound = True


@attrs.define
class SocketWires:
    """The ends of one machine's NICs on the wire at `path`; a Wires (sim_vmm/platform.py)."""

    path: Path
    _ends: list[SocketWire] = attrs.field(factory=list)

    def plug(self, key: str, mac: bytes) -> SocketWire:
        end = SocketWire(self.path, mac)
        self._ends.append(end)
        return end

    @property
    def dropped(self) -> int:
        return sum(end.dropped for end in self._ends)

    def flush(self) -> bool:
        busy = [end for end in self._ends if not end.flush()]
        return not busy

    def close(self) -> None:
        for end in self._ends:
            end.close()


@attrs.frozen(kw_only=True)
class WireRecord:
    """One frame as the hub saw it: when by the monotonic clock, from whom, how long.

    `sequence` and `uptime_ns` (of the sender's guest) are those of a sequenced frame, else None.  `sender` is the name
    of the end that it came from; None in old records, and for an end that was not on the wire.
    """

    at_ns: int
    source: str
    sequence: int | None
    uptime_ns: int | None
    length: int
    sender: str | None = None

    @classmethod
    def of(cls, raw: bytes, at_ns: int, sender: str | None = None) -> "WireRecord":
        frame = SequencedFrame.parse(raw)
        return cls(
            at_ns=at_ns,
            source=mac_text(raw[6:12]),
            sequence=None if frame is None else frame.sequence,
            uptime_ns=None if frame is None else frame.uptime_ns,
            length=len(raw),
            sender=sender,
        )

    def line(self) -> str:
        """The record as it stands in a file: one line of JSON."""
        return json.dumps(attrs.asdict(self)) + "\n"


def sender_of(record: WireRecord) -> int | None:
    """The process that a frame came from, if that is known."""
    return None if record.sender is None else int(record.sender.split("-")[1])


def read_records(lines: Iterable[str]) -> Iterator[WireRecord]:
    """The records in the lines of a file; a last line that is still being written is left out.

    Raises:
        ValueError: a line that is no record.
    """
    for line in lines:
        if line.endswith("\n"):
            yield _record(json.loads(line))


def _record(document: Any) -> WireRecord:
    try:
        return WireRecord(**document)
    except TypeError as error:
        raise ValueError(f"{document!r} is no record of a wire") from error


@attrs.define
class WireObserver:
    """The hub of the wire at `path`, and its observer: `note` is told of every frame before anybody gets it.

    `seen` counts frames, `undelivered` those of their copies that an end was too busy to take.
    """

    path: Path
    note: Callable[[WireRecord], None]
    clock: Callable[[], int] = time.monotonic_ns
    seen: int = 0
    undelivered: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry frames until cancelled.

        Raises:
            WireError: there is something else at the path, or a hub already, or no socket can be made there.
        """
        with self._listening() as listener:
            hub = trio.socket.from_stdlib_socket(listener)
            task_status.started()
            while True:
                frame, sender = await hub.recvfrom(FRAME_BYTES_MAX + 1)
                self._carry(listener, frame, sender)

    def _carry(self, listener: socket.socket, frame: bytes, sender: str | None) -> None:
        if len(frame) < HEADER.size:
            return
        self.seen += 1
        self.note(WireRecord.of(frame, self.clock(), Path(sender).name if sender else None))
        for end in self._ends():
            if os.fspath(end) == sender:
                continue
            try:
                listener.sendto(frame, os.fspath(end))
            except BlockingIOError:
                self.undelivered += 1
            except ConnectionRefusedError:  # left behind by a process that was killed
                end.unlink(missing_ok=True)
            except OSError:  # it has gone while we looked
                self.undelivered += 1

    def _ends(self) -> list[Path]:
        try:
            return sorted(ends_of(self.path).iterdir())
        except FileNotFoundError:
            return []

    @contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        check_path(self.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.setblocking(False)
            try:
                _clear(self.path)
                with _private():
                    ends_of(self.path).mkdir(exist_ok=True)
                    listener.bind(os.fspath(self.path))
            except OSError as error:
                raise WireError(f"{self.path}: cannot be listened at: {error.strerror or error}") from error
            try:
                yield listener
            finally:
                self.path.unlink(missing_ok=True)
                with suppress(OSError):  # ends are still there
                    ends_of(self.path).rmdir()


def _clear(path: Path) -> None:
    """Remove the socket of a hub that was killed; WireError if there is a living one, or no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise WireError(f"{path}: there is something that is no wire")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise WireError(f"{path}: there is a hub already")


@contextmanager
def _private() -> Iterator[None]:
    """What is made inside belongs to our user alone."""
    before = os.umask(PRIVATE)
    try:
        yield
    finally:
        os.umask(before)


def recorder(stream: TextIO) -> Callable[[WireRecord], None]:
    """Writes every record to `stream` at once, so that a reader, or a crash, finds it."""

    def note(record: WireRecord) -> None:
        stream.write(record.line())
        stream.flush()

    return note
