"""Further connections for guest RAM: one connection leaves most of a fast link unused.

The rules are in `migrate.protocol.streams`; this is the waiting that they ask for, over sockets.  A lost stream is a
lost link.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from migrate.daemon.transport import Transport
from migrate.errors import MigrationError, RemoteProtocolError
from migrate.protocol.messages import Attach, Failure, Message
from migrate.protocol.streams import TOKEN_BYTES, StreamRules, attach_to, attaches

if TYPE_CHECKING:
    from migrate.daemon.link import SocketLink

Dial = Callable[[], Awaitable[Transport]]


@attrs.define(eq=False)
class StreamsOf:
    """Those of the conversation on `first`.  `wanted` is how many connections a target opens, with the first."""

    first: "SocketLink"
    dial: Dial | None = None
    wanted: int = 1
    rules: "StreamRules[SocketLink]" = attrs.field(init=False)
    _news: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        wanted = 1 if self.dial is None else self.wanted
        self.rules = StreamRules(self.first, self.first.role, self.first.conversation, wanted)

    async def open(self) -> None:
        """As a target that is about to accept: say how many come, and let them come."""
        announced = self.rules.announcement(os.urandom(TOKEN_BYTES))
        if announced is None or self.dial is None:
            return
        await self.first.send(announced)
        for attach in attaches(announced):
            link = self.first.another(await self.dial(), attach.number)
            self.rules.others.append(link)
            await link.send(attach)
            link.has_time()

    def attached(self) -> None:
        """As a source: one came."""
        self._news.set()

    async def have_come(self) -> None:
        """As a source that has been accepted: wait for all that were announced, or for a word in the conversation.

        The target has to be silent there, so a word is that of one that has failed, and whose streams will not come.
        """
        if self.rules.all_have_come():
            self.rules.adopt()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_news, self.first, nursery.cancel_scope)
            while not self.rules.all_have_come():
                self._news = trio.Event()
                await self._news.wait()
            nursery.cancel_scope.cancel()
            self.rules.adopt()

    async def room(self) -> None:
        """Return when the connection that is to carry the next batch has room for it."""
        link = self.rules.turn()
        await self.first.by_way_of(link, link.wait_for_room)

    async def receive(self) -> Message:
        """The next batch of the round, from any connection; its end once that has come on all; or what else is said."""
        while True:
            link = await self._who_speaks()
            message = self.rules.heard(link, await self.first.by_way_of(link, link.receive_here))
            if message is not None:
                return message

    async def _who_speaks(self) -> "SocketLink":
        while True:
            speaker = self.rules.speaker()
            if speaker is not None:
                return speaker
            with self.first.patiently("waiting for guest RAM"):
                async with trio.open_nursery() as nursery:
                    for link in self.rules.silent:
                        nursery.start_soon(self._until_news, link, nursery.cancel_scope)

    async def _until_news(self, link: "SocketLink", scope: trio.CancelScope) -> None:
        with suppress(OSError, trio.ClosedResourceError):  # what is wrong with it, whoever reads from it is told
            await link.news()
        scope.cancel()

    # The end

    def cancel(self) -> None:
        for link in self.rules.others:
            link.cancel()

    def close(self) -> None:
        """Nothing is said on them that would have to be heard."""
        for link in self.rules.all_streams():
            link.abandon()


async def carry_ram(
    link: "SocketLink", attach: Attach, first: "SocketLink | None", on_adopted: Callable[[], None]
) -> None:
    """As a source: `link` carries guest RAM of the conversation on `first` until that is over.

    Raises:
        RemoteProtocolError: it belongs to none; it has been told.
    """
    try:
        attach_to(None if first is None else first.streams.rules, link, attach, on_adopted)
    except RemoteProtocolError as error:
        with suppress(MigrationError):
            await link.send(Failure(phase="hello", error=type(error).__name__, message=str(error)))
        raise
    link.has_time()
    if first is not None:
        first.streams.attached()
    await link.over.wait()
