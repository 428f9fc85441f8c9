"""Inputs by the thousand, the same ones for the same seed: valid ones to begin with, damaged as `mutation` can."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from random import Random
from typing import Any, Final

import attrs

from migrate import cbor
from migrate.protocol.frames import HEADER, PREFACE, decode_body, decode_header, encode_raw
from migrate.protocol.messages import MESSAGES, RamBatch, RamContent, RamPages
from tests.fuzzing.mutation import any_plain, encode_flawed, mutate_bytes, mutate_plain
from tests.fuzzing.seeds import seeds

STRANGERS: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"SSH-2.0-x\r\n",
    PREFACE,
)

CHEAP: Final = 0.5
"""How many frames are only damaged in the bytes of their body, which takes a tenth of the time."""


GENEROUS: Final = cbor.Budget(items=1 << 20, memory=1 << 30)
"""For what we have written ourselves."""


@attrs.frozen
class Segment:
    """A frame of a stream, as plain data, and the bytes that follow it and are no frame."""

    type: int
    plain: Any
    content: bytes = b""

    def encode(self) -> bytes:
        return encode_raw(self.type, cbor.encode(self.plain)) + self.content


def segments_of(stream: bytes) -> tuple[Segment, ...]:
    """The frames of a valid stream."""
    segments = []
    while stream:
        head = stream[: HEADER.size]
        kind, _, length, _ = HEADER.unpack(head)
        body, stream = stream[HEADER.size : HEADER.size + length], stream[HEADER.size + length :]
        plain = cbor.decode(body, GENEROUS)
        size = 0
        if kind in (RamPages.TYPE, RamBatch.TYPE):
            message = decode_body(decode_header(head), body)
            assert isinstance(message, RamContent), "that is what has this type"
            size = message.content_bytes
        segments.append(Segment(kind, plain, stream[:size]))
        stream = stream[size:]
    return tuple(segments)


def inputs(target: str, seed: int, count: int) -> Iterator[bytes]:
    """`count` inputs of a target."""
    rng = Random(f"{target} {seed}")
    for _ in range(count):
        yield generate(target, rng)


def generate(target: str, rng: Random) -> bytes:
    """One input of a target."""
    return _GENERATORS[target](rng)


def damaged_body(rng: Random, plain: Any) -> bytes:
    """CBOR that is `plain` but for some damage."""
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        plain = mutate_plain(rng, plain)
    match rng.randrange(8):
        case 0 | 1:
            return encode_flawed(rng, plain)
        case 2:
            return mutate_bytes(rng, cbor.encode(plain))
        case _:
            return cbor.encode(plain)


@lru_cache
def _plain_seeds(target: str) -> tuple[tuple[int, Any], ...]:
    """Seeds that are one byte that chooses and one item."""
    return tuple((seed[0], cbor.decode(seed[1:])) for seed in seeds(target))


def _chosen(target: str) -> Callable[[Random], bytes]:
    def generate(rng: Random) -> bytes:
        choice, plain = rng.choice(_plain_seeds(target))
        if rng.random() < 0.03:
            choice = rng.randrange(256)
        if rng.random() < 0.02:
            plain = any_plain(rng)
        return bytes([choice]) + damaged_body(rng, plain)

    return generate


@lru_cache
def _frames() -> tuple[Segment, ...]:
    """Of every type: the golden ones, and those of conversations, which fit a machine."""
    frames = [segment for seed in seeds("frame") for segment in segments_of(seed)]
    for target in ("source", "target"):
        frames += [attrs.evolve(segment, content=b"") for seed in seeds(target) for segment in segments_of(seed[1:])]
    return tuple({segment.encode(): segment for segment in frames}.values())


@lru_cache
def _bodies() -> tuple[tuple[int, bytes], ...]:
    return tuple((segment.type, cbor.encode(segment.plain)) for segment in _frames())


def _frame(rng: Random) -> bytes:
    if rng.random() < CHEAP:
        kind, body = rng.choice(_bodies())
        return encode_raw(kind, mutate_bytes(rng, body))
    segment = rng.choice(_frames())
    kind = segment.type
    match rng.randrange(24):
        case 0:
            return mutate_bytes(rng, segment.encode())
        case 1:
            kind = rng.choice(list(MESSAGES))
        case 2:
            kind = rng.choice((0, 6, 0x7FFF, 0x8000, 0x8001, 0xFFFF, rng.randrange(1 << 16)))
        case 3:
            reserved, length, checksum = rng.choice((0, 0, 1, 0x8000)), rng.randrange(1 << 32), rng.randrange(1 << 64)
            return HEADER.pack(kind, reserved, length, checksum) + rng.randbytes(9)
        case 4:
            return rng.choice(STRANGERS) + rng.randbytes(rng.randrange(20))
        case 5:
            return encode_raw(kind, cbor.encode(any_plain(rng)))
    return encode_raw(kind, damaged_body(rng, segment.plain))


def _stream(rng: Random, segments: list[Segment]) -> bytes:
    """The segments with one or two of them damaged, lost, repeated, swapped, or replaced."""
    parts = [segment.encode() for segment in segments]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(parts))
        match rng.randrange(10):
            case 0:
                parts[at] = b""
            case 1:
                parts[at] += parts[at]
            case 2:
                other = rng.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = rng.choice(_frames()).encode()
            case 4:
                parts[at] += rng.choice(_frames()).encode()
            case 5:
                parts[at] = mutate_bytes(rng, parts[at])
            case _ if at < len(segments):
                parts[at] = encode_raw(segments[at].type, damaged_body(rng, segments[at].plain)) + segments[at].content
    return b"".join(parts)


def _image(rng: Random) -> bytes:
    return _stream(rng, list(segments_of(rng.choice(seeds("image")))))


@lru_cache
def _conversations(target: str) -> tuple[tuple[int, tuple[Segment, ...]], ...]:
    return tuple((seed[0], segments_of(seed[1:])) for seed in seeds(target))


def _conversation(target: str) -> Callable[[Random], bytes]:
    def generate(rng: Random) -> bytes:
        known = _conversations(target)
        flags, segments = known[0] if rng.random() < 0.6 else rng.choice(known)  # the first goes all the way
        if rng.random() < 0.05:
            flags = rng.randrange(16)
        return bytes([flags]) + _stream(rng, list(segments))

    return generate


_GENERATORS: Final[dict[str, Callable[[Random], bytes]]] = {
    "frame": _frame,
    "image": _image,
    "payload": _chosen("payload"),
    "spec": _chosen("spec"),
    "source": _conversation("source"),
    "target": _conversation("target"),
}
