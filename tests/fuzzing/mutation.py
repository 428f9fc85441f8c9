"""Damage to valid input, by seeded chance: in its bytes, in what it says, and in how its CBOR says it.

Everything here takes a `random.Random`, so the same seed makes the same input on every machine; a property test hands
in one that hypothesis draws, and shrinks.
"""

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

EDGES: Final = (0, 1, 2, 23, 24, 127, 128, 255, 256, 4095, 4096, 65535, 65536)
WIDE: Final = (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1)
INTEGERS: Final = (*EDGES, *WIDE, -1, -24, -25, -256, -(2**31), -(2**63), -(2**64))
TEXTS: Final = (
    "",
    "x",
    "com1",
    "\x00",
    "\n\x1b[2J",
    "é" * 40,
    "\U0001f5a5" * 6,
    "a" * 129,
    "a" * 4097,
    "../../etc",
    "%s{0}",
)
SIZES: Final = (0, 1, 15, 16, 17, 31, 33, 64, 255)
LARGE: Final = 0.004
"""How many changes make something large: they cost as much as hundreds of others."""


# What it says


def mutate_plain(rng: Random, plain: Any) -> Any:
    """Plain data that differs from `plain` in one place: a value, a type, a key, a count, a level."""
    return _at_random_place(rng, plain, (_large,) if rng.random() < LARGE else _CHANGES)


def _at_random_place(rng: Random, plain: Any, changes: Sequence[Callable[[Random, Any], Any]]) -> Any:
    """A copy of `plain` with one node, chosen by walking down at random, replaced by a change of it."""
    if isinstance(plain, dict) and plain and rng.random() < 0.85:
        key = rng.choice(list(plain))
        return {**plain, key: _at_random_place(rng, plain[key], changes)}
    if isinstance(plain, list) and plain and rng.random() < 0.8:
        index = rng.randrange(len(plain))
        return [*plain[:index], _at_random_place(rng, plain[index], changes), *plain[index + 1 :]]
    return rng.choice(changes)(rng, plain)


def any_plain(rng: Random) -> Any:
    """A value of any type, small or odd."""
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(INTEGERS)
        case 2:
            return rng.choice(TEXTS)
        case 3:
            return rng.randbytes(rng.choice(SIZES))
        case 4:
            return rng.choice((True, False, None))
        case 5:
            return [any_plain(rng) for _ in range(rng.randrange(3))]
        case 6:
            return {rng.choice(TEXTS): any_plain(rng) for _ in range(rng.randrange(3))}
        case _:
            return []


def _replace(rng: Random, _: Any) -> Any:
    return any_plain(rng)


def _nudge(rng: Random, value: Any) -> Any:
    """A neighbour of the same type."""
    match value:
        case bool():
            return not value
        case int():
            near = value + rng.choice((-4096, -1, 1, 4096))
            return max(
                -(2**64), min(2**64 - 1, rng.choice((near, value ^ 1 << rng.randrange(64), rng.choice(INTEGERS))))
            )
        case str():
            return rng.choice((value + "x", value[:-1], value * 2, value.upper(), rng.choice(TEXTS)))
        case bytes():
            return rng.choice(
                (value + b"\x00", value[:-1], value[::-1], rng.randbytes(len(value)), mutate_bytes(rng, value))
            )
        case list():
            return _reshape(rng, value)
        case dict():
            return _rekey(rng, value)
        case _:
            return any_plain(rng)


def _reshape(rng: Random, value: Any) -> Any:
    """Another number or order of elements, up to thousands."""
    if not isinstance(value, list) or not value:
        return [any_plain(rng)] * rng.choice((1, 2, 65))
    shuffled = rng.sample(value, len(value))
    return rng.choice(
        (
            shuffled,
            value[1:],
            [*value, rng.choice(value)],
            value[::-1],
            value * rng.choice((2, 3, 17)),
            [*value, any_plain(rng)],
        )
    )


def _rekey(rng: Random, value: Any) -> Any:
    """A key too many, too few, or of another name."""
    if not isinstance(value, dict) or not value:
        return {rng.choice(TEXTS): any_plain(rng)}
    key = rng.choice(list(value))
    rest = {other: item for other, item in value.items() if other != key}
    return rng.choice((rest, {**value, rng.choice(TEXTS): any_plain(rng)}, {**rest, str(key) + "s": value[key]}))


def _wrap(rng: Random, value: Any) -> Any:
    for _ in range(rng.choice((1, 2, 14, 15, 16, 17, 40))):
        value = [value] if rng.random() < 0.5 else {"": value}
    return value


def _large(rng: Random, value: Any) -> Any:
    """Something large of one kind: what memory is spent on."""
    many = rng.choice((300, 3000, 20_000))
    return rng.choice(
        (
            lambda: [[]] * many,
            lambda: [{}] * many,
            lambda: [{"": 0}] * many,
            lambda: [{"ab": 1000, "cd": -70_000}] * (many // 4),
            lambda: {f"{number:x}": number for number in range(many)},
            lambda: ["é\u1234"] * many,
            lambda: "a" * many + "\U0001f5a5",
            lambda: b"\x00" * (many * 10),
            lambda: [2**64 - 1] * many,
            lambda: [value] * (many // 10),
        )
    )()


_CHANGES: Final = (_replace, _nudge, _nudge, _nudge, _nudge, _reshape, _rekey, _wrap)


# How its CBOR says it


def encode_flawed(rng: Random, plain: Any) -> bytes:
    """CBOR of `plain` in which one item is not as deterministic encoding has it, or lies about its length."""
    count = _count(plain)
    return b"".join(_Flawed(rng, rng.randrange(count)).items(plain))


def _count(plain: Any) -> int:
    if isinstance(plain, dict):
        return 1 + len(plain) + sum(map(_count, plain.values()))
    return 1 + sum(map(_count, plain)) if isinstance(plain, list) else 1


class _Flawed:
    """Writes items; the one whose turn is `at` is flawed."""

    def __init__(self, rng: Random, at: int) -> None:
        self.rng, self.at = rng, at

    def items(self, plain: Any) -> list[bytes]:
        flawed = self.at == 0
        self.at -= 1
        match plain:
            case bool() | None:
                item = {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[plain]
                return [self._float() if flawed else item]
            case int():
                return [self._head(int(plain < 0), -1 - plain if plain < 0 else plain, flawed)]
            case bytes():
                return [self._head(2, len(plain), flawed), plain]
            case str():
                data = plain.encode()
                return [self._head(3, len(data), flawed), data]
            case list():
                return [self._head(4, len(plain), flawed), *(part for item in plain for part in self.items(item))]
            case dict():
                pairs = [(key, self.items(key), self.items(item)) for key, item in plain.items()]
                if flawed and pairs and self.rng.random() < 0.5:  # a key twice, or keys in another order
                    pairs = rng_pairs(self.rng, pairs)
                    flawed = False
                parts = [part for _, key, item in pairs for part in (*key, *item)]
                return [self._head(5, len(pairs), flawed), *parts]
            case _:
                raise AssertionError(f"{plain!r} is no plain data")

    def _head(self, major: int, argument: int, flawed: bool) -> bytes:
        first = major << 5
        if not flawed:
            return head(first, argument)
        match self.rng.randrange(8):
            case 0:  # longer than need be
                width = self.rng.choice((24, 25, 26, 27))
                size = 1 << width - 24
                return bytes([first | width]) + (argument & (1 << 8 * size) - 1).to_bytes(size, "big")
            case 1:  # indefinite, and nowhere a break
                return bytes([first | 31])
            case 2:  # a tag before it
                return head(0xC0, self.rng.choice((0, 1, 2, 3, 4, 5, 21, 24, 28, 29, 30, 35, 37, 258, 55799))) + head(
                    first, argument
                )
            case 3:
                return self._float()
            case 4:  # a length that is a lie
                return head(first, self.rng.choice((argument + 1, max(argument, 1) - 1, *WIDE[:4], 2**64 - 1, 65_536)))
            case 5:  # reserved
                return bytes([first | self.rng.choice((28, 29, 30))])
            case 6:  # another type of the same length
                return head(self.rng.randrange(6) << 5, argument)
            case _:
                return bytes([self.rng.randrange(256)]) + head(first, argument)

    def _float(self) -> bytes:
        return self.rng.choice(
            (
                b"\xf9\x7e\x00",
                b"\xf9\x3c\x00",
                b"\xfa\x7f\x80\x00\x00",
                b"\xfb" + bytes(8),
                b"\xf7",
                b"\xf8\xff",
                b"\xff",
                b"\xe0",
            )
        )


def rng_pairs(rng: Random, pairs: list[Any]) -> list[Any]:
    """The pairs of a map in another order, or with one of them twice."""
    return rng.sample(pairs, len(pairs)) if rng.random() < 0.3 else [*pairs, rng.choice(pairs)]


def head(first: int, argument: int) -> bytes:
    """The shortest head with the major type of `first`; an argument that no head holds becomes the largest."""
    for code, form, end in ((None, "", 24), (24, "B", 1 << 8), (25, ">H", 1 << 16), (26, ">I", 1 << 32)):
        if argument < end:
            return bytes([first | argument]) if code is None else bytes([first | code]) + struct.pack(form, argument)
    return bytes([first | 27]) + min(argument, 2**64 - 1).to_bytes(8, "big")


# Its bytes


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """`data` with one to four places damaged."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(damaged) + 1)
        match rng.randrange(9):
            case 0 | 1 if damaged:
                damaged[place % len(damaged)] ^= 1 << rng.randrange(8)
            case 2 if damaged:
                damaged[place % len(damaged)] = rng.choice(
                    (0, 0x1B, 0x5F, 0x7F, 0x80, 0x9B, 0x9F, 0xBB, 0xBF, 0xC4, 0xF9, 0xFF)
                )
            case 3:
                del damaged[place:]
            case 4:
                damaged[place:place] = rng.randbytes(rng.choice((1, 2, 9)))
            case 5:
                del damaged[place : place + rng.choice((1, 2, 8))]
            case 6:
                damaged[place:place] = damaged[place : place + rng.choice((1, 8, 64))]
            case 7:
                damaged[place : place + 8] = rng.choice(WIDE).to_bytes(8, "big")
            case _:
                damaged += rng.randbytes(rng.choice((1, 16, 300)))
    return bytes(damaged)
