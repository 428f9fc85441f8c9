"""The one door for CBOR: what we write is deterministic, what we read is strict.

`cbor2` reads generously: trailing bytes, tags that burn seconds, integers in long form, NaN.  So a pre-scan, iterative
and without allocation, walks the encoded items first and enforces what deterministic encoding (RFC 8949 §4.2) and our
messages need: no tags, no indefinite lengths, no floats, shortest-form integers, at most `DEPTH_MAX` levels, and
exactly one item that ends where the bytes end.  It also counts what the items will cost, from their heads alone, and
refuses more than a `Budget` of them before there are any.  Only then does `cbor2` see them.
"""

from typing import Any, Final

import attrs
import cbor2

DEPTH_MAX: Final = 16

MEBIBYTE: Final = 1 << 20

MESSAGE_MAX: Final = 100
"""Characters that are kept of what `cbor2` says: of a key that stands twice, the one thing it repeats, these are 60."""

ITEM_BYTES: Final = 96
"""What an item may cost in memory beside its text or bytes, both as plain data and in an object made of it.

Worst are maps of few keys: 1 item in 3 is one, and takes 184 bytes.  A fuzzer measures what is really allocated.
"""

WIDEST_CHARACTER: Final = 4
"""Bytes that CPython takes for every character of a text of which a single one is outside the first plane."""


PIECE_BYTES: Final = 1 << 14

CUT_SHORT: Final = "the data ends inside an item"
NOT_SHORTEST: Final = "an integer is not in its shortest form"


@attrs.frozen(str=False)
class CborError(Exception):
    """Bytes are not the CBOR that we speak; `offset` is where that shows."""

    message: str
    offset: int

    def __str__(self) -> str:
        return f"at byte {self.offset}: {self.message}"


@attrs.frozen(kw_only=True)
class Budget:
    """What one encoded item, with all that it contains, may cost its reader.

    Attributes:
        items: how many items it may contain: this bounds the time.
        memory: bytes that the plain data and the objects made of it may take, estimated from above.
    """

    items: int
    memory: int

    def check(self, items: int, memory: int, offset: int) -> None:
        """Raise CborError unless so much may be spent on what lies before `offset`."""
        if items > self.items:
            raise CborError(f"more than {self.items} items", offset)
        if memory > self.memory:
            raise CborError(f"it would take more than {self.memory} bytes of memory", offset)


DOCUMENT: Final = Budget(items=8192, memory=16 * MEBIBYTE)
"""For specs and payloads, which come inside frames of at most 8 MiB: the largest spec of ours has about 2,000 items."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL = 20, 21, 22
#: The smallest value that may use a length of 1, 2, 4 or 8 following bytes, by additional information 24-27.
_SHORTEST: Final = {24: (1, 24), 25: (2, 0x100), 26: (4, 0x1_0000), 27: (8, 0x1_0000_0000)}
_SHORT: Final = 24


def _bytes_of_short_item(first: int) -> int:
    """The length of the whole item that begins with this byte, if the byte tells it and the item contains no others."""
    major, argument = first >> 5, first & 0x1F
    if major == _SIMPLE:
        return int(argument in (_FALSE, _TRUE, _NULL))
    if argument >= _SHORT or major in (_ARRAY, _MAP, _TAG):
        return 0
    return 1 + argument if major in (_BYTES, _TEXT) else 1


_SHORT_ITEMS: Final = tuple(map(_bytes_of_short_item, range(256)))
_FIRST_TEXT: Final = _TEXT << 5

#: The length of the whole item, for first bytes of integers of 4 or 8 bytes; and the first half of what follows, which
#: must not be all zero, or a shorter form would do.
_LONG_INTEGERS: Final = {0x1A: (5, bytes(2)), 0x1B: (9, bytes(4)), 0x3A: (5, bytes(2)), 0x3B: (9, bytes(4))}


def encode(plain: Any) -> bytes:
    """Deterministic CBOR of plain data."""
    return cbor2.dumps(plain, canonical=True)


def decode(data: bytes, budget: Budget = DOCUMENT) -> Any:
    """The plain data that `data` encodes.

    Raises:
        CborError: not one item of strict CBOR, or one that costs more than `budget`.
    """
    check(data, budget)
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


def check(data: bytes, budget: Budget = DOCUMENT) -> None:
    """Walk the items of `data`; raise CborError at the first that is not allowed or costs more than `budget`."""
    size = len(data)
    position = 0
    left = 1  # how many items the innermost open level still waits for
    outer: list[int] = []  # the same of the levels round it, the outermost first
    items, memory = 1, ITEM_BYTES
    while left or outer:
        if not left:
            left = outer.pop()
            continue
        left -= 1
        if position >= size:
            raise CborError(CUT_SHORT, position)
        first = data[position]
        short = _SHORT_ITEMS[first]
        if short:  # most items are: this branch and the next decide how fast the scan is
            position += short
            if first >= _FIRST_TEXT:
                memory += WIDEST_CHARACTER * short
            continue
        if first in _LONG_INTEGERS:
            position = _end_of_long_integer(data, first, position)
            continue
        major, follow, position = _head(data, position, size)
        if major in (_BYTES, _TEXT):
            is_narrow = major == _BYTES or _is_ascii(data, position, position + follow)
            memory += follow if is_narrow else WIDEST_CHARACTER * follow
            position += follow
        elif major in (_ARRAY, _MAP):
            if len(outer) >= DEPTH_MAX:
                raise CborError(f"nested more than {DEPTH_MAX} levels deep", position)
            items += follow
            memory += follow * ITEM_BYTES
            outer.append(left)
            left = follow
        budget.check(items, memory, position)
    budget.check(items, memory, position)
    if position > size:
        raise CborError(CUT_SHORT, size)
    if position != size:
        raise CborError(f"{size - position} bytes follow the item", position)


def _is_ascii(data: bytes, start: int, end: int) -> bool:
    """Whether a text is; looked at piece by piece, so that nothing large is copied."""
    return all(data[piece : min(piece + PIECE_BYTES, end)].isascii() for piece in range(start, end, PIECE_BYTES))


def _end_of_long_integer(data: bytes, first: int, position: int) -> int:
    """May lie beyond the end of `data`."""
    length, zeros = _LONG_INTEGERS[first]
    if data.startswith(zeros, position + 1):
        raise CborError(NOT_SHORTEST, position)
    return position + length


def _head(data: bytes, position: int, size: int) -> tuple[int, int, int]:
    """Major type, how many bytes or items follow, and the end of the item head at `position`.

    Of an integer, nothing follows.  What follows takes at least a byte each, and so many bytes there must be.
    """
    first = data[position]
    major, argument = first >> 5, first & 0x1F
    if major == _TAG:
        raise CborError("tags are not allowed", position)
    if major == _SIMPLE:
        raise CborError("only false, true and null are allowed, no floats or other simple values", position)
    end = position + 1
    if argument >= _SHORT:
        argument, end = _long_argument(data, argument, position, size)
    if major in (_UNSIGNED, _NEGATIVE):
        return major, 0, end
    follow = 2 * argument if major == _MAP else argument
    if follow > size - end:
        raise CborError(CUT_SHORT, position)
    return major, follow, end


def _long_argument(data: bytes, information: int, position: int, size: int) -> tuple[int, int]:
    """The argument in the bytes that follow the first of the head at `position`, and where they end."""
    if information not in _SHORTEST:
        raise CborError("indefinite lengths are not allowed", position)
    length, least = _SHORTEST[information]
    end = position + 1 + length
    if end > size:
        raise CborError(CUT_SHORT, position)
    value = int.from_bytes(data[position + 1 : end], "big")
    if value < least:
        raise CborError(NOT_SHORTEST, position)
    return value, end
