"""Who may connect: where addresses are checked, and connections become transports.

Off loopback there is mutual TLS, or the words `--insecure`; nothing else.  That holds for every address, be it typed,
remembered in a state directory, or noted beside a debt.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import attrs
import trio

from migrate.daemon.address import Address, BadInput
from migrate.daemon.link import SocketLink, connect
from migrate.daemon.tls import Tls
from migrate.daemon.transport import PlainTransport, TlsTransport, Transport
from migrate.errors import DeadlineExpired, Distrusted, MigrationError, TransportLost
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Failure, Role

NOT_ADMITTED: Final = Failure(
    phase="hello", error="Distrusted", message="the name in your certificate is not the one that was agreed on"
)


@attrs.frozen(kw_only=True)
class Access:
    """`tls` is None for connections in the clear, which are for loopback unless they are asked for: `insecure`."""

    tls: Tls | None = None
    insecure: bool = False

    def check(self, address: Address) -> None:
        """Raises BadInput if anybody could take or give a machine there."""
        if self.tls is None and not self.insecure and not address.is_loopback:
            raise BadInput(
                f"{address} is not on loopback, where a migration must be encrypted and both sides authenticated: give "
                "--tls-cert, --tls-key, --tls-ca and --peer (migrate certs makes some to rehearse with), use "
                "127.0.0.1, or say --insecure"
            )

    async def connect(self, address: Address, deadlines: Deadlines) -> Transport:
        """To a source.

        Raises:
            TransportLost: nobody can be reached there, or nobody may be without TLS.
            NotOurProtocol, RemoteProtocolError, Distrusted, DeadlineExpired: who is there is not, or wants not, us.
        """
        try:
            self.check(address)
        except BadInput as error:
            raise TransportLost(str(error)) from None
        return await self.secured(await connect(address.host, address.port, deadlines), Role.TARGET, deadlines)

    async def admit(self, stream: trio.SocketStream, deadlines: Deadlines) -> Transport:
        """A connection that a source has accepted; it is closed if an error is raised.

        Raises:
            NotOurProtocol, RemoteProtocolError, Distrusted, TransportLost, DeadlineExpired.
        """
        return await self.secured(stream, Role.SOURCE, deadlines)

    async def secured(self, stream: trio.SocketStream, role: Role, deadlines: Deadlines) -> Transport:
        """Either end of a connection, with TLS if there is to be any."""
        if self.tls is None:
            return PlainTransport(stream)
        transport = TlsTransport(stream, self.tls.context(role), role)
        try:
            with _bounded(role, deadlines.handshake_s):
                await transport.handshake()
        except MigrationError:
            await leave(transport, deadlines)
            raise
        except BaseException:
            transport.close()
            raise
        try:
            self.tls.check_name(transport.certificate_names, role)
        except Distrusted:
            async with SocketLink(role, transport, deadlines) as link:  # it has a certificate of ours: it may know
                with suppress(MigrationError):
                    await link.send(NOT_ADMITTED)
            raise
        return transport


@contextmanager
def _bounded(role: Role, limit_s: float) -> Iterator[None]:
    """The handshake as a whole, not each read; what goes wrong with the connection in our own terms."""
    with trio.move_on_after(limit_s) as scope:
        try:
            yield
        except (OSError, trio.ClosedResourceError) as error:
            hint = "" if role is Role.SOURCE else "; it may be a source without TLS, or one that takes no more callers"
            raise TransportLost(f"connection lost in the TLS handshake with the {role.peer}: {error}{hint}") from error
    if scope.cancelled_caught:
        raise DeadlineExpired(f"the {role.peer} was silent or too slow in the TLS handshake: its time is up")


async def leave(transport: Transport, deadlines: Deadlines) -> None:
    """Close, after what was said last has been heard or had its time to be."""
    with trio.move_on_after(deadlines.farewell_s, shield=True):
        with suppress(OSError, trio.ClosedResourceError):  # nothing is left to be heard
            await transport.leave()
    transport.close()
