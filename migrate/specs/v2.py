"""Spec version 2 (API 2.0.0, PROGRAMMABLE_SMBIOS), frozen.

Version 1 with an optional SMBIOS table.  The top level no longer refuses unknown fields, so a feature that a later
version put there would be lost on a reader of this one without a word: new things belong into components.
"""

from typing import Any, Final

import attrs
import cattrs

from migrate.plain import class_hook
from migrate.specs import v1
from migrate.specs.version import Kind, SpecVersion
from sim_vmm.integers import U64
from sim_vmm.spec.keys import SpecKey


@attrs.frozen(kw_only=True)
class SmbiosType1Input:
    manufacturer: str
    product_name: str
    serial_number: str
    version: U64


@attrs.frozen(kw_only=True)
class Document:
    """`smbios`: null or missing if unset; written as null.  Other unknown fields are ignored."""

    board: v1.Board
    components: dict[SpecKey, v1.Component]
    smbios: SmbiosType1Input | None = None


def document_converter(document: type[Any], kinds: dict[str, Kind], component: Any) -> cattrs.Converter:
    """As version 1's, with a top level that ignores unknown fields."""
    converter = v1.document_converter(kinds, component)
    converter.register_structure_hook(document, class_hook(document, converter, unknown_fields="ignored"))
    return converter


VERSION: Final = SpecVersion(
    number=2,
    document=Document,
    kinds=v1.KINDS,
    board=v1.BOARD,
    converter=document_converter(Document, v1.KINDS, v1.Component),
)
