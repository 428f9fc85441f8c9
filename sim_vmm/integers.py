"""Integers and byte strings with a stated width, as type annotations.

The annotation is data: whoever reads plain values from a peer or a file (`migrate.plain`) enforces it, and the lock of
published shapes (`migrate.published`) records it.
"""

from typing import Annotated, Final

import attrs


@attrs.frozen
class Range:
    """An integer from `low` to `high`, both included."""

    low: int
    high: int


@attrs.frozen
class Exactly:
    """A byte string of exactly `length` bytes."""

    length: int


@attrs.frozen
class AtMost:
    """A byte string, text or list of at most `length` bytes, characters or elements."""

    length: int


U8_MAX: Final = 0xFF
U16_MAX: Final = 0xFFFF
U32_MAX: Final = 0xFFFF_FFFF
U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF

U8 = Annotated[int, Range(0, U8_MAX)]
U16 = Annotated[int, Range(0, U16_MAX)]
U32 = Annotated[int, Range(0, U32_MAX)]
U64 = Annotated[int, Range(0, U64_MAX)]
I64 = Annotated[int, Range(-(2**63), 2**63 - 1)]
