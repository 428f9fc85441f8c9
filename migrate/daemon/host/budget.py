"""Guest RAM that a host gives: to one machine at most so much, and to all of them together."""

from pathlib import Path

import attrs

from migrate.daemon.guests import TrioHypervisor
from migrate.errors import MachineCreationFailed
from sim_vmm.birth import Birth
from sim_vmm.machine import Machine
from sim_vmm.spec import Spec


@attrs.define(eq=False)
class Budget:
    """MiB, as machines are told to have them: what a guest has not touched costs nothing, but it may."""

    total_mb: int
    used_mb: int = attrs.field(default=0, init=False)

    def reserve(self, mebibytes: int) -> None:
        """Raises MachineCreationFailed: it is more than is left."""
        if self.used_mb + mebibytes > self.total_mb:
            raise MachineCreationFailed(
                f"{mebibytes} MiB of guest RAM; {self.total_mb - self.used_mb} of {self.total_mb} are left on this host"
            )
        self.used_mb += mebibytes

    def give_back(self, mebibytes: int) -> None:
        self.used_mb -= mebibytes


@attrs.define
class HostHypervisor(TrioHypervisor):
    """Makes one of the machines of a host: within the budget, with its disks in a directory of its own."""

    budget: Budget = attrs.field(kw_only=True)
    _reserved: dict[Machine, int] = attrs.field(factory=dict, init=False)

    def storage_of(self, birth: Birth) -> Path | None:
        return None if self.storage is None else self.storage / str(birth.vm_id)

    def make(self, spec: Spec, birth: Birth, ram: Path | None = None) -> Machine:
        size = spec.board.memory_mb
        self.budget.reserve(size)
        try:
            machine = super().make(spec, birth, ram)
        except BaseException:
            self.budget.give_back(size)
            raise
        self._reserved[machine] = size
        return machine

    async def discard(self, machine: Machine) -> None:
        await super().discard(machine)
        self._give_back(machine)

    def let_go(self, machine: Machine) -> None:
        """The machine ends in this process; if its RAM belongs to an image, the file of it stays."""
        machine.close()
        self._give_back(machine)

    def _give_back(self, machine: Machine) -> None:
        self.budget.give_back(self._reserved.pop(machine, 0))
