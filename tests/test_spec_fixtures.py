"""Every fixture gets the verdict that its index states: valid, or refused by the stated layer for the stated reason."""

import json
from typing import Any

import pytest

from migrate.specs import BY_NUMBER
from migrate.specs.offer import Variant, Withheld, offer
from migrate.specs.reading import ParseError, parse_json
from migrate.specs.replacements import InstanceSpecsIncompatible, read_replacements, replace
from migrate.specs.version import SpecVersion
from sim_vmm.spec import Spec, SpecError, SpecKey
from sim_vmm.spec.components import (
    Component,
    CrucibleStorageBackend,
    Feature,
    MigrationFailureInjector,
    VirtioNetworkBackend,
)
from tests.corpus import (
    CONVERSIONS,
    FIXTURES,
    INVALID,
    REPLACEMENTS,
    VALID,
    entry_of,
    spec_named,
    text_of,
    version_of,
)

#: What the index calls the obstacle of a failing conversion, as our reasons name it: component and field.
OBSTACLES = {
    ("v2-smbios-bare", "SMBIOS type 1 input present"): ("smbios", "smbios"),
    ("v3-vsock", "virtio socket present"): ("vsock", "type"),
    ("v5-vsock-smbios", "virtio socket present"): ("vsock", "type"),
    ("v6-kitchen-sink", "virtio socket present"): ("vsock", "type"),
    ("v6-local-no-write-cache", "NVMe disk without write cache"): (
        "b1f2f1e0-5d0c-4f8e-8d8b-3c6f1fd0a9d2:device",
        "has_write_cache",
    ),
}


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["name"])


def test_no_fixture_is_lost() -> None:
    assert [len(cases) for cases in (VALID, INVALID, CONVERSIONS, REPLACEMENTS)] == [13, 23, 39, 8]
    listed = sorted(case["file"] for case in VALID + INVALID)
    assert listed == sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("specs/*/*.json"))


@named(VALID)
def test_a_valid_spec_builds_a_machine_and_comes_back_equal(case: dict[str, Any]) -> None:
    version = version_of(case)
    spec = version.decode(parse_json(text_of(case)))
    assert version.decode(version.encode(spec)) == spec


@named(VALID)
def test_a_valid_spec_can_be_offered_back_to_its_oldest_lossless_version(case: dict[str, Any]) -> None:
    entries = offer(spec_named(case["name"]))
    oldest = case["oldest_lossless_version"]
    assert {entry.version for entry in entries if isinstance(entry, Variant)} == {n for n in BY_NUMBER if n >= oldest}


def refusal_of(case: dict[str, Any]) -> ParseError | SpecError:
    try:
        version_of(case).decode(parse_json(text_of(case)))
    except (ParseError, SpecError) as refusal:
        return refusal
    raise AssertionError(f"{case['name']} was accepted")


@named(INVALID)
def test_an_invalid_spec_is_refused_by_the_stated_layer_for_the_stated_reason(case: dict[str, Any]) -> None:
    refusal = refusal_of(case)
    assert (refusal.layer, refusal.error) == (case["layer"], case["error"])
    facts = {"component": refusal.component, **refusal.detail}
    if isinstance(refusal, ParseError):
        facts["field"] = refusal.field
    assert {name: facts[name] for name in case["error_detail"]} == case["error_detail"]


@pytest.mark.parametrize("case", CONVERSIONS, ids=lambda case: f"{case['file'].split('/')[-1]} to v{case['to']}")
def test_a_conversion_is_lossless_or_names_what_is_in_the_way(case: dict[str, Any]) -> None:
    name = entry_of(case["file"])["name"]
    spec = spec_named(name)
    target = BY_NUMBER[case["to"]]
    (entry,) = offer(spec, [target])
    if case["result"] == "lossless":
        assert isinstance(entry, Variant)
        assert target.decode(target.encode(spec)) == spec
    else:
        assert isinstance(entry, Withheld)
        obstacle = OBSTACLES[name, case["reason"]]
        assert obstacle in [(reason.component, reason.field) for reason in entry.reasons]
        assert all(reason.have and "or newer" in reason.need for reason in entry.reasons)


# Replacements

DISK = "0cedae45-3d6e-4d90-b2cb-56f1a1a42a89"
NIC = "2f6f4f9a-6f0b-4a3e-9a6d-0d3b8a8f2c55"


def new_crucible_request(case: dict[str, Any], key: str) -> str:
    text = case["replace"][key]["spec"]["request_json"]
    assert isinstance(text, str)
    assert '"gen":2' in text, "the replacement is a newer generation of the volume"
    return text


def replaced_parts(case: dict[str, Any]) -> dict[str, Component]:
    """The components that differ after each successful case, written out as far as they are short."""
    match case["name"]:
        case "r01-crucible-and-nic":
            request = new_crucible_request(case, DISK)
            return {DISK: CrucibleStorageBackend(request, False), NIC: VirtioNetworkBackend("opte7")}
        case "r06-injector":
            return {"migration-failure": MigrationFailureInjector(0, 0)}
        case "r07-uppercase-uuid-key":
            return {DISK: CrucibleStorageBackend(new_crucible_request(case, DISK.upper()), False)}
        case "r08-none":
            return {}
        case name:
            raise AssertionError(f"no expectation for {name}")


def with_replacements(case: dict[str, Any]) -> Spec:
    entry = entry_of(case["spec"])
    version = version_of(entry)
    replacements = read_replacements(json.dumps(case["replace"]))
    return version.build(replace(version.read(parse_json(text_of(entry))), replacements, version))


@named([case for case in REPLACEMENTS if case["expect"] == "ok"])
def test_a_replacement_changes_the_named_bodies_and_nothing_else(case: dict[str, Any]) -> None:
    before = spec_named(entry_of(case["spec"])["name"])
    after = with_replacements(case)
    changed = {str(key): part for key, part in after.components.items() if part != before.components[key]}
    assert changed == replaced_parts(case)
    assert list(after.components) == list(before.components)
    assert (after.board, after.smbios) == (before.board, before.smbios)


@named([case for case in REPLACEMENTS if case["expect"] == "error"])
def test_a_replacement_that_does_not_fit_is_refused_and_named(case: dict[str, Any]) -> None:
    with pytest.raises(InstanceSpecsIncompatible) as caught:
        with_replacements(case)
    (key,) = case["replace"]
    assert type(caught.value).__name__ == case["error"]
    assert caught.value.component == key
    assert key in str(caught.value)


def test_a_failure_injector_is_not_replaced_in_a_build_without_failure_injection() -> None:
    case = next(case for case in REPLACEMENTS if case["name"] == "r06-injector")
    entry = entry_of(case["spec"])
    version = version_of(entry)
    document = version.read(parse_json(text_of(entry)))
    replacements = read_replacements(json.dumps(case["replace"]))
    with pytest.raises(InstanceSpecsIncompatible, match="failure-injection"):
        replace(document, replacements, version, features=frozenset({Feature.FALCON}))


@pytest.mark.parametrize("version", BY_NUMBER.values(), ids=lambda version: f"v{version.number}")
def test_a_replacement_applies_to_a_document_of_any_version(version: SpecVersion) -> None:
    document = version.read(version.encode(spec_named("v1-control-plane-crucible")))
    replacements = {SpecKey.parse(NIC): VirtioNetworkBackend("opte7")}
    spec = version.build(replace(document, replacements, version))
    assert spec.components[SpecKey.parse(NIC)] == VirtioNetworkBackend("opte7")


REFUSED_REPLACEMENTS = [
    ("[]", "WrongType"),
    ('{"a": 1}', "WrongType"),
    ('{"a": {"component": "VirtioNetworkBackend"}}', "MissingField"),
    ('{"a": {"spec": {}}}', "MissingField"),
    ('{"a": {"component": "VirtioNetworkBackend", "spec": {"vnic_name": "n"}, "x": 1}}', "UnknownField"),
    ('{"a": {"component": "VirtioNetworkBackend", "spec": {"vnic_name": "n", "x": 1}}}', "UnknownField"),
    ('{"a": {"component": "VirtioNetworkBackend", "spec": {"vnic_name": "n", "vnic_name": "m"}}}', "DuplicateField"),
    ('{"a": {"component": "VirtioNetworkBackend", "spec": []}}', "WrongType"),
    ('{"a": {"component": "virtio_network_backend", "spec": {"vnic_name": "n"}}}', "UnknownVariant"),
    ('{"a": {"component": "FileStorageBackend", "spec": {}}}', "UnknownVariant"),
    ('{"a": {"component": "CrucibleStorageBackend", "spec": {"request_json": 1, "readonly": false}}}', "WrongType"),
    ('{"a": {"component": "MigrationFailureInjector", "spec": {"fail_exports": -1, "fail_imports": 0}}}', "OutOfRange"),
    ('{"a": ', "NotJson"),
]


@pytest.mark.parametrize(("text", "error"), REFUSED_REPLACEMENTS)
def test_a_malformed_replacement_is_refused_with_its_place(text: str, error: str) -> None:
    with pytest.raises(ParseError) as caught:
        read_replacements(text)
    assert caught.value.error == error
    assert caught.value.component == ("a" if text.startswith('{"a": ') and error != "NotJson" else None)


def test_two_spellings_of_one_key_replace_once_and_the_later_wins() -> None:
    body = '{"component": "VirtioNetworkBackend", "spec": {"vnic_name": "%s"}}'
    text = f'{{"{NIC.upper()}": {body % "first"}, "{NIC}": {body % "second"}}}'
    assert read_replacements(text) == {SpecKey.parse(NIC): VirtioNetworkBackend("second")}
