"""A network of two nodes: connections that carry real bytes, and everything that may happen to them.

A connection is two pipes.  Bytes that are put into one keep the wire busy for as long as the bandwidth says, travel for
the latency, and arrive in order.  What can be done to it:

    hold        nothing arrives for a while; then it does, as TCP sends again what was lost
    sever       nothing ever arrives any more, and nobody is told (half-open)
    end         what is under way arrives, then the end of the stream (FIN)
    reset       what is under way is lost, and both ends know (RST)

Streams are further connections beside that of a conversation.  Each delivers in order, but between them any order may
come about: their latencies differ, in a way that follows from a seed (`latencies_ns`).

The port that engines await, over one end of a connection, is in `link`, over several in `streams`.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from migrate.errors import TransportLost
from migrate.protocol import frames
from migrate.protocol.messages import Role
from migrate.simulation.remembering import Posted
from migrate.simulation.scheduler import NS_PER_S, Scheduler, Signal

SOCKET_BUFFER: Final = 4096
"""What a sender may have under way without waiting, in bytes: little, as a guest's RAM is little here."""

FOR_EVER_NS: Final = 1 << 62

APART_NS: Final = (60_000, 3_000, 200_000)
"""By how much each of several connections may be slower than the next one.

A batch takes some 12,000 ns on the wire, so a round ends on one connection before any batch of the next one comes, or
batches come in turn, or what belongs together comes far apart.
"""
ORDERS: Final = 2 * len(APART_NS)
"""So many seeds give orders that differ."""


def latencies_ns(count: int, base_ns: int, seed: int) -> tuple[int, ...]:
    """Of `count` connections of one conversation, from the first on, which is the fastest or the slowest."""
    apart_ns = APART_NS[seed % ORDERS // 2]
    latencies = tuple(base_ns + number * apart_ns for number in range(count))
    return latencies[::-1] if seed % 2 else latencies


def way_of(stream: int) -> tuple[str, ...]:
    """What tells things that pass on a stream from those that pass in conversations, which come without saying."""
    return (str(stream),) if stream else ()


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

    @property
    def wire_free_ns(self) -> int:
        """When what has been put is on the wire."""
        return self._wire_free_ns

    @property
    def instants_ns(self) -> tuple[int, int, int]:
        """Until when its wire is busy, it is held, and something arrives."""
        return self._wire_free_ns, self._held_until_ns, self._last_arrival_ns

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
    """The pipes by who speaks into them; `stream` is 0 for that of a conversation."""

    number: int
    pipes: dict[Role, Pipe]
    stream: int = 0

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
    cut_until_ns: int = 0

    newest: Connection | None = None  # of a conversation

    def connect(self, latency_ns: int | None = None) -> Connection:
        """For a conversation, with the latency of all or with its own.

        Raises:
            TransportLost: nobody can be reached.
        """
        self.newest = self._connect(latency_ns, 0)
        return self.newest

    def connect_beside(self, first: Connection, stream: int, latency_ns: int) -> Connection:
        """A stream of the conversation on `first`: there is news of either for whoever waits for news of the other.

        Raises:
            TransportLost: nobody can be reached.
        """
        connection = self._connect(latency_ns, stream)
        for role, pipe in connection.pipes.items():
            pipe.news = first.pipes[role].news
        return connection

    def _connect(self, latency_ns: int | None, stream: int) -> Connection:
        if self.scheduler.now_ns < self.cut_until_ns:
            raise TransportLost("no route to the source")
        speed = self.speed if latency_ns is None else attrs.evolve(self.speed, latency_ns=latency_ns)
        pipes = {role: Pipe(self.scheduler, speed) for role in Role}
        self.connections.append(Connection(len(self.connections), pipes, stream))
        return self.connections[-1]

    def cut(self, ns: int) -> None:
        self.cut_until_ns = max(self.cut_until_ns, self.scheduler.now_ns + ns)
        for connection in self.connections:
            connection.hold(ns)

    def heal(self) -> None:
        self.cut_until_ns = 0
