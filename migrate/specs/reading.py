"""From JSON text to plain data, and what is said when a document does not parse.

Layer `parse` of spec-validation §1.  Two things are accepted by the published formats although they lose something: an
unknown field where the format is tolerant, and two spellings of one component key.  `ignored` finds them, so that a
person can be told.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import attrs

from migrate.plain import JsonObject, Misfit, quote
from sim_vmm.spec import SpecKey


@attrs.frozen(kw_only=True, str=False)
class ParseError(Exception):
    """A document is not what its version says.

    Attributes:
        error: the rule's name; see `migrate.plain.Misfit` for most of them.
        component: the key of the component at fault, if it is one.
        field: the field at fault: inside the component, or from the top of the document.
        message: where, what, and what instead, in one line.
        detail: further facts by name.
    """

    layer: ClassVar[str] = "parse"
    error: str
    component: str | None
    field: str | None
    message: str
    detail: Mapping[str, object] = attrs.field(factory=dict)

    def __str__(self) -> str:
        return self.message

    @classmethod
    def from_misfit(cls, misfit: Misfit) -> Self:
        component: str | None
        match misfit.path:
            case ("components", key, *steps):
                inside_body = steps[:1] == ["component"] and len(steps) > 1
                component, field_steps = str(key), steps[1:] if inside_body else steps
            case _:
                component, field_steps = None, list(misfit.path)
        return cls(
            error=misfit.error,
            component=component,
            field=".".join(map(str, field_steps)) or None,
            message=str(misfit),
            detail=misfit.detail,
        )


def _refuse_constant(name: str) -> Any:
    raise Misfit(error="NotJson", message=f"{name} is no JSON number")


def parse_json(text: str | bytes) -> Any:
    """Plain data from JSON text, in UTF-8 if it comes as bytes; objects come as `JsonObject`.

    Raises:
        ParseError: NotJson, with line and column.
    """
    try:
        if isinstance(text, bytes):  # json.loads would guess among UTF-8, UTF-16 and UTF-32, and skip a BOM
            text = text.decode()
        return json.loads(text, object_pairs_hook=JsonObject, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}, column {error.colno}: {error.msg}"
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8"
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        problem = str(error)
    except Misfit as error:
        problem = error.message
    raise ParseError(error="NotJson", component=None, field=None, message=f"not JSON: {problem}") from None


def ignored(document: Mapping[str, Any], known_fields: frozenset[str]) -> Iterator[str]:
    """What a document that parses says in vain: one line for each thing that its format tells readers to ignore."""
    for name in sorted(set(document) - known_fields):
        yield f"top-level field {quote(name)} is unknown to this version and was ignored"
    components = document["components"]
    spellings: dict[SpecKey, str] = {}
    for text, envelope in components.pairs if isinstance(components, JsonObject) else components.items():
        key = SpecKey.parse(text)
        if key in spellings:
            yield f"component key {quote(text)} is given twice; the later one was taken"
        spellings[key] = text
        body = envelope["component"]
        places = [("pci_path", body.get("pci_path", {}), {"bus", "device", "function"})]
        places += [(f"order[{index}]", entry, {"id"}) for index, entry in enumerate(body.get("order", ()))]
        for place, value, known in places:
            for name in sorted(set(value) - known):
                yield f"component {quote(text)}, {place}: field {quote(name)} is unknown and was ignored"
