"""Virtual time: runs coroutines one after the other, always in the same order.

A coroutine lets others run by awaiting a `Wait`, and nothing else.  It goes on when the signal that it waits for is
given, or when its time is up, whichever comes first.  Time passes only while nobody can run: then the clock jumps to
the earliest timer.  Whatever becomes ready at one instant runs in the order in which it became so, so that nothing
depends on the real clock, on hashes or on chance.

A task that is about to wait may look first whether time passes for it alone (`pass_until`), or whether an arrival is
all that comes next (`let_arrive`): then it goes on at once.  That is the same, without the way to the loop and back.

Every task belongs to an owner, a node.  `kill` ends all of an owner's tasks where they stand, as kill -9 does: what
they would still do on their way out must fail at the ports, which know that their process is dead (`Killed`).
`freeze` stops an owner's tasks between two steps, until `thaw`, while time goes on for everybody else.
"""

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

import attrs

NS_PER_S: Final = 1_000_000_000
TICK_NS: Final = 10_000_000
"""Who waits long wakes on a tick, as with the slack that a kernel gives its timers."""


class Killed(BaseException):
    """The process that would do this is dead."""


class Signal:
    """Something to wait for; it remembers nothing: only who waits already is woken."""

    __slots__ = ("_scheduler", "waiting")

    def __init__(self, scheduler: "Scheduler") -> None:
        self._scheduler = scheduler
        self.waiting: list[tuple[Task, int]] = []

    def give(self) -> None:
        waiting, self.waiting = self.waiting, []
        for task, ticket in waiting:
            self._scheduler.wake(task, ticket, signalled=True)

    def add(self, task: "Task") -> None:
        self.waiting.append((task, task.ticket))


class Wait:
    """Awaiting this lets others run.  True if `signal` was given, False if it is `until_ns`."""

    __slots__ = ("signal", "until_ns")

    def __init__(self, signal: Signal | None = None, until_ns: int | None = None) -> None:
        self.signal, self.until_ns = signal, until_ns

    def __await__(self) -> Generator["Wait", bool, bool]:
        return (yield self)


@attrs.define(eq=False)
class Task:
    """One coroutine of a node.  `ticket` counts what it has waited for, so that it is woken once for each."""

    owner: str
    coroutine: Coroutine[Wait, bool, Any]
    ticket: int = 0
    done: bool = False


@attrs.define
class Scheduler:
    """The clock, in ns, and everybody who waits."""

    now_ns: int = 0
    steps: int = 0
    _steps_max: int = 0
    _ready: deque[tuple[Task, bool]] = attrs.field(factory=deque)
    _timers: list[tuple[int, int, Any, Any]] = attrs.field(factory=list)
    """When, a running number, and what: a task and its ticket, a call and None, or an arrival and what arrives."""
    _numbers: int = 0
    _tasks: dict[str, list[Task]] = attrs.field(factory=dict)
    _frozen: dict[str, list[tuple[Task, bool]]] = attrs.field(factory=dict)

    def spawn(self, owner: str, coroutine: Coroutine[Wait, bool, Any]) -> None:
        task = Task(owner, coroutine)
        self._tasks.setdefault(owner, []).append(task)
        self._ready.append((task, True))

    def at(self, when_ns: int, call: Callable[[], None]) -> None:
        """Call `call` at that time, or at once if it is over."""
        self._numbers += 1
        heapq.heappush(self._timers, (max(when_ns, self.now_ns), self._numbers, call, None))

    def arrive_at(self, when_ns: int, arrive: Callable[[Any], None], what: object) -> None:
        """Call `arrive` with `what`, which is not None, at that time; it does nothing but give signals."""
        self._numbers += 1
        heapq.heappush(self._timers, (when_ns, self._numbers, arrive, what))

    def tick_after(self, ns: int) -> int:
        """The first tick that is not before `ns` from now."""
        return -(-(self.now_ns + ns) // TICK_NS) * TICK_NS

    async def sleep(self, ns: int) -> None:
        if not self.pass_until(self.now_ns + ns):
            await Wait(until_ns=self.now_ns + ns)

    def pass_until(self, until_ns: int) -> bool:
        """Let time pass until then, if nothing else would happen meanwhile; whether it has passed."""
        timers = self._timers
        if self._ready or self._frozen or self.steps >= self._steps_max:
            return False
        while timers and timers[0][0] <= until_ns:
            if not _is_stale(timers[0]):
                return False
            heapq.heappop(timers)
        self.now_ns = max(until_ns, self.now_ns)
        self.steps += 1
        return True

    def let_arrive(self, before_ns: int) -> bool:
        """Let time pass up to the next event, if that is an arrival before `before_ns`, of whatever to whomever."""
        timers = self._timers
        if self._ready or self._frozen or self.steps >= self._steps_max:
            return False
        while timers and timers[0][0] < before_ns:
            when_ns, _, arrive, what = timer = timers[0]
            if what is None or arrive.__class__ is Task:
                if not _is_stale(timer):
                    return False
                heapq.heappop(timers)
                continue
            heapq.heappop(timers)
            self.now_ns = when_ns
            self.steps += 1
            arrive(what)
            return True
        return False

    def wake(self, task: Task, ticket: int, *, signalled: bool) -> None:
        """Let `task` go on, if it still waits for what that ticket stood for."""
        if task.ticket == ticket and not task.done:
            task.ticket += 1
            self._ready.append((task, signalled))

    def kill(self, owner: str) -> None:
        """End the tasks of `owner`.  A task that kills itself has to raise `Killed`."""
        tasks, self._tasks[owner] = self._tasks.get(owner, []), []
        self._frozen.pop(owner, None)
        for task in tasks:
            if not task.done:
                task.done = True
                if not task.coroutine.cr_running:  # type: ignore[attr-defined]  # coroutines of `async def` have it
                    _close(task.coroutine)

    def unfinished(self) -> list[str]:
        """Whose tasks still wait, one name for each."""
        return [owner for owner, tasks in self._tasks.items() for task in tasks if not task.done]

    # For whoever compares worlds

    @property
    def frozen(self) -> dict[str, list[tuple[Task, bool]]]:
        return self._frozen

    def ready_in_order(self) -> list[tuple[Task, bool]]:
        return [(task, signalled) for task, signalled in self._ready if not task.done]

    def timers_in_order(self) -> list[tuple[int, Any, Any]]:
        """When, and what: a task, or a call and what it is given; only those that are not stale."""
        timers = sorted((timer for timer in self._timers if not _is_stale(timer)), key=lambda timer: timer[:2])
        return [(when_ns, what, None if type(what) is Task else given) for when_ns, _, what, given in timers]

    def unfinished_tasks(self) -> list[Task]:
        return [task for tasks in self._tasks.values() for task in tasks if not task.done]

    # What is done to tasks

    def freeze(self, owner: str) -> None:
        self._frozen.setdefault(owner, [])

    def is_frozen(self, owner: str) -> bool:
        return owner in self._frozen

    def thaw(self, owner: str) -> None:
        self._ready.extend(self._frozen.pop(owner, ()))

    def run(self, steps_max: int) -> bool:
        """Run until nobody has anything left to do; False if that takes more than `steps_max` steps."""
        self._steps_max = steps_max
        while self.steps < steps_max:
            if self._ready:
                self._step(*self._ready.popleft())
            elif self._timers:
                self._fire()
            else:
                return True
        return False

    def _fire(self) -> None:
        when_ns, _, what, argument = heapq.heappop(self._timers)
        if what.__class__ is not Task:
            self.now_ns = when_ns
            self.steps += 1
            if argument is None:
                what()
            else:
                what(argument)
        elif what.ticket == argument and not what.done:  # else it was woken before: no time has passed for that
            self.now_ns = when_ns
            self.wake(what, argument, signalled=False)

    def _step(self, task: Task, signalled: bool) -> None:
        if task.done:
            return
        if task.owner in self._frozen:
            self._frozen[task.owner].append((task, signalled))
            return
        self.steps += 1
        try:
            wait = task.coroutine.send(signalled if task.ticket else None)  # type: ignore[arg-type]  # the first send
        except (StopIteration, Killed):
            task.done = True
            return
        if wait.signal is not None:
            wait.signal.add(task)
        if wait.until_ns is not None:
            self._numbers += 1
            heapq.heappush(self._timers, (max(wait.until_ns, self.now_ns), self._numbers, task, task.ticket))


def _is_stale(timer: tuple[int, int, Any, Any]) -> bool:
    """Whether it was for somebody who has been woken before, or is dead."""
    _, _, task, ticket = timer
    return task.__class__ is Task and (task.ticket != ticket or task.done)


def _close(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Its process is dead: what it still tries on its way out fails at the first port."""
    try:
        coroutine.close()
    except Killed:
        return
