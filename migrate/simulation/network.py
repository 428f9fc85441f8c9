"""A network of two nodes: connections that carry real bytes, and everything that may happen to them.

A connection is two pipes.  Bytes that are put into one keep the wire busy for as long as the bandwidth says, travel for
the latency, and arrive in order.  What can be done to it:

    hold        nothing arrives for a while; then it does, as TCP sends again what was lost
    sever       nothing ever arrives any more, and nobody is told (half-open)
    end         what is under way arrives, then the end of the stream (FIN)
    reset       what is under way is lost, and both ends know (RST)

`SimulatedLink` is the port that engines await, over one end of a connection.  It does what the daemon's link does over
a socket: the real codec, every move checked against the table, a time limit for each frame and each phase, a look for
the peer's failure before it speaks.  Encoding and decoding are pure, so their answers are remembered (`remembering`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from migrate.errors import DeadlineExpired, LocalProtocolError, PeerFailed, RemoteProtocolError, TransportLost
from migrate.protocol import frames
from migrate.protocol.conversation import Conversation, OutOfTurn, Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Failure, Message, Preamble, RamContent, Role
from migrate.simulation.hooks import Hooks
from migrate.simulation.remembering import decode, decode_header, encode
from migrate.simulation.scheduler import NS_PER_S, Scheduler, Signal, Wait

if TYPE_CHECKING:
    from migrate.simulation.node import Life

SOCKET_BUFFER: Final = 4096
"""What a sender may have under way without waiting, in bytes: little, as a guest's RAM is little here."""

FOR_EVER_NS: Final = 1 << 62


@attrs.frozen(kw_only=True)
class Speed:
    """Of one direction.  Bandwidth in bytes per second."""

    latency_ns: int = 100_000
    bandwidth: float = 1e9

    @property
    def ns_per_byte(self) -> float:
        return NS_PER_S / self.bandwidth


@attrs.define(eq=False)
class Pipe:
    """Bytes in one direction of one connection."""

    scheduler: Scheduler
    speed: Speed
    news: Signal = attrs.field(init=False)
    arrived: bytearray = attrs.field(factory=bytearray)
    put_bytes: int = 0
    piece_bytes: int = 0  # of the next data: arrives in pieces of so many bytes; 0 for whole
    is_over: bool = False  # nothing more comes, and what has come can be read
    was_reset: bool = False
    severed: bool = False
    jitter_ns: Callable[[], int] | None = None  # by how much what is put next is late
    _closed: bool = False  # nothing more is taken
    _wire_free_ns: int = 0
    _held_until_ns: int = 0
    _last_arrival_ns: int = 0

    def __attrs_post_init__(self) -> None:
        self.news = Signal(self.scheduler)

    def put(self, data: bytes, reckoned_bytes: int = 0) -> int:
        """Send `data`, and behind it bytes that only take their time; returns when the last byte is on the wire.

        Raises:
            TransportLost: nothing is taken any more.
        """
        if self.was_reset or self._closed:
            raise TransportLost("the connection is closed")
        now = self.scheduler.now_ns
        if self.severed:
            self._wire_free_ns = FOR_EVER_NS
            return now if len(data) <= SOCKET_BUFFER else FOR_EVER_NS
        self.put_bytes += len(data)
        start = max(now, self._wire_free_ns, min(self._held_until_ns, FOR_EVER_NS))
        self._wire_free_ns = start + round((len(data) + reckoned_bytes) * self.speed.ns_per_byte)
        pieces = [data]
        if self.piece_bytes:
            pieces = [data[first : first + self.piece_bytes] for first in range(0, len(data), self.piece_bytes)]
            self.piece_bytes = 0
        for number, piece in enumerate(pieces):
            self._arrive(self._wire_free_ns + number, piece)
        return self._wire_free_ns

    def end(self) -> None:
        if not self._closed:
            self._closed = True
            if not self.severed:
                self._arrive(max(self.scheduler.now_ns, self._wire_free_ns), None)

    def hold(self, ns: int) -> None:
        self._held_until_ns = max(self._held_until_ns, self.scheduler.now_ns + ns)

    def reset(self) -> None:
        self.was_reset = True
        self.news.give()

    def _arrive(self, on_wire_ns: int, data: bytes | None) -> None:
        when_ns = max(on_wire_ns, self._held_until_ns) + self.speed.latency_ns
        if self.jitter_ns is not None:
            when_ns += self.jitter_ns()
        self._last_arrival_ns = when_ns = max(when_ns, self._last_arrival_ns)
        self.scheduler.at(when_ns, lambda: self._deliver(data))

    def _deliver(self, data: bytes | None) -> None:
        if self.was_reset or self.severed:
            return
        if self._held_until_ns > self.scheduler.now_ns:  # held while it was under way
            self.scheduler.at(self._held_until_ns, lambda: self._deliver(data))
            return
        if data is None:
            self.is_over = True
        else:
            self.arrived += data
        self.news.give()


@attrs.define(eq=False)
class Connection:
    """The pipes by who speaks into them."""

    number: int
    pipes: dict[Role, Pipe]

    def hold(self, ns: int) -> None:
        for pipe in self.pipes.values():
            pipe.hold(ns)

    def sever(self) -> None:
        for pipe in self.pipes.values():
            pipe.severed = True

    def end(self) -> None:
        for pipe in self.pipes.values():
            pipe.end()

    def reset(self) -> None:
        for pipe in self.pipes.values():
            pipe.reset()


@attrs.define
class Network:
    """All connections.  While it is cut none can be made, and nothing arrives."""

    scheduler: Scheduler
    speed: Speed
    connections: list[Connection] = attrs.field(factory=list)
    _cut_until_ns: int = 0

    def connect(self) -> Connection:
        """Raises TransportLost."""
        if self.scheduler.now_ns < self._cut_until_ns:
            raise TransportLost("no route to the source")
        pipes = {role: Pipe(self.scheduler, self.speed) for role in Role}
        self.connections.append(Connection(len(self.connections), pipes))
        return self.connections[-1]

    def cut(self, ns: int) -> None:
        self._cut_until_ns = max(self._cut_until_ns, self.scheduler.now_ns + ns)
        for connection in self.connections:
            connection.hold(ns)

    def heal(self) -> None:
        self._cut_until_ns = 0


class SimulatedLink:
    """One end of a connection, seen from `role`, in the process `life`."""

    def __init__(
        self, life: "Life", role: Role, connection: Connection, deadlines: Deadlines, hooks: Hooks, scheduler: Scheduler
    ) -> None:
        self.life, self.role, self.connection = life, role, connection
        self.side, self.peer_side = role.value, role.peer.value
        self.conversation = Conversation()
        self.outgoing, self.incoming = connection.pipes[role], connection.pipes[role.peer]
        self._deadlines, self._hooks, self._scheduler = deadlines, hooks, scheduler
        self._preface_heard = self._preface_sent = False
        self._ram_bytes = 0
        self._phase_ends_ns = self._allowed_until(Phase.HELLO)
        self._opening: Message | None = None

    # The port that engines await

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    async def send(self, message: Message) -> None:
        await self._send(message, b"", self._deadlines.frame_s)

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        await self._send(batch, bytes(content), self._deadlines.frame_s)

    async def send_reckoned(self, batch: RamContent, content_bytes: int) -> None:
        """Send a batch whose contents are not there, and only take their time."""
        await self._send(batch, b"", self._deadlines.frame_s, content_bytes)

    async def receive(self) -> Message:
        self.life.check()
        if self._opening is not None:
            message, self._opening = self._opening, None
        else:
            message = self._understand(*await self._read_message(self._limit_ns(self._deadlines.frame_s)))
        self._hooks.received(self, message)
        return message

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        self.life.check()
        limit_ns = self._limit_ns(self._deadlines.frame_s)
        for buffer in buffers:
            buffer[:] = await self._read(len(buffer), limit_ns)

    def forbid_cancelling(self) -> None:
        """Nobody cancels here: who does not want an attempt any more kills the process."""

    # The daemon's side

    async def hear_opening(self) -> None:
        """Wait for the peer's first message, and keep it for `receive`."""
        self._opening = self._understand(*await self._read_message(self._limit_ns(self._deadlines.frame_s)))

    def close(self) -> None:
        """What was said still arrives."""
        self.outgoing.end()

    # Moving bytes

    async def _send(self, message: Message, content: bytes, limit_s: float, reckoned_bytes: int = 0) -> None:
        self.life.check()
        if isinstance(message, Failure):
            limit_s = self._deadlines.farewell_s
        else:
            await self._look_for_failure()
        limit_ns = self._limit_ns(limit_s)
        data = self._encode(message) + content
        data = self._hooks.sending(self, message, data)
        on_wire_ns = self.outgoing.put(data, reckoned_bytes)
        size = len(data) + reckoned_bytes
        self.life.world.say(self.life.node.name, lambda: f"sends {short(message)}, {size} bytes")
        if on_wire_ns > self._scheduler.now_ns and size > SOCKET_BUFFER:
            await self._until_on_wire(on_wire_ns, limit_ns)
        self._hooks.sent(self, message)

    async def _until_on_wire(self, when_ns: int, limit_ns: int) -> None:
        until_ns = min(when_ns, limit_ns)
        while self._scheduler.now_ns < until_ns:  # what was sent before arrives meanwhile, and is news too
            await Wait(self.outgoing.news, until_ns)
            if self.outgoing.was_reset:
                raise self._lost("the connection was reset")
        if when_ns > limit_ns:
            raise self._late("sending")

    async def _look_for_failure(self) -> None:
        """If the peer has spoken out of turn it has failed or gone: hear it before writing into the void."""
        while self._preface_heard and self.conversation.phase is not Phase.ENDED:
            if not (self.incoming.arrived or self.incoming.is_over or self.incoming.was_reset):
                return
            heard = self._understand(*await self._read_message(self._limit_ns(self._deadlines.frame_s)))
            raise RemoteProtocolError(f"the {self.role.peer} sent {type(heard).__name__} while it was our turn")

    def _encode(self, message: Message) -> bytes:
        try:
            data = encode(message)
            self._advance(self.role, message)
        except (OutOfTurn, ValueError) as error:
            raise LocalProtocolError(str(error)) from error
        self.conversation.note(data[: frames.HEADER.size])
        if not self._preface_sent:
            self._preface_sent = True
            data = frames.PREFACE + data
        return data

    def _understand(self, head: bytes, message: Message) -> Message:
        phase = self.conversation.phase
        try:
            self._advance(self.role.peer, message)
        except OutOfTurn as error:
            raise RemoteProtocolError(f"the {self.role.peer} sent {error}") from None
        self.conversation.note(head)
        if isinstance(message, Failure):
            self._hooks.hears_failure(self, message)
            raise PeerFailed(self.role.peer.value, message.phase or phase.value, message.error, message.message)
        return message

    def _advance(self, sender: Role, message: Message) -> None:
        before = self.conversation.phase
        self.conversation.advance(sender, message)
        if isinstance(message, Preamble):
            self._ram_bytes = sum(extent.length for extent in message.ram)
        if self.conversation.phase is not before:
            self._phase_ends_ns = self._allowed_until(self.conversation.phase)

    async def _read_message(self, limit_ns: int) -> tuple[bytes, Message]:
        """The next message, and the header that it had."""
        if not self._preface_heard:
            frames.check_preface(await self._read(len(frames.PREFACE), limit_ns))
            self._preface_heard = True
        while True:
            head = await self._read(frames.HEADER.size, limit_ns)
            header = decode_header(head)
            body = await self._read(header.length, limit_ns)
            if not header.skippable:
                return head, decode(head, body)
            frames.check_body(header, body)

    async def _read(self, length: int, limit_ns: int) -> bytes:
        arrived = self.incoming.arrived
        while len(arrived) < length:
            if self.incoming.was_reset:
                raise self._lost("connection reset by peer")
            if self.incoming.is_over:
                raise self._lost(f"the {self.role.peer} closed the connection")
            if not await Wait(self.incoming.news, limit_ns):
                raise self._late("waiting for the peer")
        data = bytes(arrived[:length])
        del arrived[:length]
        return data

    # Time limits, and what is said of them

    def _limit_ns(self, limit_s: float) -> int:
        return min(self._scheduler.now_ns + round(limit_s * NS_PER_S), self._phase_ends_ns)

    def _allowed_until(self, phase: Phase) -> int:
        return self._scheduler.now_ns + round(self._deadlines.allowance_s(phase, self._ram_bytes) * NS_PER_S)

    def _lost(self, what: str) -> TransportLost:
        return TransportLost(f"connection lost in phase {self.conversation.phase.value!r}: {what}")

    def _late(self, doing: str) -> DeadlineExpired:
        return DeadlineExpired(
            f"the {self.role.peer} was silent or too slow in phase {self.conversation.phase.value!r}, {doing}: its "
            "time is up"
        )


def short(message: Message) -> str:
    """For the trace: the kind of message, and its generation or round."""
    number = getattr(message, "generation", getattr(message, "round", None))
    return type(message).__name__ + ("" if number is None else f"({number})")
