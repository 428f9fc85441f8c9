"""What one published spec version is: its document, its component kinds, and how they map to the machine's own form.

A version module (`v1`, `v2`, ...) declares frozen wire classes and a `SpecVersion` made of them; this module holds the
machinery that all share.  Mapping a component is copying the fields that both sides have.  That is a *lossy* thing to
do, on purpose: no converter is trusted.  `obstacles` converts every part there and back and reports each field that
did not survive, and `migrate.specs.offer` lets nothing out whose bytes do not give an equal `Spec` back.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, get_type_hints

import attrs
import cattrs

from migrate.plain import Misfit, quote, structure
from migrate.specs.reading import ParseError
from sim_vmm.spec import Board, Cpuid, SmbiosType1, Spec, build_spec
from sim_vmm.spec.components import Component

_HINTS: dict[type[Any], dict[str, Any]] = {}


def _hints_of(kind: type[Any]) -> dict[str, Any]:
    """Its type hints, worked out once: for every component of every spec anew, that would cost more than the rest."""
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = get_type_hints(kind)
    return hints


@attrs.frozen(kw_only=True)
class Kind:
    """A component kind in one version: its frozen wire class beside the machine's class.

    `implied` gives the machine's fields that the wire class lacks: what the version always meant.  `reshaped` maps a
    field whose value has another form on the wire: (to the wire, from the wire).
    """

    wire: type[Any]
    machine: type[Any]
    implied: Mapping[str, object] = attrs.field(factory=dict)
    reshaped: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = attrs.field(factory=dict)

    def to_wire(self, component: Any) -> Any:
        """Raises ValueError if a value has no counterpart in this version."""
        hints = _hints_of(self.wire)
        values = {}
        for field in attrs.fields(self.wire):
            value = getattr(component, field.name)
            if field.name in self.reshaped:
                value = self.reshaped[field.name][0](value)
            elif isinstance(value, Enum):
                value = hints[field.name](value.value)
            values[field.name] = value
        return self.wire(**values)

    def from_wire(self, wire: Any) -> Any:
        hints = _hints_of(self.machine)
        values = dict(self.implied)
        for field in attrs.fields(self.wire):
            value = getattr(wire, field.name)
            if field.name in self.reshaped:
                value = self.reshaped[field.name][1](value)
            elif isinstance(value, Enum):
                value = hints[field.name](value.value)
            values[field.name] = value
        return self.machine(**values)

    def there_and_back(self, component: Any) -> Any:
        return self.from_wire(self.to_wire(component))


class Loss(NamedTuple):
    """One field that a version cannot carry: `have` is what the machine has there, as text."""

    component: str
    field: str
    have: str


@attrs.frozen(kw_only=True, eq=False)
class SpecVersion:
    """One published family of API versions with one spec shape (instance-specs §1).

    Attributes:
        number: the API version that introduced the shape; it names the variant in a preamble.
        document: the attrs class of the whole document: `board`, `components` and, from version 2 on, `smbios`.
        kinds: component kinds by tag.
        board: converters of the board, to and from the wire.
    """

    number: int
    document: type[Any]
    kinds: Mapping[str, Kind]
    board: tuple[Callable[[Board], Any], Callable[[Any], Board]]
    converter: cattrs.Converter

    def read(self, plain: Any) -> Any:
        """Plain data as this version's document; no rule of the builder has been checked.

        Raises:
            ParseError: the first thing that is not as published.
        """
        try:
            return structure(self.converter, plain, self.document)
        except Misfit as misfit:
            raise ParseError.from_misfit(misfit) from None

    def build(self, document: Any) -> Spec:
        """The machine that a document describes.

        Raises:
            SpecError: a rule of the builder is broken.
        """
        components = {key: self.kinds[self.tag_of(wire)].from_wire(wire) for key, wire in document.components.items()}
        wire_smbios = getattr(document, "smbios", None)
        smbios = None if wire_smbios is None else SmbiosType1(**attrs.asdict(wire_smbios))
        return build_spec(self.board[1](document.board), components, smbios)

    def decode(self, plain: Any) -> Spec:
        """`read`, then `build`."""
        return self.build(self.read(plain))

    def encode(self, spec: Spec) -> dict[str, Any]:
        """Plain data of this version, holding whatever of `spec` it has a place for.  Ask `losses` what it has not.

        Raises:
            ValueError: a value has no counterpart in this version.
        """
        components = {key: self.wire_form(component) for key, component in spec.components.items()}
        values: dict[str, Any] = {
            "board": self.board[0](spec.board),
            "components": {key: wire for key, wire in components.items() if wire is not None},
        }
        hints = _hints_of(self.document)
        if "smbios" in hints:
            smbios_class = next(arm for arm in hints["smbios"].__args__ if attrs.has(arm))
            values["smbios"] = None if spec.smbios is None else smbios_class(**attrs.asdict(spec.smbios))
        plain: dict[str, Any] = self.converter.unstructure(self.document(**values), self.document)
        return plain

    def wire_form(self, component: Component) -> Any | None:
        """A component in this version's form, or None if the version has no such kind."""
        kind = self.kinds.get(component.KIND)
        return None if kind is None else kind.to_wire(component)

    def tag_of(self, wire: Any) -> str:
        """The tag under which a component of this version's form is written."""
        return next(tag for tag, kind in self.kinds.items() if kind.wire is type(wire))

    def losses(self, spec: Spec) -> Iterator[Loss]:
        """Every field of `spec` that does not come back from this version, found by converting it there and back."""
        yield from _lost("board", spec.board, lambda board: self.board[1](self.board[0](board)))
        for key, component in spec.components.items():
            kind = self.kinds.get(component.KIND)
            if kind is None:
                yield Loss(str(key), "type", component.KIND)
            else:
                yield from _lost(str(key), component, kind.there_and_back)
        if spec.smbios is not None and "smbios" not in _hints_of(self.document):
            yield Loss("smbios", "smbios", f"set (serial number {quote(spec.smbios.serial_number)})")


def _lost(name: str, part: Any, there_and_back: Callable[[Any], Any]) -> Iterator[Loss]:
    try:
        again = there_and_back(part)
    except Exception as error:  # a broken converter may fail in any way; then nothing of the part can be carried
        yield Loss(name, "type", f"not convertible ({type(error).__name__})")  # its text may hold what it failed at
        return
    for field in attrs.fields(type(part)):
        value = getattr(part, field.name)
        if value != getattr(again, field.name):
            yield Loss(name, field.name, field.repr(value) if callable(field.repr) else describe_value(value))


def describe_value(value: object) -> str:
    """A field's value for people: as JSON would say it where it can."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case Cpuid():
            return f"{len(value.entries)} CPUID entries"
        case _:
            return quote(value) if isinstance(value, str | bytes) else str(value)
