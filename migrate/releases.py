"""Releases: named sets of what one build of a VMM knows.

The built-in ones are data (`releases.toml`); `--releases FILE.toml` adds to them or replaces them by name.  A release
can only know what this program has code for.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import attrs

from migrate.plain import Misfit, make_converter, quote, structure
from migrate.specs import BY_NUMBER, VERSIONS, SpecVersion
from sim_vmm.birth import Birth, Interface
from sim_vmm.payloads import PAYLOADS, Schema

NEWEST: Final = "r6"

SHOWN_FROM: Final[Mapping[Interface, tuple[str, int]]] = {
    Interface.MODERN_VIRTIO: ("pci-virtio", 2),
    Interface.MULTI_QUEUE: ("pci-virtio", 3),
    Interface.DOORBELL_BUFFERS: ("nvme-ctrl", 2),
    Interface.MAC_FILTERS: ("pci-virtio-viona", 1),
    Interface.FW_CFG_TABLES: ("qemu-fwcfg", 2),
}
"""For what a guest can be shown, the payload that carries what it makes of it: a kind, and its version or newer."""


class ReleaseError(Exception):
    """A release that is unknown, or a releases file that cannot be used."""


@attrs.frozen(kw_only=True)
class _Table:
    specs: tuple[int, ...]
    payloads: dict[str, tuple[int, ...]]


@attrs.frozen(kw_only=True)
class Release:
    """What one build knows: spec versions newest first, and payload versions newest first by kind."""

    name: str
    specs: tuple[int, ...]
    payloads: Mapping[str, tuple[int, ...]]

    @property
    def versions(self) -> tuple[SpecVersion, ...]:
        return tuple(version for version in VERSIONS if version.number in self.specs)

    def knows(self, schema: Schema) -> bool:
        return schema.version in self.payloads.get(schema.kind, ())

    def birth(self, vm_id: UUID) -> Birth:
        """What a machine created by this build shows its guest: what the build can carry when it is used."""
        shows = {
            interface
            for interface, (kind, version) in SHOWN_FROM.items()
            if max(self.payloads.get(kind, ()), default=0) >= version
        }
        return Birth(release=self.name, vm_id=vm_id, shows=frozenset(shows))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "specs": list(self.specs),
            "payloads": {kind: list(versions) for kind, versions in self.payloads.items()},
        }


def read_releases(text: str, where: str) -> dict[str, Release]:
    """Releases by name from TOML.

    Raises:
        ReleaseError: not TOML, not of the shape of `releases.toml`, or something that this program has no code for.
    """
    try:
        tables = structure(make_converter(), tomllib.loads(text), dict[str, _Table])
    except (tomllib.TOMLDecodeError, Misfit) as error:
        raise ReleaseError(f"{where}: {error}") from None
    return {name: _release(name, table, where) for name, table in tables.items()}


def _release(name: str, table: _Table, where: str) -> Release:
    for number in table.specs:
        if number not in BY_NUMBER:
            known = ", ".join(map(str, sorted(BY_NUMBER)))
            raise ReleaseError(f"{where}: release {name!r}: there is no spec version {number}; there are {known}")
    if not table.specs:
        raise ReleaseError(f"{where}: release {name!r} knows no spec version; give it at least one")
    for kind, versions in table.payloads.items():
        for version in versions:
            if Schema(kind, version) not in PAYLOADS:
                known = ", ".join(str(schema.version) for schema in PAYLOADS if schema.kind == kind) or "none"
                raise ReleaseError(
                    f"{where}: release {name!r}: there is no payload {kind!r} version {version}; there are {known}"
                )
    return Release(
        name=name,
        specs=tuple(sorted(set(table.specs), reverse=True)),
        payloads={kind: tuple(sorted(set(found), reverse=True)) for kind, found in table.payloads.items()},
    )


@cache
def builtin_releases() -> Mapping[str, Release]:
    return read_releases(resources.files("migrate").joinpath("releases.toml").read_text(), "releases.toml")


def all_releases(extra: Path | None = None) -> dict[str, Release]:
    """The built-in releases, with those of the file `extra` added or in their place.

    Raises:
        ReleaseError: the file cannot be read or used.
    """
    releases = dict(builtin_releases())
    if extra is not None:
        try:
            text = extra.read_text()
        except OSError as error:
            raise ReleaseError(f"{extra}: cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ReleaseError(f"{extra}: byte {error.start} is not UTF-8") from None
        releases |= read_releases(text, str(extra))
    return releases


def release_named(name: str, releases: Mapping[str, Release]) -> Release:
    """Raises ReleaseError naming the known ones."""
    if name not in releases:
        raise ReleaseError(f"there is no release {quote(name)}; there are {', '.join(releases)}")
    return releases[name]
