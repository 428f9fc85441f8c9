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

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

from migrate.errors import DeadlineExpired, LocalProtocolError, PeerFailed, RemoteProtocolError, TransportLost
from migrate.protocol import frames
from migrate.protocol.conversation import Conversation, OutOfTurn, Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Failure, Message, Preamble, RamContent, Role
from migrate.simulation.hooks import Hooks
from migrate.simulation.remembering import Posted, decode, decode_header, post
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
    ns_per_byte: float = attrs.field(init=False)

    @ns_per_byte.default
    def _of_bandwidth(self) -> float:
        return NS_PER_S / self.bandwidth


#: Data under way, and its length; what it is a whole frame of, if nothing was done to it; the RAM behind that frame.
Parcel = tuple[bytes, int, Posted | None, bytes]

_THE_END: Final[Parcel] = (b"", 0, None, b"")


@attrs.define(eq=False)
class Pipe:
    """Bytes in one direction of one connection.

    A frame to which nothing was done need not be read again: the message that was read from these very bytes once is
    with them, as long as whoever reads is at the frame's first byte.
    """

    scheduler: Scheduler
    speed: Speed
    news: Signal = attrs.field(init=False)
    parcels: deque[Parcel] = attrs.field(factory=deque)  # arrived
    arrived_bytes: int = 0
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

    @property
    def arrived(self) -> bytes:
        """What has arrived and was not read yet."""
        return b"".join(data for data, *_ in self.parcels)

    def put(self, data: bytes, posted: Posted | None = None, content: bytes = b"", *, reckoned_bytes: int = 0) -> int:
        """Send `data`, and behind it bytes that only take their time; returns when the last byte is on the wire.

        `posted` is what `data` is the frame of, but for `content` at its end, if nothing was done to it.

        Raises:
            TransportLost: nothing is taken any more.
        """
        if self.was_reset or self._closed:
            raise TransportLost("the connection is closed")
        scheduler, speed = self.scheduler, self.speed
        on_wire_ns = scheduler.now_ns
        length = len(data)
        if self.severed:
            self._wire_free_ns = FOR_EVER_NS
            return on_wire_ns if length <= SOCKET_BUFFER else FOR_EVER_NS
        if self._wire_free_ns > on_wire_ns:
            on_wire_ns = self._wire_free_ns
        if self._held_until_ns > on_wire_ns:
            on_wire_ns = min(self._held_until_ns, FOR_EVER_NS)
        self._wire_free_ns = on_wire_ns = on_wire_ns + round((length + reckoned_bytes) * speed.ns_per_byte)
        if self.piece_bytes:
            self._put_pieces(data, on_wire_ns)
        else:
            scheduler.arrive_at(self._arrival_ns(on_wire_ns), self._deliver, (data, length, posted, content))
        return on_wire_ns

    def _put_pieces(self, data: bytes, on_wire_ns: int) -> None:
        pieces = [data[first : first + self.piece_bytes] for first in range(0, len(data), self.piece_bytes)]
        self.piece_bytes = 0
        for number, piece in enumerate(pieces):
            arrival_ns = self._arrival_ns(on_wire_ns + number)
            self.scheduler.arrive_at(arrival_ns, self._deliver, (piece, len(piece), None, b""))

    def end(self) -> None:
        if not self._closed:
            self._closed = True
            if not self.severed:
                arrival_ns = self._arrival_ns(max(self.scheduler.now_ns, self._wire_free_ns))
                self.scheduler.arrive_at(arrival_ns, self._deliver, _THE_END)

    @property
    def is_closed(self) -> bool:
        """Nothing more can be put."""
        return self._closed or self.was_reset

    def hold(self, ns: int) -> None:
        self._held_until_ns = max(self._held_until_ns, self.scheduler.now_ns + ns)

    def reset(self) -> None:
        self.was_reset = True
        self.news.give()

    def _arrival_ns(self, when_ns: int) -> int:
        """When arrives what is on the wire then; never before what was sent earlier."""
        if self._held_until_ns > when_ns:
            when_ns = self._held_until_ns
        when_ns += self.speed.latency_ns
        if self.jitter_ns is not None:
            when_ns += self.jitter_ns()
        if self._last_arrival_ns > when_ns:
            when_ns = self._last_arrival_ns
        self._last_arrival_ns = when_ns
        return when_ns

    def _deliver(self, parcel: Parcel) -> None:
        if self.was_reset or self.severed:
            return
        if self._held_until_ns > self.scheduler.now_ns:  # held while it was under way
            self.scheduler.arrive_at(self._held_until_ns, self._deliver, parcel)
            return
        if parcel is _THE_END:
            self.is_over = True
        elif parcel[1]:
            self.parcels.append(parcel)
            self.arrived_bytes += parcel[1]
        if self.news.waiting:
            self.news.give()

    # What the reader takes

    def take_message(self, *, opens: bool) -> Posted | None:
        """The frame that comes next and what it says, if nothing was done to it; None if its bytes must be read.

        `opens` says that the preface has not been read yet; it must be there exactly then.
        """
        data, length, posted, content = self.parcels[0]
        if posted is None or (opens and not data.startswith(frames.PREFACE)):
            return None
        self.parcels.popleft()
        if content:
            self.parcels.appendleft((content, len(content), None, b""))
            length -= len(content)
        self.arrived_bytes -= length
        return posted

    def take(self, length: int) -> bytes:
        """The next bytes, which must have arrived."""
        self.arrived_bytes -= length
        parcels = self.parcels
        taken = []
        while length > 0:
            data, size, _, _ = parcels.popleft()
            if size > length:
                parcels.appendleft((data[length:], size - length, None, b""))
                data = data[:length]
            length -= size
            taken.append(data)
        return b"".join(taken)


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
        self.peer = role.peer
        self.side, self.peer_side = role.value, self.peer.value
        self.conversation = Conversation()
        self.outgoing, self.incoming = connection.pipes[role], connection.pipes[self.peer]
        self._deadlines, self._hooks, self._scheduler = deadlines, hooks, scheduler
        self._frame_ns = round(deadlines.frame_s * NS_PER_S)
        self._farewell_ns = round(deadlines.farewell_s * NS_PER_S)
        self._preface_heard = self._preface_sent = False
        self._allowed_ns = allowances(deadlines, 0)
        self._phase_ends_ns = scheduler.now_ns + self._allowed_ns[Phase.HELLO]
        self._opening: Message | None = None

    # The port that engines await

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    async def send(self, message: Message, content: bytes = b"", reckoned_bytes: int = 0) -> None:
        """As `Link.send`; `content` follows the frame, and so do bytes that only take their time."""
        life, incoming, conversation = self.life, self.incoming, self.conversation
        life.check()
        if incoming.parcels or incoming.is_over or incoming.was_reset:
            await self._look_for_failure(message)
        phase, phase_ends_ns = conversation.phase, self._phase_ends_ns
        try:
            posted = post(message)
            conversation.advance(self.role, message)
        except (OutOfTurn, ValueError) as error:
            raise LocalProtocolError(str(error)) from error
        conversation.note(posted.head)
        if conversation.phase is not phase:
            self._enter(message)
        data = posted.frame
        if not self._preface_sent:
            self._preface_sent = True
            data = frames.PREFACE + data
        if content:
            data += content
        changed = self._hooks.sending(self, message, data)
        intact = posted if changed is data and posted.read_as is not None else None
        on_wire_ns = self.outgoing.put(changed, intact, content, reckoned_bytes=reckoned_bytes)
        size, now_ns = len(changed) + reckoned_bytes, self._scheduler.now_ns
        if life.world.traced:
            life.world.say(life.node.name, lambda: f"sends {short(message)}, {size} bytes")
        if size > SOCKET_BUFFER and on_wire_ns > now_ns:
            limit_ns = now_ns + (self._farewell_ns if message.__class__ is Failure else self._frame_ns)
            await self._until_on_wire(on_wire_ns, min(limit_ns, phase_ends_ns))
        self._hooks.sent(self, message)

    def send_ram(self, batch: RamContent, content: memoryview) -> Coroutine[Any, Any, None]:
        return self.send(batch, bytes(content))

    def send_reckoned(self, batch: RamContent, content_bytes: int) -> Coroutine[Any, Any, None]:
        """Send a batch whose contents are not there, and only take their time."""
        return self.send(batch, b"", content_bytes)

    async def receive(self, *, opening: bool = False) -> Message:
        """As `Link.receive`; without the process having a part in it if it is the `opening`, which the daemon hears."""
        message = None
        if not opening:
            self.life.check()
            message, self._opening = self._opening, None
        if message is None:
            incoming, conversation = self.incoming, self.conversation
            limit_ns = self._limit_ns(self._frame_ns)
            if not incoming.parcels:
                is_stuck = incoming.is_over or incoming.was_reset or not self._scheduler.let_arrive(limit_ns)
                if is_stuck or not incoming.parcels:
                    await self._until_arrived(1, limit_ns)
            posted = incoming.take_message(opens=not self._preface_heard)
            if posted is None:
                head, message = await self._read_message(limit_ns)
            else:
                head, message = posted.head, posted.read_as
            assert message is not None, "else its bytes are read"
            self._preface_heard = True
            phase = conversation.phase
            try:
                conversation.advance(self.peer, message)
            except OutOfTurn as error:
                raise RemoteProtocolError(f"the {self.peer} sent {error}") from None
            conversation.note(head)
            if conversation.phase is not phase:
                self._enter(message)
            if isinstance(message, Failure):
                self._hooks.hears_failure(self, message)
                raise PeerFailed(self.peer.value, message.phase or phase.value, message.error, message.message)
        if not opening:
            self._hooks.received(self, message)
        return message

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        self.life.check()
        limit_ns = self._limit_ns(self._frame_ns)
        for buffer in buffers:
            buffer[:] = await self._read(len(buffer), limit_ns)

    def forbid_cancelling(self) -> None:
        """Nobody cancels here: who does not want an attempt any more kills the process."""

    # The daemon's side

    async def hear_opening(self) -> None:
        """Wait for the peer's first message, and keep it for `receive`."""
        self._opening = await self.receive(opening=True)

    def close(self) -> None:
        """What was said still arrives."""
        self.outgoing.end()

    @property
    def is_closed(self) -> bool:
        return self.outgoing.is_closed

    # Moving bytes

    async def _until_on_wire(self, when_ns: int, limit_ns: int) -> None:
        until_ns = min(when_ns, limit_ns)
        if not self._scheduler.pass_until(until_ns):
            while self._scheduler.now_ns < until_ns:  # what was sent before arrives meanwhile, and is news too
                await Wait(self.outgoing.news, until_ns)
                if self.outgoing.was_reset:
                    raise self._lost("the connection was reset")
        if when_ns > limit_ns:
            raise self._late("sending")

    async def _look_for_failure(self, message: Message) -> None:
        """If the peer has spoken out of turn it has failed or gone: hear it before writing into the void."""
        if message.__class__ is not Failure and self._preface_heard and self.conversation.phase is not Phase.ENDED:
            heard = await self.receive(opening=True)
            raise RemoteProtocolError(f"the {self.peer} sent {type(heard).__name__} while it was our turn")

    def _enter(self, message: Message) -> None:
        """The conversation is in another phase since `message`."""
        if isinstance(message, Preamble):
            self._allowed_ns = allowances(self._deadlines, sum(extent.length for extent in message.ram))
        self._phase_ends_ns = self._scheduler.now_ns + self._allowed_ns[self.conversation.phase]

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
        if self.incoming.arrived_bytes < length:
            await self._until_arrived(length, limit_ns)
        return self.incoming.take(length)

    async def _until_arrived(self, length: int, limit_ns: int) -> None:
        incoming = self.incoming
        while incoming.arrived_bytes < length:
            if incoming.was_reset:
                raise self._lost("connection reset by peer")
            if incoming.is_over:
                raise self._lost(f"the {self.peer} closed the connection")
            if not self._scheduler.let_arrive(limit_ns) and not await Wait(incoming.news, limit_ns):
                raise self._late("waiting for the peer")

    # Time limits, and what is said of them

    def _limit_ns(self, ns: int) -> int:
        """When something that may take `ns` must be over."""
        limit_ns = self._scheduler.now_ns + ns
        return limit_ns if limit_ns < self._phase_ends_ns else self._phase_ends_ns

    def _lost(self, what: str) -> TransportLost:
        return TransportLost(f"connection lost in phase {self.conversation.phase.value!r}: {what}")

    def _late(self, doing: str) -> DeadlineExpired:
        return DeadlineExpired(
            f"the {self.peer} was silent or too slow in phase {self.conversation.phase.value!r}, {doing}: its "
            "time is up"
        )


_ALLOWANCES: Final[dict[tuple[int, int], tuple[Deadlines, dict[Phase, int]]]] = {}


def allowances(deadlines: Deadlines, ram_bytes: int) -> dict[Phase, int]:
    """How long each phase may last, in ns, for a machine of `ram_bytes`; worked out once for the same deadlines."""
    key = (id(deadlines), ram_bytes)
    known = _ALLOWANCES.get(key)
    if known is None:
        allowed_ns = {phase: round(deadlines.allowance_s(phase, ram_bytes) * NS_PER_S) for phase in Phase}
        known = _ALLOWANCES[key] = (deadlines, allowed_ns)
    return known[1]


def short(message: Message) -> str:
    """For the trace: the kind of message, and its generation or round."""
    number = getattr(message, "generation", getattr(message, "round", None))
    return type(message).__name__ + ("" if number is None else f"({number})")
