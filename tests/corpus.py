"""The specs, replacements and expectations under `tests/fixtures`, written by hand from the published rules."""

import json
from pathlib import Path
from typing import Any, Final

from migrate.specs import BY_NUMBER, SAME_SHAPE, SpecVersion
from migrate.specs.reading import parse_json
from sim_vmm.spec import Spec

FIXTURES: Final = Path(__file__).parent / "fixtures"
INDEX: Final[dict[str, Any]] = json.loads((FIXTURES / "index.json").read_text())
VALID: Final[list[dict[str, Any]]] = INDEX["valid_specs"]
INVALID: Final[list[dict[str, Any]]] = INDEX["invalid_specs"]
CONVERSIONS: Final[list[dict[str, Any]]] = INDEX["conversions"]
REPLACEMENTS: Final[list[dict[str, Any]]] = json.loads((FIXTURES / "replacements.json").read_text())
VALID_NAMES: Final = [entry["name"] for entry in VALID]

_BY_FILE: Final = {entry["file"]: entry for entry in VALID + INVALID}
_BY_NAME: Final = {entry["name"]: entry for entry in VALID + INVALID}


def version_of(entry: dict[str, Any]) -> SpecVersion:
    """The spec version that an entry's API version carries."""
    number = entry["api_version"]
    return BY_NUMBER[SAME_SHAPE.get(number, number)]


def text_of(entry: dict[str, Any]) -> str:
    path: Path = FIXTURES / entry["file"]
    return path.read_text()


def entry_of(file: str) -> dict[str, Any]:
    return _BY_FILE[file]


def spec_named(name: str) -> Spec:
    """The machine of a valid fixture."""
    entry = _BY_NAME[name]
    return version_of(entry).decode(parse_json(text_of(entry)))
