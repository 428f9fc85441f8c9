"""Keys and PCI paths: their spellings, their order, and what happens to two spellings of one key."""

import json
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from migrate.specs import SpecVersion
from migrate.specs.reading import ignored, parse_json
from sim_vmm.spec import (
    PciPath,
    SpecKey,
    parse_uuid,
)
from sim_vmm.spec.components import (
    SerialPort,
)
from tests.documents import (
    CANONICAL,
    NEAR_MISSES,
    PATH,
    SPELLINGS,
    V1,
    board,
    document,
    each_version,
    refused,
    refused_text,
)

# Keys


@pytest.mark.parametrize("text", SPELLINGS)
def test_four_spellings_in_any_case_are_a_uuid(text: str) -> None:
    assert parse_uuid(text) == UUID(CANONICAL)
    assert SpecKey.parse(text) == SpecKey.parse(CANONICAL)
    assert str(SpecKey.parse(text)) == CANONICAL


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_a_near_miss_is_a_name_and_kept_byte_for_byte(text: str) -> None:
    assert parse_uuid(text) is None
    assert str(SpecKey.parse(text)) == text
    assert SpecKey.parse(text) != SpecKey.parse(CANONICAL)


def test_keys_order_uuids_by_bytes_before_names_by_utf8_bytes() -> None:
    in_order = [
        "00000000-0000-0000-0000-000000000000",
        "00000000-0000-0000-0000-0000000000FF",
        "{0fffffff-ffff-ffff-ffff-ffffffffffff}",
        "F0000000-0000-0000-0000-000000000000",
        "",
        "00",
        "Z",
        "a",
        "aa",
        "b",
        "é",
        "\uffff",
        "\U00010000",  # after U+FFFF by UTF-8 bytes, before it by UTF-16 units
    ]
    keys = [SpecKey.parse(text) for text in in_order]
    assert sorted(set(keys)) == keys
    assert all(first < second and second > first for first, second in pairwise(keys))


def serial(num: str) -> str:
    return json.dumps({"type": "serial_port", "component": {"num": num}})


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [
        ([("a", "com1"), ("a", "com2")], {"a": "com2"}),
        ([(CANONICAL, "com1"), (CANONICAL.upper(), "com2")], {CANONICAL: "com2"}),
        ([(CANONICAL.upper(), "com2"), (CANONICAL, "com1")], {CANONICAL: "com1"}),
        ([(SPELLINGS[0], "com1"), (SPELLINGS[1], "com2"), (SPELLINGS[5], "com3")], {CANONICAL: "com3"}),
        ([(SPELLINGS[5], "com3"), (SPELLINGS[1], "com2"), (SPELLINGS[0], "com1")], {CANONICAL: "com1"}),
        # A dict would remember the first place of a repeated text, and let the spelling between them win.
        ([(SPELLINGS[0], "com1"), (SPELLINGS[1], "com2"), (SPELLINGS[0], "com3")], {CANONICAL: "com3"}),
        ([(SPELLINGS[1], "com1"), (SPELLINGS[0], "com2"), ("x", "com4")], {CANONICAL: "com2", "x": "com4"}),
        ([("A", "com1"), ("a", "com2")], {"A": "com1", "a": "com2"}),
    ],
)
def test_of_keys_that_are_equal_the_later_in_the_text_wins(pairs: list[tuple[str, str]], kept: dict[str, str]) -> None:
    components = ", ".join(f"{json.dumps(key)}: {serial(num)}" for key, num in pairs)
    text = f'{{"board": {json.dumps(board())}, "components": {{{components}}}}}'
    plain = parse_json(text)
    spec = V1.decode(plain)
    assert {str(key): port.num.value for key, port in spec.of_kind(SerialPort)} == kept
    assert len(list(ignored(plain, frozenset({"board", "components"})))) == len(pairs) - len(kept)


def test_a_component_that_a_later_spelling_replaces_must_parse_all_the_same() -> None:
    text = f'{{"board": {json.dumps(board())}, "components": {{"a": 1, "a": {serial("com1")}}}}}'
    assert refused_text(V1, text).error == "WrongType"


# PCI paths


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0.0.0", (0, 0, 0)),
        ("255.31.7", (255, 31, 7)),
        ("00.016.0", (0, 16, 0)),
        ("+0.+4.+0", (0, 4, 0)),
        ("0000000000000000000001.2.3", (1, 2, 3)),
    ],
)
def test_a_path_in_text_is_three_decimal_bytes(text: str, path: tuple[int, int, int]) -> None:
    assert PciPath.parse(text) == PciPath(*path)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "0",
            "0.1",
            "0.1.2.3",
            "0.1.",
            ".1.2",
            "0:1.2",
            "0/1/2",
            "0x0.1.2",
            "a.1.2",
            " 0.1.2",
            "0.1.2 ",
            "0. 1.2",
        ),
        *("0.1.2\n", "-1.0.0", "++1.0.0", "1_0.0.0", "١.0.0", "256.0.0", "0.32.0", "0.0.8", "9" * 5000 + ".0.0"),
    ],
)
def test_other_texts_are_no_path(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  any of them, from int() too
        PciPath.parse(text)


def test_paths_are_written_without_decoration_and_ordered_by_bus_device_function() -> None:
    assert str(PciPath.parse("00.+16.07")) == "0.16.7"
    paths = [PciPath(0, 0, 1), PciPath(0, 1, 0), PciPath(0, 2, 0), PciPath(0, 10, 0), PciPath(1, 0, 0)]
    assert sorted(set(paths)) == paths


def bridge_at(path: Any) -> dict[str, Any]:
    return document({"x": {"type": "pci_pci_bridge", "component": {"downstream_bus": 1, "pci_path": path}}})


@each_version
def test_a_path_in_json_tolerates_unknown_keys(version: SpecVersion) -> None:
    plain = bridge_at({**PATH, "segment": [1, {"a": None}]})
    assert version.decode(plain) == version.decode(bridge_at(PATH))
    known = frozenset({"board", "components"})
    assert list(ignored(plain, known)) == ["component 'x', pci_path: field 'segment' is unknown and was ignored"]


@pytest.mark.parametrize(
    ("path", "error", "field"),
    [
        ({"bus": 0, "device": 4}, "MissingField", "pci_path.function"),
        ({"bus": 256, "device": 4, "function": 0}, "OutOfRange", "pci_path.bus"),
        ({"bus": -1, "device": 4, "function": 0}, "OutOfRange", "pci_path.bus"),
        ({"bus": 0, "device": 32, "function": 0}, "InvalidPciPath", "pci_path"),
        ({"bus": 0, "device": 0, "function": 8}, "InvalidPciPath", "pci_path"),
        ({"bus": 0, "device": 4.0, "function": 0}, "WrongType", "pci_path.device"),
        ({"bus": 0, "device": "4", "function": 0}, "WrongType", "pci_path.device"),
        ({"bus": 0, "device": True, "function": 0}, "WrongType", "pci_path.device"),
        ("0.4.0", "WrongType", "pci_path"),
        ([0, 4, 0], "WrongType", "pci_path"),
        (None, "WrongType", "pci_path"),
    ],
)
def test_a_path_in_json_is_an_object_of_three_numbers_in_range(path: Any, error: str, field: str) -> None:
    refusal = refused(V1, bridge_at(path))
    assert (refusal.error, refusal.component, refusal.field) == (error, "x", field)


def test_a_repeated_field_of_a_path_is_refused_even_behind_a_repeated_unknown_one() -> None:
    path = '{"s": 1, "s": 2, "bus": 0, "bus": 1, "device": 4, "function": 0}'
    text = json.dumps(bridge_at("PATH")).replace('"PATH"', path)
    assert refused_text(V1, text).error == "DuplicateField"
    assert V1.read(parse_json(text.replace('"bus": 0, ', "")))
