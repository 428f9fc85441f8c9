"""Machines whose RAM is only reckoned: a machine of 1 TiB migrates in milliseconds, and its virtual time is right.

RAM is counts (`Bulk`): how many pages a fresh target lacks, how many of them are zero, how many are dirty.  The guest
dirties distinct pages at a constant rate while it runs, up to its working set, as the published runs are described:

    V0 = RAM that is not zero        Ti = Vi / bandwidth        Vi+1 = min(working set, rate * Ti)

The first MiB is real (`ModelledMemory.window`): there the program of the simulated machines has its state, so every
audit sees what it sees of other machines.  How such RAM travels: `modelled_ram`.
"""

from typing import Final, cast

import attrs
import numpy as np

from migrate.engine.rounds import NS_PER_S
from migrate.simulation.machines import LightMachine, content_pages
from sim_vmm.birth import Birth
from sim_vmm.clock import HostClock
from sim_vmm.dirty import DirtyPages
from sim_vmm.lifecycle import MachineState, Verb
from sim_vmm.machine import MIB, Machine
from sim_vmm.memory import PAGE_SIZE, GuestMemory, file_in_memory, ram_layout
from sim_vmm.spec import Spec

WINDOW_BYTES: Final = MIB
WINDOW_PAGES: Final = WINDOW_BYTES // PAGE_SIZE


@attrs.frozen(kw_only=True)
class Workload:
    """What the guest does to the modelled part of its RAM.

    Of all pages `zero_share` are zero, and stay so.  It writes `dirty_pages_per_s` distinct pages a second, of a
    working set of `working_set_pages`.
    """

    dirty_pages_per_s: float = 0.0
    working_set_pages: int = 0
    zero_share: float = 0.0


@attrs.define
class Bulk:
    """The modelled pages of one machine, as counts.  The guest's writes are reckoned whenever somebody looks."""

    workload: Workload
    clock: HostClock
    page_count: int
    content: int = 0
    """Pages that a fresh target lacks; all of them or none."""
    is_running: bool = False
    throttle: float = 0.0
    _dirty: float = 0.0
    _in_round: int = 0
    _since_ns: int = 0

    @property
    def zero_pages(self) -> int:
        return round(self.page_count * self.workload.zero_share)

    @property
    def count(self) -> int:
        """Pages dirty now."""
        self._write()
        return int(self._dirty) + self._in_round

    def set(self, *, is_running: bool | None = None, throttle: float | None = None) -> None:
        """From now on the guest runs or does not, or is kept asleep for a share of the time."""
        self._write()
        self.is_running = self.is_running if is_running is None else is_running
        self.throttle = self.throttle if throttle is None else throttle

    def fill(self, content: int) -> None:
        """`content` pages are all that there is, and a target lacks all of them."""
        self._write()
        self.content = content
        self._dirty, self._in_round = float(content), 0

    def begin_round(self) -> int:
        self._write()
        self._in_round += int(self._dirty)
        self._dirty -= int(self._dirty)
        return self._in_round

    def take(self) -> tuple[int, int]:
        """The pages of the round, and how many of them are zero."""
        pages, self._in_round = self._in_round, 0
        return pages, min(self.zero_pages, max(pages - (self.content - self.zero_pages), 0))

    def _write(self) -> None:
        now = self.clock.monotonic_ns()
        if self.is_running:
            rate = self.workload.dirty_pages_per_s * (1 - self.throttle)
            written = self._dirty + rate * (now - self._since_ns) / NS_PER_S
            self._dirty = max(self._dirty, min(written, self.workload.working_set_pages))
        self._since_ns = now


class ModelledDirty(DirtyPages):
    """The dirty pages of the window, and those of the bulk by number only."""

    def __init__(self, bulk: Bulk) -> None:
        super().__init__(WINDOW_PAGES)
        self._bulk = bulk

    @property
    def count(self) -> int:
        return super().count + self._bulk.count

    def begin_round(self) -> int:
        return super().begin_round() + self._bulk.begin_round()

    def restore(self) -> None:
        super().restore()
        self._bulk.fill(self._bulk.content)  # dirty, in flight and sent are together all that there is


class ModelledMemory(GuestMemory):
    """Real in the window, and beyond it counts."""

    def __init__(self, memory_bytes: int, bulk: Bulk) -> None:
        super().__init__(file_in_memory(WINDOW_BYTES), WINDOW_BYTES)
        self.bulk: Final = bulk
        self.layout = ram_layout(memory_bytes)  # type: ignore[misc]  # what the machine says that it has
        self.dirty = ModelledDirty(bulk)  # type: ignore[misc]  # the same pages, and more


class ModelledMachine(LightMachine):
    """A light machine, whose guest dirties modelled pages as long as it runs."""

    def _advance(self, verb: Verb) -> None:
        bulk = memory_of(self).bulk
        if self.state is MachineState.CREATING and verb is Verb.START:  # booted, not received
            bulk.fill(bulk.page_count)
        super()._advance(verb)
        bulk.set(is_running=self.state is MachineState.RUNNING)


@attrs.frozen
class ModelledMachines:
    """Makes machines whose guests do what `workload` says; see `migrate.simulation.machines.Foundry`."""

    workload: Workload

    def make(self, spec: Spec, birth: Birth, clock: HostClock, ram: GuestMemory | None = None) -> Machine:
        memory_bytes = spec.board.memory_mb * MIB
        bulk = Bulk(self.workload, clock, memory_bytes // PAGE_SIZE - WINDOW_PAGES)
        memory = ModelledMemory(memory_bytes, bulk)
        if ram is not None:
            assert isinstance(ram, ModelledMemory), "it was made here"
            memory.view[:] = ram.view
            memory.mark_dirty(np.array(content_pages(memory), dtype=np.int64))
            bulk.fill(ram.bulk.content)
        return cast(Machine, ModelledMachine(spec, birth, memory, clock))


def memory_of(machine: Machine | LightMachine) -> ModelledMemory:
    assert isinstance(machine.memory, ModelledMemory), "modelled RAM is that of modelled machines"
    return machine.memory
