"""The port that engines await, over one end of a simulated connection.

It does what the daemon's link does over a socket: the real codec, every move checked against the table, a time limit
for each frame and each phase, a look for the peer's failure before it speaks.  Encoding and decoding are pure, so their
answers are remembered (`remembering`); a frame to which something was done on the way is read from its bytes.
"""

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from migrate.errors import DeadlineExpired, LocalProtocolError, PeerFailed, RemoteProtocolError, TransportLost
from migrate.protocol import frames
from migrate.protocol.conversation import Conversation, OutOfTurn, Phase
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Failure, Message, Preamble, RamContent, Role
from migrate.simulation.hooks import Hooks
from migrate.simulation.network import FOR_EVER_NS, SOCKET_BUFFER, Connection, way_of
from migrate.simulation.remembering import decode, decode_header, post
from migrate.simulation.scheduler import NS_PER_S, Scheduler, Wait

if TYPE_CHECKING:
    from migrate.simulation.node import Life


class SimulatedLink:
    """One end of a connection, seen from `role`, in the process `life`."""

    def __init__(
        self, life: "Life", role: Role, connection: Connection, deadlines: Deadlines, hooks: Hooks, scheduler: Scheduler
    ) -> None:
        self.life, self.role, self.connection = life, role, connection
        self.peer = role.peer
        self.side, self.peer_side = role.value, self.peer.value
        self.way = way_of(connection.stream)
        self.conversation = Conversation()
        self.outgoing, self.incoming = connection.pipes[role], connection.pipes[self.peer]
        self._deadlines, self._hooks, self._scheduler = deadlines, hooks, scheduler
        self._frame_ns = round(deadlines.frame_s * NS_PER_S)
        self._farewell_ns = round(deadlines.farewell_s * NS_PER_S)
        self._preface_heard = self._preface_sent = False
        self._allowed_ns = allowances(deadlines, 0)
        self._phase_ends_ns = scheduler.now_ns + self._allowed_ns[Phase.HELLO]
        self.opening: Message | None = None

    # The port that engines await

    @property
    def transcript(self) -> int:
        return self.conversation.transcript

    async def send(
        self, message: Message, content: bytes = b"", reckoned_bytes: int = 0, *, is_taken: bool = False
    ) -> None:
        """As `Link.send`; `content` follows the frame, and so do bytes that only take their time.

        With `is_taken` there is room for all of it, and nobody waits until it is on the wire.
        """
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
        if size > SOCKET_BUFFER and on_wire_ns > now_ns and not is_taken:
            limit_ns = now_ns + (self._farewell_ns if message.__class__ is Failure else self._frame_ns)
            await self._until_on_wire(on_wire_ns, min(limit_ns, phase_ends_ns))
        self._hooks.sent(self, message)

    async def ready_for_ram(self) -> None:
        """What is sent is taken at once, and time passes afterwards."""

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
            message, self.opening = self.opening, None
        if message is None:
            incoming, conversation = self.incoming, self.conversation
            limit_ns = self._scheduler.now_ns + self._frame_ns
            if limit_ns > self._phase_ends_ns:
                limit_ns = self._phase_ends_ns
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
        limit_ns = self.limit_ns()
        for buffer in buffers:
            buffer[:] = await self._read(len(buffer), limit_ns)

    def forbid_cancelling(self) -> None:
        """Nobody cancels here: who does not want an attempt any more kills the process."""

    # What streams need of each other

    @property
    def has_news(self) -> bool:
        incoming = self.incoming
        return bool(incoming.parcels) or incoming.is_over or incoming.was_reset

    @property
    def has_room(self) -> bool:
        """As of a socket, also if whoever sends is told that it is lost."""
        return self.outgoing.wire_free_ns <= self._scheduler.now_ns or self.outgoing.is_closed

    async def wait_for_room(self) -> None:
        await self._until_on_wire(self.outgoing.wire_free_ns, self.limit_ns())

    def hand_over(self, batch: RamContent, content: bytes) -> Coroutine[Any, Any, None]:
        """Send a batch for which there is room."""
        return self.send(batch, content, is_taken=True)

    def has_time(self) -> None:
        """No phase of its own bounds it any more, as the conversation's phases do."""
        self._phase_ends_ns = FOR_EVER_NS

    def limit_ns(self) -> int:
        """By when an operation that begins now must have ended."""
        return min(self._scheduler.now_ns + self._frame_ns, self._phase_ends_ns)

    # The daemon's side

    async def hear_opening(self) -> None:
        """Wait for the peer's first message, and keep it for `receive`."""
        self.opening = await self.receive(opening=True)

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

    async def _look_for_failure(self, message: Message | None = None) -> None:
        """If the peer has spoken out of turn it has failed or gone: hear it before writing into the void."""
        if message.__class__ is not Failure and self._preface_heard and self.conversation.phase is not Phase.ENDED:
            heard = await self.receive(opening=True)
            raise RemoteProtocolError(f"the {self.peer} sent {type(heard).__name__} while it was our turn")

    def _enter(self, message: Message) -> None:
        """The conversation is in another phase since `message`."""
        if message.__class__ is Preamble:
            assert isinstance(message, Preamble), "it has just been looked at"
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

    async def _until_news(self, limit_ns: int, doing: str) -> None:
        """Until something has come, on this connection or on one beside it."""
        if not self._scheduler.let_arrive(limit_ns) and not await Wait(self.incoming.news, limit_ns):
            raise self._late(doing)

    async def _until_arrived(self, length: int, limit_ns: int) -> None:
        incoming = self.incoming
        while incoming.arrived_bytes < length:
            if incoming.was_reset:
                raise self._lost("connection reset by peer")
            if incoming.is_over:
                raise self._lost(f"the {self.peer} closed the connection")
            if not self._scheduler.let_arrive(limit_ns) and not await Wait(incoming.news, limit_ns):
                raise self._late("waiting for the peer")

    # What is said of time limits

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
