"""A node: its disk, and the process that lives on it, until it dies and another one is started.

A process (`Life`) has the ports that an engine awaits beside its link: the guest, the hypervisor, the journal, the
clock, the observer.  Each first asks whether its process is still alive, so a dead one changes nothing more, whatever
its coroutines still try on their way out.

The guest takes some steps whenever its process does something, as it would between any two instructions of a daemon:
busily at the beginning of an attempt, so that there are two rounds of RAM, and slowly then.
"""

from typing import TYPE_CHECKING, Any, Final

import attrs

from migrate.engine.image import PauseImage
from migrate.engine.ports import Pace
from migrate.engine.throttle import Rest
from migrate.errors import MigrationError
from migrate.protocol.messages import Role
from migrate.simulation.disk import Disk, KeptImage, SimulatedJournal
from migrate.simulation.machines import boot
from migrate.simulation.modelled import ModelledMemory
from migrate.simulation.scheduler import NS_PER_S, Killed
from migrate.simulation.storage import SimulatedFence
from sim_vmm.birth import Birth
from sim_vmm.interception import intercept
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec

if TYPE_CHECKING:
    from migrate.simulation.world import World

BUSY_STEPS: Final = 16
"""So many that both rounds have pages that were dirtied meanwhile, and the last one has some as well."""
BUSY_STEPS_OVER_STREAMS: Final = 4 * BUSY_STEPS
"""The same where a round is many small batches: more is done for each round, and the guest is to do as much."""
STEPS_AT_ONCE: Final = 2
ROUND_STEPS: Final = 32
CALM_STEP_NS: Final = 2_000_000
WALL_NS: Final = 1_700_000_000 * NS_PER_S


class ImageLost(MigrationError):
    """The image of a paused machine cannot be trusted any more: it must not be resumed."""


@attrs.define(eq=False)
class Node:
    """`role` is what its process is started as; `clock_offset_ns` is how far its clocks are from the world's."""

    name: str
    role: Role
    world: "World"
    disk: Disk = attrs.field(factory=Disk)
    clock_offset_ns: int = 0
    wall_offset_ns: int = 0
    wall_offsets_ns: set[int] = attrs.field(factory=lambda: {0})
    lives: int = 0
    life: "Life | None" = None

    def jump(self, ns: int) -> None:
        """The wall clock is set forward, or back."""
        self.wall_offset_ns += ns
        self.wall_offsets_ns.add(self.wall_offset_ns)

    def begin(self) -> "Life":
        """A new process, which has done nothing yet."""
        self.lives += 1
        self.life = Life(self, self.world)
        return self.life

    def end(self, *, power: bool) -> None:
        """Kill -9, or with `power` the loss of it."""
        life, self.life = self.life, None
        if life is not None:
            life.alive = False
            life.forget_running()
        if power:
            self.disk.lose_power()
        else:
            self.disk.outlive_process()


@attrs.define(eq=False)
class HostClocks:
    """The clocks of a node's host, as its machines read them."""

    node: Node

    def monotonic_ns(self) -> int:
        return self.node.world.scheduler.now_ns + self.node.clock_offset_ns

    def wall_ns(self) -> int:
        return WALL_NS + self.node.world.scheduler.now_ns + self.node.wall_offset_ns


@attrs.define(eq=False)
class Life:
    """One process of a node.  `machine` is the one that is here, running or not."""

    node: Node
    world: "World"
    alive: bool = True
    guest: "SimulatedGuest | None" = None
    machine: Machine | None = None
    journal: SimulatedJournal = attrs.field(init=False)
    fence: SimulatedFence | None = attrs.field(init=False)
    side: Role = attrs.field(init=False)
    side_name: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.journal = SimulatedJournal(self, self.node.disk)
        self.fence = None if self.world.storage is None else SimulatedFence(self, self.world.storage)
        self.side = self.node.role
        self.side_name = self.side.value

    def check(self) -> None:
        """Raises Killed if this process is dead."""
        if not self.alive:
            raise Killed
        if self.guest is not None and self.guest.machine.state is MachineState.RUNNING:
            self.guest.execute()

    def have(self, machine: Machine) -> "SimulatedGuest":
        """`machine` is the one that is here now."""
        self.machine = machine
        self.guest = SimulatedGuest(self, machine)
        return self.guest

    def make(self, spec: Spec, birth: Birth, kept: KeptImage | None = None) -> Machine:
        ram = None if kept is None else kept.ram
        machine = self.world.foundry.make(spec, birth, self.world.host_clock(self.node), ram)
        self.world.machines.append(machine)
        hooks = self.world.hooks  # a failure of a device may be injected
        intercept(machine, lambda: hooks.exporting(self), lambda: hooks.importing(self))
        return machine

    def forget_running(self) -> None:
        if self.machine is not None and self.machine.state is MachineState.RUNNING:
            self.world.audits.stopped(self.node.name, self.machine)

    def let_go(self) -> None:
        """The machine is somebody else's, and nobody asks for it here any more."""
        if self.machine is not None and self.machine.state is not MachineState.STOPPED:
            self.forget_running()
            self.machine.stop()
        self.machine = self.guest = None

    # The clock and the observer

    def monotonic_ns(self) -> int:
        return self.world.scheduler.now_ns + self.node.clock_offset_ns

    async def sleep(self, seconds: float) -> None:
        self.check()
        await self.world.scheduler.sleep(round(seconds * NS_PER_S))

    async def pause(self, seconds: float) -> None:
        """As a daemon does before it tries again: until a tick."""
        self.check()
        scheduler = self.world.scheduler
        await scheduler.sleep(scheduler.tick_after(round(seconds * NS_PER_S)) - scheduler.now_ns)

    def tell(self, event: str, **facts: Any) -> None:
        if not self.alive:
            return
        if self.world.traced:
            line = " ".join([event, *(f"{key}={value}" for key, value in facts.items())])
            self.world.say(self.node.name, lambda: line)
            self.world.hooks.told(self, event, facts)
        if event == "phase":
            self.world.hooks.entering(self, self.side, facts["phase"])

    # What a restart finds

    def made_of(self) -> tuple[Spec, Birth]:
        content = self.node.disk.content
        assert content.spec is not None, "what the machine is made of is written with its first record"
        assert content.birth is not None, "its birth as well"
        return content.spec, content.birth

    def hold_again(self) -> ImageLost | None:
        """The machine that must not run: with its image, or as one that can only start from its disks, and why."""
        try:
            machine = self._restored()
        except MigrationError as error:
            self.have(self.make(*self.made_of()))
            return ImageLost(f"the image of {self.journal.record} is lost: {error}")
        self.have(machine)
        return None

    def _restored(self) -> Machine:
        kept = self.node.disk.content.image
        if kept is None or kept.generation != self.journal.record.generation:
            raise ImageLost("there is none")
        if kept.boot != self.node.disk.boot:
            raise ImageLost("the host has been booted since")
        parts = PauseImage.decode(kept.frames)
        machine = self.make(*self.made_of(), kept)
        machine.receive()
        parts.restore(machine, self.world.release)
        return machine


@attrs.define(eq=False)
class SimulatedGuest:
    """The machine of a process and whoever makes its vCPUs run; see `migrate.engine.ports.RunningGuest`."""

    life: Life
    machine: Machine
    busy_steps: int = BUSY_STEPS
    _last_step_ns: int = 0
    _rest: Rest = attrs.field(factory=Rest)
    _running_ns: int = 0
    _worked_ns: float = 0.0
    _looked_ns: int | None = None
    _asked_ns: int = 0
    _asleep: bool = False

    @property
    def pace(self) -> Pace:
        self._reckon()
        return Pace(work=self._worked_ns, running_ns=self._running_ns)

    def throttle(self, share: float) -> None:
        self._reckon()
        self._rest.share = share
        if isinstance(self.machine.memory, ModelledMemory):
            self.machine.memory.bulk.set(throttle=share)

    @property
    def throttled(self) -> float:
        return self._rest.share

    def _reckon(self) -> None:
        """How long the guest has been running, and awake, until now."""
        now = self.life.world.scheduler.now_ns
        if self._looked_ns is not None:
            self._running_ns += now - self._looked_ns
            self._worked_ns += (now - self._looked_ns) * (1 - self._rest.share)
        self._looked_ns = now if self.machine.state is MachineState.RUNNING else None

    async def pause(self) -> None:
        self.life.check()
        self.life.world.say(self.life.node.name, lambda: "pauses")
        self._reckon()
        self.machine.pause()
        self._reckon()
        self.life.world.audits.stopped(self.life.node.name, self.machine)

    async def resume(self) -> None:
        self.life.check()
        if self.machine.state is MachineState.CREATING:
            await self.start_over()
            return
        if self.machine.state is MachineState.PAUSED:
            self.machine.resume()
        elif self.machine.state is MachineState.MIGRATING:
            self.machine.start()
        else:
            return
        self._reckon()
        self._started(from_image=True)

    async def start_over(self) -> None:
        self.life.check()
        if self.machine.state is not MachineState.CREATING:
            self.machine.stop()
            self.machine = self.life.machine = self.life.make(self.machine.spec, self.machine.birth)
        boot(self.machine)
        self.machine.start()
        self._reckon()
        self._started(from_image=False)

    def _started(self, *, from_image: bool) -> None:
        life, audits = self.life, self.life.world.audits
        audits.started(life.node.name, self.machine, from_image=from_image)
        if life.fence is not None:
            audits.check_title(life.node.name, life.fence.held, life.fence.storage.title)

    async def stop(self) -> None:
        self.life.check()
        if self.machine.state is MachineState.RUNNING:
            await self.pause()
        if self.machine.state is not MachineState.STOPPED:
            self.machine.stop()

    def execute(self) -> None:
        """Take the steps that are due, as the machine is running."""
        now = self.life.world.scheduler.now_ns
        if self._is_asleep(now):
            return
        if self.busy_steps > 0:
            self.busy_steps -= STEPS_AT_ONCE
            for _ in range(STEPS_AT_ONCE):
                self.life.world.take_step(self.machine)
        elif now - self._last_step_ns >= CALM_STEP_NS:
            self.life.world.take_step(self.machine)
        else:
            return
        self._last_step_ns = now

    def step_due_ns(self, now_ns: int) -> int:
        """When it may take the next of its calm steps, or `now_ns` if that is past."""
        return max(self._last_step_ns + CALM_STEP_NS, now_ns)

    def catch_up(self) -> None:
        """Do what a guest has done that nobody looked at for a while: some steps, up to a round number of them."""
        now, world = self.life.world.scheduler.now_ns, self.life.world
        if self.machine.state is not MachineState.RUNNING or now - self._last_step_ns < CALM_STEP_NS:
            return
        if self._is_asleep(now):
            return
        world.audits.before_it_goes_on(self.life.node.name, self.machine)
        while world.audits.steps % ROUND_STEPS:
            world.take_step(self.machine)
        self.busy_steps, self._last_step_ns = 0, now

    def _is_asleep(self, now: int) -> bool:
        elapsed_ns, self._asked_ns = now - self._asked_ns, now
        self._asleep = self._rest.is_due(elapsed_ns, was_awake=not self._asleep)
        return self._asleep


@attrs.define(eq=False)
class SimulatedHypervisor:
    """Makes and runs machines on the target; see `migrate.engine.ports.Hypervisor`."""

    life: Life

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        self.life.check()
        machine = self.life.make(spec, birth)
        self.life.have(machine)
        return machine

    async def run(self, machine: Machine) -> None:
        self.life.check()
        await self._guest(machine).resume()

    async def start_over(self, machine: Machine) -> None:
        self.life.check()
        await self._guest(machine).start_over()

    async def discard(self, machine: Machine) -> None:
        self.life.check()
        if machine.state is MachineState.RUNNING:
            self.life.world.audits.stopped(self.life.node.name, machine)
        if machine.state is not MachineState.STOPPED:
            machine.stop()
        if self.life.machine is machine:
            self.life.machine = self.life.guest = None

    def _guest(self, machine: Machine) -> SimulatedGuest:
        guest = self.life.guest
        assert guest is not None, "a machine is here"
        assert guest.machine is machine, "and it is this one"
        guest.busy_steps = 0
        return guest
