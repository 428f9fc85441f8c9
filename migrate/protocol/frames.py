"""Frames: how messages lie in the byte stream.

A connection begins, in each direction, with `PREFACE`, so that a stranger is told from a damaged stream.  Then frames:

    0       2       4               8                               16
    | type  | zero  | body length   | xxh3-64 of bytes 0-7 and body | body …

Integers are big-endian.  The length is checked against the cap of its type before anything is read or allocated.  The
body is deterministic CBOR (`migrate.cbor`).  The page contents that follow a `RamBatch` are no frame: their length
follows from the batch.  The checksums find faults; they are no defence against an attacker.
"""

import struct
from functools import cache
from typing import Any, Final

import attrs
import xxhash

from migrate import cbor
from migrate.errors import NotOurProtocol, RemoteProtocolError
from migrate.plain import Misfit, make_converter, quote, structure, warm_up
from migrate.protocol.languages import language_of
from migrate.protocol.messages import (
    ITEMS_MAX,
    MESSAGES,
    OPTIONAL,
    RAM_BATCH_ITEMS_MAX,
    RAM_BATCH_PAGES_MAX,
    Message,
    RamBatch,
    RamPages,
)
from sim_vmm.memory import PAGE_SIZE

PREFACE: Final = b"\x89MIG\r\n\x1a\n"
"""Not text, not valid UTF-8, and destroyed by anything that translates line ends or strips the eighth bit."""

HEADER: Final = struct.Struct("!HHIQ")
_CHECKED: Final = struct.Struct("!HHI")

UNKNOWN_OPTIONAL_BODY_MAX: Final = 1024 * 1024
"""What we are willing to skip of a type that we do not know."""

SMALL_FRAME_BYTES: Final = 64 * 1024
"""What decoding any frame may take, however small its cap: fixed costs, which are those of an error mostly."""

_CONVERTER = make_converter()


def memory_max(kind: type[Message]) -> int:
    """Bytes that decoding a body of `kind` may allocate: twice the cap of its type.

    That of a RAM batch counts the contents, which are most of it: its extents are many, and small when encoded.
    """
    contents = RAM_BATCH_PAGES_MAX * PAGE_SIZE if kind is RamBatch else 0
    return 2 * (kind.BODY_MAX + contents) + SMALL_FRAME_BYTES


def _budget_of(kind: type[Message]) -> cbor.Budget:
    items = RAM_BATCH_ITEMS_MAX if kind is RamBatch else ITEMS_MAX
    return cbor.Budget(items=items, memory=memory_max(kind))


RAM_TYPES: Final = frozenset((RamBatch.TYPE, RamPages.TYPE))

_BUDGETS: Final = {number: _budget_of(kind) for number, kind in MESSAGES.items()}


@attrs.frozen
class Header:
    """A frame's head, checked: the type is known or may be skipped, and the length is within its cap."""

    type: int
    length: int
    checksum: int

    def __bytes__(self) -> bytes:
        return HEADER.pack(self.type, 0, self.length, self.checksum)

    @property
    def skippable(self) -> bool:
        return self.type not in MESSAGES


def encode_frame(message: Message) -> bytes:
    """Header and body of `message`, ready for the wire.

    Raises:
        ValueError: the body is larger than its type allows, or costs more than may be read; nothing of it may be sent.
    """
    body = _body_of(message)
    if len(body) > message.BODY_MAX:
        raise ValueError(
            f"{type(message).__name__} needs {len(body)} bytes; its frame holds at most {message.BODY_MAX}"
        )
    if message.TYPE not in RAM_TYPES:  # which are many, and cannot have too much in them
        try:
            cbor.check(body, _BUDGETS[message.TYPE])
        except cbor.CborError as error:
            raise ValueError(f"{type(message).__name__} could not be read: {error}") from None
    return encode_raw(message.TYPE, body)


def encode_again(message: Message) -> bytes:
    """`encode_frame` of a message that has been in a frame before: it fits one."""
    return encode_raw(message.TYPE, _body_of(message))


def _body_of(message: Message) -> bytes:
    return cbor.encode(_CONVERTER.unstructure(message))


def encode_raw(frame_type: int, body: bytes) -> bytes:
    """A frame of any type round any body."""
    return HEADER.pack(frame_type, 0, len(body), _checksum(frame_type, body)) + body


def decode_header(data: bytes) -> Header:
    """The head of a frame from its 16 bytes.

    Raises:
        RemoteProtocolError: an unknown mandatory type, or a body larger than its type allows.
    """
    frame_type, zero, length, checksum = HEADER.unpack(data)
    if zero != 0:
        raise RemoteProtocolError(f"frame header {data[:4].hex(' ')} … is damaged: bytes 2 and 3 must be zero")
    known = MESSAGES.get(frame_type)
    if known is None and frame_type < OPTIONAL:
        raise RemoteProtocolError(
            f"frame of unknown mandatory type {frame_type:#06x}; known are {', '.join(map(hex, sorted(MESSAGES)))}"
        )
    name, cap = (known.__name__, known.BODY_MAX) if known else (f"{frame_type:#06x}", UNKNOWN_OPTIONAL_BODY_MAX)
    if length > cap:
        raise RemoteProtocolError(f"frame {name} announces {length} bytes; at most {cap} are allowed")
    return Header(frame_type, length, checksum)


def decode_body(header: Header, body: bytes) -> Message:
    """The message in a frame of a known type.

    Raises:
        RemoteProtocolError: a wrong checksum, CBOR that we do not speak, or a shape that is not the message's.
    """
    check_body(header, body)
    kind = MESSAGES[header.type]
    try:
        plain = cbor.decode(body, _BUDGETS[header.type])
    except cbor.CborError as error:
        raise RemoteProtocolError(f"frame {kind.__name__}, {error}") from None
    try:
        message: Any = structure(_CONVERTER, plain, kind)
    except Misfit as misfit:
        raise RemoteProtocolError(f"frame {kind.__name__}, {misfit}") from None
    return message  # type: ignore[no-any-return]  # `kind` is one of the message classes


def check_body(header: Header, body: bytes) -> None:
    """Raise RemoteProtocolError unless header and body belong together.

    A frame that is skipped is checked too: a damaged type may look like one that may be skipped.
    """
    if _checksum(header.type, body) != header.checksum:
        name = f"{header.type:#06x}" if header.skippable else MESSAGES[header.type].__name__
        raise RemoteProtocolError(f"frame {name}: checksum does not match its {len(body)} bytes")


def check_preface(data: bytes) -> None:
    """Raise NotOurProtocol, quoting and if possible naming what came instead, unless `data` is the preface."""
    if data == PREFACE:
        return
    language = language_of(data)
    named = "" if language is None else f", which is {language}"
    hint = "; only one of both sides was started with TLS" if language == "TLS" else ""
    raise NotOurProtocol(f"the peer does not speak this protocol: it sent {quote(data)}{named}{hint}")


def _checksum(frame_type: int, body: bytes) -> int:
    hasher = xxhash.xxh3_64(_CHECKED.pack(frame_type, 0, len(body)))
    hasher.update(body)
    return hasher.intdigest()


@cache
def warm_up_messages() -> None:
    """Compile the readers and writers of all messages, so that no phase pays for its first message."""
    warm_up(_CONVERTER, MESSAGES.values())
