"""A process of a daemon, by what it tells: a *life* of its node.

A node may have several lives, one after the other, over one state directory.  A life is judged by its events and by how
it ended, so it keeps all of them, with the host's monotonic clock as the one axis for both sides.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, Literal

import attrs
import trio

from migrate.daemon.launching import Launcher, lines_of
from migrate.protocol.messages import Role

Event = dict[str, Any]
Side = Literal["source", "target"]

SIDES: Final[tuple[Side, Side]] = ("source", "target")
END_OF_TIME_NS: Final = 1 << 63


def side_of(role: Role) -> Side:
    return "source" if role is Role.SOURCE else "target"


def other(side: Side) -> Side:
    return "target" if side == "source" else "source"


@attrs.define(eq=False)
class Life:
    """One process of a node, by what it has told.  `status` is that of waitpid(2) once it has ended."""

    side: Side
    pid: int
    pidfd: int
    stdin: int
    news: Callable[[], None]
    began_ns: int = attrs.field(factory=time.monotonic_ns)
    events: list[Event] = attrs.field(factory=list)
    complaints: list[str] = attrs.field(factory=list)
    status: int | None = None
    halted: bool = False
    killed_from_outside: bool = False
    gone_ns: int = 0
    _streams: int = 2

    @property
    def is_over(self) -> bool:
        """It has ended, and everything that it said has been heard."""
        return self.status is not None and not self._streams

    @property
    def was_killed(self) -> bool:
        return self.status is not None and os.WIFSIGNALED(self.status)

    @property
    def exit_code(self) -> int | None:
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    def told(self, *names: str) -> Event | None:
        """The last event of one of these names."""
        return next((event for event in reversed(self.events) if event["event"] in names), None)

    @property
    def ended_ns(self) -> int:
        """When it can have done nothing any more; the end of time while it lives."""
        if self.status is None:
            return END_OF_TIME_NS
        died_at_point = self.was_killed and not self.killed_from_outside
        return int(self.events[-1]["at_ns"]) if died_at_point and self.events else self.gone_ns

    def all(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]

    @property
    def is_in_attempt(self) -> bool:
        """As far as it has told.  A process that comes back to an attempt of an earlier life tells its end only."""
        begun = 0
        for event in self.events:
            match event["event"]:
                case "attempt":
                    begun += 1
                case "attempt ended" | "told":
                    begun = max(begun - 1, 0)
        return begun > 0

    def points(self, since_ns: int = 0) -> list[str]:
        """Those passed since then, as `--die-at` would have them: `NAME#2` is the second time in this life."""
        counted: Counter[str] = Counter()
        found = []
        for event in self.events:
            if event["event"] == "point":
                name = event["name"]
                counted[name] += 1
                if event["at_ns"] >= since_ns:
                    found.append(name if counted[name] == 1 else f"{name}#{counted[name]}")
        return found

    @property
    def is_running_a_guest(self) -> bool:
        """As far as it has told; a process that is dead had been, when it died."""
        last = self.told("guest runs", "guest rests")
        return last is not None and last["event"] == "guest runs"

    def intervals(self) -> Iterator[tuple[int, int]]:
        """When its guest ran, in ns of the host's monotonic clock; to the end of time if it still does."""
        since = None
        for event in self.events:
            if event["event"] == "guest runs":
                since = event["at_ns"]
            elif event["event"] == "guest rests" and since is not None:
                yield since, event["at_ns"]
                since = None
        if since is not None:
            yield since, self.ended_ns

    async def hear(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        try:
            async with trio.lowlevel.FdStream(descriptor) as stream:
                async for line in lines_of(stream):
                    take(line)
                    self.news()
        finally:  # or nobody listens any more
            self._streams -= 1
            self.news()

    def note_status(self, status: int) -> None:
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            self.halted = os.WIFSTOPPED(status)
        else:
            self.status, self.gone_ns = status, time.monotonic_ns()
        self.news()

    def halt(self) -> None:
        """It does nothing until it may go on."""
        self.halted = self.status is None
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After having been halted."""
        self.halted = False
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.status is None:
            self.killed_from_outside = True
            self._signal(signal.SIGKILL)

    def close(self) -> None:
        """It has ended, and nobody wants it any more."""
        os.close(self.stdin)
        os.close(self.pidfd)

    def end(self) -> None:
        """Ask it to end in order."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        """Unless it has ended, which we may not have heard yet."""
        if self.status is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


async def begin_life(
    launcher: Launcher,
    nursery: trio.Nursery,
    command: Sequence[str],
    news: Callable[[], None],
    watch: Callable[[Event], None] | None = None,
) -> Life:
    """A process for `command`, whose first word is its side; it is heard in `nursery`, and `watch` with it."""
    ends = [os.pipe() for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = ends
    statuses: list[int] = []
    taking: list[Callable[[int], None]] = [statuses.append]
    side: Side = "source" if command[0] == "source" else "target"
    born = await launcher.launch(
        [*command, "--events", "-", "--attached"], (in_read, out_write, err_write), lambda status: taking[0](status)
    )
    for descriptor in (in_read, out_write, err_write):
        os.close(descriptor)
    life = Life(side, born.pid, born.pidfd, in_write, news)
    taking[0] = life.note_status
    for status in statuses:
        life.note_status(status)

    def take(line: bytes) -> None:
        life.events.append(json.loads(line))
        if watch is not None:
            watch(life.events[-1])

    nursery.start_soon(life.hear, out_read, take)
    nursery.start_soon(life.hear, err_read, lambda line: life.complaints.append(line.decode(errors="replace")))
    return life
