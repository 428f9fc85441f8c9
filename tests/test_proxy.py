"""The proxy that speaks our frames: it changes nothing unless it is told, and does what it is told exactly there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Final

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from migrate.daemon.address import Address
from migrate.daemon.proxy import NoTap, Passing, Proxy
from migrate.protocol import frames
from migrate.protocol.messages import (
    Attach,
    Extent,
    Hello,
    Paused,
    RamBatch,
    Role,
    RoundEnd,
    RoundStored,
    Welcome,
)
from tests.daemons import LOOPBACK, port_of, reset_on_close
from tests.specimens import SPECIMENS

PAGE: Final = 4096
IDLE_S: Final = 0.02
SOURCE, TARGET = Role.SOURCE, Role.TARGET
HELLO, WELCOME = (frames.PREFACE + frames.encode_frame(SPECIMENS[kind]) for kind in (Hello, Welcome))
ATTACH = frames.PREFACE + frames.encode_frame(Attach(token=bytes(16), number=2))
STORED = frames.encode_frame(RoundStored(round=0))
CONTENT = Random(5).randbytes(40 * PAGE)
BATCH = (
    frames.encode_frame(RamBatch(round=0, extents=(Extent(gpa=0, length=len(CONTENT)),), zero=(), checksum=0)) + CONTENT
)
END = frames.encode_frame(RoundEnd(round=0, pages=40, zero_pages=0))
PAUSED = frames.encode_frame(Paused())


@pytest.fixture
def clock() -> MockClock:
    """Nobody sits out what only waiting would bring."""
    return MockClock(rate=1, autojump_threshold=IDLE_S)


@attrs.define(eq=False)
class Watch(NoTap):
    """Notes what passes, and does what it was given to do where it was told."""

    at: str = ""
    do: Callable[[Passing], Awaitable[None]] | None = None
    byte: tuple[Role, int] | None = None
    stream: int = 0
    passed: list[str] = attrs.field(factory=list)

    async def before(self, passing: Passing) -> None:
        await self._note(f"{passing.side} before {passing.kind}", passing)

    async def after(self, passing: Passing) -> None:
        await self._note(f"{passing.side} after {passing.kind}", passing)

    def byte_awaited(self, side: Role, stream: int) -> int | None:
        return self.byte[1] if self.byte is not None and (self.byte[0], self.stream) == (side, stream) else None

    async def at_byte(self, passing: Passing) -> None:
        self.byte = None
        assert self.do is not None
        await self.do(passing)

    async def _note(self, what: str, passing: Passing) -> None:
        self.passed.append(what)
        if what == self.at and self.do is not None:
            await self.do(passing)


@attrs.frozen
class Line:
    """Both ends of a connection through a proxy."""

    source: trio.SocketStream
    target: trio.SocketStream
    proxy: Proxy


@asynccontextmanager
async def proxy_to(listener: trio.SocketListener, watch: NoTap) -> AsyncIterator[tuple[Proxy, int]]:
    source = Address(host=LOOPBACK, port=port_of([listener]))
    proxy = Proxy(lambda: source, watch)
    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.serve, listeners)
        yield proxy, port_of(listeners)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def line(watch: NoTap) -> AsyncIterator[Line]:
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with listener, proxy_to(listener, watch) as (proxy, port):
        target = await trio.open_tcp_stream(LOOPBACK, port)
        source = await listener.accept()
        async with source, target:
            yield Line(source, target, proxy)


async def everything(stream: trio.SocketStream) -> bytes:
    """Up to the end of the stream."""
    data = b""
    async for chunk in stream:
        data += chunk
    return data


async def exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = await stream.receive_some(length - len(data))
        assert chunk, f"the stream ends after {len(data)} of {length} bytes"
        data += chunk
    return data


async def test_what_passes_is_told_frame_by_frame_and_arrives_as_it_was_sent() -> None:
    watch = Watch()
    async with line(watch) as ends:
        await ends.target.send_all(HELLO)
        assert await exactly(ends.source, len(HELLO)) == HELLO
        said = WELCOME + BATCH + END
        for first in range(0, len(said), 10_007):
            await ends.source.send_all(said[first : first + 10_007])
        assert await exactly(ends.target, len(said)) == said
        await ends.source.send_eof()
        await ends.target.send_all(STORED)
        await ends.target.send_eof()
        assert await everything(ends.source) == STORED
        assert await everything(ends.target) == b""
    assert watch.passed == [
        f"{side} {moment} {kind}"
        for side, kind in (
            (TARGET, "Hello"),
            (SOURCE, "Welcome"),
            (SOURCE, "RamBatch"),
            (SOURCE, "RoundEnd"),
            (TARGET, "RoundStored"),
        )
        for moment in ("before", "after")
    ]
    assert ends.proxy.forwarded == {(SOURCE, 0): len(said), (TARGET, 0): len(HELLO + STORED)}


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x89MIG\r\n",
        HELLO[:-1],
        HELLO[:-1] + b"?",
        frames.PREFACE + bytes(16),
        HELLO + b"\xff" * 100,
        HELLO + BATCH[: len(BATCH) // 2],
        HELLO + frames.encode_raw(0x9000, b"skipped") + PAUSED,
        HELLO + HELLO,
    ],
    ids=lambda stream: f"{len(stream)} bytes",
)
async def test_what_does_not_parse_is_forwarded_all_the_same(stream: bytes) -> None:
    async with line(NoTap()) as ends:
        await ends.target.send_all(stream)
        await ends.target.send_eof()
        assert await everything(ends.source) == stream


@given(pieces=st.lists(st.binary(max_size=60), max_size=5), valid=st.booleans())
async def test_any_bytes_arrive_as_they_were_sent(pieces: list[bytes], valid: bool) -> None:
    said = [HELLO, *pieces] if valid else pieces
    async with line(NoTap()) as ends:
        for piece in said:
            await ends.target.send_all(piece)
        await ends.target.send_eof()
        assert await everything(ends.source) == b"".join(said)


async def test_a_reset_is_passed_on_as_a_reset() -> None:
    async with line(NoTap()) as ends:
        await ends.target.send_all(HELLO)
        await exactly(ends.source, len(HELLO))
        reset_on_close(ends.source)
        await ends.source.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await ends.target.receive_some()


async def test_nobody_is_there_and_who_came_is_told() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    async with proxy_to(listener, NoTap()) as (_, port):
        await listener.aclose()
        async with await trio.open_tcp_stream(LOOPBACK, port) as target:
            with pytest.raises(trio.BrokenResourceError):
                await target.receive_some()


async def test_last_words_arrive_though_the_other_end_does_not_listen_any_more() -> None:
    async with line(NoTap()) as ends:
        await ends.target.send_all(HELLO)
        await exactly(ends.source, len(HELLO))
        await ends.source.send_all(WELCOME)
        await ends.source.send_eof()
        for _ in range(50):
            await ends.target.send_all(STORED)
        assert await everything(ends.target) == WELCOME


# What it is told to do


async def flip_the_first_bit(passing: Passing) -> None:
    passing.data = bytes([passing.data[0] ^ 1]) + passing.data[1:]


async def say_it_twice(passing: Passing) -> None:
    passing.data += passing.data


async def say_the_content_twice(passing: Passing) -> None:
    await passing.gather()
    passing.data += passing.data


async def let_nothing_more_pass(passing: Passing) -> None:
    passing.direction.discard()


async def finish(passing: Passing) -> None:
    await passing.connection.finish()


async def cut_into_pieces(passing: Passing) -> None:
    passing.direction.slice_next(3)


@pytest.mark.parametrize(
    ("at", "do", "arrives"),
    [
        ("source before RamBatch", flip_the_first_bit, WELCOME + bytes([BATCH[0] ^ 1]) + BATCH[1:] + END),
        ("source before RoundEnd", say_it_twice, WELCOME + BATCH + END + END),
        ("source before RamBatch", say_the_content_twice, WELCOME + BATCH + BATCH + END),
        ("source before RamBatch", let_nothing_more_pass, WELCOME),
        ("source before RoundEnd", let_nothing_more_pass, WELCOME + BATCH),
        ("source after Welcome", finish, WELCOME),
        ("source before RoundEnd", finish, WELCOME + BATCH),
        ("source before RamBatch", cut_into_pieces, WELCOME + BATCH + END),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
async def test_what_is_done_at_a_message_is_done_there(
    at: str, do: Callable[[Passing], Awaitable[None]], arrives: bytes
) -> None:
    async with line(Watch(at=at, do=do)) as ends:
        await ends.source.send_all(WELCOME + BATCH + END)
        await ends.source.send_eof()
        assert await everything(ends.target) == arrives


@pytest.mark.parametrize("byte", [1, 8, 30, len(WELCOME) + 1, len(WELCOME + BATCH) - 4000, len(WELCOME + BATCH + END)])
async def test_what_is_done_at_a_byte_is_done_there(byte: int) -> None:
    async def stop(passing: Passing) -> None:
        await passing.go_on_to_offset()
        await passing.connection.finish()

    said = WELCOME + BATCH + END
    async with line(Watch(byte=(SOURCE, byte), do=stop)) as ends:
        await ends.source.send_all(said)
        assert await everything(ends.target) == said[: byte - 1]


async def test_a_line_may_be_finished_while_data_is_on_its_way_and_each_end_hears_of_it_once() -> None:
    said = Random(6).randbytes(1 << 24)  # more than the kernel keeps for ends that do not listen

    async def say(stream: trio.SocketStream) -> None:
        await stream.send_all(said)
        await stream.send_eof()

    async with line(NoTap()) as ends:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, ends.target)
            await trio.testing.wait_all_tasks_blocked(IDLE_S)
            (connection,) = ends.proxy.connections
            nursery.start_soon(connection.finish)
            await trio.testing.wait_all_tasks_blocked(IDLE_S)
            heard = await everything(ends.source)
            assert 0 < len(heard) < len(said)
            assert said.startswith(heard)
            assert await everything(ends.target) == b""
            await ends.source.send_eof()
        await trio.testing.wait_all_tasks_blocked(IDLE_S)
        assert connection.is_over


async def test_bytes_are_counted_over_all_connections() -> None:
    async def stop(passing: Passing) -> None:
        await passing.go_on_to_offset()
        passing.connection.reset()

    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    watch = Watch(byte=(TARGET, len(HELLO) + 3), do=stop)
    async with listener, proxy_to(listener, watch) as (proxy, port):
        async with await trio.open_tcp_stream(LOOPBACK, port) as first:
            await first.send_all(HELLO)
            async with await listener.accept() as source:
                await exactly(source, len(HELLO))
        async with await trio.open_tcp_stream(LOOPBACK, port) as second, await listener.accept() as source:
            await second.send_all(HELLO)
            with pytest.raises(trio.BrokenResourceError):
                await second.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await everything(source)
        assert [connection.number for connection in proxy.connections] == [0, 1]


async def test_a_stream_is_known_by_its_first_word_and_its_bytes_are_counted_apart() -> None:
    async def stop(passing: Passing) -> None:
        struck.append((passing.stream, passing.first, passing.offset))

    struck: list[tuple[int, int, int]] = []
    (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
    watch = Watch(byte=(TARGET, 5), stream=2, do=stop)
    async with listener, proxy_to(listener, watch) as (proxy, port):
        async with await trio.open_tcp_stream(LOOPBACK, port) as first, await listener.accept() as source:
            await first.send_all(HELLO)
            await exactly(source, len(HELLO))
            async with await trio.open_tcp_stream(LOOPBACK, port) as stream, await listener.accept() as beside:
                conversation = proxy.connections[0]
                assert proxy.newest is conversation, "the other one has not said what it is"
                await stream.send_all(ATTACH)
                assert await exactly(beside, len(ATTACH)) == ATTACH
                assert [connection.stream for connection in proxy.connections] == [0, 2]
                assert proxy.newest is conversation
                await beside.send_all(frames.PREFACE + END)
                await exactly(stream, len(frames.PREFACE + END))
        assert struck == [(2, 0, 4)]
        assert +proxy.forwarded == {
            (TARGET, 0): len(HELLO), (TARGET, 2): len(ATTACH), (SOURCE, 2): len(frames.PREFACE + END)
        }  # fmt: skip


# Time


async def test_what_is_held_arrives_later_and_what_is_released_at_once(clock: MockClock) -> None:
    async with line(NoTap()) as ends:
        began = trio.current_time()
        await ends.source.send_all(WELCOME)
        await exactly(ends.target, len(WELCOME))
        (connection,) = ends.proxy.connections
        connection.hold(40)
        await ends.source.send_all(END)
        assert await exactly(ends.target, len(END)) == END
        assert trio.current_time() - began >= 40
        ends.proxy.cut(1000)
        await ends.source.send_all(PAUSED)
        ends.proxy.heal()
        assert await exactly(ends.target, len(PAUSED)) == PAUSED
        assert trio.current_time() - began < 1000


async def test_a_cut_line_takes_nobody_until_it_is_whole_again(clock: MockClock) -> None:
    async with line(NoTap()) as ends:
        ends.proxy.cut(10)
        host, port = ends.target.socket.getpeername()
        async with await trio.open_tcp_stream(host, port) as refused:
            with pytest.raises(trio.BrokenResourceError):
                await refused.receive_some()
        await trio.sleep(10)
        async with await trio.open_tcp_stream(host, port) as taken:
            await taken.send_all(HELLO)
            await trio.testing.wait_all_tasks_blocked(IDLE_S)
            assert len(ends.proxy.living) == 2


@pytest.mark.parametrize("who", [(SOURCE,), (TARGET,), (SOURCE, TARGET)], ids=str)
async def test_what_is_severed_never_arrives_and_nobody_is_told(clock: MockClock, who: tuple[Role, ...]) -> None:
    async with line(NoTap()) as ends:
        stream = {SOURCE: ends.source, TARGET: ends.target}
        for side, said in ((SOURCE, WELCOME), (TARGET, HELLO)):
            await stream[side].send_all(said)
            await exactly(stream[side.peer], len(said))
        (connection,) = ends.proxy.connections
        for side in who:
            connection.directions[side].sever()
        for side in Role:
            await stream[side].send_all(STORED)
            with trio.move_on_after(500) as patience:
                assert await stream[side.peer].receive_some() == STORED
            assert patience.cancelled_caught == (side in who)


async def test_a_throttled_line_carries_so_many_bytes_a_second(clock: MockClock) -> None:
    async with line(NoTap()) as ends:
        await ends.source.send_all(WELCOME)
        await exactly(ends.target, len(WELCOME))
        (connection,) = ends.proxy.connections
        connection.throttle(200_000)
        began = trio.current_time()
        await ends.source.send_all(BATCH)
        assert await exactly(ends.target, len(BATCH)) == BATCH
        assert trio.current_time() - began >= len(BATCH) / 200_000


async def test_what_is_delayed_arrives_in_order_each_in_its_time(clock: MockClock) -> None:
    async with line(NoTap()) as ends:
        await ends.source.send_all(WELCOME)
        await exactly(ends.target, len(WELCOME))
        (connection,) = ends.proxy.connections
        times = iter((5.0, 1.0, 3.0, 2.0))
        connection.directions[SOURCE].delay(lambda: next(times))
        began = trio.current_time()
        await ends.source.send_all(END)
        await ends.source.send_all(PAUSED + PAUSED)
        await ends.source.send_eof()
        assert await exactly(ends.target, len(END)) == END
        assert 5 <= trio.current_time() - began < 6
        assert await everything(ends.target) == PAUSED + PAUSED
