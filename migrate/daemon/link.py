"""The engines' link over a byte stream: frames in, frames out, every move checked against the table.

It only moves bytes; no rule of the migration is here.  Page contents go from the buffer that the engine hands over to
the transport, and from the transport into the machine's mapping.

A peer that fails says so and closes.  While we are the ones who speak, that word may be waiting unread, so `send` looks
before it writes; our own `Failure` goes out without a look, because the peer may be in full flow.  And a connection
that is closed with unread data is reset, which destroys what we said last; so leaving drains before it closes.
"""

import math
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import attrs
import trio

from migrate.daemon.outcome import Cancelling
from migrate.daemon.streams import Dial, StreamsOf
from migrate.daemon.transport import PlainTransport, Transport
from migrate.errors import (
    DeadlineExpired,
    LocalProtocolError,
    MigrationCancelled,
    PeerFailed,
    RemoteProtocolError,
    TransportLost,
)
from migrate.protocol import frames
from migrate.protocol.conversation import Conversation, OutOfTurn, Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import (
    MESSAGES,
    Accept,
    Attach,
    Failure,
    Message,
    Preamble,
    Prepare,
    RamContent,
    Role,
    RoundEnd,
    Streams,
    Welcome,
)

T = TypeVar("T")

#: Messages of the handoff: each is a point at which a process may die.
HANDOFF_TYPES: Final = range(Prepare.TYPE, Failure.TYPE)


def _nothing() -> None:
    """Nobody wants to know."""


class SocketLink:
    """One connection, seen from `role`.  Use it as an async context manager; leaving it closes the connection."""

    def __init__(
        self,
        role: Role,
        stream: trio.SocketStream | Transport,
        deadlines: Deadlines,
        on_point: Callable[[str], None] | None = None,
        on_message: Callable[[str, Message, int, int], None] | None = None,
        dial: Dial | None = None,
        streams: int = 1,
    ) -> None:
        """A stream of sockets is used in the clear.  A target that can `dial` opens so many `streams` in all for RAM.

        `on_point` is told of every message of the handoff, before and after it is sent and after it has come;
        `on_message` of every message that this side `sends` and `receives`, with its size in bytes and the stream on
        which it goes, 0 for the conversation's own connection.
        """
        self.role = role
        self.number = 0  # as a stream
        self._on_point = on_point
        self._on_message = on_message
        self.conversation = Conversation()
        self._transport: Transport = PlainTransport(stream) if isinstance(stream, trio.SocketStream) else stream
        self._deadlines = deadlines
        self.peer_speaks_ours = False  # it has sent our preface
        self.on_answer: Callable[[], None] = _nothing  # then
        self.on_streams: Callable[[], None] = _nothing  # they were announced
        self._preface_sent = False
        self._ram_bytes = 0
        self._phase_ends = trio.current_time() + deadlines.allowance_s(Phase.HELLO, 0)
        self._cancel_scope: trio.CancelScope | None = None
        self._cancel_asked = self._cancel_forbidden = False
        self.opening: Message | None = None  # the peer's first message
        self._opening_is_due = False  # it was heard, and not asked for yet
        self._keep = memoryview(bytearray())
        self._unsent: list[memoryview] = []  # the rest of a frame that is partly out: nothing else can follow
        self.streams = StreamsOf(self, dial, streams)
        self.over = trio.Event()

    # The port that engines await

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    async def send(self, message: Message) -> None:
        limit_s = self._deadlines.farewell_s
        if not isinstance(message, Failure):
            limit_s = self._deadlines.frame_s
            await self._look_for_failure()
        if isinstance(message, Accept):
            await self.streams.open()
        if isinstance(message, RoundEnd):
            for link in self.streams.rules.others:
                await self.by_way_of(link, partial(link.send, message))
        data = self._encode(message)
        self._visit("before send", message)
        self._note("sends", message, len(data))
        await self._write(self._bound(f"sending {type(message).__name__}", limit_s), memoryview(data))
        self._visit("after send", message)
        if isinstance(message, RoundEnd):
            self.streams.rules.note_round()

    async def receive(self) -> Message:
        if self._opening_is_due and self.opening is not None:
            self._opening_is_due = False
            return self.opening
        message = await (self.streams.receive() if self.streams.rules.carry else self.receive_here())
        while isinstance(message, Streams):
            self.streams.rules.announce(message)
            self.on_streams()
            message = await self.receive_here()
        if isinstance(message, Welcome):
            self.streams.rules.version = message.protocol_version
        if isinstance(message, Accept):
            with self.patiently("waiting for the target's further connections"):
                await self.streams.have_come()
            await self._look_for_failure()
        return message

    async def receive_here(self) -> Message:
        """The next message on this very connection."""
        bound = self._bound("waiting for the peer", self._deadlines.frame_s)
        frame = await self._read_frame(bound)
        while frame[0].skippable:
            frame = await self._read_frame(bound)
        message = self._understand(*frame)
        self._visit("after receive", message)
        return message

    async def ready_for_ram(self) -> None:
        await self._look_for_failure()
        await self.streams.room()

    async def wait_for_room(self) -> None:
        if not self.has_room:
            with self._within(self._bound("sending guest RAM", self._deadlines.frame_s)):
                await self._transport.room()

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        link = self.streams.rules.next_carrier
        if link is not self:
            await self.by_way_of(link, partial(link.send_ram, batch, content))
            return
        data = self._encode(batch)
        self._note("sends", batch, len(data) + content.nbytes)
        bound = self._bound("sending guest RAM", self._deadlines.frame_s)
        await self._write(bound, memoryview(data), content, guest_ram=True)

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        link = self.streams.rules.carrier
        if link is not self:
            await self.by_way_of(link, partial(link.receive_ram, buffers))
            return
        bound = self._bound("waiting for guest RAM", self._deadlines.frame_s)
        for buffer in buffers:
            await self._read_into(bound, buffer)

    def forbid_cancelling(self) -> None:
        self._raise_if_cancelled(self.conversation.phase.value)
        self._cancel_forbidden = True

    def _visit(self, point: str, message: Message) -> None:
        if self._on_point is not None and message.TYPE in HANDOFF_TYPES:
            self._on_point(f"{point} {type(message).__name__}")

    def _note(self, event: str, message: Message, size: int) -> None:
        if self._on_message is not None:
            self._on_message(event, message, size, self.number)

    # The daemon's side

    async def hear_opening(self) -> None:
        """Wait for the peer's first message, and keep it for `receive`: until then it may be anybody."""
        self.opening = await self.receive()
        self._opening_is_due = True

    def cancel(self) -> Cancelling:
        """Make the engine's present or next operation raise MigrationCancelled, if that is still allowed."""
        if self._cancel_forbidden:
            return Cancelling.TOO_LATE
        self._cancel_asked = True
        if self._cancel_scope is not None:
            self._cancel_scope.cancel()
        self.streams.cancel()
        return Cancelling.CANCELLED

    # What streams need of each other

    @property
    def has_news(self) -> bool:
        return self._transport.has_news()

    async def news(self) -> None:
        await self._transport.news()

    @property
    def has_room(self) -> bool:
        return self._transport.has_room()

    def another(self, transport: Transport, number: int) -> "SocketLink":
        """A further connection to the same peer, the stream of that `number`."""
        link = SocketLink(self.role, transport, self._deadlines, on_message=self._on_message)
        link.number = number
        return link

    def has_time(self) -> None:
        """No phase of its own bounds it any more, as the conversation's phases do."""
        self._phase_ends = math.inf

    def patiently(self, doing: str) -> AbstractContextManager[None]:
        return self._within(self._bound(doing, self._deadlines.frame_s))

    async def by_way_of(self, link: "SocketLink", work: Callable[[], Awaitable[T]]) -> T:
        """`work` on a stream.  A peer that fails closes its streams, and says in the conversation why.

        It may as well be in the middle of a round there, and then nothing is said but that the stream is lost.
        """
        try:
            return await work()
        except TransportLost:
            if link is not self:
                if self.streams.rules.waits_for_a_word:
                    with trio.move_on_after(self._deadlines.farewell_s):
                        await self.news()
                with suppress(RemoteProtocolError):
                    await self._look_for_failure()
            raise

    def way_ns(self) -> int | None:
        """The shortest that the kernel has measured for the way there and back; None if it cannot say."""
        return self._transport.way_ns()

    def abandon(self) -> None:
        self.over.set()
        self._transport.close()

    async def __aenter__(self) -> "SocketLink":
        return self

    async def __aexit__(self, *_: object) -> None:
        """Say goodbye so that the peer hears our last words, then close."""
        with trio.move_on_after(self._deadlines.farewell_s, shield=True):
            with suppress(OSError, trio.ClosedResourceError):  # it is gone already: nothing is left to be heard
                await self._transport.leave()
        self._transport.close()
        self.streams.close()

    # Moving bytes

    def _bound(self, doing: str, limit_s: float) -> "_Bound":
        """An operation that begins now: by when frame and phase want it done.

        Raises:
            MigrationCancelled: the operator wants it no more.
        """
        phase = self.conversation.phase.value
        self._raise_if_cancelled(phase)
        return _Bound(doing, phase, min(trio.current_time() + limit_s, self._phase_ends))

    @contextmanager
    def _within(self, bound: "_Bound") -> Iterator[None]:
        """Where an operation may wait: for so long, and as long as the operator wants it to."""
        self._raise_if_cancelled(bound.phase)
        with trio.CancelScope(deadline=bound.ends) as scope:
            self._cancel_scope = scope
            try:
                with bound:
                    yield
            finally:
                self._cancel_scope = None
        if scope.cancelled_caught:
            self._raise_if_cancelled(bound.phase)
            raise DeadlineExpired(
                f"the {self.role.peer} was silent or too slow in phase {bound.phase!r}, {bound.doing}: its time is up"
            )

    def _need_not_wait(self, bound: "_Bound") -> bool:
        """Most operations can be done at once, and a scope to wait in costs more than they do."""
        return not self._cancel_asked and trio.current_time() < bound.ends

    def _raise_if_cancelled(self, phase: str) -> None:
        if self._cancel_asked:
            self._cancel_asked = False  # said once: the engine may still have a farewell to send
            raise MigrationCancelled(f"the migration was cancelled on the {self.role}, in phase {phase!r}")

    async def _look_for_failure(self) -> None:
        """If the peer has spoken out of turn it has failed or gone: hear it before writing into the void."""
        while self.peer_speaks_ours and self._transport.has_news() and self.conversation.phase is not Phase.ENDED:
            header, body = await self._read_frame(self._bound("hearing the peer out of turn", self._deadlines.frame_s))
            if not header.skippable:
                heard = self._understand(header, body)
                raise RemoteProtocolError(f"the {self.role.peer} sent {type(heard).__name__} while it was our turn")

    def _understand(self, header: frames.Header, body: bytes) -> Message:
        """The peer's message; its failure is raised."""
        message = frames.decode_body(header, body)
        phase = self.conversation.phase
        try:
            self._advance(self.role.peer, message)
        except OutOfTurn as error:
            raise RemoteProtocolError(f"the {self.role.peer} sent {error}") from None
        self.conversation.note(bytes(header))
        self._note("receives", message, frames.HEADER.size + header.length)
        if isinstance(message, Failure):
            raise PeerFailed(self.role.peer.value, message.phase or phase.value, message.error, message.message)
        return message

    def _encode(self, message: Message) -> bytes:
        if self._unsent and not isinstance(message, Failure):
            raise TransportLost("the connection broke off in the middle of a frame")
        try:
            data = frames.encode_frame(message)
            self._advance(self.role, message)
        except (OutOfTurn, ValueError) as error:
            raise LocalProtocolError(str(error)) from error
        self.conversation.note(data[: frames.HEADER.size])
        if not self._preface_sent:
            self._preface_sent = True
            data = frames.PREFACE + data
        return data

    def _advance(self, sender: Role, message: Message) -> None:
        before = self.conversation.phase
        self.conversation.advance(sender, message)
        if isinstance(message, Preamble):
            self._ram_bytes = sum(extent.length for extent in message.ram)
        if self.conversation.phase is not before:
            if isinstance(message, Attach):
                self.number = message.number
            allowance = self._deadlines.allowance_s(self.conversation.phase, self._ram_bytes)
            self._phase_ends = trio.current_time() + allowance

    async def _write(self, bound: "_Bound", *parts: memoryview, guest_ram: bool = False) -> None:
        """Behind what is left of a frame that was interrupted: a farewell is heard only after that.

        Of the last part a copy goes out if it is `guest_ram` and cannot go out now.
        """
        left = [*self._unsent, *(part for part in parts if part)]
        if self._need_not_wait(bound):
            with bound:
                sent = self._transport.send_now(left)
            if sent:
                self._unsent = left = _without(left, sent)
        if left:
            if guest_ram:
                left[-1] = self._kept(left[-1])
            with self._within(bound):
                while left:
                    self._unsent = left = _without(left, await self._transport.send(left))
                await self._transport.flush()

    def _kept(self, part: memoryview) -> memoryview:
        """What `part` says now, in a buffer that is made once, as large as ever needed: fresh memory is slow."""
        if len(self._keep) < len(part):
            self._keep = memoryview(bytearray(len(part)))
        kept = self._keep[: len(part)]
        kept[:] = part
        return kept

    async def _read_frame(self, bound: "_Bound") -> tuple[frames.Header, bytes]:
        if not self.peer_speaks_ours:
            preface = await self._read(bound, len(frames.PREFACE), stop_at=frames.PREFACE, between_frames=True)
            frames.check_preface(bytes(preface))
            self.peer_speaks_ours = True
            self.on_answer()
        header = frames.decode_header(bytes(await self._read(bound, frames.HEADER.size, between_frames=True)))
        if not header.skippable:
            self._expect(MESSAGES[header.type])
        body = bytes(await self._read(bound, header.length))
        frames.check_body(header, body)  # of skipped frames, too: a damaged type could make any frame vanish
        return header, body

    def _expect(self, kind: type[Message]) -> None:
        """Before there is room for it: the peer may say this now.  Who has not said Hello yet costs little so."""
        try:
            self.conversation.after(self.role.peer, kind)
        except OutOfTurn as error:
            raise RemoteProtocolError(f"the {self.role.peer} sent {error}") from None

    async def _read(
        self, bound: "_Bound", length: int, stop_at: bytes | None = None, between_frames: bool = False
    ) -> bytearray:
        """`length` bytes; with `stop_at`, fewer as soon as they differ from it: a stranger may send less than that."""
        data = bytearray(length)
        view = memoryview(data)
        filled = 0
        while filled < length:
            filled += await self._receive_some(bound, view[filled:], between_frames and filled == 0)
            if stop_at is not None and data[:filled] != stop_at[:filled]:
                return data[:filled]
        return data

    async def _read_into(self, bound: "_Bound", buffer: memoryview) -> None:
        while buffer:
            buffer = buffer[await self._receive_some(bound, buffer, False, want_all=True) :]

    async def _receive_some(
        self, bound: "_Bound", buffer: memoryview, between_frames: bool, *, want_all: bool = False
    ) -> int:
        count = None
        if self._need_not_wait(bound):
            with bound:
                count = self._transport.recv_now(buffer)
        if count is None:
            with self._within(bound):
                count = await self._transport.recv_into(buffer, want_all=want_all)
        if count == 0:
            where = "between two messages" if between_frames else "in the middle of a message"
            raise TransportLost(
                f"the {self.role.peer} closed the connection in phase {self.conversation.phase.value!r}, {where}"
            )
        return count


@attrs.define
class _Bound:
    """One operation: what is being done, in which phase, and when on trio's clock it must have ended.

    As a context manager it says in our own terms what the kernel says of the connection: TransportLost.
    """

    doing: str
    phase: str
    ends: float

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError | trio.ClosedResourceError):
            raise TransportLost(f"connection lost in phase {self.phase!r}, {self.doing}: {error}") from error


def _without(parts: list[memoryview], sent: int) -> list[memoryview]:
    """What is left to be sent of `parts`."""
    left = list(parts)
    while left and sent >= len(left[0]):
        sent -= len(left.pop(0))
    if left:
        left[0] = left[0][sent:]
    return left


async def connect(host: str, port: int, deadlines: Deadlines) -> trio.SocketStream:
    """A connection to a source.

    Raises:
        TransportLost: nobody can be reached there.
    """
    try:
        with trio.fail_after(deadlines.connect_s):
            return await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        problem = f"no answer within {deadlines.connect_s:g} s"
    except OSError as error:
        problem = _root_cause(error)
    raise TransportLost(f"cannot reach a source at {host}:{port}: {problem}")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, BaseExceptionGroup):
        return _root_cause(error.exceptions[0])
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno is not None else str(error)
