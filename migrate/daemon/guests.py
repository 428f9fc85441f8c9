"""Who makes vCPUs run: a trio task that steps the guest program, and stops between two steps when it is to pause."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs
import trio

from migrate.daemon.backends import storage_for
from migrate.daemon.fence import TrioFence
from migrate.daemon.images import Image
from migrate.daemon.wire import SocketWires, WireError
from migrate.engine.ownership import StorageTaken
from migrate.engine.ports import Pace
from migrate.engine.rounds import NS_PER_S
from migrate.engine.throttle import Rest
from migrate.errors import MachineCreationFailed
from migrate.reasons import sentence
from migrate.specs.crucible import unusable_requests
from migrate.specs.offer import Variant, offer, variants_of
from sim_vmm.birth import Birth
from sim_vmm.clock import HostClock, SystemClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.fence import Fence, FencedOff, FenceError
from sim_vmm.guest import GuestDoesNotFit, GuestProgram, Heartbeat, guest_in, read_heartbeat
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import MIB, Machine, MachineError
from sim_vmm.memory import GuestMemory
from sim_vmm.spec import Spec

STEP_EVERY_S = 0.005
"""A guest step is a few pages and now and then a line: 200 steps a second are a lightly loaded machine."""

SETTLE_S: Final = 2.0
"""How long a pause waits for a busy network to take what the guest has sent."""

SETTLE_EVERY_S: Final = 0.001

MEMORY_MB_MAX: Final = 1 << 22
"""4 TiB: more guest RAM than this emulation can keep track of in reason."""


def ignore(_: object) -> None:
    """For a listener that nobody is."""


def do_nothing() -> None:
    """The same."""


@attrs.frozen
class FirstStep:
    """When a guest had made it, by the monotonic clock, and its heartbeat then, if it has one."""

    at_ns: int
    heartbeat: Heartbeat | None


@attrs.define
class GuestRunner:
    """A machine and the task that runs its guest, in a nursery that outlives both.

    `remake` gives a machine of the same spec and birth with nothing else of the old one.  `fenced_off` is set when the
    disks refused the machine's I/O: it has failed then, with `refusal`, and never runs again.  `on_running` is told
    before the guest's first step, and after its last; `on_boot` when it has been booted anew.  `first_step` is its
    first here.  `step_every_s` says how long the guest rests between two steps: many guests of one host have to share
    its processors.
    """

    machine: Machine
    program: GuestProgram
    nursery: trio.Nursery
    remake: Callable[[Machine], Awaitable[Machine]] | None = None
    on_running: Callable[[bool], None] = ignore
    on_boot: Callable[[], None] = do_nothing
    step_every_s: Callable[[], float] = lambda: STEP_EVERY_S
    fenced_off: trio.Event = attrs.field(factory=trio.Event)
    refusal: FenceError | None = None
    first_step: FirstStep | None = None
    _executing: trio.CancelScope | None = None
    _quiet: trio.Event = attrs.field(factory=trio.Event)
    _rest: Rest = attrs.field(factory=Rest)
    _last_ns: int | None = None
    _steps: int = 0
    _running_ns: int = 0

    @property
    def pace(self) -> Pace:
        return Pace(work=self._steps, running_ns=self._running_ns, last_ns=self._last_ns)

    def throttle(self, share: float) -> None:
        """Keep the guest asleep for `share` of the time; its devices go on, and so does its clock."""
        self._rest.share = share

    async def pause(self) -> None:
        """Return when no step is being executed, and the machine is paused.

        What the guest has sent has left by then: it would come after what the guest sends from elsewhere, or not at
        all.  What a network does not take in `SETTLE_S` leaves when the guest goes on here.

        Raises:
            StorageTaken: its disks are another's by now.
        """
        if self._executing is not None:
            self._executing.cancel()
            await self._quiet.wait()
        if self.machine.state is MachineState.RUNNING:
            try:
                self.machine.pause()
            except FenceError as error:
                self._fail(error)
        if self.refusal is not None:
            raise StorageTaken(self.refusal.found if isinstance(self.refusal, FencedOff) else None)
        with trio.move_on_after(SETTLE_S):
            while not self.machine.wires.flush():  # noqa: ASYNC110  # no kernel tells
                await trio.sleep(SETTLE_EVERY_S)

    async def resume(self) -> None:
        """Let the guest go on, if it does not run already: where it was paused, or where an image left it."""
        if self.machine.state is MachineState.CREATING:  # nothing is left of it but its disks
            await self.start_over()
            return
        if self.machine.state is MachineState.PAUSED:
            self.machine.resume()
        if self.machine.state is MachineState.MIGRATING:
            self.machine.start()
        if self._executing is None and self.machine.state is MachineState.RUNNING:
            self._quiet = trio.Event()
            self._executing = trio.CancelScope()
            self.on_running(True)
            self.nursery.start_soon(self._execute, self._executing, self._quiet)

    async def start_over(self) -> None:
        """Boot the guest from the machine's disks.

        Raises:
            MachineCreationFailed: this host cannot make the machine again, or the guest does not fit.
        """
        if self.machine.state is not MachineState.CREATING:
            assert self.remake is not None, "whoever can be told to start over knows how to make a machine"
            self.machine = await self.remake(self.machine)
        try:
            self.program.boot(self.machine)
        except GuestDoesNotFit as error:
            raise MachineCreationFailed(
                f"guest program {self.program.name!r} does not fit this machine: {error}"
            ) from error
        self.machine.start()
        self.on_boot()
        await self.resume()

    async def stop(self) -> None:
        """The machine ends here."""
        with suppress(StorageTaken):  # it has failed, which stops as well
            await self.pause()
        if self.machine.state is not MachineState.STOPPED:
            self.machine.stop()

    async def _execute(self, scope: trio.CancelScope, quiet: trio.Event) -> None:
        try:
            with scope:
                asleep = False
                while True:
                    began = trio.current_time()
                    if not asleep:
                        self.program.step(self.machine)
                        self._steps += 1
                        self._last_ns = time.monotonic_ns()
                        if self.first_step is None:
                            self.first_step = FirstStep(self._last_ns, read_heartbeat(self.machine.memory))
                    self.machine.poll()
                    await trio.sleep(self.step_every_s())
                    asleep = self._let_rest(trio.current_time() - began, asleep)
        except FenceError as error:
            self._fail(error)
        finally:
            self._executing = None
            self.on_running(False)
            quiet.set()

    def _let_rest(self, elapsed_s: float, was_asleep: bool) -> bool:
        """Whether the guest sleeps next, after it did or did not for a while."""
        elapsed_ns = round(elapsed_s * NS_PER_S)
        self._running_ns += elapsed_ns
        if was_asleep:
            self.machine.stolen_ns += elapsed_ns
        return self._rest.is_due(elapsed_ns, was_awake=not was_asleep)

    def _fail(self, error: FenceError) -> None:
        self.refusal = error
        self.machine.fail(str(error))
        self.fenced_off.set()


@attrs.define
class TrioHypervisor:
    """Makes and runs machines in this process; see `migrate.engine.ports.Hypervisor`.

    With `audited`, an image of each machine is kept as it was just before it ran, for an audit: this costs the
    blackout an export of the devices, and copies of RAM pages only as the guest writes them.  The machines' NICs are on
    the wire at the path `wire`, if there is one, and their disks in the directory `storage`, behind its fence.  Guest
    RAM is in a file where `ram_path` says, if it does, and at most `memory_mb_max` MiB.  `on_running` is told when a
    guest begins to run and when it has ceased to, `on_boot` when one has been booted, `on_point` around every change of
    the fence's register, `on_made` when there is a new machine.
    """

    nursery: trio.Nursery
    audited: bool = False
    wire: Path | None = None
    storage: Path | None = None
    fenced: bool = True
    memory_mb_max: int = MEMORY_MB_MAX
    ram_path: Callable[[Birth], Path] | None = None
    counters: InjectionCounters = attrs.field(factory=InjectionCounters)
    host_clock: HostClock = attrs.field(factory=SystemClock)
    runner: GuestRunner | None = None
    image: Image | None = None
    on_running: Callable[[bool], None] = ignore
    on_boot: Callable[[], None] = do_nothing
    on_point: Callable[[str], None] = ignore
    on_made: Callable[[Machine], None] = ignore
    step_every_s: Callable[[], float] = lambda: STEP_EVERY_S
    arrived_with: Heartbeat | None = None
    rams: dict[Machine, Path] = attrs.field(factory=dict)
    documents: dict[Machine, Variant] = attrs.field(factory=dict)
    programs: dict[Machine, GuestProgram] = attrs.field(factory=dict)
    """Guests of machines whose RAM does not tell."""
    _register: Fence | None = None

    @property
    def fence(self) -> TrioFence | None:
        is_there = self.storage is not None and self.fenced
        return TrioFence(self._present_register, self.on_point) if is_there else None

    def _present_register(self) -> Fence:
        assert self._register is not None, "there is a machine"
        return self._register

    def storage_of(self, birth: Birth) -> Path | None:
        """The directory of the disks of a machine."""
        return self.storage

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        machine = self.make(spec, birth)
        if self.ram_path is not None:  # now, and not in the blackout
            self.documents[machine] = variants_of(offer(spec))[0]
        return machine

    def make(self, spec: Spec, birth: Birth, ram: Path | None = None) -> Machine:
        """A machine that does not run; with `ram`, it has the RAM in that file.

        Raises:
            MachineCreationFailed: this host cannot make it.
        """
        memory_bytes = spec.board.memory_mb * MIB
        try:
            if spec.board.memory_mb > self.memory_mb_max:  # a spec comes from a peer: nothing is sized by it before
                raise ValueError(f"{spec.board.memory_mb} MiB of guest RAM; at most {self.memory_mb_max} here")
            if reasons := list(unusable_requests(spec)):
                raise ValueError(sentence(reasons))
            memory, path = None, ram
            if ram is not None:
                memory = GuestMemory.open(ram, memory_bytes)
            elif self.ram_path is not None:
                path = self.ram_path(birth)
                memory = GuestMemory.create(memory_bytes, path)
            storage = storage_for(spec, self.storage_of(birth), fenced=self.fenced)
            machine = Machine.create(
                spec,
                host_clock=self.host_clock,
                counters=self.counters,
                birth=birth,
                memory=memory,
                storage=storage,
                wires=None if self.wire is None else SocketWires(self.wire),
            )
        except (MachineError, WireError, OSError, ValueError) as error:
            raise MachineCreationFailed(str(error)) from error
        self.on_made(machine)
        self._register = storage.fence
        if path is not None:
            self.rams[machine] = path
        return machine

    def adopt(self, machine: Machine, ram: Path) -> None:
        """A machine that was made over RAM that was there."""
        self.rams[machine] = ram
        self.documents[machine] = variants_of(offer(machine.spec))[0]

    async def run(self, machine: Machine) -> None:
        if self.audited:
            self.image = Image.of(machine)
        self.arrived_with = read_heartbeat(machine.memory)
        self.runner = self.runner_of(machine, guest_in(machine.memory))
        await self.runner.resume()

    def runner_of(self, machine: Machine, program: GuestProgram) -> GuestRunner:
        return GuestRunner(
            machine, program, self.nursery, self.remake, self.on_running, self.on_boot, self.step_every_s
        )

    async def start_over(self, machine: Machine) -> None:
        self.runner = self.runner_of(machine, self.programs.get(machine) or guest_in(machine.memory))
        await self.runner.start_over()

    async def remake(self, machine: Machine) -> Machine:
        """The title to the disks stays with this process."""
        title = None if machine.storage.fence is None else machine.storage.fence.held
        await self.discard(machine)
        again = self.make(machine.spec, machine.birth)
        if again.storage.fence is not None:
            again.storage.fence.hold(title)
        return again

    async def discard(self, machine: Machine) -> None:
        if machine.state is not MachineState.STOPPED:
            machine.stop()
        machine.close()
        self.documents.pop(machine, None)
        self.programs.pop(machine, None)
        path = self.rams.pop(machine, None)
        if path is not None:
            path.unlink(missing_ok=True)
