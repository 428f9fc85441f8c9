"""The CDDL file against a validator that is not ours, message by message, and against our own decoder."""

import re
from importlib import resources
from typing import Any

import pycddl  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate import cbor
from migrate.errors import RemoteProtocolError
from migrate.protocol import frames
from migrate.protocol.messages import MEBIBYTE, MESSAGES, Hello, Message, Paused, RamPages
from tests.specimens import SPECIMENS, STRATEGIES

CDDL = resources.files("migrate.protocol").joinpath("messages.cddl").read_text()
RULE = re.compile(r"^([a-z][a-z0-9-]*) = ", re.MULTILINE)
MESSAGE_RULE = re.compile(r"^([a-z-]+) = \{  ; (\d+), (\d+) ([KM])iB", re.MULTILINE)

KINDS = list(MESSAGES.values())
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_field = pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in KINDS for field in cbor.decode(frames.encode_frame(SPECIMENS[kind])[16:])],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)


def rule_name(kind: type) -> str:
    """`RamBatch` is described by the rule `ram-batch`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def schema_of(kind: type) -> pycddl.Schema:
    """The first rule of a schema is its root."""
    return pycddl.Schema(f"root = {rule_name(kind)}\n{CDDL}")


SCHEMAS = {kind: schema_of(kind) for kind in KINDS}


def plain_of(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = cbor.decode(frames.encode_frame(message)[frames.HEADER.size :])
    return plain


def assert_refused_by_both(kind: type[Message], plain: Any) -> None:
    body = cbor.encode(plain)
    with pytest.raises(pycddl.ValidationError):
        SCHEMAS[kind].validate_cbor(body)
    assert_refused_by_us(kind, plain)


def assert_refused_by_us(kind: type[Message], plain: Any) -> None:
    frame = frames.encode_raw(kind.TYPE, cbor.encode(plain))
    with pytest.raises(RemoteProtocolError, match=f"frame {kind.__name__}"):
        frames.decode_body(frames.decode_header(frame[:16]), frame[16:])


@each_kind
def test_every_specimen_is_as_described(kind: type[Message]) -> None:
    SCHEMAS[kind].validate_cbor(cbor.encode(plain_of(SPECIMENS[kind])))


@given(data=st.data())
@each_kind
def test_every_message_that_we_can_build_is_as_described(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(STRATEGIES[kind])
    SCHEMAS[kind].validate_cbor(frames.encode_frame(message)[frames.HEADER.size :])


@each_field
def test_a_message_without_one_of_its_fields_is_refused(kind: type[Message], field: str) -> None:
    plain = plain_of(SPECIMENS[kind])
    del plain[field]
    assert_refused_by_both(kind, plain)


@each_field
def test_a_field_of_another_type_is_refused(kind: type[Message], field: str) -> None:
    plain = plain_of(SPECIMENS[kind])
    for stranger in (None, {"no": "field is a map"}, *(() if isinstance(plain[field], str) else ("text",))):
        assert_refused_by_both(kind, {**plain, field: stranger})
    if isinstance(plain[field], str):
        assert_refused_by_us(kind, {**plain, field: 1})  # pycddl 0.6 takes a small integer for a short text


@each_kind
def test_a_message_with_a_field_too_many_is_refused(kind: type[Message]) -> None:
    assert_refused_by_both(kind, {**plain_of(SPECIMENS[kind]), "colour": "blue"})


@each_kind
@pytest.mark.parametrize("plain", [None, [], [{}], "text", 1, True], ids=repr)
def test_a_body_that_is_no_map_is_refused(kind: type[Message], plain: Any) -> None:
    assert_refused_by_both(kind, plain)


FOUR_BYTES = "\N{DESKTOP COMPUTER}"
"""CDDL counts bytes where we count characters: with these the two meet."""

LIMITS: list[tuple[str, str, Any, Any]] = [
    ("Hello", "protocol_versions", [1] * 32, [1] * 33),
    ("Hello", "protocol_versions", [0xFFFF], [0x1_0000]),
    ("Hello", "protocol_versions", [0], [-1]),
    ("Hello", "node", FOUR_BYTES * 128, FOUR_BYTES * 129),
    ("Welcome", "protocol_version", 0xFFFF, 0x1_0000),
    ("Preamble", "spec_digest", bytes(32), bytes(31)),
    ("Preamble", "spec_digest", bytes(32), bytes(33)),
    ("Preamble", "variants", [{"version": 1, "document": b""}] * 64, [{"version": 1, "document": b""}] * 65),
    ("Preamble", "withheld", [{"version": 1, "reasons": []}] * 64, [{"version": 1, "reasons": []}] * 65),
    ("Preamble", "ram", [{"gpa": 0, "length": 0}] * 64, [{"gpa": 0, "length": 0}] * 65),
    ("Accept", "spec_version", 0xFFFF_FFFF, 0x1_0000_0000),
    ("Accept", "imports", [{"kind": "k", "versions": [0] * 64}], [{"kind": "k", "versions": [0] * 65}]),
    ("RamBatch", "extents", [{"gpa": 0, "length": 0}] * 4096, [{"gpa": 0, "length": 0}] * 4097),
    ("RamBatch", "zero", [{"gpa": 0, "length": 0}] * 4096, [{"gpa": 0, "length": 0}] * 4097),
    ("TimeOfDay", "hrtime", 2**63 - 1, 2**63),
    ("TimeOfDay", "boot_hrtime", -(2**63), -(2**63) - 1),
    ("TimeOfDay", "guest_tsc", 2**64 - 1, -1),
    ("Settle", "owned", True, 1),
    ("Failure", "message", FOUR_BYTES * 4096, FOUR_BYTES * 4097),
]


#: Lists that have a limit together too, which CDDL cannot say.
ALONE: dict[str, dict[str, Any]] = {"RamBatch": {"extents": [], "zero": []}}


@pytest.mark.parametrize(("name", "field", "last", "beyond"), LIMITS, ids=lambda value: f"{value}"[:24])
def test_a_limit_holds_in_both_at_the_same_value(name: str, field: str, last: Any, beyond: Any) -> None:
    kind = next(kind for kind in KINDS if kind.__name__ == name)
    plain = {**plain_of(SPECIMENS[kind]), **ALONE.get(name, {})}
    body = cbor.encode({**plain, field: last})
    SCHEMAS[kind].validate_cbor(body)
    frames.decode_body(frames.decode_header(frames.encode_raw(kind.TYPE, body)[:16]), body)
    assert_refused_by_both(kind, {**plain, field: beyond})


def test_text_is_limited_in_characters_whatever_their_length_in_bytes() -> None:
    plain = plain_of(SPECIMENS[Hello])
    assert_refused_by_us(Hello, {**plain, "node": "n" * 129})
    assert_refused_by_us(Hello, {**plain, "node": "ö" * 129})


def nested_maps(plain: Any) -> list[dict[str, Any]]:
    """Every map below the top of `plain`."""
    if isinstance(plain, list):
        return [found for item in plain for found in ([item] if isinstance(item, dict) else []) + nested_maps(item)]
    return [found for value in plain.values() for found in nested_maps(value)] if isinstance(plain, dict) else []


@each_kind
def test_a_part_of_a_message_is_as_strict_as_its_whole(kind: type[Message]) -> None:
    plain = plain_of(SPECIMENS[kind])
    for part in nested_maps(plain):
        part["colour"] = "blue"
        assert_refused_by_us(kind, plain)  # pycddl 0.6 overlooks keys too many in maps inside lists
        del part["colour"]
        key, value = part.popitem()
        assert_refused_by_both(kind, plain)
        part[key] = value


def test_every_message_has_a_rule_with_its_type_number_and_its_cap() -> None:
    unit = {"K": 1024, "M": MEBIBYTE}
    described = {
        name: (int(number), int(size) * unit[prefix]) for name, number, size, prefix in MESSAGE_RULE.findall(CDDL)
    }
    assert described == {rule_name(kind): (kind.TYPE, kind.BODY_MAX) for kind in KINDS}


def test_every_rule_describes_a_message_or_is_used_by_one() -> None:
    rules = set(RULE.findall(CDDL))
    used = {rule for rule in rules if re.search(rf"(?<![\w-]){rule}(?! =)(?![\w-])", re.sub(r";.*", "", CDDL))}
    assert rules == {rule_name(kind) for kind in KINDS} | used


def test_the_validator_tells_one_message_from_another() -> None:
    """One that accepted everything would let every test of what is described pass."""
    with pytest.raises(pycddl.ValidationError):
        SCHEMAS[Hello].validate_cbor(cbor.encode(plain_of(SPECIMENS[Paused])))


@pytest.mark.parametrize("field", ["pages", "zero"])
def test_more_runs_than_a_batch_may_have_are_refused(field: str) -> None:
    """By us alone: pycddl 0.6 takes a text for a byte string whose size has a range."""
    plain = plain_of(SPECIMENS[RamPages])
    assert_refused_by_us(RamPages, {**plain, field: bytes(32769)})
    SCHEMAS[RamPages].validate_cbor(cbor.encode({**plain, field: bytes(32768)}))
