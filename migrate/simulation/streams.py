"""The port that engines await, over one end of several simulated connections: see `migrate.daemon.streams`.

The rules are the real ones (`migrate.protocol.streams`); this is the waiting that they ask for, in virtual time.  As
all connections of a conversation have one signal for their news, who waits for any waits for that.

A batch is taken at once by a connection whose wire is free, as by a socket, and the next one goes by another.  Contents
that are only reckoned (`SimulatedLink.send_reckoned`) take their time on the first one.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from migrate.errors import RemoteProtocolError, TransportLost
from migrate.protocol.messages import Accept, Attach, Message, RamContent, RoundEnd, Streams, Welcome
from migrate.protocol.streams import TOKEN_BYTES, StreamRules, attach_to, attaches
from migrate.simulation.link import SimulatedLink
from migrate.simulation.scheduler import Wait

T = TypeVar("T")

Dial = Callable[["StreamedLink", int], Awaitable[SimulatedLink]]
"""Opens the stream of that number, beside the connection of a conversation.  Raises TransportLost."""


def _nothing() -> None:
    """Nobody waits to be let in here."""


class StreamedLink(SimulatedLink):
    """One end of a conversation's connection, and of its streams.

    A target that can `dial` opens so many connections in all.
    """

    def __init__(self, *of_link: Any, dial: Dial | None = None, wanted: int = 1) -> None:
        super().__init__(*of_link)
        self._dial = dial
        self.rules: StreamRules[SimulatedLink] = StreamRules(
            self, self.role, self.conversation, 1 if dial is None else wanted
        )

    # The port that engines await

    async def send(
        self, message: Message, content: bytes = b"", reckoned_bytes: int = 0, *, is_taken: bool = False
    ) -> None:
        if message.__class__ is Accept:
            await self._look()
            await self._open()
        if message.__class__ is RoundEnd:
            await self._look()
            for link in self.rules.others:
                await self._by_way_of(link, link.send(message))
        await super().send(message, content, reckoned_bytes, is_taken=is_taken)
        if message.__class__ is RoundEnd:
            self.rules.note_round()

    async def receive(self, *, opening: bool = False) -> Message:
        if opening:
            return await super().receive(opening=True)
        message = await (self._receive_of_round() if self.rules.carry else super().receive())
        while isinstance(message, Streams):
            self.rules.announce(message)
            message = await super().receive()
        if isinstance(message, Welcome):
            self.rules.version = message.protocol_version
        if isinstance(message, Accept):
            await self._have_come()
            await self._look()
        return message

    async def ready_for_ram(self) -> None:
        """Return when the connection that is to carry the next batch has room for it."""
        self.life.check()
        await self._look()
        link = self.rules.turn()
        if not link.has_room:
            await self._by_way_of(link, link.wait_for_room())

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        link = self.rules.next_carrier
        await self._by_way_of(link, link.hand_over(batch, bytes(content)))

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        link = self.rules.carrier
        await self._by_way_of(link, SimulatedLink.receive_ram(link, buffers))

    # The daemon's side

    def close(self) -> None:
        """Of the streams nothing is waited for either."""
        super().close()
        for link in self.rules.all_streams():
            link.close()

    def attach(self, link: SimulatedLink, attach: Attach) -> None:
        """As a source: `link` came as a stream of this conversation.

        Raises:
            RemoteProtocolError: see `StreamRules.attach`.
        """
        attach_to(self.rules, link, attach, _nothing)
        link.has_time()
        self.incoming.news.give()

    # Waiting

    async def _open(self) -> None:
        """As a target that is about to accept: say how many come, and let them come."""
        token = self._scheduler.now_ns.to_bytes(TOKEN_BYTES, "big")  # no two attempts begin at one time
        announced = self.rules.announcement(token)
        if announced is None or self._dial is None:
            return
        await self.send(announced)
        for attach in attaches(announced):
            link = await self._dial(self, attach.number)
            self.rules.others.append(link)
            await link.send(attach)
            link.has_time()

    async def _have_come(self) -> None:
        """As a source that has been accepted: wait for all that were announced, or for a word in the conversation."""
        limit_ns = self.limit_ns()
        while not self.rules.all_have_come() and not self.has_news:
            await self._until_news(limit_ns, "waiting for the target's further connections")
        if self.rules.all_have_come():
            self.rules.adopt()

    async def _receive_of_round(self) -> Message:
        """The next batch of the round, from any connection; its end once that has come on all; or what else is said."""
        while True:
            link = await self._who_speaks()
            message = self.rules.heard(link, await self._by_way_of(link, SimulatedLink.receive(link)))
            if message is not None:
                return message

    async def _who_speaks(self) -> SimulatedLink:
        self.life.check()
        limit_ns = self.limit_ns()
        while (speaker := self.rules.speaker()) is None:
            await self._until_news(limit_ns, "waiting for guest RAM")
        return speaker

    async def _by_way_of(self, link: SimulatedLink, work: Awaitable[T]) -> T:
        """`work` on a stream.  A peer that fails closes its streams, and says in the conversation why."""
        try:
            return await work
        except TransportLost:
            if link is not self:
                await self._hear_why()
            raise

    async def _hear_why(self) -> None:
        """Raises what the peer says, if it says anything; it may be in the middle of a round, and then that is all."""
        limit_ns = self._scheduler.now_ns + self._farewell_ns
        while self.rules.waits_for_a_word and not self.has_news and self._scheduler.now_ns < limit_ns:
            if not self._scheduler.let_arrive(limit_ns):
                await Wait(self.incoming.news, limit_ns)
        with suppress(RemoteProtocolError):
            await self._look()

    async def _look(self) -> None:
        if self.has_news:
            await self._look_for_failure()


def carry_ram(link: SimulatedLink, attach: Attach, first: SimulatedLink | None) -> None:
    """As a source: `link` carries guest RAM of the conversation on `first`, which closes it.

    Raises:
        RemoteProtocolError: it belongs to none.
    """
    if isinstance(first, StreamedLink):
        first.attach(link, attach)
    else:
        attach_to(None, link, attach, _nothing)
