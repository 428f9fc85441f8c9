"""Guest pages out of one machine and into another: extents, rounds, and batches that a hostile source may send."""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.ram import BATCH_PAGES, ZERO_PAGES_MAX, RamReceiver, RamSender, extents_of
from migrate.engine.rounds import Round
from migrate.engine.runs import pack, unpack
from migrate.errors import RemoteProtocolError
from migrate.protocol.frames import encode_frame
from migrate.protocol.messages import RAM_BATCH_PAGES_MAX, Extent, Message, RamBatch, RamContent, RamPages, RoundEnd
from sim_vmm.memory import HIGH_RAM_BASE, LOW_RAM_MAX, PAGE_SIZE, GuestMemory
from tests.engine_world import run_alone

PAGE_COUNT = 1024
GIB = 1 << 30
LOW_PAGES = LOW_RAM_MAX // PAGE_SIZE


@attrs.define
class Wire:
    """What a sender sent, and what a receiver is to get: messages, and the raw bytes behind batches."""

    sent: list[tuple[Message, bytes]] = attrs.field(factory=list)
    content: bytes = b""
    reads: int = 0
    transcript: int = 0

    async def send(self, message: Message) -> None:
        self.sent.append((message, b""))

    async def ready_for_ram(self) -> None:
        """There is room for everything."""

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        self.sent.append((batch, bytes(content)))

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        self.reads += 1
        for buffer in buffers:
            buffer[:], self.content = self.content[: len(buffer)], self.content[len(buffer) :]

    async def receive(self) -> Message:
        raise AssertionError("nobody answers")

    def forbid_cancelling(self) -> None:
        raise AssertionError("nobody forbids")


@attrs.define
class Ticks:
    """A clock that is a microsecond later whenever somebody looks, and notes how long it was slept on."""

    now_ns: int = 0
    slept_s: float = 0.0

    def monotonic_ns(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.now_ns += round(seconds * 10**9)


class Silence:
    def tell(self, event: str, **facts: Any) -> None:
        pass


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(PAGE_COUNT * PAGE_SIZE) as memory:
        yield memory


@pytest.fixture
def other() -> Iterator[GuestMemory]:
    with GuestMemory.create(PAGE_COUNT * PAGE_SIZE) as memory:
        yield memory


@pytest.fixture
def large() -> Iterator[GuestMemory]:
    """16 pages above the hole; sparse, so it costs nothing."""
    with GuestMemory.create(LOW_RAM_MAX + 16 * PAGE_SIZE) as memory:
        yield memory


def pattern(seed: int, pages: int = 1) -> bytes:
    return bytes([seed]) * PAGE_SIZE * pages


def write(memory: GuestMemory, *pages: int) -> None:
    """As the guest does, each page with its own content."""
    for page in pages:
        memory.write(memory.gpa_of(page), pattern(page % 255 + 1))


def sender(memory: GuestMemory, wire: Wire, bandwidth: float | None = None, version: int = 1) -> RamSender:
    return RamSender(memory, wire, Ticks(), Silence(), bandwidth, version)


def send_round(memory: GuestMemory, version: int = 1) -> list[tuple[Message, bytes]]:
    wire = Wire()
    run_alone(sender(memory, wire, version=version).send_round())
    return wire.sent


def deliver(sent: list[tuple[Message, bytes]], receiver: RamReceiver) -> None:
    """What one round of a sender was, into a receiver."""
    wire = receiver.link
    assert isinstance(wire, Wire)
    for message, content in sent:
        if isinstance(message, RamContent):
            wire.content = content
            run_alone(receiver.take(message))
            assert wire.content == b""
        else:
            assert isinstance(message, RoundEnd)
            receiver.end_round(message)


def extents(*pairs: tuple[int, int]) -> tuple[Extent, ...]:
    """Extents from page numbers and page counts below the hole."""
    return tuple(Extent(gpa=first * PAGE_SIZE, length=count * PAGE_SIZE) for first, count in pairs)


def batch(
    content: tuple[Extent, ...] = (), zero: tuple[Extent, ...] = (), data: bytes = b"", number: int = 0
) -> RamBatch:
    return RamBatch(round=number, extents=content, zero=zero, checksum=xxhash.xxh3_64_intdigest(data))


# Extents


RUNS: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([], []),
    ([0], [(0, 1)]),
    ([5], [(5, 1)]),
    ([0, 1, 2], [(0, 3)]),
    ([0, 2, 4], [(0, 1), (2, 1), (4, 1)]),
    ([3, 4, 7, 8, 9, 1023], [(3, 2), (7, 3), (1023, 1)]),
]


@pytest.mark.parametrize(("pages", "runs"), RUNS, ids=str)
def test_consecutive_pages_make_one_extent(memory: GuestMemory, pages: list[int], runs: list[tuple[int, int]]) -> None:
    assert extents_of(memory, np.array(pages, dtype=np.int64)) == extents(*runs)


def test_pages_on_both_sides_of_the_hole_make_two_extents(large: GuestMemory) -> None:
    pages = np.arange(LOW_PAGES - 2, LOW_PAGES + 3)
    assert extents_of(large, pages) == (
        Extent(gpa=3 * GIB - 2 * PAGE_SIZE, length=2 * PAGE_SIZE),
        Extent(gpa=4 * GIB, length=3 * PAGE_SIZE),
    )


def test_memory_on_both_sides_of_the_hole_arrives(large: GuestMemory) -> None:
    write(large, 0, LOW_PAGES - 1, LOW_PAGES, LOW_PAGES + 15)
    large.write(large.gpa_of(LOW_PAGES + 3), bytes(PAGE_SIZE))
    with GuestMemory.create(len(large.view)) as there:
        deliver(send_round(large), RamReceiver(there, Wire()))
        for page in (0, LOW_PAGES - 1, LOW_PAGES, LOW_PAGES + 15):
            assert bytes(there.pages[page]) == pattern(page % 255 + 1)
        assert there.read(HIGH_RAM_BASE, 1) == pattern(LOW_PAGES % 255 + 1)[:1]


# Sending


def test_a_round_is_every_dirty_page_and_its_end(memory: GuestMemory) -> None:
    write(memory, 1, 2, 3, 700)
    memory.write(memory.gpa_of(10), bytes(2 * PAGE_SIZE))
    sent = send_round(memory)
    content = b"".join(pattern(page % 255 + 1) for page in (1, 2, 3, 700))
    assert sent == [
        (batch(extents((1, 3), (700, 1)), extents((10, 2)), content), content),
        (RoundEnd(round=0, pages=6, zero_pages=2), b""),
    ]


def test_a_round_of_nothing_is_only_its_end(memory: GuestMemory) -> None:
    assert send_round(memory) == [(RoundEnd(round=0, pages=0, zero_pages=0), b"")]


def test_pages_of_zeros_travel_without_bytes(memory: GuestMemory) -> None:
    memory.write(0, bytes(100 * PAGE_SIZE))
    sent = send_round(memory)
    assert sent[0] == (batch(zero=extents((0, 100))), b"")


def test_a_round_of_many_pages_is_many_batches(memory: GuestMemory) -> None:
    write(memory, *range(PAGE_COUNT))
    batches = [message for message, _ in send_round(memory) if isinstance(message, RamBatch)]
    assert len(batches) == PAGE_COUNT // BATCH_PAGES >= 2
    assert all(sum(extent.length for extent in batch.extents) == BATCH_PAGES * PAGE_SIZE for batch in batches)


def test_the_most_scattered_batch_fits_its_frame(large: GuestMemory) -> None:
    write(large, *range(LOW_PAGES - 2 * BATCH_PAGES, LOW_PAGES, 2))
    (first, _), *_ = send_round(large)
    assert isinstance(first, RamBatch)
    assert len(first.extents) == BATCH_PAGES
    assert len(encode_frame(first)) < RamBatch.BODY_MAX


def test_what_is_checksummed_is_what_is_sent_whatever_the_guest_does_meanwhile(memory: GuestMemory) -> None:
    @attrs.define
    class Meddling(Wire):
        async def ready_for_ram(self) -> None:
            """Where the guest has its turn."""
            if not self.sent:
                write(memory, 9)
                memory.write(memory.gpa_of(4), b"changed before it was on its way")

    write(memory, 4)
    wire = Meddling()
    ram = sender(memory, wire)
    run_alone(ram.send_round())
    (first, content), (end, _) = wire.sent
    assert isinstance(first, RamBatch)
    assert content == memory.read(memory.gpa_of(4), PAGE_SIZE), "as it was when the link took it"
    assert first.checksum == xxhash.xxh3_64_intdigest(content)
    assert end == RoundEnd(round=0, pages=1, zero_pages=0)
    assert ram.rounds[0].dirtied_pages == 2
    assert memory.dirty.dirty_pages().tolist() == [4, 9]


def test_each_round_has_its_number_and_its_counts(memory: GuestMemory) -> None:
    wire = Wire()
    ram = sender(memory, wire)
    write(memory, 1, 2)
    memory.write(memory.gpa_of(5), bytes(PAGE_SIZE))
    run_alone(ram.send_round())
    write(memory, 3)
    run_alone(ram.send_round())
    ends = [message for message, _ in wire.sent if isinstance(message, RoundEnd)]
    assert ends == [RoundEnd(round=0, pages=3, zero_pages=1), RoundEnd(round=1, pages=1, zero_pages=0)]
    first, second = ram.rounds
    assert attrs.evolve(first, duration_ns=0) == Round(
        number=0, pages=3, zero_pages=1, bytes=2 * PAGE_SIZE, duration_ns=0, dirtied_pages=0
    )
    assert (second.number, second.pages, second.bytes) == (1, 1, PAGE_SIZE)


def test_a_cap_on_the_bandwidth_is_slept_for(memory: GuestMemory) -> None:
    write(memory, *range(512))
    wire = Wire()
    ram = sender(memory, wire, bandwidth=1024 * PAGE_SIZE)
    run_alone(ram.send_round())
    assert ram.rounds[0].duration_ns == pytest.approx(0.5e9, rel=0.01)


# Receiving


PAGE_SETS = st.sets(st.integers(0, PAGE_COUNT - 1), max_size=60)


@given(first=PAGE_SETS, zeroed=PAGE_SETS, again=PAGE_SETS)
def test_whatever_the_guest_writes_between_rounds_the_memories_end_alike(
    first: set[int], zeroed: set[int], again: set[int]
) -> None:
    size = PAGE_COUNT * PAGE_SIZE
    with GuestMemory.create(size) as here, GuestMemory.create(size) as there:
        wire, receiver = Wire(), RamReceiver(there, Wire())
        ram = sender(here, wire)
        for pages, content in ((first, b"\x11"), (zeroed, b"\0"), (again, b"\x22")):
            for page in pages:
                here.write(here.gpa_of(page), content * PAGE_SIZE)
            run_alone(ram.send_round())
        deliver(wire.sent, receiver)
        assert np.array_equal(here.pages, there.pages)
        receiver.mark_received_dirty()
        with_content = set(np.flatnonzero(there.pages.any(axis=1)).tolist())
        assert with_content <= set(there.dirty.dirty_pages().tolist()) <= first | again


@pytest.mark.parametrize("count", [1, 2, 200])
def test_few_large_extents_and_many_small_ones_arrive_alike(
    memory: GuestMemory, other: GuestMemory, count: int
) -> None:
    write(memory, *range(0, 2 * count, 2))
    receiver = RamReceiver(other, Wire())
    deliver(send_round(memory), receiver)
    assert np.array_equal(memory.pages, other.pages)
    assert receiver.bytes_received == count * PAGE_SIZE


def test_a_page_that_became_zero_is_zero_there_too(memory: GuestMemory, other: GuestMemory) -> None:
    wire, receiver = Wire(), RamReceiver(other, Wire())
    ram = sender(memory, wire)
    write(memory, 6)
    run_alone(ram.send_round())
    memory.write(memory.gpa_of(6), bytes(PAGE_SIZE))
    run_alone(ram.send_round())
    deliver(wire.sent, receiver)
    assert not other.pages.any()


def test_a_page_that_is_zero_again_is_written_once_and_is_no_content_any_more(memory: GuestMemory) -> None:
    receiver = RamReceiver(memory, Wire(content=pattern(1, 4)))
    run_alone(receiver.take(batch(extents((8, 4)), data=pattern(1, 4))))
    run_alone(receiver.take(batch(zero=extents((9, 2)))))
    assert [page for page in range(16) if memory.pages[page].any()] == [8, 11]
    memory.pages[9] = 1  # would be cleared if it were written again
    run_alone(receiver.take(batch(zero=extents((0, 11)))))
    assert memory.pages[9].all()
    receiver.mark_received_dirty()
    assert memory.dirty.count == 1


def test_zero_pages_of_untouched_memory_cost_the_host_nothing(large: GuestMemory) -> None:
    receiver = RamReceiver(large, Wire())
    for first in range(0, LOW_PAGES, ZERO_PAGES_MAX):
        run_alone(receiver.take(batch(zero=extents((first, ZERO_PAGES_MAX)))))
    receiver.end_round(RoundEnd(round=0, pages=LOW_PAGES, zero_pages=LOW_PAGES))
    receiver.mark_received_dirty()
    assert large.dirty.count == 0


def test_a_batch_as_large_as_is_allowed_is_taken(large: GuestMemory) -> None:
    data = bytes(RAM_BATCH_PAGES_MAX * PAGE_SIZE)
    wire = Wire(content=data)
    run_alone(RamReceiver(large, wire).take(batch(extents((0, RAM_BATCH_PAGES_MAX)), data=data)))
    assert wire.content == b""


# What a hostile source may send


END = PAGE_COUNT * PAGE_SIZE
FAR = 2**64 - PAGE_SIZE


def raw(*pairs: tuple[int, int]) -> tuple[Extent, ...]:
    return tuple(Extent(gpa=gpa, length=length) for gpa, length in pairs)


HOSTILE: list[tuple[str, tuple[Extent, ...], str]] = [
    ("a start inside a page", raw((1, PAGE_SIZE)), "not made of whole pages"),
    ("a start inside a page, to its end", raw((0x800, 0x800)), "not made of whole pages"),
    ("half a page", raw((0, 0x800)), "not made of whole pages"),
    ("a page and a byte", raw((0, PAGE_SIZE + 1)), "not made of whole pages"),
    ("nothing", raw((0, 0)), "not made of whole pages"),
    ("nothing, past the end", raw((END, 0)), "not made of whole pages"),
    ("the same page twice", raw((0, PAGE_SIZE), (0, PAGE_SIZE)), "does not lie above the one before"),
    ("pages that overlap", raw((0, 2 * PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE)), "does not lie above the one before"),
    ("pages out of order", raw((PAGE_SIZE, PAGE_SIZE), (0, PAGE_SIZE)), "does not lie above the one before"),
    ("the page past the end", raw((END, PAGE_SIZE)), "are not RAM"),
    ("a run over the end", raw((END - PAGE_SIZE, 2 * PAGE_SIZE)), "are not RAM"),
    ("the last page of all", raw((FAR, PAGE_SIZE)), "are not RAM"),
    ("a run over the end of all", raw((FAR, 2 * PAGE_SIZE)), "are not RAM"),
    ("more bytes than there are numbers", raw((0, FAR)), "pages; at most"),
    ("many runs over the end", raw(*((FAR, FAR) for _ in range(100))), "pages; at most"),
    ("a good run and a bad one", raw((0, PAGE_SIZE), (END, PAGE_SIZE)), "are not RAM"),
]
hostile = pytest.mark.parametrize(("pairs", "reason"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])


@hostile
@pytest.mark.parametrize("where", ["extents", "zero"])
def test_extents_that_are_no_ram_are_refused_before_a_byte_is_read_or_changed(
    memory: GuestMemory, pairs: tuple[Extent, ...], reason: str, where: str
) -> None:
    memory.pages[:] = 0xAA
    before = bytes(memory.view)
    wire = Wire(content=bytes(16 * PAGE_SIZE))
    receiver = RamReceiver(memory, wire)
    receiver.received[:] = True
    refused = batch(pairs) if where == "extents" else batch(zero=pairs)
    with pytest.raises(RemoteProtocolError, match=reason):
        run_alone(receiver.take(refused))
    assert wire.reads == 0
    assert bytes(memory.view) == before


def test_an_extent_across_the_hole_is_refused(large: GuestMemory) -> None:
    assert HIGH_RAM_BASE - LOW_RAM_MAX > ZERO_PAGES_MAX * PAGE_SIZE >= RAM_BATCH_PAGES_MAX * PAGE_SIZE
    for refused, reason in (
        (batch(zero=raw((3 * GIB - PAGE_SIZE, GIB + 2 * PAGE_SIZE))), "pages; at most"),
        (batch(raw((3 * GIB, PAGE_SIZE))), "are not RAM"),
        (batch(raw((3 * GIB - PAGE_SIZE, 2 * PAGE_SIZE))), "are not RAM"),
        (batch(zero=raw((4 * GIB - PAGE_SIZE, 2 * PAGE_SIZE))), "are not RAM"),
    ):
        wire = Wire()
        with pytest.raises(RemoteProtocolError, match=reason):
            run_alone(RamReceiver(large, wire).take(refused))
        assert wire.reads == 0


def test_more_pages_than_a_batch_may_have_are_refused(large: GuestMemory) -> None:
    too_many = [
        (batch(extents((0, RAM_BATCH_PAGES_MAX + 1))), "extents of a RAM batch: 4097 pages; at most 4096"),
        (batch(extents(*((2 * page, 1) for page in range(4097)))), "4097 pages; at most 4096"),
        (batch(zero=raw((0, (ZERO_PAGES_MAX + 1) * PAGE_SIZE))), "zero extents of a RAM batch: 16385 pages"),
    ]
    for refused, reason in too_many:
        with pytest.raises(RemoteProtocolError, match=reason):
            run_alone(RamReceiver(large, Wire()).take(refused))


def test_a_page_both_with_content_and_as_zero_is_refused(memory: GuestMemory) -> None:
    wire = Wire(content=pattern(1, 4))
    with pytest.raises(RemoteProtocolError, match="both with content and as zero"):
        run_alone(RamReceiver(memory, wire).take(batch(extents((0, 4)), extents((3, 1)), pattern(1, 4))))
    assert wire.reads == 0
    assert not memory.pages.any()


@pytest.mark.parametrize("count", [1, 9], ids=["direct", "scattered"])
def test_content_that_was_damaged_on_the_way_is_found(memory: GuestMemory, count: int) -> None:
    data = pattern(7, count)
    damaged = data[:-1] + b"\x06"
    message = batch(extents(*((2 * page + 4, 1) for page in range(count))), data=data)
    with pytest.raises(RemoteProtocolError) as caught:
        run_alone(RamReceiver(memory, Wire(content=damaged)).take(message))
    assert str(caught.value) == (
        f"RAM batch of round 0 from 0x4000: checksum does not match its {count * PAGE_SIZE} bytes"
    )


def test_an_empty_batch_has_the_checksum_of_nothing(memory: GuestMemory) -> None:
    run_alone(RamReceiver(memory, Wire()).take(batch()))
    with pytest.raises(RemoteProtocolError, match="from 0x0: checksum does not match its 0 bytes"):
        run_alone(RamReceiver(memory, Wire()).take(attrs.evolve(batch(), checksum=1)))


@pytest.mark.parametrize("number", [1, 2**32 - 1])
def test_a_batch_of_another_round_is_refused(memory: GuestMemory, number: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a RAM batch of round {number} in round 0"):
        run_alone(RamReceiver(memory, Wire()).take(batch(number=number)))


@pytest.mark.parametrize(
    "end",
    [
        RoundEnd(round=0, pages=4, zero_pages=2),
        RoundEnd(round=0, pages=2, zero_pages=2),
        RoundEnd(round=0, pages=3, zero_pages=1),
        RoundEnd(round=1, pages=3, zero_pages=2),
    ],
    ids=str,
)
def test_an_end_that_counts_otherwise_is_refused(memory: GuestMemory, end: RoundEnd) -> None:
    receiver = RamReceiver(memory, Wire(content=pattern(1)))
    run_alone(receiver.take(batch(extents((0, 1)), extents((5, 2)), pattern(1))))
    with pytest.raises(RemoteProtocolError, match="here round 0 had 3, 2 of them zero"):
        receiver.end_round(end)


def test_after_its_end_a_round_cannot_go_on(memory: GuestMemory) -> None:
    receiver = RamReceiver(memory, Wire())
    receiver.end_round(RoundEnd(round=0, pages=0, zero_pages=0))
    with pytest.raises(RemoteProtocolError, match="a RAM batch of round 0 in round 1"):
        run_alone(receiver.take(batch()))
    receiver.end_round(RoundEnd(round=1, pages=0, zero_pages=0))


# Packed runs: protocol version 2


def packed(*runs: tuple[int, int]) -> bytes:
    return b"".join(first.to_bytes(4, "big") + count.to_bytes(4, "big") for first, count in runs)


@pytest.mark.parametrize(("pages", "runs"), RUNS, ids=str)
def test_consecutive_pages_make_one_run(memory: GuestMemory, pages: list[int], runs: list[tuple[int, int]]) -> None:
    assert pack(memory, np.array(pages, dtype=np.int64)) == packed(*runs)


def test_a_run_ends_at_the_hole_of_the_devices(large: GuestMemory) -> None:
    frames = HIGH_RAM_BASE // PAGE_SIZE
    pages = np.arange(LOW_PAGES - 2, LOW_PAGES + 3)
    assert pack(large, pages) == packed((LOW_PAGES - 2, 2), (frames, 3))
    assert unpack(large, pack(large, pages), "pages", 5).tolist() == pages.tolist()


@given(st.sets(st.integers(LOW_PAGES - 40, LOW_PAGES + 15)))
def test_runs_give_back_the_pages_that_were_packed(pages: set[int]) -> None:
    with GuestMemory.create(3 * GIB + 16 * PAGE_SIZE) as memory:
        ascending = np.array(sorted(pages), dtype=np.int64)
        runs = pack(memory, ascending)
        assert unpack(memory, runs, "pages", 56).tolist() == ascending.tolist()
        counted = RamPages(round=0, pages=runs, zero=b"", checksum=0).content_bytes
        assert counted == len(pages) * PAGE_SIZE


BAD_RUNS: list[tuple[bytes, str]] = [
    (packed((0, 1))[:7], "7 bytes are no whole runs of 8"),
    (packed((3, 0)), "the run of 0 pages at 0x3000 is empty"),
    (packed((3, 2), (4, 1)), "the run of 1 pages at 0x4000 is empty, or does not lie above the one before"),
    (packed((9, 1), (3, 1)), "the run of 1 pages at 0x3000 is empty, or does not lie above"),
    (packed((PAGE_COUNT, 1)), "are not RAM"),
    (packed((PAGE_COUNT - 1, 2)), "are not RAM"),
    (packed((0, 51)), "51 pages; at most 50 are allowed"),
    (packed((0xFFFF_FFFF, 0xFFFF_FFFF)), "4294967295 pages; at most 50 are allowed"),
    (packed((0xFFFF_FFFF, 1)), "are not RAM"),
]


@pytest.mark.parametrize(("runs", "said"), BAD_RUNS, ids=[said for _, said in BAD_RUNS])
def test_runs_that_name_no_ram_are_refused(memory: GuestMemory, runs: bytes, said: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(memory, runs, "pages", 50)
    assert said in str(caught.value)


def test_a_run_across_the_hole_of_the_devices_is_refused(large: GuestMemory) -> None:
    frames = HIGH_RAM_BASE // PAGE_SIZE
    with pytest.raises(RemoteProtocolError, match="spans a hole"):
        unpack(large, packed((LOW_PAGES - 1, frames - LOW_PAGES + 2)), "pages", 1 << 30)


@pytest.mark.parametrize("version", [1, 2])
def test_ram_arrives_as_it_was_in_either_protocol_version(memory: GuestMemory, version: int) -> None:
    write(memory, *range(300), *range(400, 700, 3))
    memory.write(memory.gpa_of(350), bytes(2 * PAGE_SIZE))
    sent = send_round(memory, version)
    assert {type(message) for message, _ in sent} == {RamBatch if version == 1 else RamPages, RoundEnd}
    with GuestMemory.create(len(memory.view)) as there:
        receiver = RamReceiver(there, Wire())
        deliver(sent, receiver)
        assert bytes(there.view) == bytes(memory.view)
        receiver.mark_received_dirty()
        assert there.dirty.count == 400


def test_a_hole_and_memory_that_was_touched_are_filled_alike(memory: GuestMemory) -> None:
    write(memory, *range(PAGE_COUNT))
    sent = send_round(memory, 2)
    with GuestMemory.create(len(memory.view)) as there:
        for page in range(BATCH_PAGES // 2, PAGE_COUNT // 2, 7):
            there.pages[page] = 255
        assert there.is_hole(PAGE_COUNT // 2 * PAGE_SIZE, PAGE_COUNT * PAGE_SIZE)
        deliver(sent, RamReceiver(there, Wire()))
        assert bytes(there.view) == bytes(memory.view)
        assert not there.is_hole(PAGE_COUNT // 2 * PAGE_SIZE, PAGE_COUNT * PAGE_SIZE)


def test_the_most_scattered_packed_batch_fits_its_frame(large: GuestMemory) -> None:
    most = bytes(8 * RAM_BATCH_PAGES_MAX)
    assert len(encode_frame(RamPages(round=1, pages=most, zero=most, checksum=2**64 - 1))) <= RamPages.BODY_MAX
