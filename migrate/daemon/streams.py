"""Further connections for guest RAM: one connection leaves most of a fast link unused.

The conversation stays on the first connection.  Before its verdict the target says how many more will come, under a
token that it has made up (`Streams`), and opens them, each with `Attach`.  The batches of a round then go by turns over
all of them and may arrive in any order; the end of a round is said on each.  A lost stream is a lost link.

What was said on the streams is part of the conversation's transcript: stream by stream, at the end of each round.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from migrate.daemon.transport import Transport
from migrate.errors import MigrationError, RemoteProtocolError
from migrate.protocol.conversation import Phase
from migrate.protocol.messages import STREAMS_MAX, Attach, Failure, Message, RamBatch, RamPages, Role, RoundEnd, Streams

if TYPE_CHECKING:
    from migrate.daemon.link import SocketLink

FIRST_VERSION: Final = 2
"""The protocol version that has them."""
TOKEN_BYTES: Final = 16
RAM_PHASES: Final = (Phase.RAM, Phase.LAST_RAM)

Dial = Callable[[], Awaitable[Transport]]


@attrs.define(eq=False)
class StreamsOf:
    """Those of the conversation on `first`.  `wanted` is how many connections a target opens, with the first."""

    first: "SocketLink"
    dial: Dial | None = None
    wanted: int = 1
    version: int = 1
    links: list["SocketLink"] = attrs.field(factory=list)
    _announced: Streams | None = None
    _come: dict[tuple[bytes, int], tuple["SocketLink", Callable[[], None]]] = attrs.field(factory=dict)
    _news: trio.Event = attrs.field(factory=trio.Event)
    _next: "SocketLink | None" = None
    _carrier: "SocketLink | None" = None
    _at_end: list["SocketLink"] = attrs.field(factory=list)
    _end: RoundEnd | None = None

    # Before the first round

    async def open(self) -> None:
        """As a target that is about to accept: say how many come, and let them come."""
        if self.dial is None or self.wanted <= 1 or self.version < FIRST_VERSION:
            return
        token = os.urandom(TOKEN_BYTES)
        await self.first.send(Streams(token=token, count=self.wanted - 1))
        for number in range(1, self.wanted):
            link = self.first.another(await self.dial())
            self.links.append(link)
            await link.send(Attach(token=token, number=number))
            link.has_time()

    def announce(self, streams: Streams) -> None:
        """As a source: this was said in the conversation.

        Raises:
            RemoteProtocolError: more than anybody may have, or a second time.
        """
        if self._announced is not None or not 1 <= streams.count <= STREAMS_MAX:
            raise RemoteProtocolError(f"{streams.count} further connections announced; 1 to {STREAMS_MAX} may be, once")
        self._announced = streams

    def attach(self, link: "SocketLink", attach: Attach, on_adopted: Callable[[], None]) -> None:
        """As a source: this one came, maybe before it was announced; `on_adopted` is told when it is one of ours.

        Until then it may be anybody, so it takes nobody's place: it is known by its token.

        Raises:
            RemoteProtocolError: its token is not ours, or it has come already.
        """
        if (attach.token, attach.number) in self._come:
            raise RemoteProtocolError(f"stream {attach.number} has come already")
        if self._announced is not None and not self._is_awaited(attach.token, attach.number):
            raise RemoteProtocolError(f"stream {attach.number} is none of those that were announced")
        link.has_time()
        self._come[attach.token, attach.number] = link, on_adopted
        self._news.set()

    def _is_awaited(self, token: bytes, number: int) -> bool:
        announced = self._announced
        return announced is not None and token == announced.token and 1 <= number <= announced.count

    async def have_come(self) -> None:
        """As a source that has been accepted: wait for all that were announced, or for a word in the conversation.

        The target has to be silent there, so a word is that of one that has failed, and whose streams will not come.
        """
        if self._announced is None:
            return
        wanted = [(self._announced.token, number) for number in range(1, self._announced.count + 1)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_news, self.first, nursery.cancel_scope)
            while not all(key in self._come for key in wanted):
                self._news = trio.Event()
                await self._news.wait()
            nursery.cancel_scope.cancel()
            for link, on_adopted in (self._come.pop(key) for key in wanted):
                self.links.append(link)
                on_adopted()

    # Rounds

    async def room(self) -> None:
        """Return when the connection that is to carry the next batch has room for it."""
        if self.links:
            by_turns = (self.first, *self.links)
            first = by_turns.index(self.next_carrier()) + 1
            by_turns = by_turns[first:] + by_turns[:first]
            self._next = next((link for link in by_turns if link.has_room), by_turns[0])
        link = self.next_carrier()
        await self.first.by_way_of(link, link.wait_for_room)

    def next_carrier(self) -> "SocketLink":
        return self._next or self.first

    def note_round(self) -> None:
        """On both sides, after the conversation's own `RoundEnd`."""
        for link in self.links:
            self.first.conversation.note(link.transcript.to_bytes(8, "big"))

    @property
    def carry(self) -> bool:
        """Whether messages for a target may come on any of them."""
        is_ram = self.first.role is Role.TARGET and self.first.conversation.phase in RAM_PHASES
        return bool(self.links) and (is_ram or bool(self._at_end))

    @property
    def carrier(self) -> "SocketLink":
        """Where the batch came from whose contents are to be received."""
        return self._carrier or self.first

    async def receive(self) -> Message:
        """The next batch of the round, from any connection; its end once that has come on all; or what else is said."""
        while True:
            link = await self._who_speaks()
            message = await self.first.by_way_of(link, link.receive_here)
            match message:
                case RamPages() | RamBatch():
                    self._carrier = link
                    return message
                case RoundEnd():
                    if self._ends_round(link, message):
                        return self._taken_end()
                case _:
                    return message

    def _ends_round(self, link: "SocketLink", end: RoundEnd) -> bool:
        """Whether it has come on all now."""
        self._at_end.append(link)
        if link is self.first:
            self._end = end
        return len(self._at_end) == 1 + len(self.links)

    def _taken_end(self) -> RoundEnd:
        end, self._end = self._end, None
        assert end is not None, "it has come on the first connection as well"
        self._at_end.clear()
        self.note_round()
        return end

    async def _who_speaks(self) -> "SocketLink":
        silent = [link for link in (self.first, *self.links) if link not in self._at_end]
        while True:
            for link in silent:
                if link.has_news:
                    return link
            with self.first.patiently("waiting for guest RAM"):
                async with trio.open_nursery() as nursery:
                    for link in silent:
                        nursery.start_soon(self._until_news, link, nursery.cancel_scope)

    async def _until_news(self, link: "SocketLink", scope: trio.CancelScope) -> None:
        with suppress(OSError, trio.ClosedResourceError):  # what is wrong with it, whoever reads from it is told
            await link.news()
        scope.cancel()

    # The end

    def cancel(self) -> None:
        for link in self.links:
            link.cancel()

    def close(self) -> None:
        """Nothing is said on them that would have to be heard."""
        for link in (*self.links, *(link for link, _ in self._come.values())):
            link.abandon()


async def carry_ram(
    link: "SocketLink", attach: Attach, first: "SocketLink | None", on_adopted: Callable[[], None]
) -> None:
    """As a source: `link` carries guest RAM of the conversation on `first` until that is over.

    Raises:
        RemoteProtocolError: it belongs to none; it has been told.
    """
    try:
        if first is None:
            raise RemoteProtocolError("no migration is in progress that this stream could belong to")
        first.streams.attach(link, attach, on_adopted)
    except RemoteProtocolError as error:
        with suppress(MigrationError):
            await link.send(Failure(phase="hello", error=type(error).__name__, message=str(error)))
        raise
    await link.over.wait()
