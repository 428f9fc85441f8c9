"""Plain data to classes and back: nothing is coerced, and every misfit says where and what."""

from enum import IntEnum, StrEnum
from typing import Annotated, Any

import attrs
import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.plain import QUOTE_MAX, JsonObject, Misfit, class_hook, first_misfit, make_converter, quote, structure
from sim_vmm.integers import I64, U8, U16, U32, U64, AtMost, Exactly
from tests.generators import PLAIN


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 0
    HIGH = 1


@attrs.frozen(kw_only=True)
class Point:
    x: U8
    y: U8 = 7


@attrs.frozen(kw_only=True)
class Everything:
    flag: bool
    number: int
    text: str
    data: bytes
    colour: Colour
    level: Level
    maybe: U32 | None
    point: Point
    points: tuple[Point, ...]
    pair: tuple[int, str]
    by_name: dict[str, Point]
    mac: Annotated[bytes, Exactly(6)]
    few: Annotated[tuple[U8, ...], AtMost(2)]
    name: Annotated[str, AtMost(5)]


PLAIN_EVERYTHING: dict[str, Any] = {
    "flag": True,
    "number": -5,
    "text": "é",
    "data": b"\x00\xff",
    "colour": "red",
    "level": 1,
    "maybe": None,
    "point": {"x": 1, "y": 2},
    "points": [{"x": 3, "y": 4}],
    "pair": [9, "nine"],
    "by_name": {"a": {"x": 5, "y": 6}},
    "mac": b"\x00" * 6,
    "few": [1, 2],
    "name": "ééééé",
}
EVERYTHING = Everything(
    flag=True,
    number=-5,
    text="é",
    data=b"\x00\xff",
    colour=Colour.RED,
    level=Level.HIGH,
    maybe=None,
    point=Point(x=1, y=2),
    points=(Point(x=3, y=4),),
    pair=(9, "nine"),
    by_name={"a": Point(x=5, y=6)},
    mac=bytes(6),
    few=(1, 2),
    name="ééééé",
)


def misfit(value: Any, kind: Any = Everything, converter: cattrs.Converter | None = None) -> Misfit:
    with pytest.raises(Misfit) as caught:
        structure(converter or make_converter(), value, kind)
    return caught.value


def test_every_type_goes_there_and_back() -> None:
    converter = make_converter()
    assert structure(converter, PLAIN_EVERYTHING, Everything) == EVERYTHING
    assert converter.unstructure(EVERYTHING) == PLAIN_EVERYTHING
    assert type(converter.unstructure(EVERYTHING)["colour"]) is str


def test_a_default_stands_in_for_a_missing_field_and_is_always_written() -> None:
    converter = make_converter()
    assert structure(converter, {"x": 1}, Point) == Point(x=1, y=7)
    assert converter.unstructure(Point(x=1)) == {"x": 1, "y": 7}


WRONG: list[tuple[str, Any, str, tuple[str | int, ...]]] = [
    ("flag", 1, "WrongType", ("flag",)),
    ("flag", None, "WrongType", ("flag",)),
    ("flag", "true", "WrongType", ("flag",)),
    ("number", 4.0, "WrongType", ("number",)),
    ("number", "4", "WrongType", ("number",)),
    ("number", True, "WrongType", ("number",)),
    ("number", None, "WrongType", ("number",)),
    ("number", b"4", "WrongType", ("number",)),
    ("text", b"text", "WrongType", ("text",)),
    ("text", 1, "WrongType", ("text",)),
    ("text", "\ud800", "InvalidString", ("text",)),
    ("data", "text", "WrongType", ("data",)),
    ("data", [0, 1], "WrongType", ("data",)),
    ("data", bytearray(2), "WrongType", ("data",)),
    ("colour", "RED", "UnknownVariant", ("colour",)),
    ("colour", "green", "UnknownVariant", ("colour",)),
    ("colour", None, "UnknownVariant", ("colour",)),
    ("colour", ["red"], "UnknownVariant", ("colour",)),
    ("level", 2, "UnknownVariant", ("level",)),
    ("level", True, "UnknownVariant", ("level",)),
    ("level", 1.0, "UnknownVariant", ("level",)),
    ("maybe", -1, "OutOfRange", ("maybe",)),
    ("maybe", 2**32, "OutOfRange", ("maybe",)),
    ("maybe", False, "WrongType", ("maybe",)),
    ("point", None, "WrongType", ("point",)),
    ("point", [1, 2], "WrongType", ("point",)),
    ("point", {}, "MissingField", ("point", "x")),
    ("point", {"x": 256}, "OutOfRange", ("point", "x")),
    ("point", {"x": 1, "z": 1}, "UnknownField", ("point", "z")),
    ("point", {"x": 1, 5: 1}, "UnknownField", ("point", "5")),
    ("points", {"x": 1}, "WrongType", ("points",)),
    ("points", [{"x": 1}, {"x": -1}], "OutOfRange", ("points", 1, "x")),
    ("points", [{"x": 1}, None], "WrongType", ("points", 1)),
    ("points", "points", "WrongType", ("points",)),
    ("pair", [9], "InvalidLength", ("pair",)),
    ("pair", [9, "nine", 9], "InvalidLength", ("pair",)),
    ("pair", [9, 9], "WrongType", ("pair", 1)),
    ("pair", (9, "nine"), "WrongType", ("pair",)),
    ("by_name", [], "WrongType", ("by_name",)),
    ("by_name", {"a": {"x": 1.5}}, "WrongType", ("by_name", "a", "x")),
    ("by_name", {1: {"x": 1}}, "WrongType", ("by_name", "1")),
    ("by_name", {b"a": {"x": 1}}, "WrongType", ("by_name", "b'a'")),
    ("mac", b"12345", "InvalidLength", ("mac",)),
    ("mac", b"1234567", "InvalidLength", ("mac",)),
    ("mac", "123456", "WrongType", ("mac",)),
    ("few", [1, 2, 3], "InvalidLength", ("few",)),
    ("few", [1, 256], "OutOfRange", ("few", 1)),
    ("few", "12", "WrongType", ("few",)),
    ("name", "123456", "InvalidLength", ("name",)),
    ("name", 12345, "WrongType", ("name",)),
]


@pytest.mark.parametrize(("field", "value", "error", "path"), WRONG)
def test_a_value_that_does_not_fit_is_refused_with_its_path(
    field: str, value: Any, error: str, path: tuple[str | int, ...]
) -> None:
    found = misfit({**PLAIN_EVERYTHING, field: value})
    assert (found.error, found.path) == (error, path)


@pytest.mark.parametrize("field", sorted(PLAIN_EVERYTHING))
def test_a_missing_field_is_named(field: str) -> None:
    found = misfit({name: value for name, value in PLAIN_EVERYTHING.items() if name != field})
    assert (found.error, found.path) == ("MissingField", (field,))


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (U8, 0, 255),
        (U16, 0, 65535),
        (U32, 0, 4294967295),
        (U64, 0, 18446744073709551615),
        (I64, -9223372036854775808, 9223372036854775807),
    ],
)
def test_an_integer_has_the_width_of_its_annotation(kind: Any, low: int, high: int) -> None:
    for value in (low, 0, high):
        assert structure(make_converter(), value, kind) == value
    for value in (low - 1, high + 1):
        found = misfit(value, kind)
        assert (found.error, found.detail) == ("OutOfRange", {"got": value, "low": low, "high": high})


def test_the_first_misfit_in_field_order_is_the_one_reported() -> None:
    found = misfit({**PLAIN_EVERYTHING, "zzz": 1, "text": 1, "mac": b""})
    assert found.path == ("text",)


def test_a_cap_is_enforced_before_the_elements_are_looked_at() -> None:
    assert misfit({**PLAIN_EVERYTHING, "few": ["no number"] * 3}).error == "InvalidLength"


# Objects of a text


def test_a_field_given_twice_is_refused_even_with_equal_values() -> None:
    found = misfit(JsonObject([("x", 1), ("y", 2), ("x", 1)]), Point)
    assert (found.error, found.path) == ("DuplicateField", ("x",))


@pytest.mark.parametrize(
    ("pairs", "known", "twice"),
    [
        ([], None, None),
        ([("a", 1), ("b", 2)], None, None),
        ([("a", 1), ("b", 2), ("b", 3), ("a", 4)], None, "b"),
        ([("a", 1), ("b", 2), ("b", 3), ("a", 4)], ["a"], "a"),
        ([("a", 1), ("b", 2), ("b", 3)], ["a"], None),
        ([("a", 1), ("a", 2), ("a", 3)], None, "a"),
    ],
)
def test_the_first_key_given_twice_is_found(
    pairs: list[tuple[str, Any]], known: list[str] | None, twice: str | None
) -> None:
    assert JsonObject(pairs).given_twice(known) == twice


def tolerant() -> cattrs.Converter:
    converter = make_converter()
    converter.register_structure_hook(Point, class_hook(Point, converter, unknown_fields="ignored"))
    return converter


def test_a_tolerant_class_ignores_unknown_fields_once_or_often_and_nothing_else() -> None:
    assert structure(tolerant(), {"x": 1, "z": None}, Point) == Point(x=1)
    assert structure(tolerant(), JsonObject([("z", 1), ("z", 2), ("x", 1)]), Point) == Point(x=1)
    assert misfit(JsonObject([("z", 1), ("z", 2), ("x", 1), ("x", 1)]), Point, tolerant()).error == "DuplicateField"
    assert misfit({"z": 1}, Point, tolerant()).error == "MissingField"


def test_tolerance_of_one_converter_is_not_that_of_another() -> None:
    tolerant()
    assert misfit({"x": 1, "z": None}, Point).error == "UnknownField"


def test_keys_that_become_equal_collapse_and_the_last_in_the_text_wins() -> None:
    converter = make_converter()
    converter.register_structure_hook(Colour, lambda value, _: Colour(value.lower()))
    pairs = JsonObject([("red", {"x": 1}), ("RED", {"x": 2}), ("red", {"x": 3})])
    assert structure(converter, pairs, dict[Colour, Point]) == {Colour.RED: Point(x=3)}


# Messages


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ((), ""),
        (("a",), "a: "),
        (("a", "b", 3, "c"), "a.b[3].c: "),
        (("", "b"), ".b: "),
        (("a\nb", "c"), "'a\\nb'.c: "),
        (("\ud800",), "'\\ud800': "),
        (("é", "\u202e"), "é.'\\u202e': "),
        (("k" * 64,), "k" * 64 + ": "),
        (("k" * 65,), "'" + "k" * 62 + "…: "),
    ],
)
def test_a_path_is_legible_whatever_the_names(path: tuple[str | int, ...], where: str) -> None:
    assert str(Misfit(error="WrongType", message="m", path=path)) == f"{where}m"


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        ("a", "'a'"),
        ("x" * 62, "'" + "x" * 62 + "'"),
        ("x" * 63, "'" + "x" * 62 + "…"),
        ("\ud800\n", "'\\ud800\\n'"),
        (nested(10_000), "[" * 63 + "…"),
        ([{"a": [1, None]}, b"\x00", 'it"s'], """[{'a': [1, None]}, b'\\x00', 'it"s']"""),
        (["\n" * 10**6] * 10**6, repr(["\n" * 60])[:63] + "…"),
        ({"x" * 10**6: 1}, "{'" + "x" * 61 + "…"),
        (b"\x00" * 10**6, "b'" + r"\x00" * 15 + "\\…"),
    ],
    ids=["number", "text", "longest", "too long", "illegible", "deep", "plain data", "huge", "huge key", "huge bytes"],
)
def test_foreign_data_is_quoted_in_one_short_line(value: Any, text: str) -> None:
    assert quote(value) == text
    assert len(text) <= QUOTE_MAX


@given(PLAIN)
def test_a_quote_is_how_the_repr_begins(value: Any) -> None:
    text = repr(value)
    assert quote(value) == (text if len(text) <= QUOTE_MAX else text[: QUOTE_MAX - 1] + "…")


@given(st.sampled_from(sorted(PLAIN_EVERYTHING)), PLAIN)
def test_any_plain_data_in_any_place_fits_or_is_a_misfit(field: str, value: Any) -> None:
    try:
        fits = structure(make_converter(), {**PLAIN_EVERYTHING, field: value}, Everything)
    except Misfit as error:
        path, text = error.path, str(error)
    else:
        assert make_converter().unstructure(fits) == {**PLAIN_EVERYTHING, field: value}
        return
    assert path[0] == field
    assert "\n" not in text


def test_a_bug_in_a_hook_is_no_misfit() -> None:
    converter = make_converter()

    def broken(value: Any, _: Any) -> Any:
        raise ZeroDivisionError

    converter.register_structure_hook(Colour, broken)
    with pytest.raises(ZeroDivisionError):
        structure(converter, PLAIN_EVERYTHING, Everything)


def test_the_first_misfit_keeps_the_path_it_is_given_below() -> None:
    inner = Misfit(error="WrongType", message="m", path=("x",))
    assert first_misfit(inner, ("components", "a")).path == ("components", "a", "x")
