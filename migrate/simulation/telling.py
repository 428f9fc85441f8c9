"""Says of any object graph what it is, in plain values: two that are told alike are alike, for whatever runs on them.

Of an object its class and attributes are told, of a function its code and what it closes over, of a coroutine the
instruction where it waits and all that its frame holds, its stack included.  Who refers to the same object twice is
told from who refers to two that are alike.  What is not known here is not passed over: it raises `Incomparable`.
"""

import gc
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import _GeneratorContextManager
from enum import Enum, EnumType
from functools import cache
from operator import attrgetter
from types import (
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MethodType,
    SimpleNamespace,
)
from typing import Any, Final
from uuid import UUID

import attrs
import numpy as np
import xxhash

LONG_BYTES: Final = 64
KNOWN_MAX: Final = 1 << 14
OURS: Final = ("migrate.", "sim_vmm.")
LASTING: Final = (
    "migrate.protocol.",
    "migrate.releases",
    "migrate.engine.policy",
    "migrate.specs.",
    "sim_vmm.spec",
    "sim_vmm.birth",
    "sim_vmm.payloads",
)
"""Where the values are that never change and are told over and over."""


class Incomparable(Exception):
    """Something here cannot be told in values."""


_known: Final[dict[int, tuple[object, bytes]]] = {}
"""Digests of lasting values, by their identity; they are kept, so that no other gets it."""


class Teller:
    """Writes down what it is given as a list of plain values, which says everything of it."""

    def __init__(self, *, outside: object = None) -> None:
        """What is `outside` is only named."""
        self.parts: list[Any] = []
        self._outside = outside
        self._seen: dict[int, tuple[int, object]] = {}

    def digest(self) -> bytes:
        return xxhash.xxh3_128_digest(repr(self.parts).encode())

    def tell(self, it: Any) -> None:
        """Append what `it` is."""
        kind = it.__class__
        if kind in _PLAIN:
            self.parts.append(it)
            return
        tell = TELLERS.get(kind)
        if tell is None:
            tell = TELLERS[kind] = _teller_of(kind)
        tell(self, it)

    def is_again(self, it: object) -> bool:
        """Whether `it` has been told before; if so, says so."""
        known = self._seen.get(id(it))
        if known is None:
            self._seen[id(it)] = (len(self._seen), it)
            return False
        self.parts += ("again", known[0])
        return True

    def has_told(self, it: object) -> bool:
        return id(it) in self._seen

    # Values

    def all(self, name: str, values: Iterable[Any]) -> None:
        parts, seen = self.parts, self._seen
        listed = values if values.__class__ is tuple or values.__class__ is list else tuple(values)
        parts += (name, len(listed))
        for value in listed:
            kind = value.__class__
            if kind in _PLAIN:
                parts.append(value)
                continue
            known = seen.get(id(value))
            if known is not None:  # as whoever tells such values would find
                parts += ("again", known[0])
                continue
            tell = TELLERS.get(kind)
            if tell is None:
                tell = TELLERS[kind] = _teller_of(kind)
            if tell is _LASTING:
                told = _known.get(id(value))
                if told is not None and told[0] is value:  # as `lasting` would find
                    parts.append(told[1])
                    continue
            tell(self, value)

    def bytes_(self, data: "bytes | bytearray | memoryview") -> None:
        if len(data) > LONG_BYTES:
            self.parts += ("long", len(data), xxhash.xxh3_128_digest(data))
        else:
            self.parts.append(bytes(data))

    def _tuple(self, it: tuple[Any, ...]) -> None:
        self.all("tuple", it)

    def _list(self, it: "list[Any] | deque[Any]") -> None:
        if not self.is_again(it):
            self.all("list", it)

    def _bytearray(self, it: bytearray) -> None:
        if not self.is_again(it):
            self.bytes_(it)

    def dict_(self, it: Mapping[Any, Any]) -> None:
        if not self.is_again(it):
            self.all("dict", (part for item in it.items() for part in item))

    def _set(self, it: "set[Any] | frozenset[Any]") -> None:
        """Of values; their order is nobody's."""
        if self.is_again(it):
            return
        told = []
        for value in it:
            if value.__class__ in _PLAIN:
                told.append(repr([value]))
                continue
            teller = type(self)()
            teller.tell(value)
            told.append(repr(teller.parts))
        self.all("set", sorted(told))

    def _array(self, it: "np.ndarray[Any, Any]") -> None:
        if it.base is not None or it.dtype.hasobject:
            raise Incomparable("an array that shows something else")
        if not self.is_again(it):
            self.parts += ("array", it.dtype.str, it.shape, it.flags.writeable)
            self.bytes_(it.tobytes())

    def _type(self, it: type) -> None:
        self.parts += ("type", it.__module__, it.__qualname__)

    def _enum(self, it: Enum) -> None:
        self.parts += (it.__class__.__name__, it._name_)

    def _reduced(self, it: Any) -> None:
        """An iterator says itself over what it is, and where it stands."""
        if not self.is_again(it):
            _, arguments, *state = it.__reduce__()
            self.parts += ("reduced", type(it).__name__)
            self.tell(arguments)
            self.tell(tuple(state))

    def _descriptor(self, it: Any) -> None:
        self.parts += ("descriptor", it.__objclass__.__qualname__, it.__name__)

    def _uuid(self, it: UUID) -> None:
        self.parts += ("uuid", it.int)

    def _hasher(self, it: xxhash.xxh3_64) -> None:
        """By what it has come to so far."""
        if not self.is_again(it):
            self.parts += ("hash", it.digest())

    def _drawing(self, it: Any) -> None:
        """Whoever draws numbers from a seed draws the next ones by its state."""
        if not self.is_again(it):
            self.tell(it.getstate())

    # Code, and where it stands

    def _function(self, it: FunctionType) -> None:
        self.parts += ("function", it.__module__, it.__qualname__, it.__code__.co_firstlineno)
        if it.__closure__ is not None or it.__defaults__ is not None or it.__kwdefaults__ is not None:
            self.all("of", (it.__defaults__, it.__kwdefaults__, *(it.__closure__ or ())))

    def _cell(self, it: CellType) -> None:
        if not self.is_again(it):
            try:
                self.all("cell", (it.cell_contents,))
            except ValueError:
                self.parts.append("empty cell")

    def _method(self, it: MethodType) -> None:
        self.all("method", (it.__func__, it.__self__))

    def _coroutine(self, it: "CoroutineType[Any, Any, Any]") -> None:
        self._suspended(it, it.cr_code, it.cr_frame)

    def _generator(self, it: "GeneratorType[Any, Any, Any]") -> None:
        self._suspended(it, it.gi_code, it.gi_frame)

    def _suspended(self, it: Any, code: CodeType, frame: FrameType | None) -> None:
        """By its code, the instruction where it waits, and all that its frame holds, in order: locals, then its stack.

        Locals that are not set leave no gap, so those that are set are named.
        """
        if self.is_again(it):
            return
        self.parts += ("suspended", _name_of(code.co_filename, code.co_firstlineno, code.co_qualname))
        if frame is None:
            self.parts.append("over")
            return
        named = frame.f_locals
        self.parts += (frame.f_lasti, tuple(named))
        held = [
            value
            for value in gc.get_referents(it)
            if (kind := value.__class__) is not CodeType  # nor what else is of a coroutine as such
            and kind is not FrameType
            and value is not named
            and not (kind is FunctionType and value.__code__ is code)
        ]
        self.all("frame", held)

    # Objects

    def exception(self, it: BaseException) -> None:
        """What it says; where it was raised makes no difference."""
        if not self.is_again(it):
            self.tell(it.args)
            self.attributes(it)

    def instance(self, it: Any) -> None:
        if it is self._outside:
            self.parts.append("outside")
        elif not self.is_again(it):
            self.attributes(it)

    def attributes(self, it: Any, left_out: frozenset[str] | None = None) -> None:
        """The values of its attributes: of slots in their order, of others with their names."""
        kind = it.__class__
        if left_out is None:
            left_out = NOT_TOLD.get(kind, _NOTHING)
        named, slots, values_of, has_others = _attributes_of(kind, left_out)
        try:
            values = values_of(it)
        except AttributeError:  # of one that is not set yet
            values = tuple(getattr(it, name, _UNSET) for name in slots)
        self.all(named, values)
        others = it.__dict__ if has_others else None
        if others:
            told = others if not left_out else {name: others[name] for name in others if name not in left_out}
            self.parts += told
            self.all("", told.values())

    def lasting(self, it: Any) -> None:
        """A value that never changes, in short."""
        known = _known.get(id(it))
        if known is None or known[0] is not it:
            if len(_known) > KNOWN_MAX:
                _known.clear()
            teller = type(self)()
            teller.attributes(it)
            known = _known[id(it)] = (it, teller.digest())
        self.parts.append(known[1])


_LASTING: Final = Teller.lasting
_UNSET: Final = ...
_NOTHING: Final[frozenset[str]] = frozenset()
_PLAIN: Final = frozenset({int, str, bool, float, type(None), type(...), range})
_PLAIN_OBJECTS: Final = (SimpleNamespace, _GeneratorContextManager)
NOT_TOLD: Final[dict[type, frozenset[str]]] = {}
"""Attributes that are left out; whoever adds to it says why."""
TELLERS: Final[dict[type, Callable[[Any, Any], None]]] = {
    bytes: Teller.bytes_,
    bytearray: Teller._bytearray,
    tuple: Teller._tuple,
    list: Teller._list,
    deque: Teller._list,
    dict: Teller.dict_,
    Counter: Teller.dict_,
    defaultdict: Teller.dict_,
    MappingProxyType: Teller.dict_,
    set: Teller._set,
    frozenset: Teller._set,
    np.ndarray: Teller._array,
    type: Teller._type,
    EnumType: Teller._type,
    UUID: Teller._uuid,
    type(str.join): Teller._descriptor,
    xxhash.xxh3_64: Teller._hasher,
    **dict.fromkeys(map(type, map(iter, ((), [], {}, range(0), b""))), Teller._reduced),
    FunctionType: Teller._function,
    CellType: Teller._cell,
    MethodType: Teller._method,
    CoroutineType: Teller._coroutine,
    GeneratorType: Teller._generator,
}


def _teller_of(kind: type) -> Callable[[Teller, Any], None]:
    """How instances of `kind` are told; found out once for each."""
    if issubclass(kind, Enum):
        return Teller._enum
    if issubclass(kind, type):
        return Teller._type
    if issubclass(kind, BaseException):
        return Teller.exception
    if hasattr(kind, "getstate") and hasattr(kind, "setstate"):
        return Teller._drawing
    if attrs.has(kind) and kind.__module__.startswith(LASTING) and attrs.inspect(kind).is_frozen:
        return Teller.lasting
    if kind.__module__.startswith(OURS) or kind in _PLAIN_OBJECTS:
        return Teller.instance
    return _refuse


def _refuse(_: Teller, it: Any) -> None:
    raise Incomparable(f"a {type(it).__module__}.{type(it).__qualname__}")


@cache
def _attributes_of(
    kind: type, left_out: frozenset[str]
) -> tuple[str, tuple[str, ...], Callable[[Any], tuple[Any, ...]], bool]:
    """What it is called, those of its slots that are told, what gives their values, and whether it may have others."""
    left_out |= {"__weakref__", "__dict__"}
    listed = (name for base in kind.__mro__ for name in _listed(base.__dict__.get("__slots__", ())))
    slots = tuple(name for name in listed if name not in left_out)
    return f"{kind.__module__}.{kind.__qualname__}", slots, _getter_of(slots), kind.__dictoffset__ != 0


def _getter_of(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the values of these attributes, in one call."""
    match names:
        case ():
            return lambda it: ()
        case (name,):
            return lambda it: (getattr(it, name),)
        case _:
            return attrgetter(*names)


@cache
def _name_of(file: str, line: int, name: str) -> int:
    """Of code there is little, and it is told over and over: the hash of where it is."""
    return xxhash.xxh3_64_intdigest(f"{file}:{line} {name}".encode())


def _listed(slots: "str | Iterable[str]") -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots
