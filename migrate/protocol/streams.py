"""Further connections for guest RAM: who may come, whose turn it is, when a round is over.  Pure.

The conversation stays on the first connection.  Before its verdict the target says how many more will come, under a
token that it has made up (`Streams`), and opens them, each with `Attach`.  The batches of a round then go by turns over
all of them and may arrive in any order; the end of a round is said on each.  What was said on the streams is part of
the conversation's transcript: stream by stream, at the end of each round.

Here are the rules only.  Whoever waits, over sockets or in a simulated world, asks them: they await nothing.
"""

from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

import attrs

from migrate.errors import RemoteProtocolError
from migrate.protocol.conversation import Conversation, Phase
from migrate.protocol.messages import STREAMS_MAX, Attach, Message, Role, RoundEnd, Streams

FIRST_VERSION: Final = 2
"""The protocol version that has them."""
TOKEN_BYTES: Final = 16
RAM_PHASES: Final = (Phase.RAM, Phase.LAST_RAM)


class Carrier(Protocol):
    """A connection, as far as the rules ask."""

    @property
    def transcript(self) -> int:
        """Of what was said on it so far; see `Conversation`."""

    @property
    def has_room(self) -> bool:
        """Whether a batch could go out now."""

    @property
    def has_news(self) -> bool:
        """Whether there is something to hear, if only that it is lost."""


C = TypeVar("C", bound=Carrier)


@attrs.define(eq=False)
class StreamRules(Generic[C]):
    """Those of one conversation, which `first` has, seen from `role`; `others` are its streams, by their numbers.

    `wanted` is how many connections a target opens, with the first; `version` is the protocol's, once it is known.
    """

    first: C
    role: Role
    conversation: Conversation
    wanted: int = 1
    version: int = 1
    others: list[C] = attrs.field(factory=list)
    _announced: Streams | None = None
    _come: dict[tuple[bytes, int], tuple[C, Callable[[], None]]] = attrs.field(factory=dict)
    _next: C | None = None
    _heard_last: C | None = None
    _at_end: list[C] = attrs.field(factory=list)
    _end: RoundEnd | None = None

    # Before the first round, as a target

    def announcement(self, token: bytes) -> Streams | None:
        """What is said before the verdict; None if no more are to come."""
        if self.wanted <= 1 or self.version < FIRST_VERSION:
            return None
        return Streams(token=token, count=self.wanted - 1)

    # Before the first round, as a source

    def announce(self, streams: Streams) -> None:
        """This was said in the conversation.

        Raises:
            RemoteProtocolError: more than anybody may have, or a second time.
        """
        if self._announced is not None or not 1 <= streams.count <= STREAMS_MAX:
            raise RemoteProtocolError(f"{streams.count} further connections announced; 1 to {STREAMS_MAX} may be, once")
        self._announced = streams

    def awaits(self, token: bytes) -> bool:
        """Whether streams were announced under `token`."""
        return self._announced is not None and self._announced.token == token

    def attach(self, link: C, attach: Attach, on_adopted: Callable[[], None]) -> None:
        """This one came, maybe before it was announced; `on_adopted` is told when it is one of ours.

        Until then it may be anybody, so it takes nobody's place: it is known by its token.

        Raises:
            RemoteProtocolError: its token is not ours, or it has come already.
        """
        if (attach.token, attach.number) in self._come:
            raise RemoteProtocolError(f"stream {attach.number} has come already")
        if self._announced is not None and (attach.token, attach.number) not in self._awaited():
            raise RemoteProtocolError(f"stream {attach.number} is none of those that were announced")
        self._come[attach.token, attach.number] = link, on_adopted

    def _awaited(self) -> list[tuple[bytes, int]]:
        announced = self._announced
        return [] if announced is None else [(announced.token, number) for number in range(1, announced.count + 1)]

    def all_have_come(self) -> bool:
        """Whether none that was announced is missing."""
        return all(key in self._come for key in self._awaited())

    def adopt(self) -> None:
        """All have come: they are ours now."""
        for link, on_adopted in [self._come.pop(key) for key in self._awaited()]:
            self.others.append(link)
            on_adopted()

    # Rounds, as a source

    def turn(self) -> C:
        """Whose turn it is to carry the next batch: of the next one that has room, or else of the next one."""
        if self.others:
            by_turns = (self.first, *self.others)
            after = by_turns.index(self.next_carrier) + 1
            by_turns = by_turns[after:] + by_turns[:after]
            self._next = next((link for link in by_turns if link.has_room), by_turns[0])
        return self.next_carrier

    @property
    def next_carrier(self) -> C:
        """As `turn` said last."""
        return self._next or self.first

    # Rounds, as a target

    @property
    def carry(self) -> bool:
        """Whether messages for a target may come on any of them."""
        is_ram = self.role is Role.TARGET and self.conversation.phase in RAM_PHASES
        return bool(self.others) and (is_ram or bool(self._at_end))

    @property
    def silent(self) -> list[C]:
        """Where the round has not ended yet."""
        return [link for link in (self.first, *self.others) if link not in self._at_end]

    def speaker(self) -> C | None:
        """Who is to be heard now; None if nobody has said anything."""
        return next((link for link in self.silent if link.has_news), None)

    def heard(self, link: C, message: Message) -> Message | None:
        """What an engine is to see of it: a batch, or what else is said; the end of a round once all have said it.

        Raises:
            RemoteProtocolError: two have said different ends.
        """
        self._heard_last = link
        if not isinstance(message, RoundEnd):
            return message
        if self._end is not None and message != self._end:
            raise RemoteProtocolError(f"a round ends in two ways: {self._end} on one connection, {message} on another")
        self._end = message
        self._at_end.append(link)
        if self.silent:
            return None
        self._end = None
        self._at_end.clear()
        self.note_round()
        return message

    @property
    def carrier(self) -> C:
        """Where the batch came from whose contents are to be received."""
        return self._heard_last or self.first

    # On both sides

    @property
    def waits_for_a_word(self) -> bool:
        """Whether a side that has lost a stream waits for the peer to say why: if both did, neither would say a word.

        A target that has lost one has nothing else to do than to say so; a source may have a guest that is paused.
        """
        return self.role is Role.SOURCE

    def note_round(self) -> None:
        """After the conversation's own `RoundEnd`: what was said on the streams."""
        for link in self.others:
            self.conversation.note(link.transcript.to_bytes(8, "big"))

    def all_streams(self) -> list[C]:
        """To be closed when the conversation is over, those as well that nobody has awaited."""
        return [*self.others, *(link for link, _ in self._come.values())]


def attaches(streams: Streams) -> Iterator[Attach]:
    """How the streams open that were announced so."""
    for number in range(1, streams.count + 1):
        yield Attach(token=streams.token, number=number)


def attach_to(rules: StreamRules[C] | None, link: C, attach: Attach, on_adopted: Callable[[], None]) -> None:
    """As a source that has these rules of the migration in progress, if there is one.

    Raises:
        RemoteProtocolError: `link` belongs to none.
    """
    if rules is None:
        raise RemoteProtocolError("no migration is in progress that this stream could belong to")
    rules.attach(link, attach, on_adopted)
