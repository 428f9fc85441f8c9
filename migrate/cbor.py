"""The one door for CBOR: what we write is deterministic, what we read is strict.

`cbor2` reads generously: trailing bytes, tags that burn seconds, integers in long form, NaN.  So a pre-scan, iterative
and without allocation, walks the encoded items first and enforces what deterministic encoding (RFC 8949 §4.2) and our
messages need: no tags, no indefinite lengths, no floats, shortest-form integers, at most `DEPTH_MAX` levels, at most
`ITEMS_MAX` items, and exactly one item that ends where the bytes end.  Only then does `cbor2` see them.
"""

from typing import Any, Final

import attrs
import cbor2

DEPTH_MAX: Final = 16
ITEMS_MAX: Final = 65_536
"""Items in one message: the largest spec of ours has about 2,000; the scan of a full budget stays under 50 ms."""

MESSAGE_MAX: Final = 100
"""Characters that are kept of what `cbor2` says: of a key that stands twice, the one thing it repeats, these are 60."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL = 20, 21, 22
#: The smallest value that may use a length of 1, 2, 4 or 8 following bytes, by additional information 24-27.
_SHORTEST: Final = {24: (1, 24), 25: (2, 0x100), 26: (4, 0x1_0000), 27: (8, 0x1_0000_0000)}


@attrs.frozen(str=False)
class CborError(Exception):
    """Bytes are not the CBOR that we speak; `offset` is where that shows."""

    message: str
    offset: int

    def __str__(self) -> str:
        return f"at byte {self.offset}: {self.message}"


def encode(plain: Any) -> bytes:
    """Deterministic CBOR of plain data."""
    return cbor2.dumps(plain, canonical=True)


def decode(data: bytes) -> Any:
    """The plain data that `data` encodes.

    Raises:
        CborError: not one item of strict CBOR.
    """
    _scan(data)
    try:
        return cbor2.loads(
            data,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except cbor2.CBORDecodeError as error:
        raise CborError(str(error.__cause__ or error)[:MESSAGE_MAX], 0) from None


def _scan(data: bytes) -> None:
    """Walk the items of `data`; raise CborError at the first that is not allowed."""
    size = len(data)
    position = items = 0
    open_items = [1]  # how many items each open level still waits for, the outermost first
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        open_items[-1] -= 1
        items += 1
        if items > ITEMS_MAX:
            raise CborError(f"more than {ITEMS_MAX} items", position)
        if position >= size:
            raise CborError("the data ends inside an item", position)
        major, argument, position = _head(data, position, size)
        if major in (_BYTES, _TEXT):
            if argument > size - position:
                raise CborError("the data ends inside a string", position)
            position += argument
        elif major in (_ARRAY, _MAP):
            if len(open_items) > DEPTH_MAX:
                raise CborError(f"nested more than {DEPTH_MAX} levels deep", position)
            open_items.append(argument if major == _ARRAY else 2 * argument)
    if position != size:
        raise CborError(f"{size - position} bytes follow the item", position)


def _head(data: bytes, position: int, size: int) -> tuple[int, int, int]:
    """Major type, argument and end of the item head at `position`."""
    first = data[position]
    major, argument = first >> 5, first & 0x1F
    if major == _TAG:
        raise CborError("tags are not allowed", position)
    if major == _SIMPLE:
        if argument not in (_FALSE, _TRUE, _NULL):
            raise CborError("only false, true and null are allowed, no floats or other simple values", position)
        return major, 0, position + 1
    if argument < 24:
        return major, argument, position + 1
    if argument not in _SHORTEST:
        raise CborError("indefinite lengths are not allowed", position)
    length, least = _SHORTEST[argument]
    end = position + 1 + length
    if end > size:
        raise CborError("the data ends inside an item", position)
    value = int.from_bytes(data[position + 1 : end], "big")
    if value < least:
        raise CborError("an integer is not in its shortest form", position)
    return major, value, end
