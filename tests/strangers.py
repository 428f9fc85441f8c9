"""Strangers as values: each comes to a source's port, does what it does, and notes what became of it.

A stranger is a coroutine over one TCP connection that returns when the source has hung up on it, or refused it.
"""

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import attrs
import trio

from migrate.protocol import frames
from migrate.protocol.messages import Failure, Hello, HelloFor, Refuse, Role
from tests.certificates import Holder, Holders
from tests.daemons import LOOPBACK, FrameReader

AT_ONCE: Final = 500
ID: Final = UUID("9b2f0c58-3c1e-4f7a-8d2b-61c0a5e7d411")
USED_ID: Final = UUID("1d0e7b92-5a44-4c0e-b7de-90f3a1c8e622")
ANOTHER_ID: Final = UUID("77aa31f0-02bb-4e6e-9f10-c4d5e6f70833")

Act = Callable[[trio.SocketStream, Holders], Awaitable[str]]


@attrs.frozen(kw_only=True)
class Stranger:
    """`told` has to be in what the source tells of it, `heard` in what it hears itself."""

    name: str
    act: Act
    told: str
    heard: str = ""


@attrs.frozen(kw_only=True)
class Encounter:
    """How it went.  Times in seconds."""

    stranger: str
    outcome: str
    seconds: float
    bound_s: float

    @property
    def row(self) -> str:
        return f"{self.stranger:34}  {self.seconds:6.2f}  {self.bound_s:5.1f}  {self.outcome}"


HEAD: Final = f"{'stranger':34}  {'took s':>6}  {'bound':>5}  outcome, as the source tells it"


async def until_hung_up(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything that comes until the other end hangs up."""
    heard = b""
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            heard += data
    return heard


def saying(data: bytes) -> Act:
    async def act(stream: trio.SocketStream, _: Holders) -> str:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
        heard = await until_hung_up(stream)
        return f"a TLS alert, {heard.hex()}" if heard.startswith(b"\x15\x03") else repr(heard)

    return act


async def silence(stream: trio.SocketStream, _: Holders) -> str:
    return repr(await until_hung_up(stream))


def one_byte_a_second(data: bytes) -> Act:
    async def act(stream: trio.SocketStream, _: Holders) -> str:
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                with suppress(trio.BrokenResourceError):
                    for index in range(len(data)):
                        await stream.send_all(data[index : index + 1])
                        await trio.sleep(1)

            nursery.start_soon(trickle)
            heard = await until_hung_up(stream)
            nursery.cancel_scope.cancel()
        return repr(heard)

    return act


def tls_client(holder: Holder | None, authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(authority)
    if holder is not None:
        context.load_cert_chain(holder.certificate, holder.key)
    return context


def with_certificate(choose: Callable[[Holders], Holder | None], data: bytes = b"") -> Act:
    """TLS as it should be, with a certificate that may not be; then `data`, and whatever is answered."""

    async def act(stream: trio.SocketStream, holders: Holders) -> str:
        secured = trio.SSLStream(stream, tls_client(choose(holders), holders.source.authority))
        try:
            await secured.do_handshake()
            if data:
                await secured.send_all(data)
            reader = FrameReader(secured)
            frame = await reader.next()
        except trio.BrokenResourceError as error:
            return str(getattr(error.__cause__, "reason", error.__cause__))
        match None if frame is None else frame[0]:
            case Refuse(reasons=(reason, *_)):
                return f"Refuse: {reason.message}"
            case Failure(message=message):
                return f"Failure: {message}"
            case other:
                return f"{other}"

    return act


async def half_open(stream: trio.SocketStream, holders: Holders) -> str:
    """Half a hello over good TLS; then nothing, and it neither reads nor hangs up: as if its host had gone."""
    secured = trio.SSLStream(stream, tls_client(holders.target, holders.source.authority))
    await secured.do_handshake()
    await secured.send_all(hello(Hello)[:20])
    while not stream.socket.is_readable():  # noqa: ASYNC110  # it does not read, so nobody tells it
        await trio.sleep(0.01)
    return "something, and did not look"


def hello(kind: type[Hello] | type[HelloFor], migration: UUID = ID, versions: tuple[int, ...] = (2, 1)) -> bytes:
    message: Hello | HelloFor
    if kind is Hello:
        message = Hello(protocol_versions=versions, node="stranger", release="r6")
    else:
        message = HelloFor(protocol_versions=versions, node="stranger", release="r6", migration=migration.bytes)
    return frames.PREFACE + frames.encode_frame(message)


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="source")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def the_target(holders: Holders) -> Holder:
    return holders.target


HTTP: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

#: To a port with TLS.
TO_TLS: Final = (
    Stranger(name="HTTP", act=saying(HTTP), told="which is HTTP", heard="a TLS alert"),
    Stranger(
        name="plain to a TLS port",
        act=saying(hello(Hello)),
        told="which is this protocol without TLS",
        heard="a TLS alert",
    ),
    Stranger(
        name="wrong certificate",
        act=with_certificate(lambda holders: holders.stranger),
        told="unable to get local issuer certificate",
        heard="UNKNOWN_CA",
    ),
    Stranger(
        name="no certificate",
        act=with_certificate(lambda _: None),
        told="peer did not return a certificate",
        heard="CERTIFICATE_REQUIRED",
    ),
    Stranger(
        name="expired",
        act=with_certificate(lambda holders: holders.expired),
        told="certificate has expired",
        heard="CERTIFICATE_EXPIRED",
    ),
    Stranger(
        name="right CA, wrong name",
        act=with_certificate(lambda holders: holders.elsewhere),
        told="name is 'elsewhere'; needed: 'target'",
        heard="the name in your certificate",
    ),
    Stranger(
        name="an old protocol version",
        act=with_certificate(the_target, hello(HelloFor, versions=(0,))),
        told="protocol: version is 0; needed: one of",
        heard="protocol: version is 0",
    ),
    Stranger(
        name="no id",
        act=with_certificate(the_target, hello(Hello)),
        told="migration: id is missing",
        heard="migration: id is missing",
    ),
    Stranger(
        name="another id",
        act=with_certificate(the_target, hello(HelloFor, ANOTHER_ID)),
        told="migration: id is another one",
        heard="migration: id is another one",
    ),
    Stranger(
        name="id of the migration in progress",
        act=with_certificate(the_target, hello(HelloFor, ID)),
        told="id is in use on another connection",
        heard="id is in use on another connection",
    ),
    Stranger(
        name="id replayed",
        act=with_certificate(the_target, hello(HelloFor, USED_ID)),
        told="id is used already",
        heard="id is used already",
    ),
    Stranger(name="silence", act=silence, told="silent or too slow in the TLS handshake"),
    Stranger(
        name="silence after the handshake",
        act=with_certificate(the_target),
        told="silent or too slow in phase 'hello'",
    ),
    Stranger(
        name="one byte a second",
        act=one_byte_a_second(client_hello()),
        told="silent or too slow in the TLS handshake",
    ),
    Stranger(name="half-open for ever", act=half_open, told="silent or too slow in phase 'hello'"),
)

#: To a port without.
TO_PLAIN: Final = (
    Stranger(name="HTTP, to a plain port", act=saying(HTTP), told="which is HTTP", heard="b''"),
    Stranger(
        name="TLS to a plain port",
        act=saying(client_hello()),
        told="which is TLS; only one of both sides was started with TLS",
        heard="b''",
    ),
    Stranger(
        name="an old version, to a plain port",
        act=saying(hello(Hello, versions=(0,))),
        told="protocol: version is 0; needed: one of",
        heard="one of",
    ),
    Stranger(name="silence, to a plain port", act=silence, told="silent or too slow in phase 'hello'"),
    Stranger(
        name="one byte a second, plain",
        act=one_byte_a_second(hello(Hello)),
        told="silent or too slow in phase 'hello'",
    ),
)


async def crowd(port: int, size: int) -> list[trio.SocketStream]:
    """So many connections at once that say nothing."""
    streams: list[trio.SocketStream] = []

    async def come() -> None:
        streams.append(await trio.open_tcp_stream(LOOPBACK, port))

    async with trio.open_nursery() as nursery:
        for _ in range(size):
            nursery.start_soon(come)
    return streams


@attrs.define
class Gate:
    """Carries connections to `port`; what the source says waits after `limit` bytes until the gate is opened."""

    port: int
    limit: int
    opened: trio.Event = attrs.field(factory=trio.Event)

    async def carry(self, target: trio.SocketStream) -> None:
        source = await trio.open_tcp_stream(LOOPBACK, self.port)
        async with source, target, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, Role.SOURCE, source, target)
            nursery.start_soon(self._pump, Role.TARGET, target, source)

    async def _pump(self, sender: Role, giver: trio.SocketStream, taker: trio.SocketStream) -> None:
        carried = 0
        with suppress(trio.BrokenResourceError):
            while data := await giver.receive_some(1 << 16):
                carried += len(data)
                if sender is Role.SOURCE and carried > self.limit:
                    await self.opened.wait()
                await taker.send_all(data)
            await taker.send_eof()
