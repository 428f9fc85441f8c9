"""What we write is valid under the OpenAPI documents that Propolis publishes, in every version that we can write.

The documents are MPL-2.0 and stay outside this repository; tests that need them skip where they are absent.  They are
normalized first, as their own notes demand: a plain JSON Schema validator would reject nearly every valid spec.
"""

import copy
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from migrate.specs import BY_NUMBER
from migrate.specs.offer import Variant, offer
from tests.corpus import INVALID, VALID, spec_named, text_of, version_of

DEFAULT_PLACE = Path(__file__).parents[2] / "shared" / "domain" / "fixtures" / "openapi"
PLACE = Path(os.environ.get("PROPOLIS_OPENAPI", DEFAULT_PLACE))
API_VERSIONS = (1, 2, 3, 4, 5, 6)
#: API versions that carry each spec version.
CARRIERS = {1: (1,), 2: (2,), 3: (3, 4, 5), 6: (6,)}

pytestmark = pytest.mark.skipif(
    any(not list(PLACE.glob(f"propolis-server-{number}.0.0-*.json")) for number in API_VERSIONS),
    reason=f"no Propolis OpenAPI documents in {PLACE}: take them from github.com/oxidecomputer/propolis, directory "
    "openapi/propolis-server, and name their directory in PROPOLIS_OPENAPI",
)

UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
BITS = {"uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64, "uint": 64}


def format_checker() -> jsonschema.FormatChecker:
    checker = jsonschema.FormatChecker(formats=())

    def fits(bits: int) -> Any:
        return lambda value: not isinstance(value, int) or 0 <= value < 2**bits

    for name, bits in BITS.items():
        checker.checks(name)(fits(bits))
    checker.checks("uuid")(lambda value: not isinstance(value, str) or bool(UUID_TEXT.fullmatch(value)))
    return checker


def published(api_version: int) -> dict[str, Any]:
    (path,) = PLACE.glob(f"propolis-server-{api_version}.0.0-*.json")
    schemas: dict[str, Any] = json.loads(path.read_text())["components"]["schemas"]
    return schemas


def normalized(schema: Any) -> Any:
    """OpenAPI 3.0 as plain JSON Schema: `nullable` spelled out and references pointing into `$defs`."""
    if isinstance(schema, list):
        return [normalized(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: normalized(value) for name, value in schema.items() if name != "nullable"}
    if "$ref" in plain:
        plain["$ref"] = plain["$ref"].replace("#/components/schemas/", "#/$defs/")
    if schema.get("nullable") is not True:
        return plain
    if "type" in plain:
        return {**plain, "type": [plain["type"], "null"]}
    return {"anyOf": [{"type": "null"}, plain]}


@cache
def validator(api_version: int) -> jsonschema.Draft202012Validator:
    """A validator of the specs of one API version."""
    definitions = {name: normalized(schema) for name, schema in published(api_version).items()}
    key = definitions["SpecKey"]
    key["anyOf"] = key.pop("oneOf")  # a key that looks like a UUID matches both branches
    root = "InstanceSpecV0" if api_version == 1 else "InstanceSpec"
    schema = {"$ref": f"#/$defs/{root}", "$defs": definitions}
    return jsonschema.Draft202012Validator(schema, format_checker=format_checker())


def complaints(api_version: int, document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(api_version).iter_errors(document)]


@pytest.mark.parametrize("name", [entry["name"] for entry in VALID])
def test_what_we_write_is_valid_in_every_version_that_carries_it(name: str) -> None:
    spec = spec_named(name)
    written = [entry.version for entry in offer(spec) if isinstance(entry, Variant)]
    assert 6 in written
    for number in written:
        document = json.loads(json.dumps(BY_NUMBER[number].encode(spec)))
        for api_version in CARRIERS[number]:
            assert complaints(api_version, document) == []


@pytest.mark.parametrize("entry", VALID, ids=lambda entry: entry["name"])
def test_each_valid_fixture_is_valid_as_it_stands(entry: dict[str, Any]) -> None:
    assert complaints(entry["api_version"], json.loads(text_of(entry))) == []


#: Invalid fixtures that a schema can catch: by shape, or (i21) by an integer format.
CAUGHT_BY_SCHEMA = {"i16", "i17", "i18", "i19", "i20", "i21", "i22"}


@pytest.mark.parametrize("entry", INVALID, ids=lambda entry: entry["name"])
def test_the_schemas_reject_what_they_can_and_only_that(entry: dict[str, Any]) -> None:
    rejected = bool(complaints(entry["api_version"], json.loads(text_of(entry))))
    assert rejected == (entry["name"][:3] in CAUGHT_BY_SCHEMA)


def test_without_normalization_the_published_schemas_reject_a_valid_spec() -> None:
    definitions = json.loads(json.dumps(published(6)).replace("#/components/schemas/", "#/$defs/"))
    raw = jsonschema.Draft202012Validator({"$ref": "#/$defs/InstanceSpec", "$defs": definitions})
    spec = spec_named("v6-all-defaults")
    assert not raw.is_valid(BY_NUMBER[6].encode(spec))


NIC = "2f6f4f9a-6f0b-4a3e-9a6d-0d3b8a8f2c55:device"
MUTATIONS = [
    ("a UUID that is none", ("components", NIC, "component", "interface_id"), "not-a-uuid"),
    ("a processor too many", ("board", "cpus"), 256),
    ("memory as text", ("board", "memory_mb"), "1024"),
    ("a field that nobody knows", ("board", "sockets"), 1),
    ("a tag that nobody knows", ("components", "com1", "type"), "serial_port_v2"),
    ("a null where none may be", ("board", "chipset"), None),
]


@pytest.mark.parametrize(("path", "value"), [case[1:] for case in MUTATIONS], ids=[case[0] for case in MUTATIONS])
def test_the_check_can_fail(path: tuple[str, ...], value: object) -> None:
    entry = next(entry for entry in VALID if entry["name"] == "v6-kitchen-sink")
    document = copy.deepcopy(version_of(entry).encode(spec_named(entry["name"])))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert complaints(6, document)
