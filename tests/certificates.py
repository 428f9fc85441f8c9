"""Authorities, certificates good and bad, and both ends' TLS made of them, in files as the daemons read them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import attrs
import pytest

from migrate.daemon.access import Access
from migrate.daemon.certificates import Authority, Certificate
from migrate.daemon.tls import Tls
from migrate.protocol.messages import Role

YESTERDAY: Final = datetime.now(UTC) - timedelta(days=1)


@attrs.frozen
class Holder:
    """The files of somebody who has a certificate, and whom that somebody trusts."""

    certificate: Path
    key: Path
    authority: Path

    def tls(self, *peers: str) -> Tls:
        return Tls.load(self.certificate, self.key, self.authority, peers=peers)

    def arguments(self, *peers: str) -> list[str]:
        """Of a command."""
        files = ["--tls-cert", str(self.certificate), "--tls-key", str(self.key), "--tls-ca", str(self.authority)]
        return [*files, *(text for peer in peers for text in ("--peer", peer))]


@attrs.frozen
class Holders:
    """`source` and `target` are as they should be; the others have the right authority's certificate, but for one."""

    source: Holder
    target: Holder
    elsewhere: Holder
    expired: Holder
    stranger: Holder
    everybody: Holder

    @classmethod
    def below(cls, directory: Path) -> "Holders":
        now = datetime.now(UTC)
        authority = Authority("the right one", now - timedelta(days=9), now + timedelta(days=9))
        other = Authority("the wrong one", now - timedelta(days=9), now + timedelta(days=9))
        trusted = directory / "ca.pem"
        trusted.write_bytes(authority.pem)

        def holder(file: str, certificate: Certificate) -> Holder:
            paths = directory / f"{file}.pem", directory / f"{file}.key"
            for path, data in zip(paths, (certificate.certificate, certificate.key), strict=True):
                path.write_bytes(data)
            return Holder(*paths, trusted)

        return cls(
            source=holder("source", authority.issue("source")),
            target=holder("target", authority.issue("target")),
            elsewhere=holder("elsewhere", authority.issue("elsewhere")),
            expired=holder("expired", authority.issue("target", valid_until=YESTERDAY)),
            stranger=holder("stranger", other.issue("target")),
            everybody=holder("everybody", authority.issue("*.example")),
        )

    def access(self, role: Role) -> Access:
        """What the right source and the right target have."""
        mine = self.source if role is Role.SOURCE else self.target
        return Access(tls=mine.tls(str(role.peer)))


@pytest.fixture(scope="session")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    return Holders.below(tmp_path_factory.mktemp("certificates"))
