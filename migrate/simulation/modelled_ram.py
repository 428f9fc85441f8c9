"""How modelled RAM travels (`modelled`): the port that engines await, over a simulated link.

A round goes over the link as the messages that it is made of, a few of them, which keep the wire busy for as long as
their pages would, and carry none.  The target counts what they announce, and holds it against what `RoundEnd` says.
What is in the window is real, and travels as it is.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
import numpy as np
import xxhash

from migrate.engine.ports import Clock, Link, Observer
from migrate.engine.rounds import NS_PER_S, Round
from migrate.engine.runs import pack, unpack
from migrate.errors import RemoteProtocolError
from migrate.protocol.messages import Message, Paused, RamPages, Role, RoundEnd
from migrate.simulation.hooks import Hooks
from migrate.simulation.link import SimulatedLink
from migrate.simulation.modelled import WINDOW_PAGES, ModelledMemory, memory_of
from sim_vmm.machine import Machine
from sim_vmm.memory import HIGH_RAM_BASE, LOW_RAM_MAX, PAGE_SIZE

SLICE_S: Final = 10.0
"""Pages of one message take no longer than this, as a link gives up a frame that takes half a minute."""

NOTHING: Final = xxhash.xxh3_64_intdigest(b"")


@attrs.frozen
class ModelledRam:
    """How the RAM of such machines travels; see `migrate.engine.ports.Ram`."""

    def outgoing(
        self,
        machine: Machine,
        link: Link,
        clock: Clock,
        observer: Observer,
        bandwidth: float | None,
        protocol_version: int,
    ) -> "ModelledSender":
        return ModelledSender(memory_of(machine), simulated(link), clock, bandwidth)

    def incoming(self, machine: Machine, link: Link) -> "ModelledReceiver":
        return ModelledReceiver(memory_of(machine), simulated(link))


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
        batch = RamPages(
            round=number, pages=pack(self.memory, pages), zero=b"", checksum=xxhash.xxh3_64_intdigest(content.data)
        )
        await self.link.send_ram(batch, content.data.cast("B"))
        return len(pages), content.nbytes

    async def _send_bulk(self, number: int, pages: int, zero_pages: int) -> None:
        start, first, end = self.clock.monotonic_ns(), WINDOW_PAGES, WINDOW_PAGES + pages
        while first < end or zero_pages:
            rate = min(self.link.outgoing.speed.bandwidth, self.bandwidth or np.inf)
            count = min(end - first, max(int(rate * SLICE_S) // PAGE_SIZE, 1))
            batch = RamPages(round=number, pages=runs_of(first, count), zero=runs_of(end, zero_pages), checksum=NOTHING)
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
        while isinstance(message := await self.link.receive(), RamPages):
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

    async def _take(self, batch: RamPages) -> None:
        if batch.round != self._round:
            raise RemoteProtocolError(f"a RAM batch of round {batch.round} in round {self._round}")
        pages, zero_pages = self._count(batch.pages), self._count(batch.zero)
        self._pages += pages + zero_pages
        self._zero_pages += zero_pages
        if pages and next(runs_in(batch.pages))[0] < WINDOW_PAGES:
            await self._take_window(batch)
        elif self._round == 0:  # the first has every page, each later one some of them again
            self._content += pages + zero_pages

    async def _take_window(self, batch: RamPages) -> None:
        pages = unpack(self.memory, batch.pages, "pages", WINDOW_PAGES)
        content = np.empty((len(pages), PAGE_SIZE), dtype=np.uint8)
        await self.link.receive_ram([content.data.cast("B")])
        if xxhash.xxh3_64_intdigest(content.data) != batch.checksum:
            raise RemoteProtocolError(f"RAM batch of round {batch.round}: checksum does not match")
        self.memory.pages[pages] = content
        self._window.update(pages.tolist())

    def _count(self, runs: bytes) -> int:
        """How many pages `runs` are, all of them RAM."""
        total = 0
        for first, count in runs_in(runs):
            gpa, end = first * PAGE_SIZE, (first + count) * PAGE_SIZE
            if not any(region.gpa <= gpa < end <= region.end for region in self.memory.layout):
                raise RemoteProtocolError(f"{count} pages at {gpa:#x} are not RAM")
            total += count
        return total


RUN: Final = struct.Struct("!II")
"""A run as `migrate.engine.runs` packs them, which knows real memory only."""


def runs_of(first: int, count: int) -> bytes:
    """`count` pages from page `first` on, as the guest addresses them: no run reaches across the hole."""
    low_pages, hole = LOW_RAM_MAX // PAGE_SIZE, (HIGH_RAM_BASE - LOW_RAM_MAX) // PAGE_SIZE
    below = min(max(low_pages - first, 0), count)
    runs = ((first, below), (max(first, low_pages) + hole, count - below))
    return b"".join(RUN.pack(*run) for run in runs if run[1])


def runs_in(runs: bytes) -> Iterator[tuple[int, int]]:
    """Raises RemoteProtocolError."""
    if len(runs) % RUN.size:
        raise RemoteProtocolError(f"{len(runs)} bytes are no whole runs of {RUN.size}")
    yield from RUN.iter_unpack(runs)


@attrs.define(eq=False)
class BandwidthOfRounds(Hooks):
    """The network as somebody measured it: bytes a second of each round, the last for all that follow."""

    bandwidths: Sequence[float]

    def sent(self, link: SimulatedLink, message: Message) -> None:
        if link.role is Role.SOURCE and isinstance(message, RoundEnd):
            bandwidth = self.bandwidths[min(message.round + 1, len(self.bandwidths) - 1)]
            link.outgoing.speed = attrs.evolve(link.outgoing.speed, bandwidth=bandwidth)
