"""Who makes vCPUs run: a trio task that steps the guest program, and stops between two steps when it is to pause."""

from pathlib import Path

import attrs
import trio

from migrate.daemon.backends import storage_for
from migrate.daemon.images import Image
from migrate.daemon.wire import SocketWires, WireError
from migrate.errors import MachineCreationFailed
from migrate.reasons import sentence
from migrate.specs.crucible import unusable_requests
from sim_vmm.birth import Birth
from sim_vmm.clock import HostClock, SystemClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.guest import GuestProgram, Heartbeat, guest_in, read_heartbeat
from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine, MachineError
from sim_vmm.spec import Spec

STEP_EVERY_S = 0.005
"""A guest step is a few pages and now and then a line: 200 steps a second are a lightly loaded machine."""


@attrs.define
class GuestRunner:
    """A machine and the task that runs its guest, in a nursery that outlives both."""

    machine: Machine
    program: GuestProgram
    nursery: trio.Nursery
    _executing: trio.CancelScope | None = None
    _quiet: trio.Event = attrs.field(factory=trio.Event)

    async def pause(self) -> None:
        """Return when no step is being executed, and the machine is paused."""
        if self._executing is not None:
            self._executing.cancel()
            await self._quiet.wait()
        if self.machine.state is MachineState.RUNNING:
            self.machine.pause()

    async def resume(self) -> None:
        """Let the guest go on, if it does not run already."""
        if self.machine.state is MachineState.PAUSED:
            self.machine.resume()
        if self._executing is None and self.machine.state is MachineState.RUNNING:
            self._quiet = trio.Event()
            self._executing = trio.CancelScope()
            self.nursery.start_soon(self._execute, self._executing, self._quiet)

    async def stop(self) -> None:
        """The machine ends here."""
        await self.pause()
        if self.machine.state is not MachineState.STOPPED:
            self.machine.stop()

    async def _execute(self, scope: trio.CancelScope, quiet: trio.Event) -> None:
        try:
            with scope:
                while True:
                    self.program.step(self.machine)
                    self.machine.poll()
                    await trio.sleep(STEP_EVERY_S)
        finally:
            self._executing = None
            quiet.set()


@attrs.define
class TrioHypervisor:
    """Makes and runs machines in this process; see `migrate.engine.ports.Hypervisor`.

    With `audited`, an image of each machine is kept as it was just before it ran, for an audit: this costs the
    blackout an export of the devices, and copies of RAM pages only as the guest writes them.  The machines' NICs are on
    the wire at the path `wire`, if there is one, and their disks in the directory `storage`.
    """

    nursery: trio.Nursery
    audited: bool = False
    wire: Path | None = None
    storage: Path | None = None
    counters: InjectionCounters = attrs.field(factory=InjectionCounters)
    host_clock: HostClock = attrs.field(factory=SystemClock)
    runner: GuestRunner | None = None
    image: Image | None = None
    arrived_with: Heartbeat | None = None

    async def create(self, spec: Spec, birth: Birth) -> Machine:
        try:
            if reasons := list(unusable_requests(spec)):
                raise ValueError(sentence(reasons))
            return Machine.create(
                spec,
                host_clock=self.host_clock,
                counters=self.counters,
                birth=birth,
                storage=storage_for(spec, self.storage),
                wires=None if self.wire is None else SocketWires(self.wire),
            )
        except (MachineError, WireError, OSError, ValueError) as error:
            raise MachineCreationFailed(str(error)) from error

    async def run(self, machine: Machine) -> None:
        if self.audited:
            self.image = Image.of(machine)
        self.arrived_with = read_heartbeat(machine.memory)
        machine.start()
        self.runner = GuestRunner(machine, guest_in(machine.memory), self.nursery)
        await self.runner.resume()

    async def discard(self, machine: Machine) -> None:
        machine.stop()
        machine.close()
