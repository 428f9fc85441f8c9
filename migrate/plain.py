"""Plain data (what JSON and CBOR can say) to attrs classes and back, strictly.

Everything that a file or a peer hands us passes through `structure`.  Nothing is coerced: `4.0` or `"4"` is no integer,
`1` is no bool, an unknown field is an error, a field given twice is an error, and integers obey the width that their
annotation states (`sim_vmm.integers`).  The one error class, `Misfit`, says where by a path and what by a name that
scripts can rely on.

A class is strict unless it is made tolerant in the converter of the document that it belongs to; `make_converter`
returns a fresh one for that.
"""

import collections.abc
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any, Final, TypeVar

import attrs
import cattrs
from cattrs.errors import AttributeValidationNote, ForbiddenExtraKeysError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from sim_vmm.integers import AtMost, Exactly, Range

T = TypeVar("T")

QUOTE_MAX: Final = 64
"""Characters of foreign data that an error repeats, at most (wire.md)."""


def quote(value: object) -> str:
    """`value` for an error message: its repr, cut short.  No more of it is looked at than that takes."""
    text = ""
    for piece in _repr(value):
        text += piece
        if len(text) > QUOTE_MAX:
            return text[: QUOTE_MAX - 1] + "…"
    return text


def _repr(value: object) -> Iterator[str]:
    """The pieces of `repr(value)`; of a long string a piece that is longer than a quote."""
    kind = type(value)
    if isinstance(value, str | bytes) and kind in (str, bytes):
        yield repr(value[: QUOTE_MAX + 1])
    elif isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _repr(key)
            yield ": "
            yield from _repr(item)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _repr(item)
        yield "]"
    else:
        yield repr(value)


@cache
def _getter(kind: type[Any]) -> tuple[tuple[str, ...], Callable[[Any], Any]]:
    names = tuple(field.name for field in attrs.fields(kind))
    return names, attrgetter(*names)


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of an attrs value, which has two or more, by name, one level deep."""
    names, get = _getter(value.__class__)
    return dict(zip(names, get(value), strict=True))


WORD_MAX: Final = 16
"""Characters of a string that are shown though it stands where none is wanted."""
CONTAINERS: Final = ("an object", "a list")


class JsonObject(dict[str, Any]):
    """An object as its text had it: `pairs` keeps what a dict forgets, keys given twice and their order."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def given_twice(self, known: Container[str] | None = None) -> str | None:
        """The first key, of the `known` ones if told, that the text repeats."""
        if len(self.pairs) == len(self):
            return None
        seen: set[str] = set()
        for key, _ in self.pairs:
            if key in seen and (known is None or key in known):
                return key
            seen.add(key)
        return None


@attrs.frozen(kw_only=True, str=False)
class Misfit(Exception):
    """Plain data does not have the wanted shape.

    Attributes:
        error: UnknownField, MissingField, DuplicateField, WrongType, OutOfRange, InvalidLength, UnknownVariant, or a
            name that the hook of a special type gave.
        path: where, from the root: names of fields and keys, positions in lists.
        message: what is wrong and what is wanted, without the path.
        detail: further facts by name.
    """

    error: str
    message: str
    path: tuple[str | int, ...] = ()
    detail: Mapping[str, object] = attrs.field(factory=dict)

    def __str__(self) -> str:
        where = "".join(f"[{step}]" if isinstance(step, int) else f".{_legible(step)}" for step in self.path)
        where = where.removeprefix(".")
        return f"{where}: {self.message}" if where else self.message


def _legible(name: str) -> str:
    """A name as it is if that fits into one line of text, else quoted: names too are foreign data."""
    return name if name.isprintable() and len(name) <= QUOTE_MAX else quote(name)


def wrong_type(value: object, wanted: str) -> Misfit:
    """What is in the wrong place may be a secret, or hold one, so not more of it is told than what it is.

    Only a word in the place of a number, or the like, is shown: that is a value, if a wrong one.
    """
    shown = quote(value) if isinstance(value, str) and len(value) <= WORD_MAX and wanted not in CONTAINERS else None
    return Misfit(error="WrongType", message=f"expected {wanted}, got {shown or shape_of(value)}")


def shape_of(value: object) -> str:
    """What `value` is; a number, or whatever else can hold no text, as it is."""
    match value:
        case str():
            return f"a string of {len(value)} characters"
        case dict():
            return f"an object with {len(value)} {'field' if len(value) == 1 else 'fields'}"
        case list() | tuple():
            return f"a list of {len(value)} {'element' if len(value) == 1 else 'elements'}"
        case bytes():
            return f"{len(value)} bytes"
        case _:
            return quote(value)


@attrs.frozen
class Secret:
    """Annotation of a text that no error repeats anything of."""


def structure_secret(value: Any) -> str:
    if type(value) is not str:
        raise Misfit(error="WrongType", message="expected a string, got something else, which is not shown")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Misfit(error="InvalidString", message="no Unicode text; it is not shown") from None
    return value


def structure_integer(value: Any, limits: Range) -> int:
    if type(value) is not int:
        raise wrong_type(value, "an integer")
    if not limits.low <= value <= limits.high:
        raise Misfit(
            error="OutOfRange",
            message=f"{quote(value)} is out of range: {limits.low} to {limits.high}",
            detail={"got": value, "low": limits.low, "high": limits.high},
        )
    return value


def structure_text(value: Any) -> str:
    if type(value) is not str:
        raise wrong_type(value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON escapes can spell half a surrogate pair; UTF-8 cannot
        raise Misfit(error="InvalidString", message=f"{quote(value)} is no Unicode text") from error
    return value


def check_length(length: int, wanted: Exactly | AtMost) -> None:
    """Raise a Misfit unless `length` is as wanted."""
    exact = isinstance(wanted, Exactly)
    if length == wanted.length or (not exact and length < wanted.length):
        return
    raise Misfit(
        error="InvalidLength",
        message=f"{length} elements; {'exactly' if exact else 'at most'} {wanted.length} are wanted",
        detail={"got": length, "want": wanted.length},
    )


def _exact(kind: type, wanted: str) -> Callable[[Any, Any], Any]:
    def structure_exactly(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise wrong_type(value, wanted)
        return value

    return structure_exactly


def _structure_enum(value: Any, kind: type[Enum]) -> Enum:
    choices = [member.value for member in kind]
    for member in kind:
        if type(value) is type(member.value) and value == member.value:
            return member
    raise Misfit(
        error="UnknownVariant",
        message=f"{quote(value)} is none of {', '.join(map(str, choices))}",
        detail={"value": value},
    )


def _annotation(annotated: Any, kind: type[T]) -> T | None:
    if typing.get_origin(annotated) is not typing.Annotated:
        return None
    return next((note for note in annotated.__metadata__ if isinstance(note, kind)), None)


def _structure_annotated_integer(annotated: Any) -> Callable[[Any, Any], int]:
    limits = _annotation(annotated, Range)
    assert limits is not None
    return lambda value, _: structure_integer(value, limits)


def _length_of(annotated: Any) -> Exactly | AtMost | None:
    return _annotation(annotated, Exactly) or _annotation(annotated, AtMost)


def _structure_annotated_length(annotated: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    wanted = _length_of(annotated)
    assert wanted is not None
    inner_type = annotated.__origin__
    inner = converter.get_structure_hook(inner_type)

    def structure_length(value: Any, _: Any) -> Any:
        if isinstance(value, bytes | list | str):  # before any element is looked at
            check_length(len(value), wanted)
        return inner(value, inner_type)

    return structure_length


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _structure_tuple(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """A list becomes a tuple: of any length for `tuple[X, ...]`, of the stated types for `tuple[X, Y]`."""
    kinds = typing.get_args(kind)
    any_length = len(kinds) == 2 and kinds[1] is Ellipsis
    hooks = [converter.get_structure_hook(inner) for inner in kinds if inner is not Ellipsis]

    def structure_list(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise wrong_type(value, "a list")
        if not any_length:
            check_length(len(value), Exactly(len(hooks)))
        structured: list[Any] = []
        try:
            if any_length:  # a loop of its own, as there may be thousands of elements
                hook, inner = hooks[0], kinds[0]
                for item in value:
                    structured.append(hook(item, inner))
            else:
                for hook, item, inner in zip(hooks, value, kinds, strict=True):
                    structured.append(hook(item, inner))
        except (Misfit, cattrs.BaseValidationError) as error:
            raise first_misfit(error, (len(structured),)) from None
        return tuple(structured)

    return structure_list


def _is_map(kind: Any) -> bool:
    return typing.get_origin(kind) in (dict, Mapping, collections.abc.Mapping)


def _structure_map(kind: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """An object becomes a dict.  Keys that become equal collapse, the later in the text wins (instance-specs §5)."""
    key_kind, value_kind = typing.get_args(kind)
    key_hook = converter.get_structure_hook(key_kind)
    value_hook = converter.get_structure_hook(value_kind)

    def structure_map(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise wrong_type(value, "an object")
        pairs = value.pairs if isinstance(value, JsonObject) else value.items()
        structured = {}
        for key, item in pairs:
            try:
                structured[key_hook(key, key_kind)] = value_hook(item, value_kind)
            except (Misfit, cattrs.BaseValidationError) as error:
                raise first_misfit(error, (str(key),)) from None
        return structured

    return structure_map


def class_hook(
    kind: type[T], converter: cattrs.Converter, *, unknown_fields: typing.Literal["refused", "ignored"] = "refused"
) -> Callable[[Any, Any], T]:
    """A hook that reads an object into the attrs class `kind`, and refuses fields it does not know unless told."""
    inner = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=unknown_fields == "refused")

    def structure_object(value: Any, _: Any) -> T:
        if not isinstance(value, dict):
            raise wrong_type(value, "an object")
        known = None if unknown_fields == "refused" else _field_names(kind)
        twice = value.given_twice(known) if isinstance(value, JsonObject) else None
        if twice is not None:
            raise Misfit(error="DuplicateField", message="given twice", path=(twice,), detail={"field": twice})
        return inner(value, kind)

    return structure_object


def warm_up(converter: cattrs.Converter, kinds: Iterable[Any]) -> None:
    """Have `converter` compile what reads and writes each of `kinds`, and all that these are made of."""
    waiting, seen = list(kinds), set[int]()
    while waiting:
        kind = waiting.pop()
        if id(kind) in seen:
            continue
        seen.add(id(kind))
        if isinstance(kind, type) and attrs.has(kind):
            converter.get_structure_hook(kind)
            converter.get_unstructure_hook(kind)
            waiting += typing.get_type_hints(kind, include_extras=True).values()
        else:
            waiting += typing.get_args(kind)


def make_converter() -> cattrs.Converter:
    """A strict converter; see the module docstring."""
    converter = cattrs.Converter(detailed_validation=True, omit_if_default=False)
    # A hook for str or int also serves its subclasses, among them the enumerations.
    converter.register_structure_hook(
        str, lambda value, kind: structure_text(value) if kind is str else _structure_enum(value, kind)
    )
    integer = _exact(int, "an integer")
    converter.register_structure_hook(
        int, lambda value, kind: integer(value, kind) if kind is int else _structure_enum(value, kind)
    )
    converter.register_structure_hook(bool, _exact(bool, "true or false"))
    converter.register_structure_hook(bytes, _exact(bytes, "a byte string"))
    converter.register_structure_hook_factory(attrs.has, lambda kind: class_hook(kind, converter))
    converter.register_structure_hook_factory(_is_tuple, lambda kind: _structure_tuple(kind, converter))
    converter.register_structure_hook_factory(_is_map, lambda kind: _structure_map(kind, converter))
    converter.register_structure_hook_factory(
        lambda kind: _length_of(kind) is not None, lambda kind: _structure_annotated_length(kind, converter)
    )
    converter.register_structure_hook_factory(
        lambda kind: _annotation(kind, Range) is not None, _structure_annotated_integer
    )
    converter.register_structure_hook_func(
        lambda kind: _annotation(kind, Secret) is not None, lambda value, _: structure_secret(value)
    )
    converter.register_unstructure_hook(bytes, lambda value: value)
    converter.register_unstructure_hook(str, lambda value: value.value if isinstance(value, Enum) else value)
    converter.register_unstructure_hook_func(_is_tuple, lambda value: [converter.unstructure(item) for item in value])
    converter.register_unstructure_hook_factory(
        attrs.has, lambda kind: make_dict_unstructure_fn(kind, converter, _cattrs_omit_if_default=False)
    )
    return converter


def structure(converter: cattrs.Converter, value: Any, kind: type[T]) -> T:
    """`value` as a `kind`.

    Raises:
        Misfit: the first thing that does not fit, in field order.
    """
    try:
        return converter.structure(value, kind)
    except (Misfit, cattrs.BaseValidationError) as error:
        raise first_misfit(error) from None


def first_misfit(error: Misfit | cattrs.BaseValidationError, below: tuple[str | int, ...] = ()) -> Misfit:
    """The first leaf of a cattrs error, with its path from `below` on."""
    return next(misfits(error, below))


def misfits(error: BaseException, path: tuple[str | int, ...]) -> Iterator[Misfit]:
    """The leaves of a cattrs error tree, depth first, each with its whole path."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            path = (*path, note.name)
        elif isinstance(note, IterableValidationNote):
            path = (*path, note.index)
    match error:
        case Misfit():
            yield attrs.evolve(error, path=path + error.path)
        case BaseExceptionGroup():
            for inner in error.exceptions:
                yield from misfits(inner, path)
        case ForbiddenExtraKeysError():
            field = min(map(str, error.extra_fields))
            yield Misfit(
                error="UnknownField",
                message=f"unknown field {quote(field)}; known here: {', '.join(_field_names(error.cl))}",
                path=(*path, field),
                detail={"field": field},
            )
        case KeyError():
            yield Misfit(error="MissingField", message="required and missing", path=path)
        case _:
            raise error


def _field_names(kind: Any) -> list[str]:
    return sorted(field.name for field in attrs.fields(kind))
