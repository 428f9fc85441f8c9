"""How special values are written in every published spec version: keys, PCI paths, UUIDs, serial numbers, tags.

All versions share these, so they are part of each published format: golden files hold them in place, and a version
that wants another spelling gets a type of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

import attrs
import cattrs
from cattrs.gen import make_dict_unstructure_fn

from migrate.plain import (
    JsonObject,
    Misfit,
    check_length,
    class_hook,
    first_misfit,
    make_converter,
    quote,
    structure_integer,
    structure_text,
    wrong_type,
)
from sim_vmm.integers import U8, Exactly, Range
from sim_vmm.spec import PciPath, SpecKey, parse_uuid

SERIAL_NUMBER_BYTES: Final = 20


class SerialNumberBytes(bytes):
    """Marks the one field that is a list of exactly 20 numbers."""


@attrs.frozen
class PciPathFields:
    """The object form of a PCI path.  It tolerates unknown keys, although everything round it is strict."""

    bus: U8
    device: U8
    function: U8


def _read_key(value: Any, _: Any) -> SpecKey:
    return SpecKey.parse(structure_text(value))


def _read_uuid(value: Any, _: Any) -> UUID:
    uuid = parse_uuid(structure_text(value))
    if uuid is None:
        raise Misfit(error="InvalidUuid", message=f"{quote(value)} is no UUID")
    return uuid


def _read_path(fields: PciPathFields) -> PciPath:
    try:
        return PciPath(fields.bus, fields.device, fields.function)
    except ValueError as error:
        text = f"{fields.bus}.{fields.device}.{fields.function}"
        raise Misfit(error="InvalidPciPath", message=str(error), detail={"pci_path": text}) from None


def _read_serial_number(value: Any, _: Any) -> SerialNumberBytes:
    if type(value) is not list:
        raise wrong_type(value, f"a list of {SERIAL_NUMBER_BYTES} numbers")
    check_length(len(value), Exactly(SERIAL_NUMBER_BYTES))
    return SerialNumberBytes(structure_integer(number, Range(0, 0xFF)) for number in value)


def spec_converter() -> cattrs.Converter:
    """A strict converter that knows keys, PCI paths, UUIDs and NVMe serial numbers."""
    converter = make_converter()
    converter.register_structure_hook(SpecKey, _read_key)
    converter.register_unstructure_hook(SpecKey, str)
    converter.register_structure_hook(UUID, _read_uuid)
    converter.register_unstructure_hook(UUID, str)
    converter.register_structure_hook(SerialNumberBytes, _read_serial_number)
    converter.register_unstructure_hook(SerialNumberBytes, list)
    read_fields = class_hook(PciPathFields, converter, unknown_fields="ignored")
    converter.register_structure_hook(PciPath, lambda value, _: _read_path(read_fields(value, PciPathFields)))
    converter.register_unstructure_hook(PciPath, attrs.asdict)
    return converter


@attrs.frozen(eq=False)
class Tagged:
    """Reads `{"type": tag, content: {…}}` as one of `classes`, strict at both levels.

    A class without fields travels as its tag alone.  `unknown` names the error of a tag that `classes` lacks.
    """

    classes: Mapping[str, type[Any]]
    content: str
    unknown: str
    readers: Mapping[str, Callable[[Any, Any], Any]] = attrs.field(repr=False)

    def __call__(self, value: Any, _: Any) -> Any:
        tag = self._read_tag(value)
        kind = self.classes[tag]
        takes_content = bool(attrs.fields(kind))
        for name in value:
            if name != "type" and not (takes_content and name == self.content):
                message = f"unknown field {quote(name)}"
                raise Misfit(error="UnknownField", message=message, path=(str(name),), detail={"field": name})
        if not takes_content:
            return kind()
        if self.content not in value:
            raise Misfit(error="MissingField", message="required and missing", path=(self.content,))
        try:
            return self.readers[tag](value[self.content], kind)
        except (Misfit, cattrs.BaseValidationError) as error:
            raise first_misfit(error, (self.content,)) from None

    def _read_tag(self, value: Any) -> str:
        if not isinstance(value, dict):
            raise wrong_type(value, "an object")
        twice = value.given_twice() if isinstance(value, JsonObject) else None
        if twice is not None:
            raise Misfit(error="DuplicateField", message="given twice", path=(twice,), detail={"field": twice})
        if "type" not in value:
            raise Misfit(error="MissingField", message="required and missing", path=("type",))
        tag = value["type"]
        if type(tag) is not str:
            raise attrs.evolve(wrong_type(tag, "a string"), path=("type",))
        if tag not in self.classes:
            message = f"{quote(tag)} is none of {', '.join(sorted(self.classes))}"
            raise Misfit(error=self.unknown, message=message, path=("type",), detail={"type": tag, "value": tag})
        return tag


def register_tagged(
    converter: cattrs.Converter, union: Any, classes: Mapping[str, type[Any]], *, content: str, unknown: str
) -> None:
    """Make `union` travel as `Tagged` says, and be written so."""
    readers = {tag: class_hook(kind, converter) for tag, kind in classes.items()}
    reader = Tagged(classes, content, unknown, readers)

    def writer(tag: str, kind: type[Any]) -> Callable[[Any], dict[str, Any]]:
        if not attrs.fields(kind):
            return lambda _: {"type": tag}
        write_content = make_dict_unstructure_fn(kind, converter)
        return lambda value: {"type": tag, content: write_content(value)}

    converter.register_structure_hook_func(lambda kind: kind == union, reader)
    for tag, kind in classes.items():
        converter.register_unstructure_hook(kind, writer(tag, kind))
