"""A TCP proxy between a target and its source that knows our frames, so that it can act within a conversation.

Both directions are followed frame by frame; what passes is forwarded as it came, unless whoever taps the line changes
it.  The `Tap` is told of each message before it goes on and after, and of a byte that it waits for, counted over all
connections of conversations, or over all streams of one number; while it is told, that direction waits, so that what it
does happens exactly there.  Page contents are passed through as they come, and nobody looks at them.

The proxy never fails a conversation by itself.  Bytes that are no frame of ours are forwarded, and from there on that
direction is only bytes.  A half-closed end stays half-closed, a reset is passed on as a reset.

What can be done to a connection:

    finish      closed in good order: what is under way arrives
    reset       both ends are told at once (RST), and what is under way is lost
    sever       nothing arrives any more, of one side or of both, and nobody is told
    hold        what a side says arrives later
    throttle    so many bytes a second, in both directions
    delay       everything that a side says arrives so much later; seconds are drawn anew for each piece
    discard     what a side says from here on is lost, and its end is all that arrives

and to all of them, and to those that would come: `Proxy.cut` and `Proxy.heal`.
"""

import math
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import trio

from migrate.daemon.address import Address
from migrate.errors import MigrationError
from migrate.protocol import frames
from migrate.protocol.messages import Attach, Message, RamContent, Role

CHUNK: Final = 1 << 18
LANE_PIECES: Final = 4096
"""Pieces that may be under way at once when they take their time."""
_ABORT: Final = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s: closing sends RST


class Tap(Protocol):
    """Who watches the line, and acts on it."""

    async def before(self, passing: "Passing") -> None:
        """A message is about to go on; its data may be changed."""

    async def after(self, passing: "Passing") -> None:
        """It is in the hands of the network."""

    def byte_awaited(self, side: Role, stream: int) -> int | None:
        """The next byte of what `side` sends, at which to call `at_byte`.

        Counted from 1 over all connections of conversations if `stream` is 0, over all streams of that number else.
        """

    async def at_byte(self, passing: "Passing") -> None:
        """The byte awaited is the one at `offset` of the data, which is about to go on."""


class NoTap:
    """Lets everything pass."""

    async def before(self, passing: "Passing") -> None:
        pass

    async def after(self, passing: "Passing") -> None:
        pass

    def byte_awaited(self, side: Role, stream: int) -> int | None:
        return None

    async def at_byte(self, passing: "Passing") -> None:
        pass


@attrs.define(eq=False)
class Passing:
    """What is about to be forwarded: a frame, with the preface if it is the first, or raw bytes (`message` is None)."""

    direction: "Direction"
    data: bytes
    message: Message | None = None
    offset: int = 0
    first: int = 0
    """How many bytes this side had sent before these, as they are counted."""

    @property
    def connection(self) -> "Connection":
        return self.direction.connection

    @property
    def side(self) -> Role:
        """Who speaks."""
        return self.direction.side

    @property
    def stream(self) -> int:
        return self.connection.stream

    @property
    def kind(self) -> str:
        return type(self.message).__name__

    async def gather(self) -> None:
        """Take the page contents that follow the frame into `data`."""
        self.data += await self.direction.take_content()

    async def go_on_to_offset(self) -> None:
        """Forward what comes before the byte at which something is to happen."""
        await self.direction.deliver(self.data[: self.offset])
        self.first += self.offset
        self.data, self.offset = self.data[self.offset :], 0


@attrs.define(eq=False)
class Direction:
    """What one side says on one connection: it comes from `reader` and goes to `writer`."""

    side: Role
    connection: "Connection"
    reader: trio.SocketStream
    writer: trio.SocketStream
    preface_seen: bool = False
    _buffer: bytearray = attrs.field(factory=bytearray)
    _is_raw: bool = False
    _content_left: int = 0
    _over: bool = False  # nothing more is forwarded
    _severed: bool = False
    _held_until: float = 0.0
    _released: trio.Event = attrs.field(factory=trio.Event)
    _bytes_per_s: float = math.inf
    _piece_bytes: int = 0
    _late_s: Callable[[], float] | None = None
    _lane: trio.MemorySendChannel[tuple[float, bytes | None]] | None = None
    _writing: trio.Lock = attrs.field(factory=trio.Lock)
    _has_ended: bool = False  # and the other end has been told

    # What can be done to it

    def sever(self) -> None:
        self._severed = True

    def hold(self, seconds: float) -> None:
        self._held_until = max(self._held_until, trio.current_time() + seconds)

    def release(self) -> None:
        self._held_until = 0.0
        self._released.set()
        self._released = trio.Event()

    def throttle(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s

    def delay(self, seconds: Callable[[], float]) -> None:
        """Asked for each piece anew; pieces stay in order."""
        self._late_s = seconds

    def slice_next(self, size: int) -> None:
        """The next data goes out in pieces of `size` bytes."""
        self._piece_bytes = size

    def discard(self) -> None:
        self._over = True

    async def finish(self) -> None:
        """What is under way arrives, then the end."""
        if not self._over and not self._severed:
            self._over = True
            await self._deliver_now_or_late(None)

    # Forwarding

    async def run(self) -> None:
        """To the end of what this side says."""
        try:
            while chunk := await self.reader.receive_some(CHUNK):
                if self._over:
                    continue  # it must not block who has not heard yet that nobody listens
                if not self._buffer and len(chunk) <= self._content_left:
                    self._content_left -= len(chunk)
                    await self._pass(Passing(self, bytes(chunk)))
                    continue
                self._buffer += chunk
                await self._forward_what_is_whole()
            await self._pass(Passing(self, self._taken(len(self._buffer))))
            await self._end()
        except trio.BrokenResourceError:
            await self._until_it_may_pass()
            self.connection.reset()
        except trio.ClosedResourceError:
            return

    async def take_content(self) -> bytes:
        """The page contents that are still to come of the batch that passes."""
        while len(self._buffer) < self._content_left:
            chunk = await self.reader.receive_some(CHUNK)
            if not chunk:
                break
            self._buffer += chunk
        length = min(self._content_left, len(self._buffer))
        content = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._content_left = 0
        return content

    async def deliver(self, data: bytes) -> None:
        """To the other end, at once or in its time."""
        if data and not self._over:
            await self._deliver_now_or_late(data)

    async def _forward_what_is_whole(self) -> None:
        while self._buffer and not self._over:
            if self._content_left or self._is_raw:
                length = len(self._buffer) if self._is_raw else min(self._content_left, len(self._buffer))
                if not self._is_raw:
                    self._content_left -= length
                await self._pass(Passing(self, self._taken(length)))
                continue
            passing = self._next_frame()
            if passing is None:
                return
            if passing.message is None:
                await self._pass(passing)
                continue
            tap = self.connection.proxy.tap
            await tap.before(passing)
            await self._pass(passing)
            await tap.after(passing)

    def _taken(self, length: int) -> bytes:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    def _next_frame(self) -> Passing | None:
        """None if it has not come as a whole; raw bytes if it is no frame of ours, now and from here on."""
        start = 0 if self.preface_seen else len(frames.PREFACE)
        buffer = self._buffer
        if not self.preface_seen and bytes(buffer[:start]) != frames.PREFACE[: len(buffer)]:
            return self._only_bytes()
        if len(buffer) < start + frames.HEADER.size:
            return None
        try:
            header = frames.decode_header(bytes(buffer[start : start + frames.HEADER.size]))
            end = start + frames.HEADER.size + header.length
            if len(buffer) < end:
                return None
            body = bytes(buffer[start + frames.HEADER.size : end])
            frames.check_body(header, body)
            message = None if header.skippable else frames.decode_body(header, body)
        except MigrationError:
            return self._only_bytes()
        self.preface_seen = True
        if isinstance(message, RamContent):
            self._content_left = message.content_bytes
        if isinstance(message, Attach):
            self.connection.stream = message.number
        return Passing(self, self._taken(end), message)

    def _only_bytes(self) -> Passing:
        self._is_raw = True
        return Passing(self, self._taken(len(self._buffer)))

    async def _pass(self, passing: Passing) -> None:
        """Forward, and stop at a byte that is awaited."""
        proxy, counted = self.connection.proxy, (self.side, self.connection.stream)
        passing.first = proxy.forwarded[counted]
        proxy.forwarded[counted] += len(passing.data)
        last = proxy.forwarded[counted]
        while (awaited := proxy.tap.byte_awaited(*counted)) is not None and passing.first < awaited <= last:
            passing.offset = awaited - passing.first - 1
            await proxy.tap.at_byte(passing)
        await self.deliver(passing.data)

    async def _deliver_now_or_late(self, data: bytes | None) -> None:
        if self._late_s is not None and self._lane is None:
            self._lane, receiver = trio.open_memory_channel[tuple[float, bytes | None]](LANE_PIECES)
            self.connection.nursery.start_soon(self._drive, receiver)
        if self._lane is None:
            await self._write(data)
            return
        late_s = 0.0 if self._late_s is None else self._late_s()
        await self._lane.send((trio.current_time() + late_s, data))

    async def _drive(self, lane: trio.MemoryReceiveChannel[tuple[float, bytes | None]]) -> None:
        """What takes its time arrives when that is over, and in order."""
        async for due, data in lane:
            await trio.sleep_until(due)
            await self._write(data)

    async def _write(self, data: bytes | None) -> None:
        """None is the end of the stream.  An end that does not listen any more loses what is said to it.

        One at a time: an end may be said by a fault while data is on its way, and is said once.
        """
        async with self._writing:
            if not self._has_ended:
                self._has_ended = data is None
                await self._write_one(data)

    async def _write_one(self, data: bytes | None) -> None:
        await self._until_it_may_pass()
        try:
            if data is None:
                await self.writer.send_eof()
                return
            size = self._piece_bytes or (max(1, round(self._bytes_per_s / 20)) if self._is_slow else len(data))
            self._piece_bytes = 0
            for first in range(0, len(data), size or 1):
                piece = data[first : first + size]
                await self._until_it_may_pass()
                if self._is_slow:
                    await trio.sleep(len(piece) / self._bytes_per_s)
                await self.writer.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._over = True  # the other direction still has what that end said last

    @property
    def _is_slow(self) -> bool:
        return self._bytes_per_s != math.inf

    async def _until_it_may_pass(self) -> None:
        while self._held_until > trio.current_time():
            with trio.move_on_at(self._held_until):
                await self._released.wait()
        if self._severed:
            await trio.sleep_forever()

    async def _end(self) -> None:
        self._over = True
        await self._deliver_now_or_late(None)
        if self._lane is not None:
            await self._lane.aclose()


@attrs.define(eq=False)
class Connection:
    """One connection of a target, and what carries it on; `number` counts them from 0.

    `stream` is 0 for that of a conversation, and what a stream says of itself, with its first word, else.
    """

    number: int
    proxy: "Proxy"
    near: trio.SocketStream
    far: trio.SocketStream
    stream: int = 0
    directions: dict[Role, Direction] = attrs.field(init=False)
    is_over: bool = False
    nursery: trio.Nursery = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.directions = {
            Role.TARGET: Direction(Role.TARGET, self, self.near, self.far),
            Role.SOURCE: Direction(Role.SOURCE, self, self.far, self.near),
        }

    @property
    def has_begun(self) -> bool:
        """Whether the target has said its first word."""
        return self.directions[Role.TARGET].preface_seen

    async def run(self) -> None:
        """Return when both sides have ended."""
        for stream in (self.near, self.far):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with trio.open_nursery() as self.nursery:
                for direction in self.directions.values():
                    self.nursery.start_soon(direction.run)
        finally:
            self.is_over = True

    async def finish(self) -> None:
        """In good order: what is under way arrives, and then both ends."""
        for direction in self.directions.values():
            await direction.finish()

    def reset(self) -> None:
        for stream in (self.near, self.far):
            try:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            except (OSError, trio.ClosedResourceError):
                continue  # it has gone already
        self.nursery.cancel_scope.cancel()

    def sever(self) -> None:
        for direction in self.directions.values():
            direction.sever()

    def hold(self, seconds: float) -> None:
        for direction in self.directions.values():
            direction.hold(seconds)

    def throttle(self, bytes_per_s: float) -> None:
        for direction in self.directions.values():
            direction.throttle(bytes_per_s)


@attrs.define(eq=False)
class Proxy:
    """Listens for targets and carries their connections to where `source` says that it listens now.

    `forwarded` counts bytes by who sent them, and on which stream, over all connections.
    """

    source: Callable[[], Address | None]
    tap: Tap = attrs.field(factory=NoTap)
    connections: list[Connection] = attrs.field(factory=list)
    forwarded: Counter[tuple[Role, int]] = attrs.field(factory=Counter)
    _cut_until: float = 0.0

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        await trio.serve_listeners(self._carry, listeners)

    def cut(self, seconds: float) -> None:
        """Nothing arrives and nobody can connect for so long; what was lost is sent again then."""
        self._cut_until = max(self._cut_until, trio.current_time() + seconds)
        for connection in self.living:
            connection.hold(seconds)

    def heal(self) -> None:
        """What is held arrives, and whoever comes is carried.  What is severed stays so."""
        self._cut_until = 0.0
        for connection in self.living:
            for direction in connection.directions.values():
                direction.release()

    @property
    def newest(self) -> Connection | None:
        """That of the newest conversation; who has said nothing yet may be a stream, if there is a conversation."""
        conversations = [connection for connection in self.connections if not connection.stream]
        known = [connection for connection in conversations if connection.has_begun and not connection.is_over]
        return next(reversed(known or conversations), None)

    @property
    def living(self) -> list[Connection]:
        return [connection for connection in self.connections if not connection.is_over]

    async def _carry(self, near: trio.SocketStream) -> None:
        async with near:
            address = self.source()
            if address is None or self._cut_until > trio.current_time():
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                return
            try:
                far = await trio.open_tcp_stream(address.host, address.port)
            except OSError:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
                return
            async with far:
                connection = Connection(len(self.connections), self, near, far)
                self.connections.append(connection)
                await connection.run()
