"""Published instance-spec versions: one frozen module each, one registry, and what can be done with them.

A new version is a new module and one entry in `VERSIONS`.
"""

from typing import Final

from migrate.specs import v1, v2, v3, v6
from migrate.specs.version import SpecVersion

#: Every published version, newest first: the order of every offer.
VERSIONS: Final[tuple[SpecVersion, ...]] = (v6.VERSION, v3.VERSION, v2.VERSION, v1.VERSION)
BY_NUMBER: Final = {version.number: version for version in VERSIONS}

#: API versions that carry the spec of an earlier one unchanged (instance-specs §1).
SAME_SHAPE: Final = {4: 3, 5: 3}

__all__ = ["BY_NUMBER", "SAME_SHAPE", "VERSIONS", "SpecVersion"]
