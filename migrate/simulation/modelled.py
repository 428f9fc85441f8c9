"""Machines whose RAM is only reckoned: a machine of 1 TiB migrates in milliseconds, and its virtual time is right.

RAM is counts (`Bulk`): how many pages a fresh target lacks, how many of them are zero, how many are dirty.  The guest
dirties distinct pages at a constant rate while it runs, up to its working set, as the published runs are described:

    V0 = RAM that is not zero        Ti = Vi / bandwidth        Vi+1 = min(working set, rate * Ti)

A round goes over the link as the messages that it is made of, a few of them, which keep the wire busy for as long as
their pages would, and carry none.  The target counts what they announce, and holds it against what `RoundEnd` says.

The first MiB is real (`ModelledMemory.window`): there the program of the simulated machines has its state, so every
audit sees what it sees of other machines.
"""

import os
from collections.abc import Iterator
from typing import Final, cast

import attrs
import numpy as np
import xxhash

from migrate.engine.ports import Clock, Link, Observer
from migrate.engine.ram import extents_of
from migrate.engine.rounds import NS_PER_S, Round
from migrate.errors import RemoteProtocolError
from migrate.protocol.messages import Extent, Paused, RamBatch, RoundEnd
from migrate.simulation.machines import LightMachine, content_pages
from migrate.simulation.network import SimulatedLink
from sim_vmm.birth import Birth
from sim_vmm.clock import HostClock
from sim_vmm.dirty import DirtyPages
from sim_vmm.lifecycle import MachineState, Verb
from sim_vmm.machine import MIB, Machine
from sim_vmm.memory import HIGH_RAM_BASE, LOW_RAM_MAX, PAGE_SIZE, GuestMemory, ram_layout
from sim_vmm.spec import Spec

WINDOW_BYTES: Final = MIB
WINDOW_PAGES: Final = WINDOW_BYTES // PAGE_SIZE
SLICE_S: Final = 10.0
"""Pages of one message take no longer than this, as a link gives up a frame that takes half a minute."""

NOTHING: Final = xxhash.xxh3_64_intdigest(b"")


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
        file = os.memfd_create("guest-ram", os.MFD_CLOEXEC)
        os.ftruncate(file, WINDOW_BYTES)
        super().__init__(file, WINDOW_BYTES)
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
            memory.mark_dirty(content_pages(memory))
            bulk.fill(ram.bulk.content)
        return cast(Machine, ModelledMachine(spec, birth, memory, clock))


@attrs.frozen
class ModelledRam:
    """How the RAM of such machines travels; see `migrate.engine.ports.Ram`."""

    def outgoing(
        self, machine: Machine, link: Link, clock: Clock, observer: Observer, bandwidth: float | None
    ) -> "ModelledSender":
        return ModelledSender(memory_of(machine), simulated(link), clock, bandwidth)

    def incoming(self, machine: Machine, link: Link) -> "ModelledReceiver":
        return ModelledReceiver(memory_of(machine), simulated(link))


def memory_of(machine: Machine | LightMachine) -> ModelledMemory:
    assert isinstance(machine.memory, ModelledMemory), "modelled RAM is that of modelled machines"
    return machine.memory


def simulated(link: Link) -> SimulatedLink:
    assert isinstance(link, SimulatedLink), "modelled RAM travels over a simulated network"
    return link


@attrs.define
class ModelledSender:
    """See `migrate.engine.ports.OutgoingRam`."""

    memory: ModelledMemory
    link: SimulatedLink
    clock: Clock
    bandwidth: float | None
    _round: int = 0

    async def send_round(self) -> Round:
        start, number = self.clock.monotonic_ns(), self._round
        self._round += 1
        self.memory.dirty.begin_round()
        window, window_bytes = await self._send_window(number)
        pages, zero_pages = self.memory.bulk.take()
        await self._send_bulk(number, pages - zero_pages, zero_pages)
        await self.link.send(RoundEnd(round=number, pages=window + pages, zero_pages=zero_pages))
        return Round(
            number=number,
            pages=window + pages,
            zero_pages=zero_pages,
            bytes=window_bytes + (pages - zero_pages) * PAGE_SIZE,
            duration_ns=self.clock.monotonic_ns() - start,
            dirtied_pages=self.memory.dirty.count,
        )

    async def _send_window(self, number: int) -> tuple[int, int]:
        pages = self.memory.dirty.take(WINDOW_PAGES)
        if not pages.size:
            return 0, 0
        content = np.take(self.memory.pages, pages, axis=0)
        extents = extents_of(self.memory, pages)
        checksum = xxhash.xxh3_64_intdigest(content.data)
        await self.link.send_ram(
            RamBatch(round=number, extents=extents, zero=(), checksum=checksum), content.data.cast("B")
        )
        return len(pages), content.nbytes

    async def _send_bulk(self, number: int, pages: int, zero_pages: int) -> None:
        start, first, end = self.clock.monotonic_ns(), WINDOW_PAGES, WINDOW_PAGES + pages
        while first < end or zero_pages:
            rate = min(self.link.outgoing.speed.bandwidth, self.bandwidth or np.inf)
            count = min(end - first, max(int(rate * SLICE_S) // PAGE_SIZE, 1))
            batch = RamBatch(
                round=number,
                extents=tuple(run_of_pages(first, count)),
                zero=tuple(run_of_pages(end, zero_pages)),
                checksum=NOTHING,
            )
            await self.link.send_reckoned(batch, count * PAGE_SIZE)
            first, zero_pages = first + count, 0
            if self.bandwidth is not None:
                done_ns = start + round((first - WINDOW_PAGES) * PAGE_SIZE / self.bandwidth * NS_PER_S)
                await self.clock.sleep(max(done_ns - self.clock.monotonic_ns(), 0) / NS_PER_S)


@attrs.define
class ModelledReceiver:
    """See `migrate.engine.ports.IncomingRam`."""

    memory: ModelledMemory
    link: SimulatedLink
    _round: int = 0
    _pages: int = 0
    _zero_pages: int = 0
    _content: int = 0
    _window: set[int] = attrs.field(factory=set)

    async def receive_round(self) -> RoundEnd | None:
        while isinstance(message := await self.link.receive(), RamBatch):
            await self._take(message)
        if isinstance(message, Paused):
            return None
        assert isinstance(message, RoundEnd), "the table allows nothing else"
        said, found = (
            (message.round, message.pages, message.zero_pages),
            (self._round, self._pages, self._zero_pages),
        )
        if said != found:
            raise RemoteProtocolError(f"the source says of a round (number, pages, zero) {said}; here it was {found}")
        self._round += 1
        self._pages = self._zero_pages = 0
        return message

    def mark_received_dirty(self) -> None:
        self.memory.bulk.fill(self._content)
        self.memory.mark_dirty(np.array(sorted(self._window), dtype=np.int64))

    async def _take(self, batch: RamBatch) -> None:
        if batch.round != self._round:
            raise RemoteProtocolError(f"a RAM batch of round {batch.round} in round {self._round}")
        if batch.extents and batch.extents[0].gpa < WINDOW_BYTES:
            await self._take_window(batch)
            return
        pages, zero_pages = self._count(batch.extents), self._count(batch.zero)
        self._pages += pages + zero_pages
        self._zero_pages += zero_pages
        if self._round == 0:  # the first has every page, each later one some of them again
            self._content += pages + zero_pages

    async def _take_window(self, batch: RamBatch) -> None:
        self._count(batch.extents)
        buffers = [self.memory.view[extent.gpa : extent.gpa + extent.length] for extent in batch.extents]
        await self.link.receive_ram(buffers)
        if xxhash.xxh3_64_intdigest(b"".join(buffers)) != batch.checksum:
            raise RemoteProtocolError(f"RAM batch of round {batch.round}: checksum does not match")
        for extent in batch.extents:
            first, count = extent.gpa // PAGE_SIZE, extent.length // PAGE_SIZE
            self._window.update(range(first, first + count))
            self._pages += count

    def _count(self, extents: tuple[Extent, ...]) -> int:
        """How many pages `extents` are, all of them RAM."""
        for extent in extents:
            if not any(
                region.gpa <= extent.gpa < extent.gpa + extent.length <= region.end for region in self.memory.layout
            ):
                raise RemoteProtocolError(f"{extent.gpa:#x} + {extent.length:#x} is not RAM")
        return sum(extent.length for extent in extents) // PAGE_SIZE


def run_of_pages(first: int, count: int) -> Iterator[Extent]:
    """`count` pages from page `first` on, as the guest addresses them: no extent reaches across the hole."""
    low_pages = LOW_RAM_MAX // PAGE_SIZE
    below = min(max(low_pages - first, 0), count)
    if below:
        yield Extent(gpa=first * PAGE_SIZE, length=below * PAGE_SIZE)
    if count > below:
        page = first + below - low_pages
        yield Extent(gpa=HIGH_RAM_BASE + page * PAGE_SIZE, length=(count - below) * PAGE_SIZE)
