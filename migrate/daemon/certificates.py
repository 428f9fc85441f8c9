"""Throw-away certificates for rehearsals: an authority, and one certificate for each side that it has signed.

The authority's key is never written: it signs two certificates and is forgotten, so that nobody can add a third.  Each
certificate has one name, its side's, and is good for both ends of TLS, as a target is a source in its next migration.
Keys are on the curve P-256 (RFC 8446 §9.1 has every implementation know it).
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from migrate.protocol.messages import Role

AUTHORITY_FILE: Final = "ca.pem"
CLOCK_SKEW: Final = timedelta(minutes=5)
"""Hosts' clocks differ: certificates are valid from a little before they were made."""
DAYS_MAX: Final = 3650
PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


class CertificatesThere(Exception):
    """A file of that name is there, and is not overwritten."""


@attrs.frozen(kw_only=True)
class Certificate:
    """One side's, as PEM; `name` is what the other side is to say with --peer."""

    name: str
    certificate: bytes
    key: bytes = attrs.field(repr=False)


@attrs.define
class Authority:
    """Signs certificates, for as long as this object is there."""

    name: str
    valid_from: datetime
    valid_until: datetime
    _key: ec.EllipticCurvePrivateKey = attrs.field(factory=lambda: ec.generate_private_key(ec.SECP256R1()), repr=False)
    _certificate: x509.Certificate = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        builder = _unsigned(self.name, self.name, self._key.public_key(), self.valid_from, self.valid_until)
        self._certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @classmethod
    def for_days(cls, days: float, name: str = "migration rehearsal") -> "Authority":
        now = datetime.now(UTC)
        return cls(name, now - CLOCK_SKEW, now + timedelta(days=days))

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, valid_until: datetime | None = None) -> Certificate:
        """A certificate for `name`, a DNS name; by default it is valid for as long as the authority is."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = self.valid_until if valid_until is None else valid_until
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _unsigned(name, self.name, key.public_key(), self.valid_from, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Certificate(
            name=name,
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def _unsigned(
    name: str, issuer: str, key: ec.EllipticCurvePublicKey, valid_from: datetime, valid_until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_common_name(name))
        .issuer_name(_common_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid_from)
        .not_valid_after(valid_until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@attrs.frozen(kw_only=True)
class Written:
    """Where one side's files are, and the names by which both know each other."""

    authority: Path
    certificate: Path
    key: Path
    name: str
    peer: str

    def arguments(self) -> list[str]:
        """Of the daemon that uses them."""
        paths = {"--tls-cert": self.certificate, "--tls-key": self.key, "--tls-ca": self.authority}
        return [*(text for option, path in paths.items() for text in (option, str(path))), "--peer", self.peer]


def paths_of(directory: Path) -> dict[Role, Written]:
    return {
        role: Written(
            authority=directory / AUTHORITY_FILE,
            certificate=directory / f"{role}.pem",
            key=directory / f"{role}.key",
            name=str(role),
            peer=str(role.peer),
        )
        for role in Role
    }


def write_throw_away(directory: Path, days: float) -> dict[Role, Written]:
    """Make an authority and a certificate for each side, in `directory`, which is made if it is not there.

    Raises:
        CertificatesThere: nothing was written.
        OSError: the files cannot be written; what was written is removed.
    """
    sides, authority = paths_of(directory), Authority.for_days(days)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files: dict[Path, tuple[bytes, int]] = {directory / AUTHORITY_FILE: (authority.pem, PUBLIC)}
    for side in sides.values():
        issued = authority.issue(side.name)
        files[side.certificate] = (issued.certificate, PUBLIC)
        files[side.key] = (issued.key, PRIVATE)
    for path in files:
        if path.exists() or path.is_symlink():
            raise CertificatesThere(f"{path} is there already")
    written: list[Path] = []
    try:
        for path, (data, mode) in files.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            written.append(path)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return sides
