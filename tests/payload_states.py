"""Strategies that draw payloads: any value of a schema, or one near a given value, as a device near its birth has."""

import types
import typing
from enum import Enum
from typing import Any

import attrs
from hypothesis import strategies as st

from sim_vmm.integers import AtMost, Exactly, Range
from tests.specimens import TEXTS


def any_payload(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of an attrs class, within the limits of its annotations."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{field.name: _any_of(hints[field.name]) for field in attrs.fields(kind)})


def near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the class of `value` in which most fields, at every depth, are as they are there."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    return st.builds(
        type(value),
        **{field.name: _near(hints[field.name], getattr(value, field.name)) for field in attrs.fields(type(value))},
    )


def _near(annotation: Any, value: Any) -> st.SearchStrategy[Any]:
    if attrs.has(type(value)):
        return st.just(value) | near(value)
    if isinstance(value, tuple) and value:
        (element, _) = typing.get_args(annotation)
        same_length = st.tuples(*(_near(element, item) for item in value))
        return st.just(value) | same_length | st.just(value[:-1]) | _any_of(element).map(lambda item: (*value, item))
    return st.just(value) | st.just(value) | _any_of(annotation)


def _any_of(annotation: Any) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        match arguments[1]:
            case Range(low, high):
                return st.sampled_from([low, high]) | st.integers(low, high)
            case Exactly(length):
                return st.binary(min_size=length, max_size=length)
            case AtMost(length):
                return st.binary(max_size=min(length, 12))
    if origin is tuple:
        return st.lists(_any_of(arguments[0]), max_size=3).map(tuple)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*(st.none() if kind is type(None) else _any_of(kind) for kind in arguments))
    if attrs.has(annotation):
        return any_payload(annotation)
    if issubclass(annotation, Enum):
        return st.sampled_from(list(annotation))
    simple: dict[Any, st.SearchStrategy[Any]] = {str: TEXTS, bytes: st.binary(max_size=12), bool: st.booleans()}
    return simple[annotation]
