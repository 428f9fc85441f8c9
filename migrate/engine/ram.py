"""Guest pages out of one machine and into another.

What was checksummed must be what is sent, though the guest goes on writing.  So the sender waits until the link has
room for a batch; then nobody else has a turn between the checksum and the system call that takes the pages from guest
RAM as they are.  Scattered pages are gathered in a staging buffer first.  Pages of zeros travel without bytes.

The receiver checks every run of pages against the machine's own RAM before it touches memory.  Where RAM has been
touched before, it is received straight into the mapping; a hole is filled through the file, which costs neither the
faults of a first touch nor the zeroing of what is overwritten at once.  Scattered pages are received together, then
scattered.  Pages of zeros are written only where something else was received before, so that untouched memory stays
untouched on the target too.

Protocol version 1 names pages as extents (`RamBatch`), version 2 as packed runs (`RamPages`): see `runs`.
"""

from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
import numpy.typing as npt
import xxhash

from migrate.engine.ports import Clock, Link, Observer
from migrate.engine.rounds import NS_PER_S, Round
from migrate.engine.runs import NO_PAGES, PageIndices, is_one_run, pack, unpack
from migrate.errors import RemoteProtocolError
from migrate.protocol.messages import (
    PROTOCOL_VERSIONS,
    RAM_BATCH_PAGES_MAX,
    Extent,
    Paused,
    RamBatch,
    RamContent,
    RamPages,
    RoundEnd,
)
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE, GuestAddressError, GuestMemory
from sim_vmm.snapshot import nonzero_pages

BATCH_PAGES: Final = 512
"""2 MiB: larger ones fall out of the processor's cache, smaller ones drown in what any batch costs."""

PIECE_PAGES: Final = 256
"""What is received, checksummed and stored at once: of a hole, more would have left the cache before it is stored."""

CAPPED_BATCH_S: Final = 0.1
"""Under a bandwidth cap, how long a batch may take."""

ZERO_PAGES_MAX: Final = 1 << 14
"""Zero pages that one batch may name: 64 MiB, which take some ms if all of them had content before."""

PROGRESS_EVERY_NS: Final = NS_PER_S // 10


def extents_of(memory: GuestMemory, pages: PageIndices) -> tuple[Extent, ...]:
    """Runs of consecutive guest-physical pages, from ascending page numbers."""
    if not pages.size:
        return ()
    gpas = memory.gpas_of(pages)
    starts = np.flatnonzero(np.diff(gpas, prepend=gpas[0] - 2 * PAGE_SIZE) != PAGE_SIZE)
    lengths = np.diff(np.append(starts, len(gpas))) * PAGE_SIZE
    return tuple(
        Extent(gpa=gpa, length=length) for gpa, length in zip(gpas[starts].tolist(), lengths.tolist(), strict=True)
    )


def batch_pages_at(bandwidth: float | None) -> int:
    """Small enough under a cap of `bandwidth` bytes a second that nobody waits long for the next look at the link."""
    if bandwidth is None:
        return BATCH_PAGES
    return max(1, min(BATCH_PAGES, int(bandwidth * CAPPED_BATCH_S / PAGE_SIZE)))


@attrs.define
class _Staging:
    """Room for the pages of a batch: made once, as large as it was ever needed, since fresh memory is slow."""

    _pages: npt.NDArray[np.uint8] = attrs.field(factory=lambda: np.empty((0, PAGE_SIZE), dtype=np.uint8))

    def room_for(self, count: int) -> npt.NDArray[np.uint8]:
        """Shape (count, 4096); what was in it before is lost."""
        if len(self._pages) < count:
            self._pages = np.empty((count, PAGE_SIZE), dtype=np.uint8)
        return self._pages[:count]


@attrs.frozen
class MappedRam:
    """RAM that is mapped into this process, page by page over the link: see `migrate.engine.ports.Ram`.

    A batch has at most `batch_pages`.
    """

    batch_pages: int = BATCH_PAGES

    def outgoing(
        self,
        machine: Machine,
        link: Link,
        clock: Clock,
        observer: Observer,
        bandwidth: float | None,
        protocol_version: int,
    ) -> "RamSender":
        return RamSender(machine.memory, link, clock, observer, bandwidth, protocol_version, self.batch_pages)

    def incoming(self, machine: Machine, link: Link) -> "RamReceiver":
        return RamReceiver(machine.memory, link)


@attrs.define
class RamSender:
    """Sends rounds of a machine's dirty pages.  `bandwidth` in bytes per second, or None for as fast as it goes."""

    memory: GuestMemory
    link: Link
    clock: Clock
    observer: Observer
    bandwidth: float | None = None
    protocol_version: int = PROTOCOL_VERSIONS[0]
    batch_pages: int = BATCH_PAGES
    rounds: list[Round] = attrs.field(factory=list)
    _told_ns: int = 0
    _staging: _Staging = attrs.field(factory=_Staging)

    async def send_round(self) -> Round:
        """Send every page that is dirty now, and the end of the round; what the guest dirties meanwhile can wait."""
        number = len(self.rounds)
        dirty = self.memory.dirty
        start = self.clock.monotonic_ns()
        total = dirty.count
        dirty.begin_round()
        pages = zero_pages = sent = 0
        while (taken := dirty.take(self._batch_pages)).size:
            zeros, size = await self._send_batch(number, taken)
            pages += int(taken.size)
            zero_pages += zeros
            sent += size
            self._tell_progress(number, pages, total, sent, start)
            await self._keep_to_bandwidth(start, sent)
        await self.link.send(RoundEnd(round=number, pages=pages, zero_pages=zero_pages))
        round_ = Round(
            number=number,
            pages=pages,
            zero_pages=zero_pages,
            bytes=sent,
            duration_ns=self.clock.monotonic_ns() - start,
            dirtied_pages=dirty.count,
        )
        self.rounds.append(round_)
        return round_

    @property
    def _batch_pages(self) -> int:
        return min(self.batch_pages, batch_pages_at(self.bandwidth))

    async def _send_batch(self, number: int, pages: PageIndices) -> tuple[int, int]:
        """Returns how many pages were zero and how many bytes of content went out."""
        await self.link.ready_for_ram()
        nonzero, content = self._gather(pages)
        checksum = xxhash.xxh3_64_intdigest(content.data)
        full, zero = (pages, NO_PAGES) if len(content) == len(pages) else (pages[nonzero], pages[~nonzero])
        batch: RamContent
        if self.protocol_version >= 2:
            runs, zero_runs = pack(self.memory, full), pack(self.memory, zero)
            batch = RamPages(round=number, pages=runs, zero=zero_runs, checksum=checksum)
        else:
            extents, zeros = extents_of(self.memory, full), extents_of(self.memory, zero)
            batch = RamBatch(round=number, extents=extents, zero=zeros, checksum=checksum)
        await self.link.send_ram(batch, content.data.cast("B") if len(content) else memoryview(b""))
        return len(zero), content.nbytes

    def _gather(self, pages: PageIndices) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
        """Which of `pages` are not zero, and their content, which may be guest RAM itself."""
        memory = self.memory.pages
        if is_one_run(pages):
            content = memory[pages[0] : pages[-1] + 1]
        else:
            content = np.take(memory, pages, axis=0, out=self._staging.room_for(len(pages)), mode="clip")
        nonzero = nonzero_pages(content)
        return nonzero, content if nonzero.all() else content[nonzero]

    def _tell_progress(self, number: int, pages: int, total: int, sent: int, start_ns: int) -> None:
        now = self.clock.monotonic_ns()
        if now - self._told_ns >= PROGRESS_EVERY_NS:
            self._told_ns = now
            rate = sent * NS_PER_S / max(now - start_ns, 1)
            self.observer.tell("ram", round=number, pages=pages, of_pages=total, bytes=sent, bytes_per_s=round(rate))

    async def _keep_to_bandwidth(self, start_ns: int, sent: int) -> None:
        if self.bandwidth is None:
            return
        ahead_ns = sent / self.bandwidth * NS_PER_S - (self.clock.monotonic_ns() - start_ns)
        if ahead_ns > 0:
            await self.clock.sleep(ahead_ns / NS_PER_S)


@attrs.define
class RamReceiver:
    """Takes batches into a machine's RAM and counts them; `received` has a flag for each page that has content."""

    memory: GuestMemory
    link: Link
    received: npt.NDArray[np.bool_] = attrs.field(init=False)
    bytes_received: int = 0
    _staging: _Staging = attrs.field(factory=_Staging)
    _round: int = 0
    _pages: int = 0
    _zero_pages: int = 0
    _marked: npt.NDArray[np.bool_] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.received = np.zeros(self.memory.page_count, dtype=np.bool_)
        self._marked = np.zeros_like(self.received)

    async def receive_round(self) -> RoundEnd | None:
        """See `migrate.engine.ports.IncomingRam`."""
        while True:
            match await self.link.receive():
                case RamPages() | RamBatch() as batch:
                    await self.take(batch)
                case RoundEnd() as end:
                    self.end_round(end)
                    return end
                case Paused():
                    return None
                case other:
                    raise AssertionError(f"the table allows no {other} here")

    async def take(self, batch: RamContent) -> None:
        """Receive the contents of `batch`.

        Raises:
            RemoteProtocolError: pages that are not RAM or not in order, another round's batch, a wrong checksum.
        """
        if batch.round != self._round:
            raise RemoteProtocolError(f"a RAM batch of round {batch.round} in round {self._round}")
        if isinstance(batch, RamPages):
            pages = unpack(self.memory, batch.pages, "pages", RAM_BATCH_PAGES_MAX)
            zeros = unpack(self.memory, batch.zero, "zero pages", ZERO_PAGES_MAX)
        else:
            pages = self._pages_of(batch.extents, "extents", RAM_BATCH_PAGES_MAX)
            zeros = self._pages_of(batch.zero, "zero extents", ZERO_PAGES_MAX)
        if pages.size and zeros.size and np.intersect1d(pages, zeros, assume_unique=True).size:
            raise RemoteProtocolError("a RAM batch names a page both with content and as zero")
        checksum = await self._receive(pages)
        if checksum != batch.checksum:
            first = self.memory.gpa_of(int(pages[0])) if pages.size else 0
            raise RemoteProtocolError(
                f"RAM batch of round {batch.round} from {first:#x}: checksum does not match its "
                f"{len(pages) * PAGE_SIZE} bytes"
            )
        if zeros.size:
            stale = zeros[self.received[zeros]]
            self.memory.pages[stale] = 0
            self.received[stale] = False  # so that a peer can have it zeroed only as often as it sends content
        self.received[pages] = True
        self._pages += len(pages) + len(zeros)
        self._zero_pages += len(zeros)
        self.bytes_received += len(pages) * PAGE_SIZE

    def end_round(self, end: RoundEnd) -> None:
        """Check the sender's counts against ours, and begin the next round.

        Raises:
            RemoteProtocolError: they differ: pages were lost on the way.
        """
        said = (end.round, end.pages, end.zero_pages)
        found = (self._round, self._pages, self._zero_pages)
        if said != found:
            raise RemoteProtocolError(
                "the source says that round {} had {} pages, {} of them zero; ".format(*said)
                + "here round {} had {}, {} of them zero".format(*found)
            )
        self._round += 1
        self._pages = self._zero_pages = 0

    def mark_received_dirty(self) -> None:
        """All content is dirty on the new host, so that the machine can migrate on (protocol-phases §5)."""
        self.memory.mark_dirty(np.flatnonzero(self.received & ~self._marked))
        self._marked |= self.received

    async def _receive(self, pages: PageIndices) -> int:
        """Take the contents of `pages` off the link into RAM, piece by piece; returns their checksum."""
        hasher = xxhash.xxh3_64()
        for first in range(0, len(pages), PIECE_PAGES):
            some = pages[first : first + PIECE_PAGES]
            if is_one_run(some):
                begin, end = int(some[0]) * PAGE_SIZE, (int(some[-1]) + 1) * PAGE_SIZE
                if not self.memory.is_hole(begin, end):
                    content = self.memory.view[begin:end]
                    await self.link.receive_ram([content])
                    hasher.update(content)
                    continue
                content = self._staging.room_for(len(some)).data.cast("B")
                await self.link.receive_ram([content])
                hasher.update(content)
                self.memory.fill(begin, content)
            else:
                scattered = self._staging.room_for(len(some))
                await self.link.receive_ram([scattered.data.cast("B")])
                hasher.update(scattered.data)
                self.memory.pages[some] = scattered
        return hasher.intdigest()

    def _pages_of(self, extents: Sequence[Extent], what: str, pages_max: int) -> PageIndices:
        """Page numbers of `extents`, which must be whole pages of RAM, ascending and disjoint, and not too many."""
        page_count = sum(extent.length for extent in extents) // PAGE_SIZE
        if page_count > pages_max:
            raise RemoteProtocolError(f"{what} of a RAM batch: {page_count} pages; at most {pages_max} are allowed")
        pieces = []
        previous_end = 0
        for extent in extents:
            end = extent.gpa + extent.length
            if extent.gpa % PAGE_SIZE or extent.length % PAGE_SIZE or not extent.length or extent.gpa < previous_end:
                raise RemoteProtocolError(
                    f"{what} of a RAM batch: {extent.gpa:#x} + {extent.length:#x} is not made of whole pages, "
                    "or does not lie above the one before"
                )
            previous_end = end
            try:
                first, last = self.memory.page_of(extent.gpa), self.memory.page_of(end - PAGE_SIZE)
            except GuestAddressError as error:
                raise RemoteProtocolError(f"{what} of a RAM batch: {error}") from None
            if (last - first + 1) * PAGE_SIZE != extent.length:
                raise RemoteProtocolError(f"{what} of a RAM batch: {extent.gpa:#x} + {extent.length:#x} spans a hole")
            pieces.append(np.arange(first, last + 1, dtype=np.int64))
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
