"""What a world is, in a few bytes: two worlds that have the same go on in the same way, to the last word.

A world is a function of its hooks: once nothing more is to strike, its future follows from what it is now.  So this
tells everything that can be reached from it: disks, RAM, clocks, who is to be woken when, what is under way on the
wire, and of each task where it stands and all that it holds, its stack included.  Who refers to the same object twice
is told from who refers to two that are alike.  Whatever it does not know how to tell makes it raise `Incomparable`.

Left out is only what nothing of the future depends on, and each time the reason is given: what has been (the trace,
what was published), connections that nobody holds any more, timers for somebody who was woken before, instants that
are over, by which of several equal ways a clock is represented, and what the clocks of a guest show that runs.  A test
holds worlds with the same fingerprint to the same future.
"""

from typing import TYPE_CHECKING, Final

from migrate.simulation.audits import Audits
from migrate.simulation.disk import Disk, KeptImage
from migrate.simulation.machines import LightDevice, LightMachine
from migrate.simulation.network import Connection, Network, Pipe
from migrate.simulation.node import Node, SimulatedGuest
from migrate.simulation.scheduler import NS_PER_S, Scheduler, Signal, Task
from migrate.simulation.telling import NOT_TOLD, TELLERS, Incomparable, Teller
from sim_vmm.clock import GuestClock
from sim_vmm.lifecycle import MachineState
from sim_vmm.light_memory import KEPT_BYTES, LightMemory

if TYPE_CHECKING:
    from migrate.simulation.world import World

FOUR_BYTES: Final = 1 << 32
HALF_WAY: Final = 1 << 62
"""Up to here no guest's clock comes to an end."""
WORLD_APART: Final = frozenset({"hooks", "trace", "machines", "audits", "scheduler", "network", "_ends"})
"""Of a world: hooks are the caller's, a trace is only told, machines are found where they are; the rest is below."""


def fingerprint(world: "World", *more: object) -> bytes:
    """Of a world in which every task waits, and of what its hooks may still do to it, which `more` tells.

    Raises:
        Incomparable: what was met that cannot be told.
    """
    teller = _Worlds(outside=world.hooks)
    teller.world(world)
    teller.tell(more)
    return teller.digest()


class _Worlds(Teller):
    """Knows what of a world is told in another way than as it lies there."""

    _now_ns = 0
    _is_remembered = True
    _clock_is_free = False

    def world(self, it: "World") -> None:
        self.is_again(it)
        self._now_ns = it.scheduler.now_ns
        self._is_remembered = it.audits.last_clocks is not None
        self.parts.append(self._now_ns)
        self._scheduler(it.scheduler)
        self._network(it.network)
        for name, ends in sorted(it._ends.items()):
            self.all(name, ((end.is_closed, end) for end in ends if self.has_told(end.connection)))
            if any(not end.is_closed for end in ends if not self.has_told(end.connection)):
                raise Incomparable(f"{name} holds an end of a connection that nobody uses any more")
        self._audits(it.audits)
        self.attributes(it, left_out=WORLD_APART)

    def _scheduler(self, it: Scheduler) -> None:
        """Who stands where, and what is to happen when, in order; not what was for somebody woken before."""
        self.is_again(it)
        self.all("frozen", it.frozen)
        self.all("ready", it.ready_in_order())
        self.all("timers", it.timers_in_order())
        self.all("tasks", it.unfinished_tasks())

    def _network(self, it: Network) -> None:
        """Connections that no task holds are told apart by nobody."""
        self.is_again(it)
        self.parts.append(max(it.cut_until_ns - self._now_ns, 0))
        held = [connection for connection in it.connections if self.has_told(connection)]
        self.all("connections", held)
        self.parts.append(it.newest is not None and self.has_told(it.newest))

    def _audits(self, it: Audits) -> None:
        """What the audits go by; not what was published, which is told."""
        self.is_again(it)
        self.all("audits", (it.keeps_ledger, it.runs, it.steps, *it.remembered))

    def pipe(self, it: Pipe) -> None:
        """Instants that are over are all alike to it."""
        if not self.is_again(it):
            self.parts += ("pipe", *(max(ns, self._now_ns) for ns in it.instants_ns))
            self.attributes(it)

    def disk(self, it: Disk) -> None:
        """Of the starts of its host, only whether an image has outlived one makes a difference, for ever."""
        if not self.is_again(it):
            images = [content.image for content in (it.content, it.pending) if content is not None]
            self.all("disk", (image is not None and image.boot == it.boot for image in images))
            self.attributes(it)

    def task(self, it: Task) -> None:
        """Its ticket only says which of its timers are stale, and whether it has begun, as its coroutine does."""
        if not self.is_again(it):
            self.all("task", (it.owner, it.done, it.coroutine))

    def signal(self, it: Signal) -> None:
        if not self.is_again(it):
            self.all("signal", (task for task, ticket in it.waiting if task.ticket == ticket and not task.done))

    def guest(self, it: SimulatedGuest) -> None:
        """When it last took a step matters only until it may take the next; its measured pace is only told."""
        if not self.is_again(it):
            self.parts += ("guest", it.step_due_ns(self._now_ns))
            self.attributes(it)

    def clock(self, it: GuestClock) -> None:
        """Where ticks are whole in a nanosecond, since when it has counted them makes no difference.

        And while the guest runs, and nobody remembers what its clocks showed at a stop, whatever they show goes on as
        anything else would: all that is told then is how long that is in a message (`_long`).
        """
        if self.is_again(it):
            return
        is_free, self._clock_is_free = self._clock_is_free, False
        state = it.__dict__.copy()
        if it._guest_freq % NS_PER_S == 0:
            state["_read_tsc"] = it.tsc()
            del state["_read_hrtime"]
            if is_free:
                state["_read_tsc"], state["_boot_hrtime"] = _long(it.tsc()), _long(it._boot_hrtime)
        self.dict_(state)

    def machine(self, it: LightMachine) -> None:
        """Whoever is told of its exports and imports is the hooks."""
        if not self.is_again(it):
            self.all("machine", (it.state, it.spec, it.birth, it.memory))
            self._clock_is_free = it.state is MachineState.RUNNING and not self._is_remembered
            self.all("clock", (it.clock,))
            self.all("devices", (it.console, it.failure, *it.devices.values()))

    def device(self, it: LightDevice) -> None:
        if not self.is_again(it):
            self.all("device", (it.key, it.born, it.state))

    def memory(self, it: LightMemory) -> None:
        if self.is_again(it):
            return
        if it.has_content_above():
            raise Incomparable("RAM with content above where any was written")
        self.parts += ("RAM", it.page_count, it.is_open)
        self.bytes_(it.view[:KEPT_BYTES])
        self.all("sets", it.sets)


def _long(value: int) -> int | str:
    """Of a number that takes eight bytes in a message, and will, only that and its sign; any other is told."""
    if FOUR_BYTES < value < HALF_WAY:
        return "long"
    return "long, negative" if -HALF_WAY < value < -FOUR_BYTES else value


NOT_TOLD.update(
    {
        Node: frozenset({"lives"}),  # only told in reports
        Disk: frozenset({"boot"}),  # see `disk`
        KeptImage: frozenset({"boot"}),
        SimulatedGuest: frozenset({"_running_ns", "_worked_ns", "_looked_ns", "_last_step_ns"}),  # see `guest`
        Connection: frozenset({"number"}),  # only told
        Pipe: frozenset({"_wire_free_ns", "_held_until_ns", "_last_arrival_ns"}),  # see `pipe`
    }
)
TELLERS.update(
    {
        Task: _Worlds.task,
        Signal: _Worlds.signal,
        SimulatedGuest: _Worlds.guest,
        Pipe: _Worlds.pipe,
        Disk: _Worlds.disk,
        GuestClock: _Worlds.clock,
        LightMachine: _Worlds.machine,
        LightDevice: _Worlds.device,
        LightMemory: _Worlds.memory,
    }
)
