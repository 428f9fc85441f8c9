"""A run that begins where another one has rested: a new world is put into that state, in place of coming there again.

At most rests all that goes on is a target that is about to connect again; everything else is what lies on disks, in
RAM and in clocks.  So a new world is begun with a network that is cut, until its target has failed as often as the
other one had, by the daemons' own code, and connects when the other one did; what lies there is then replaced by what
lay there.

Whether this gives the same world is not believed but asked of its fingerprint, for each state (`way_to`): that tells
every task to the instruction where it waits and all that it holds.  Where it does not, runs begin at the beginning.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from migrate.engine.throttle import Rest
from migrate.faults.injection import Injector, Key
from migrate.faults.plan import Fault, Plan
from migrate.simulation.disk import Content
from migrate.simulation.fingerprint import fingerprint
from migrate.simulation.hooks import Hooks
from migrate.simulation.machines import LightDevice, LightMachine
from migrate.simulation.node import Life, Node, SimulatedGuest
from migrate.simulation.scheduler import NS_PER_S
from migrate.simulation.telling import Incomparable
from migrate.simulation.world import World
from sim_vmm.console import ConsoleState
from sim_vmm.light_memory import KEPT_BYTES, LightMemory
from sim_vmm.payloads import Payload

FAILED_FOR_NS: Final = tuple(pause_ns * NS_PER_S // 10 for pause_ns in (0, 1, 3))
"""How long a target has been at it that has failed so often: the sum of the pauses that it makes in between."""


@attrs.frozen
class NodeImage:
    """A node's disk and wall clock.  Of the disk's operations so many are to fail, as `Disk` says."""

    content: Content
    full: int
    failing_syncs: int
    boot: int
    wall_offset_ns: int
    wall_offsets_ns: frozenset[int]

    @classmethod
    def of(cls, node: Node) -> "NodeImage":
        disk = node.disk
        offsets_ns = frozenset(node.wall_offsets_ns)
        return cls(disk.content, disk.full, disk.failing_syncs, disk.boot, node.wall_offset_ns, offsets_ns)

    def put_into(self, node: Node) -> None:
        disk = node.disk
        disk.content, disk.full, disk.failing_syncs, disk.boot = self.content, self.full, self.failing_syncs, self.boot
        node.wall_offset_ns, node.wall_offsets_ns = self.wall_offset_ns, set(self.wall_offsets_ns)


@attrs.frozen
class GuestImage:
    """A machine that runs, and who makes it run."""

    ram: bytes
    sets: tuple[int, ...]
    clock: Mapping[str, Any]
    console: ConsoleState
    devices: tuple[Payload, ...]
    runner: Mapping[str, Any]
    share: float
    owed_ns: float

    @classmethod
    def of(cls, machine: LightMachine, memory: LightMemory, guest: SimulatedGuest) -> "GuestImage":
        return cls(
            ram=bytes(memory.view[:KEPT_BYTES]),
            sets=memory.sets,
            clock={name: value for name, value in vars(machine.clock).items() if name != "_host"},
            console=machine.console.export(),
            devices=tuple(machine.states),
            runner={name: getattr(guest, name) for name in RUNNER},
            share=guest._rest.share,
            owed_ns=guest._rest._owed_ns,
        )

    def put_into(self, machine: LightMachine, memory: LightMemory, guest: SimulatedGuest) -> None:
        memory.view[:KEPT_BYTES] = self.ram
        memory.sets = self.sets
        vars(machine.clock).update(self.clock)
        machine.console.import_(self.console)
        for device, state in zip(machine.devices.values(), self.devices, strict=True):
            device.state = state
        for name, value in self.runner.items():
            setattr(guest, name, value)
        guest._rest = Rest(self.share, self.owed_ns)


RUNNER: Final = tuple(
    name for name in (field.name for field in attrs.fields(SimulatedGuest)) if name not in ("life", "machine", "_rest")
)


@attrs.frozen(kw_only=True)
class Image:
    """What a world was, as its target was about to connect: for `way_to` to say whether that is all of it."""

    state: bytes
    now_ns: int
    nodes: tuple[NodeImage, NodeImage]
    guest: GuestImage
    guest_steps: int
    runs: int
    ends: tuple[str, ...]

    @classmethod
    def of(cls, world: World, injector: Injector, state: bytes) -> "Image | None":
        """None for a world in which something else goes on, or lies."""
        scheduler, audits, nodes = world.scheduler, world.audits, (world.source, world.target)
        goes_on = len(scheduler.unfinished_tasks()) != 1 or len(scheduler.timers_in_order()) != 2 or scheduler.frozen
        lies = any(node.disk.pending or node.disk.content.image for node in nodes) or injector.residue() != ([], [])
        running = _running(world.source.life)
        if goes_on or lies or running is None or world.storage is not None or audits.violations or world.is_calm:
            return None
        return cls(
            state=state,
            now_ns=scheduler.now_ns,
            nodes=(NodeImage.of(world.source), NodeImage.of(world.target)),
            guest=GuestImage.of(*running),
            guest_steps=audits.steps,
            runs=audits.runs,
            ends=tuple(world._ends),
        )

    def put_into(self, world: World) -> None:
        audits = world.audits
        for image, node in zip(self.nodes, (world.source, world.target), strict=True):
            image.put_into(node)
        running = _running(world.source.life)
        assert running is not None, "nothing has gone wrong in this world"
        self.guest.put_into(*running)
        audits.steps, audits.runs = self.guest_steps, self.runs
        world._ends.update({name: [] for name in self.ends})


@attrs.frozen(kw_only=True)
class Begun:
    """A run until the rest that `image` is of: what has struck, passed and been published, and in how many steps."""

    image: Image
    steps: int = 0
    counts: Mapping[Key, int] = attrs.field(factory=dict)
    fired: tuple[Fault, ...] = ()
    published: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def _running(life: Life | None) -> tuple[LightMachine, LightMemory, SimulatedGuest] | None:
    if life is None or life.guest is None:
        return None
    machine: object = life.machine
    if type(machine) is not LightMachine or type(machine.memory) is not LightMemory:
        return None
    is_light = all(type(device) is LightDevice for device in machine.devices.values())
    return (machine, machine.memory, life.guest) if is_light else None


@attrs.define(eq=False)
class Resumed(Injector):
    """Lets a run go on that has `begun`, in a new world, whose target must have `failed` so often; see the module."""

    begun: Begun = attrs.field(kw_only=True)
    failed: int = attrs.field(kw_only=True)

    def begin(self, world: World) -> None:
        arrives_ns = self.begun.image.now_ns - world.speed.latency_ns
        world.scheduler.now_ns = arrives_ns - FAILED_FOR_NS[self.failed]
        world.network.cut_until_ns = arrives_ns if self.failed else 0

    def at_rest(self, world: World) -> None:
        if self._world is None:
            self._resume(world)
        super().at_rest(world)

    def _resume(self, world: World) -> None:
        begun, audits = self.begun, world.audits
        begun.image.put_into(world)
        world.scheduler.steps = begun.steps
        audits.published[:], audits.reasons[:] = begun.published, begun.reasons
        self._world, self._counts, self.fired = world, Counter(begun.counts), list(begun.fired)


class _There(Exception):
    """A world is where it was to be put, or not."""

    def __init__(self, is_so: bool) -> None:
        super().__init__()
        self.is_so = is_so


def way_to(image: Image, world_of: Callable[[Hooks], World]) -> int | None:
    """How often the target of a new world must have failed, so that it is that of `image`; None if it never is."""
    tried = range(len(FAILED_FOR_NS))
    return next((failed for failed in tried if _leads_there(image, failed, world_of)), None)


def _leads_there(image: Image, failed: int, world_of: Callable[[Hooks], World]) -> bool:
    def look(world: World) -> None:
        try:
            raise _There(fingerprint(world, resumed.residue()) == image.state)
        except Incomparable:
            raise _There(False) from None

    resumed = Resumed(Plan(faults=()), begun=Begun(image=image), failed=failed, on_rest=look)
    with world_of(resumed) as world:
        try:
            world.run()
        except _There as there:
            return there.is_so
    return False
