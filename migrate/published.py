"""What has been published, and that it stays as it is.

    python -m migrate.published check [group ...]     exit 1 if a published shape has changed or is not frozen
    python -m migrate.published add   [group ...]     freeze what is new; nothing that exists is ever rewritten

A published shape is a promise to daemons already deployed.  Each one is described in a text file that is kept in the
repository: spec versions, payload schemas and protocol messages under `published/`.  The description is made from the
classes and from the converters that read them, so editing either shows.  Beside the shapes, whole documents are frozen
as bytes, each with a text twin, under `tests/golden/specs`: they hold what a description cannot, such as which defaults
are left out when written.

Groups are `specs`, `golden`, `payloads` and `messages`; all of them if none is named.
"""

import difflib
import importlib
import importlib.util
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import attrs
import cattrs

from migrate import cbor
from migrate.plain import Misfit, make_converter, misfits
from migrate.specs import BY_NUMBER, SAME_SHAPE, VERSIONS, SpecVersion
from migrate.specs.digest import spec_digest
from migrate.specs.offer import offer, variants_of
from migrate.specs.reading import parse_json
from migrate.specs.wire_types import SerialNumberBytes, Tagged
from sim_vmm.integers import AtMost, Exactly, Range
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.keys import PCI_DEVICE_MAX, PCI_FUNCTION_MAX

ROOT: Final = Path(__file__).resolve().parent.parent
FIXTURES: Final = ROOT / "tests" / "fixtures"

#: Contents of files by their path from the root of the repository.
Files = dict[str, bytes]

EDITED: Final = "a published shape is never edited; add a new version instead"

_SCALARS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "integer",
    str: "text",
    bytes: "bytes",
    UUID: "UUID",
    SpecKey: "component key",
    SerialNumberBytes: "list of 20 integers 0 to 255",
}
_PCI_PATH: Final = f"PCI path: bus 0 to 255, device 0 to {PCI_DEVICE_MAX}, function 0 to {PCI_FUNCTION_MAX}"


# Descriptions


def describe(annotation: Any, converter: cattrs.Converter) -> list[str]:
    """What `annotation` admits: one line, and indented below it the lines of what it holds.

    Raises:
        TypeError: a type that has no wire form.
    """
    reader = converter.get_structure_hook(annotation)
    if isinstance(reader, Tagged):
        return [f'tagged by "type", fields in {json.dumps(reader.content)}', *_indented(_arms(reader, converter))]
    if annotation in _SCALARS:
        return [_SCALARS[annotation]]
    if annotation is PciPath:
        return [f"{_PCI_PATH}, unknown fields {_manner(annotation, converter)}"]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ["one of " + ", ".join(json.dumps(member.value) for member in annotation)]
    if isinstance(annotation, type) and attrs.has(annotation):
        return [
            f"object, unknown fields {_manner(annotation, converter)}",
            *_indented(describe_fields(annotation, converter)),
        ]
    return _describe_generic(annotation, converter)


def _describe_generic(annotation: Any, converter: cattrs.Converter) -> list[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        first, *below = describe(arguments[0], converter)
        return [first + "".join(map(_note, arguments[1:])), *below]
    if origin in (types.UnionType, typing.Union) and len(arguments) == 2 and arguments[1] is type(None):
        first, *below = describe(arguments[0], converter)
        return [f"{first}, or null", *below]
    if origin is tuple and arguments[1:] == (Ellipsis,):
        first, *below = describe(arguments[0], converter)
        return [f"list of {first}", *below]
    if origin is dict:
        key, (first, *below) = describe(arguments[0], converter), describe(arguments[1], converter)
        return [f"map of {key[0]} to {first}", *below]
    raise TypeError(f"{annotation} has no description; teach migrate.published about it")


def describe_fields(kind: type[Any], converter: cattrs.Converter) -> list[str]:
    """One entry for each field of an attrs class, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    lines = []
    for field in attrs.fields(kind):
        first, *below = describe(hints[field.name], converter)
        lines += [f"{field.name}: {first}{_default(field, converter)}", *below]
    return lines or ["no fields"]


def _arms(reader: Tagged, converter: cattrs.Converter) -> Iterator[str]:
    for tag, kind in sorted(reader.classes.items()):
        yield f"{tag}, unknown fields {_manner(kind, converter)}"
        yield from _indented(describe_fields(kind, converter))


def _note(note: object) -> str:
    match note:
        case Range(low, high):
            return f" {low} to {high}"
        case Exactly(length):
            return f", exactly {length}"
        case AtMost(length):
            return f", at most {length}"
        case _:
            return ""


def _default(field: "attrs.Attribute[Any]", converter: cattrs.Converter) -> str:
    if field.default is attrs.NOTHING:
        return ""
    if hasattr(field.default, "takes_self"):  # a factory: attrs hides its class from type checkers
        return " (optional)"
    return f" (optional, {json.dumps(converter.unstructure(field.default))} if missing)"


def _manner(kind: type[Any], converter: cattrs.Converter) -> str:
    """What happens to unknown fields: asks the reader itself, by handing it one that nobody knows."""
    try:
        converter.structure({"no such field": None}, kind)
    except (Misfit, cattrs.BaseValidationError) as error:
        if any(misfit.error == "UnknownField" for misfit in misfits(error, ())):
            return "refused"
    return "ignored"


def _indented(lines: Sequence[str] | Iterator[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _text(*lines: str) -> bytes:
    return ("\n".join(lines) + "\n").encode()


# Groups


def describe_version(version: SpecVersion) -> bytes:
    """A spec version: its document, and what its component kinds mean without saying it."""
    implied = [
        f"{tag}: {name} is always {json.dumps(value)}"
        for tag, kind in sorted(version.kinds.items())
        for name, value in sorted(kind.implied.items())
    ]
    document = describe(version.document, version.converter)
    return _text(f"spec version {version.number}", "", *document, *([""] if implied else []), *implied)


def describe_class(title: str, kind: type[Any]) -> bytes:
    """A payload schema or message: its constants and its fields."""
    constants = [
        f"{name} = {getattr(kind, name)}"
        for name, hint in typing.get_type_hints(kind).items()
        if typing.get_origin(hint) is typing.ClassVar and not name.startswith("_")
    ]
    return _text(title, *constants, "", *describe(kind, make_converter()))


def specs(versions: Sequence[SpecVersion] = VERSIONS) -> Files:
    return {f"published/specs/v{version.number}.txt": describe_version(version) for version in versions}


def payloads() -> Files:
    registry: Mapping[Any, type[Any]] = _registry("sim_vmm.payloads", "PAYLOADS")
    return {
        f"published/payloads/{schema.kind}.v{schema.version}.txt": describe_class(f"payload {schema}", kind)
        for schema, kind in registry.items()
    }


def messages() -> Files:
    registry: Mapping[int, type[Any]] = _registry("migrate.protocol.messages", "MESSAGES")
    return {
        f"published/messages/{kind.__name__}.txt": describe_class(f"message {number}: {kind.__name__}", kind)
        for number, kind in registry.items()
    }


def _registry(module: str, name: str) -> Mapping[Any, type[Any]]:
    """A registry of classes; empty as long as its module is unwritten."""
    if importlib.util.find_spec(module) is None:
        return {}
    registry: Mapping[Any, type[Any]] = getattr(importlib.import_module(module), name)
    return registry


def golden() -> Files:
    """Every valid fixture in every version that can carry it: the bytes that travel, and a text twin."""
    files: Files = {}
    for entry in json.loads((FIXTURES / "index.json").read_bytes())["valid_specs"]:
        version = BY_NUMBER[SAME_SHAPE.get(entry["api_version"], entry["api_version"])]
        spec = version.decode(parse_json((FIXTURES / entry["file"]).read_bytes()))
        for variant in variants_of(offer(spec)):
            name = f"tests/golden/specs/{entry['name']}.v{variant.version}"
            files[f"{name}.cbor"] = variant.document
            files[f"{name}.txt"] = text_twin(variant.version, variant.document)
    return files


def text_twin(number: int, document: bytes) -> bytes:
    """A frozen document for the eye: its plain data, and the digest of the machine it describes."""
    plain = cbor.decode(document)
    text = json.dumps(plain, indent=2, ensure_ascii=False)
    text = re.sub(r"\[[\s\d,]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    digest = spec_digest(BY_NUMBER[number].decode(plain)).hex()
    return _text(f"spec version {number}, {len(document)} bytes, digest {digest}", "", text)


GROUPS: Final[dict[str, tuple[str, Callable[[], Files]]]] = {
    "specs": ("published/specs", specs),
    "golden": ("tests/golden/specs", golden),
    "payloads": ("published/payloads", payloads),
    "messages": ("published/messages", messages),
}


# Commands


def check(directory: str, wanted: Files, root: Path = ROOT) -> Iterator[str]:
    """Every difference between what is frozen in `directory` and what the code publishes now."""
    for name, content in sorted(wanted.items()):
        path = root / name
        if not path.exists():
            yield f"{name}: not frozen yet: run make golden"
        elif path.read_bytes() != content:
            yield f"{_difference(name, path.read_bytes(), content)}published {name} changed: {EDITED}"
    frozen = {path.relative_to(root).as_posix() for path in (root / directory).glob("*.*")}
    for name in sorted(frozen - set(wanted)):
        yield f"published {name} disappeared: what is published stays readable; {EDITED}"


def _difference(name: str, before: bytes, after: bytes) -> str:
    if not name.endswith(".txt"):
        return ""  # its text twin shows the difference
    old, new = (content.decode().splitlines(keepends=True) for content in (before, after))
    return "".join(difflib.unified_diff(old, new, f"{name} (published)", f"{name} (now)"))


def add(wanted: Files, root: Path = ROOT) -> Iterator[str]:
    """Write what is not frozen yet, and name it."""
    for name, content in sorted(wanted.items()):
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            yield name


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    command, *names = arguments or ("",)
    if command not in ("check", "add") or not set(names) <= set(GROUPS):
        print(__doc__)
        return 2
    groups = [GROUPS[name] for name in names or GROUPS]
    if command == "add":
        for _, wanted in groups:
            for name in add(wanted(), root):
                print(f"frozen: {name}")
        return 0
    problems = [problem for directory, wanted in groups for problem in check(directory, wanted(), root)]
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
