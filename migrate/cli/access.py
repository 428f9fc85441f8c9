"""The options that say who may connect, the same for every command that does, and `migrate certs`."""

import shlex
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import attrs
from cyclopts import Parameter

from migrate.cli.output import print_json, print_line
from migrate.cli.specs import Json
from migrate.daemon.access import Access
from migrate.daemon.address import Address, BadInput
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.tls import Tls
from migrate.protocol.deadlines import Deadlines
from migrate.protocol.messages import Role

DEFAULT_DAYS: Final = 30
PEER_HELP: Final = "The name in the peer's certificate; may be repeated."


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class AccessOptions:
    """All four of TLS, or none; `peer` may be several names."""

    tls_cert: Annotated[Path | None, Parameter(help="Our certificate, as PEM; connections are TLS 1.3 then.")] = None
    tls_key: Annotated[Path | None, Parameter(help="Its private key, as PEM.")] = None
    tls_ca: Annotated[Path | None, Parameter(help="The authority that signed the peer's certificate, as PEM.")] = None
    peer: Annotated[list[str], Parameter(negative="", show_default=False, help=PEER_HELP)] = attrs.field(factory=list)
    insecure: Annotated[bool, Parameter(negative="", help="Allow an address off loopback in the clear.")] = False
    limits: Annotated[str | None, Parameter(help="Other deadlines: NAME_s=SECONDS,…", show=False)] = None

    def access(self) -> Access:
        """Raises BadInput: some of TLS's options are missing, or what they name is not what it should be."""
        wanted = {"--tls-cert": self.tls_cert, "--tls-key": self.tls_key, "--tls-ca": self.tls_ca, "--peer": self.peer}
        missing = [option for option, value in wanted.items() if not value]
        if len(missing) == len(wanted):
            return Access(insecure=self.insecure)
        if missing:
            given = ", ".join(option for option in wanted if option not in missing)
            raise BadInput(f"{', '.join(missing)} missing beside {given}: TLS needs all four")
        files = (self.tls_cert or Path(), self.tls_key or Path(), self.tls_ca or Path())  # none is missing
        tls = Tls.load(*files, peers=self.peer)
        return Access(tls=tls, insecure=self.insecure)

    def deadlines(self) -> Deadlines:
        """Raises BadInput."""
        if self.limits is None:
            return Deadlines()
        try:
            pairs = (part.partition("=") for part in self.limits.split(","))
            return Deadlines(**{name.strip(): float(value) for name, _, value in pairs})  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise BadInput(
                f"--limits {self.limits!r}: expected names of deadlines and seconds: opening_s=1,…"
            ) from None


MigrationId = Annotated[
    UUID | None,
    Parameter(name="--migration-id", help="A UUID that both sides are given, for one migration: no other is let in."),
]
ANYBODY_ON_LOOPBACK: Final = AccessOptions()


def address_of(text: str | None, access: Access) -> Address | None:
    """HOST:PORT, at which `access` allows us to listen, or to connect.  Raises BadInput."""
    if text is None:
        return None
    address = Address.parse(text)
    access.check(address)
    return address


def throw_away(directory: Path) -> dict[str, list[str]]:
    """Certificates for one run; returns the arguments of each side's daemon."""
    from migrate.daemon.certificates import write_throw_away  # what it imports costs every other command time

    return {str(role): side.arguments() for role, side in write_throw_away(directory, days=1).items()}


def certs(directory: Path, /, *, days: float = DEFAULT_DAYS, json: Json = False) -> int:
    """Make a throw-away authority and a certificate for each side, to rehearse with TLS; nothing is overwritten.

    The authority's own key is kept nowhere: nobody can sign a third certificate.

    Parameters
    ----------
    directory
        Where the files go.
    days
        How long the certificates are valid.
    """
    from migrate.daemon.certificates import DAYS_MAX, CertificatesThere, write_throw_away  # see above

    if not 0 < days <= DAYS_MAX:
        raise BadInput(f"--days {days:g}: expected more than 0, and {DAYS_MAX} at most")
    try:
        sides = write_throw_away(directory, days)
    except CertificatesThere as error:
        raise BadInput(f"{error}; give a directory without certificates, or remove them") from error
    except OSError as error:
        raise BadInput(f"{error.filename or directory}: cannot be written: {error.strerror or error}") from error
    listen = "HOST:4600"
    commands = {
        Role.SOURCE: ["migrate", "source", "SPEC", "--listen", listen, *sides[Role.SOURCE].arguments()],
        Role.TARGET: ["migrate", "target", listen, *sides[Role.TARGET].arguments()],
    }
    source = sides[Role.SOURCE]
    if json:
        print_json(
            {
                "authority": str(source.authority),
                "days": days,
                "sides": {
                    str(role): {
                        "certificate": str(side.certificate),
                        "key": str(side.key),
                        "name": side.name,
                        "arguments": side.arguments(),
                    }
                    for role, side in sides.items()
                },
            }
        )
        return ExitCode.DONE
    print_line(f"made, and valid for {days:g} days:", style="bold")
    print_line(f"  {source.authority}  the authority; its key is kept nowhere", under=4)
    for role, side in sides.items():
        print_line(f"  {side.certificate}, {side.key}  of the {role}, whose name is {side.name!r}", under=4)
    print_line()
    print_line("to use them:", style="bold")
    for command in commands.values():
        print(f"  {shlex.join(command)}")  # in one line, to be copied
    return ExitCode.DONE
