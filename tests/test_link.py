"""The engines' link over a real TCP connection: cancelling, deadlines, last words, and sends that the kernel splits."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import pytest
import trio
import xxhash
from trio.testing import MockClock, wait_all_tasks_blocked

from migrate.daemon.link import SocketLink, connect
from migrate.daemon.outcome import Cancelling
from migrate.daemon.transport import Transport, way_of
from migrate.errors import (
    DeadlineExpired,
    LocalProtocolError,
    MigrationCancelled,
    NotOurProtocol,
    PeerFailed,
    RemoteProtocolError,
    TransportLost,
)
from migrate.protocol import frames
from migrate.protocol.conversation import Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import (
    OPTIONAL,
    Accept,
    Extent,
    Failure,
    Hello,
    Paused,
    Preamble,
    RamBatch,
    Role,
    RoundEnd,
    RoundStored,
    Welcome,
)
from tests.daemons import LOOPBACK, PATIENT, Wire, port_of, reset_on_close
from tests.specimens import SPECIMENS

MIB: Final = 1 << 20
FAILURE: Final = Failure(phase="ram", error="DeviceStateError", message="it broke")
HELLO, WELCOME, PREAMBLE, ACCEPT = (SPECIMENS[kind] for kind in (Hello, Welcome, Preamble, Accept))

#: Idle for this long in real seconds, with all sockets in one process, nothing more will happen by itself.
IDLE_S: Final = 0.02

Operation = Callable[[SocketLink], Awaitable[object]]


@pytest.fixture
def clock() -> MockClock:
    """Time as usual for the tests that ask for it, but nobody sits out what only waiting would bring."""
    return MockClock(rate=1, autojump_threshold=IDLE_S)


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Both ends of a TCP connection: the source's, then the target's."""
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener:
        target = await trio.open_tcp_stream(LOOPBACK, port_of([listener]))
        source = await listener.accept()
    async with source, target:
        yield source, target


@asynccontextmanager
async def source_and_wire(deadlines: Deadlines = PATIENT) -> AsyncIterator[tuple[SocketLink, Wire]]:
    """A source's link, and the target's end in our hands."""
    async with connection() as (source, target), SocketLink(Role.SOURCE, source, deadlines) as link:
        yield link, Wire(Role.TARGET, target)
        await target.aclose()  # or the link would wait for us to hang up


Ends = tuple[trio.SocketStream | Transport, trio.SocketStream | Transport]


async def in_the_clear(source: trio.SocketStream, target: trio.SocketStream) -> Ends:
    return source, target


#: What links are made over: tests/test_tls_link.py has another.
carried: Callable[[trio.SocketStream, trio.SocketStream], Awaitable[Ends]] = in_the_clear


@asynccontextmanager
async def both(deadlines: Deadlines = PATIENT) -> AsyncIterator[tuple[SocketLink, SocketLink]]:
    """Two links in conversation; neither waits for the other at the end."""
    async with connection() as streams:
        source, target = await carried(*streams)
        farewell_s = min(deadlines.farewell_s, 10) if deadlines is not PATIENT else 0.05
        patience = Deadlines(frame_s=deadlines.frame_s, overrides=deadlines.overrides, farewell_s=farewell_s)
        async with (
            SocketLink(Role.SOURCE, source, patience) as here,
            SocketLink(Role.TARGET, target, patience) as there,
        ):
            yield here, there


async def reach_ram(source: SocketLink, target: SocketLink) -> None:
    """Have a conversation up to where the source sends RAM."""
    for sender, receiver, message in (
        (target, source, HELLO),
        (source, target, WELCOME),
        (source, target, PREAMBLE),
        (target, source, ACCEPT),
    ):
        await sender.send(message)
        assert await receiver.receive() == message
    assert source.conversation.phase is Phase.RAM


def batch_of(content: bytes | bytearray) -> RamBatch:
    checksum = xxhash.xxh3_64_intdigest(content)
    return RamBatch(round=0, extents=(Extent(gpa=0, length=len(content)),), zero=(), checksum=checksum)


async def send_more_than_fits(link: SocketLink) -> None:
    """Far more than the kernel takes while nobody reads."""
    content = bytes(16 * MIB)
    while True:
        await link.ready_for_ram()
        await link.send_ram(batch_of(content), memoryview(content))


async def receive_batches(link: SocketLink) -> None:
    while True:
        batch = await link.receive()
        assert isinstance(batch, RamBatch)
        await link.receive_ram([memoryview(bytearray(batch.content_bytes))])


async def receive_some_ram(link: SocketLink) -> None:
    await link.receive()
    await link.receive_ram([memoryview(bytearray(8192))])


async def receive_for_ever(link: SocketLink) -> None:
    while True:
        await link.receive()


# Cancelling


async def cancelled_while(link: SocketLink, operation: Operation) -> MigrationCancelled:
    """Cancel while `operation` is blocked."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_soon, link)
        with pytest.raises(MigrationCancelled) as caught:
            await operation(link)
    return caught.value


async def cancel_soon(link: SocketLink) -> None:
    await wait_all_tasks_blocked(0.01)
    assert link.cancel() is Cancelling.CANCELLED


async def test_cancelling_ends_a_wait_and_the_peer_can_still_be_told() -> None:
    async with both() as (source, target):
        error = await cancelled_while(source, SocketLink.receive)
        assert str(error) == "the migration was cancelled on the source, in phase 'hello'"
        await source.send(FAILURE)
        with pytest.raises(PeerFailed, match="it broke"):
            await target.receive()


async def test_cancelling_in_the_middle_of_a_message_lets_nothing_follow_but_a_farewell() -> None:
    """Half a batch is out: whatever came next would be taken for page contents, so the other half comes first."""
    async with both(Deadlines(farewell_s=10)) as (source, target), trio.open_nursery() as nursery:
        await reach_ram(source, target)
        await cancelled_while(source, send_more_than_fits)
        with pytest.raises(TransportLost, match="broke off in the middle of a frame"):
            await source.send(Paused())
        nursery.start_soon(source.send, FAILURE)
        with pytest.raises(PeerFailed):
            await receive_batches(target)


async def test_cancelling_ends_a_wait_for_page_contents() -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        await source.send_ram(batch_of(bytes(8192)), memoryview(bytes(4096)))
        await cancelled_while(target, receive_some_ram)
        await target.send(FAILURE)
        with pytest.raises(PeerFailed):
            await source.receive()


async def test_cancelling_between_two_operations_ends_the_next_one_and_is_said_once() -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        assert source.cancel() is Cancelling.CANCELLED
        with pytest.raises(MigrationCancelled):
            await source.send(Paused())
        await source.send(FAILURE)
        with pytest.raises(PeerFailed):
            await target.receive()


async def test_a_cancelling_that_nothing_noticed_yet_is_noticed_when_it_becomes_forbidden() -> None:
    """A message may arrive in the same instant; its receiver must not go on to what cannot be undone."""
    async with both() as (source, target):
        await target.send(HELLO)
        assert await source.receive() == HELLO
        assert source.cancel() is Cancelling.CANCELLED
        with pytest.raises(MigrationCancelled):
            source.forbid_cancelling()


async def test_once_forbidden_cancelling_comes_too_late_and_disturbs_nothing() -> None:
    async with both() as (source, target):
        source.forbid_cancelling()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.receive)
            await wait_all_tasks_blocked(0.01)
            assert source.cancel() is Cancelling.TOO_LATE
            await target.send(HELLO)
        assert source.conversation.phase is Phase.WELCOME


# Deadlines


async def test_a_silent_peer_runs_into_the_frame_deadline(clock: MockClock) -> None:
    async with both() as (source, _):
        with trio.fail_after(11), pytest.raises(DeadlineExpired, match="the target was silent or too slow in phase 'h"):
            await source.receive()


async def test_the_frame_deadline_holds_for_the_whole_frame_and_not_for_each_read(clock: MockClock) -> None:
    data = frames.PREFACE + frames.encode_frame(HELLO)
    async with source_and_wire() as (link, wire), trio.open_nursery() as nursery:

        async def trickle() -> None:
            for index in range(len(data)):
                await wire.put(data[index : index + 1])
                await trio.sleep(1)

        nursery.start_soon(trickle)
        with trio.fail_after(11), pytest.raises(DeadlineExpired):
            await link.receive()
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_read_runs_into_the_frame_deadline(clock: MockClock) -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        with trio.fail_after(20), pytest.raises(DeadlineExpired, match="phase 'ram', sending guest RAM"):
            await send_more_than_fits(source)


async def test_page_contents_that_do_not_come_run_into_the_frame_deadline(clock: MockClock) -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        await source.send_ram(batch_of(bytes(8192)), memoryview(bytes(4096)))
        with trio.fail_after(11), pytest.raises(DeadlineExpired, match="waiting for guest RAM"):
            await receive_some_ram(target)


async def test_quick_messages_without_end_run_into_the_phase_deadline(clock: MockClock) -> None:
    async with both(Deadlines(frame_s=10, overrides={Phase.RAM: 20})) as (source, target):
        await reach_ram(source, target)

        async def send_on() -> None:
            while True:
                await source.send_ram(batch_of(b""), memoryview(b""))
                await trio.sleep(3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_on)
            with trio.fail_after(21), pytest.raises(DeadlineExpired, match="phase 'ram'"):
                await receive_for_ever(target)
            nursery.cancel_scope.cancel()


async def test_a_phase_that_is_entered_again_has_all_its_time_again(clock: MockClock) -> None:
    async with both(Deadlines(frame_s=10, overrides={Phase.RAM: 9})) as (source, target):
        await reach_ram(source, target)
        for number in range(4):
            await trio.sleep(5)
            await source.send(RoundEnd(round=number, pages=0, zero_pages=0))
            await target.receive()
            await target.send(RoundStored(round=number))
            await source.receive()


def test_ram_is_given_time_for_its_size_and_other_phases_are_not() -> None:
    deadlines = Deadlines(opening_s=1, phase_s=2, slowest_bytes_per_s=MIB, overrides={Phase.READY: 7})
    given = [deadlines.allowance_s(phase, 10 * MIB) for phase in (Phase.HELLO, Phase.RAM, Phase.DEVICES, Phase.READY)]
    assert given == [1, 12, 2, 7]


def test_all_deadlines_are_scaled_alike() -> None:
    every = attrs.asdict(Deadlines(overrides={Phase.READY: 7.0}).scaled(0.5))
    assert every.pop("overrides") == {Phase.READY: 3.5}
    assert every.pop("slowest_bytes_per_s") == 2.0 * Deadlines().slowest_bytes_per_s
    assert every == {name: 0.5 * getattr(Deadlines(), name) for name in every}
    assert len(every) == 6


# Last words


async def test_last_words_reach_a_peer_that_is_still_sending_ram() -> None:
    """The target fails in full flow: a reset would destroy what it said, so it drains while it leaves."""
    async with connection() as (source_stream, target_stream):
        source = SocketLink(Role.SOURCE, source_stream, PATIENT)
        target = SocketLink(Role.TARGET, target_stream, Deadlines(farewell_s=10))
        await reach_ram(source, target)

        async def fail_early() -> None:
            async with target:
                await target.receive()
                await target.send(FAILURE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_early)
            with trio.fail_after(5), pytest.raises(PeerFailed, match="it broke"):
                await send_more_than_fits(source)
            await source_stream.aclose()


async def test_last_words_that_nobody_reads_do_not_hold_up_the_speaker(clock: MockClock) -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        with pytest.raises(DeadlineExpired):
            await send_more_than_fits(source)
        with trio.fail_after(2), pytest.raises(DeadlineExpired):
            await source.send(FAILURE)


@pytest.mark.parametrize("peer_talks", [False, True])
async def test_leaving_waits_for_the_peer_to_hang_up_but_not_for_ever(peer_talks: bool, clock: MockClock) -> None:
    async with connection() as (source, target), trio.open_nursery() as nursery:

        async def talk() -> None:
            while peer_talks:
                await target.send_all(bytes(1 << 16))

        nursery.start_soon(talk)
        with trio.fail_after(20):
            async with SocketLink(Role.SOURCE, source, Deadlines(farewell_s=0.1)):
                pass
        nursery.cancel_scope.cancel()


async def test_leaving_takes_no_time_when_the_peer_has_left() -> None:
    async with connection() as (source, target):
        await target.aclose()
        with trio.fail_after(20):
            async with SocketLink(Role.SOURCE, source, Deadlines(farewell_s=60)):
                pass


# Out of turn


async def test_what_is_not_ours_to_say_is_not_sent() -> None:
    async with both() as (source, target):
        with pytest.raises(LocalProtocolError, match="Paused from the source in phase 'hello'"):
            await source.send(Paused())
        await target.send(HELLO)
        assert await source.receive() == HELLO


async def test_a_message_too_large_for_its_frame_is_not_sent() -> None:
    async with both() as (source, target):
        with pytest.raises(LocalProtocolError, match="holds at most"):
            await target.send(Hello(protocol_versions=(1,), node="n" * 5000, release="r6"))
        await target.send(HELLO)
        assert await source.receive() == HELLO


async def test_a_failure_of_the_peer_is_heard_before_the_next_message_is_sent() -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        await target.send(FAILURE)
        await trio.sleep(0.01)
        with pytest.raises(PeerFailed) as caught:
            await source.send(Paused())
        assert (caught.value.side, caught.value.phase) == ("target", "ram")


async def test_a_peer_that_speaks_in_our_turn_breaks_the_protocol() -> None:
    async with source_and_wire() as (link, wire):
        await wire.say(HELLO)
        await wire.put(frames.encode_frame(ACCEPT))
        await trio.sleep(0.01)
        await link.receive()
        with pytest.raises(RemoteProtocolError, match="sent Accept from the target in phase 'welcome'"):
            await link.send(WELCOME)


async def test_messages_that_may_be_skipped_are_skipped_in_our_turn_too() -> None:
    extra = frames.encode_raw(OPTIONAL, b"")
    async with source_and_wire() as (link, wire):
        await wire.put(frames.PREFACE + extra + extra + frames.encode_frame(HELLO) + extra + extra)
        assert await link.receive() == HELLO
        await trio.sleep(0.01)
        with trio.fail_after(20):
            await link.send(WELCOME)


# What the kernel does with our bytes


async def test_a_message_that_the_kernel_takes_piece_by_piece_arrives_whole() -> None:
    async with connection() as (source_stream, target_stream):
        source_stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        source = SocketLink(Role.SOURCE, source_stream, PATIENT)
        target = SocketLink(Role.TARGET, target_stream, PATIENT)
        await reach_ram(source, target)
        content = bytes(range(256)) * (2 * MIB // 256)
        arrived = bytearray(len(content))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send_ram, batch_of(content), memoryview(content))
            assert await target.receive() == batch_of(content)
            pieces = [memoryview(arrived)[: MIB // 2], memoryview(arrived)[MIB // 2 :]]
            await target.receive_ram(pieces)
        assert arrived == content


async def test_what_a_guest_writes_while_a_batch_is_on_its_way_does_not_come_with_it() -> None:
    async with connection() as (source_stream, target_stream):
        source_stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        source = SocketLink(Role.SOURCE, source_stream, PATIENT)
        target = SocketLink(Role.TARGET, target_stream, PATIENT)
        await reach_ram(source, target)
        await changed_on_its_way(source, target)


async def changed_on_its_way(source: SocketLink, target: SocketLink) -> None:
    """The source's batch is larger than what the kernel takes, and is written to by whoever has the next turn."""
    content, arrived = bytearray(b"before" * (2 * MIB)), bytearray(12 * MIB)
    batch = batch_of(content)

    async def send_it() -> None:
        await source.ready_for_ram()
        await source.send_ram(batch, memoryview(content))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_it)
        await trio.testing.wait_all_tasks_blocked()
        content[:] = b"after!" * (2 * MIB)
        assert await target.receive() == batch
        await target.receive_ram([memoryview(arrived)])
    assert arrived == b"before" * (2 * MIB)


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        (b"", "between two messages"),
        (frames.PREFACE[:4], "in the middle of a message"),
        (frames.PREFACE, "between two messages"),
        (frames.PREFACE + frames.encode_frame(HELLO)[:5], "in the middle of a message"),
        (frames.PREFACE + frames.encode_frame(HELLO)[:16], "in the middle of a message"),
        (frames.PREFACE + frames.encode_frame(HELLO)[:-1], "in the middle of a message"),
    ],
)
async def test_a_connection_that_ends_is_described_by_where_it_ended(sent: bytes, where: str) -> None:
    async with source_and_wire() as (link, wire):
        await wire.put(sent)
        await wire.stream.send_eof()
        with pytest.raises(TransportLost, match=f"the target closed the connection in phase 'hello', {where}"):
            await link.receive()


async def test_a_reset_is_a_lost_connection_for_both_directions() -> None:
    async with source_and_wire() as (link, wire):
        await wire.say(HELLO)
        await link.receive()
        reset_on_close(wire.stream)
        await wire.stream.aclose()
        with pytest.raises(TransportLost):
            await link.send(WELCOME)
        with pytest.raises(TransportLost):
            await link.send(FAILURE)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x89MIF", b"\x00"])
async def test_a_stranger_is_quoted_as_soon_as_it_differs_from_us(said: bytes) -> None:
    async with source_and_wire() as (link, wire):
        await wire.put(said)
        with trio.fail_after(20), pytest.raises(NotOurProtocol, match="does not speak this protocol: it sent b"):
            await link.receive()


async def test_an_opening_that_was_heard_early_is_received_once() -> None:
    async with source_and_wire() as (link, wire):
        await wire.say(HELLO)
        await link.hear_opening()
        assert await link.receive() == HELLO
        await link.send(WELCOME)
        assert await wire.hear() == WELCOME


async def test_the_kernel_says_how_long_the_way_there_and_back_is() -> None:
    async with both() as (source, target):
        await reach_ram(source, target)
        ways_ns = [link.way_ns() for link in (source, target)]
    assert all(way_ns is not None and 0 < way_ns < 10**9 for way_ns in ways_ns)


async def test_a_socket_that_is_not_tcps_says_nothing_of_its_way() -> None:
    for end in trio.socket.socketpair():
        with end:
            assert way_of(end) is None


async def test_an_address_where_nobody_listens_is_named() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    port = port_of([listener])
    await listener.aclose()
    with pytest.raises(TransportLost, match=rf"cannot reach a source at 127\.0\.0\.1:{port}: "):
        await connect(LOOPBACK, port, PATIENT)
