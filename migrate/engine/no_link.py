"""A link that leads nowhere, for what is done without a peer."""

from collections.abc import Sequence

from migrate.errors import TransportLost
from migrate.protocol.messages import Message, RamContent


class NoLink:
    """See `migrate.engine.ports.Link`."""

    transcript = 0

    async def send(self, message: Message) -> None:
        raise TransportLost(f"nobody is there to be told {type(message).__name__}")

    async def receive(self) -> Message:
        raise TransportLost("nobody is there to say anything")

    async def ready_for_ram(self) -> None:
        raise TransportLost("nobody is there to be sent guest RAM")

    async def send_ram(self, batch: RamContent, content: memoryview) -> None:
        raise TransportLost("nobody is there to be sent guest RAM")

    async def receive_ram(self, buffers: Sequence[memoryview]) -> None:
        raise TransportLost("nobody is there to send guest RAM")

    def forbid_cancelling(self) -> None:
        pass
