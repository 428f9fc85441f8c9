"""Published instance-spec versions: one frozen module each, one registry, and what can be done with them.

A new version is a new module and one entry in `VERSIONS`.
"""

from functools import cache
from typing import Final

from migrate.plain import warm_up
from migrate.specs import v1, v2, v3, v6
from migrate.specs.version import SpecVersion

#: Every published version, newest first: the order of every offer.
VERSIONS: Final[tuple[SpecVersion, ...]] = (v6.VERSION, v3.VERSION, v2.VERSION, v1.VERSION)
BY_NUMBER: Final = {version.number: version for version in VERSIONS}

#: API versions that carry the spec of an earlier one unchanged (instance-specs §1).
SAME_SHAPE: Final = {4: 3, 5: 3}

__all__ = ["BY_NUMBER", "SAME_SHAPE", "VERSIONS", "SpecVersion", "warm_up_specs"]


@cache
def warm_up_specs() -> None:
    """Compile the readers and writers of all versions, so that no preamble pays for its first spec."""
    for version in VERSIONS:
        warm_up(version.converter, [version.document])
