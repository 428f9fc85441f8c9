"""Documents and their parts as plain data, for the tests that vary them."""

from typing import Any

import pytest

from migrate.specs import VERSIONS, SpecVersion
from migrate.specs.reading import ParseError, parse_json

V6, V3, V2, V1 = VERSIONS
each_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"v{version.number}")
tolerant_versions = pytest.mark.parametrize("version", [V6, V3, V2], ids=lambda version: f"v{version.number}")

PATH = {"bus": 0, "device": 4, "function": 0}


def board(**changes: Any) -> dict[str, Any]:
    plain = {"cpus": 1, "memory_mb": 512, "chipset": {"type": "i440_fx", "value": {"enable_pcie": False}}}
    return {**plain, **changes}


def document(components: Any = None, **changes: Any) -> dict[str, Any]:
    return {"board": board(), "components": {} if components is None else components, **changes}


def refused(version: SpecVersion, plain: Any) -> ParseError:
    """The refusal of a document by its parser."""
    with pytest.raises(ParseError) as caught:
        version.read(plain)
    return caught.value


def refused_text(version: SpecVersion, text: str | bytes) -> ParseError:
    with pytest.raises(ParseError) as caught:
        version.read(parse_json(text))
    return caught.value


CANONICAL = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
SPELLINGS = [
    CANONICAL,
    CANONICAL.upper(),
    "0CEDAE45-3d6e-4d90-b2cb-56f1a1a42a89",
    CANONICAL.replace("-", ""),
    CANONICAL.replace("-", "").upper(),
    f"{{{CANONICAL}}}",
    f"urn:uuid:{CANONICAL}",
    f"urn:uuid:{CANONICAL.upper()}",
]
NEAR_MISSES = [
    CANONICAL[:-1],
    CANONICAL + "0",
    CANONICAL.replace("0", "g", 1),
    f" {CANONICAL}",
    f"{CANONICAL} ",
    f"{CANONICAL}\n",
    f"{{{CANONICAL}",
    f"{CANONICAL}}}",
    f"{{{CANONICAL.replace('-', '')}}}",
    f"({CANONICAL})",
    f"URN:UUID:{CANONICAL}",
    f"Urn:uuid:{CANONICAL}",
    f"uuid:{CANONICAL}",
    f"urn:{CANONICAL}",
    f"urn:uuid:{CANONICAL.replace('-', '')}",
    f"urn:uuid:{{{CANONICAL}}}",
    CANONICAL.replace("-", "_"),
    CANONICAL.replace("-", "", 1),
    "0cedae453d6e-4d90-b2cb-56f1-a1a42a89",
    CANONICAL.replace("0", "٠", 1),
    CANONICAL.replace("0", "０", 1),
    f"{CANONICAL}:device",
    "",
]


def component(tag: str, body: Any) -> dict[str, Any]:
    """A document with one component, under the key `x`."""
    return document({"x": {"type": tag, "component": body}})
