"""Who we are and whom we trust on the migration port: TLS 1.3, with certificates of both sides.

Both sides show a certificate that one authority has signed, and each knows beforehand what the other is called: the
name must stand in the certificate, letter by letter, as a DNS name or an IP address.  Wildcards count for nothing, nor
does the common name, and the host's store of authorities is not looked at.  A node is a source in one migration and the
target in the next, so a certificate has to be good for both uses (extendedKeyUsage serverAuth and clientAuth, or none).

No session is ever resumed, so a certificate is looked at on every connection.
"""

import ssl
from collections.abc import Collection
from pathlib import Path
from typing import Final, Self

import attrs

from migrate.daemon.address import BadInput
from migrate.errors import Distrusted, MigrationError, NotOurProtocol, RemoteProtocolError
from migrate.plain import quote
from migrate.protocol import frames
from migrate.protocol.languages import TLS_HANDSHAKE, language_of
from migrate.protocol.messages import Role
from migrate.reasons import Reason

UNEXPECTED_MESSAGE: Final = bytes.fromhex("15 0303 0002 02 0a")
"""A fatal alert in the clear (RFC 8446 §6), for whoever comes to a TLS port with something else."""

#: Alerts by which a peer says that it does not take our certificate, as OpenSSL names them, and in words.
REFUSALS: Final[dict[str, str]] = {
    "UNKNOWN_CA": "signed by no authority of the peer's",
    "CERTIFICATE_EXPIRED": "expired",
    "CERTIFICATE_REVOKED": "revoked",
    "CERTIFICATE_UNKNOWN": "not acceptable",
    "BAD_CERTIFICATE": "bad",
    "UNSUPPORTED_CERTIFICATE": "not meant for this use",
    "CERTIFICATE_REQUIRED": "missing",
    "ACCESS_DENIED": "not admitted",
}
ACCEPTED: Final = "one that is valid now, and that an authority in --tls-ca has signed"


@attrs.frozen(kw_only=True)
class Tls:
    """`peers` are the names that the other side may have."""

    peers: frozenset[str]
    _contexts: dict[Role, ssl.SSLContext] = attrs.field(repr=False)

    @classmethod
    def load(cls, certificate: Path, key: Path, authorities: Path, *, peers: Collection[str]) -> Self:
        """From PEM files: our certificate and those between it and the authority, its key, and whom we trust.

        Raises:
            BadInput: naming the file, and nothing of what is in it.
        """
        for path in (certificate, key, authorities):
            try:
                path.read_bytes()
            except OSError as error:
                raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
        contexts = {role: _context(role) for role in Role}
        for context in contexts.values():
            _load_authorities(context, authorities)
            _load_own(context, certificate, key)
        return cls(peers=frozenset(map(_normal, peers)), contexts=contexts)

    def context(self, role: Role) -> ssl.SSLContext:
        return self._contexts[role]

    def check_name(self, names: Collection[str], role: Role) -> None:
        """Raises Distrusted, on behalf of `role`, unless one of the peer's `names` is one that it may have."""
        if self.peers.isdisjoint(map(_normal, names)):
            shown = ", ".join(quote(name) for name in names) or "none"
            wanted = " or ".join(map(repr, sorted(self.peers)))
            raise Distrusted([Reason(component="certificate", field="name", have=shown, need=wanted)], role)


def _context(role: Role) -> ssl.SSLContext:
    """A source is TLS's server.  `ssl.SSLContext` trusts nobody and reads nothing from the environment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if role is Role.SOURCE else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # whoever is at an address: `check_name` asks for the name that was told
    context.verify_mode = ssl.CERT_REQUIRED
    if role is Role.SOURCE:
        context.num_tickets = 0
    return context


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, ValueError):
        raise BadInput(f"{path}: there is no certificate of an authority in it (--tls-ca takes PEM)") from None


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def refuse() -> str:  # OpenSSL would ask at the terminal
        raise BadInput(f"{key}: the key is encrypted; --tls-key takes one without a passphrase")

    try:
        context.load_cert_chain(certificate, key, password=refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadInput(f"{key}: the key is not that of the certificate in {certificate}") from None
        raise BadInput(f"{certificate} and {key}: expected a certificate and its private key, both in PEM") from None


def _normal(name: str) -> str:
    """Names of hosts know no case."""
    return name.casefold()


def explained(error: ssl.SSLError, role: Role, heard_first: bytes) -> MigrationError:
    """What OpenSSL found, in our terms; `heard_first` is how the peer began, and `role` is ours."""
    if heard_first and not TLS_HANDSHAKE.startswith(heard_first[:2]) and language_of(heard_first) != "TLS":
        return NotOurProtocol(f"the peer does not speak TLS: it sent {quote(heard_first)}{_named(heard_first)}")
    reason = error.reason or "nothing is known of it"
    if isinstance(error, ssl.SSLCertVerificationError):
        have = f"not accepted ({error.verify_message})"
        found = Reason(component="certificate", field="the peer's", have=have, need=ACCEPTED)
        return Distrusted([found], role)
    _, is_alert, alert = reason.partition("ALERT_")
    if is_alert and alert in REFUSALS:
        have = f"{REFUSALS[alert]}, says the peer"
        found = Reason(component="certificate", field="our own", have=have, need="one that the peer accepts")
        return Distrusted([found], role.peer)
    words = reason.replace("_", " ").lower()
    return RemoteProtocolError(f"the peer ended TLS: {words}" if is_alert else f"the peer's TLS is wrong: {words}")


def _named(heard: bytes) -> str:
    if frames.PREFACE.startswith(heard[: len(frames.PREFACE)]):
        return ", which is this protocol without TLS; only one of both sides was started with TLS"
    language = language_of(heard)
    return "" if language is None else f", which is {language}"
