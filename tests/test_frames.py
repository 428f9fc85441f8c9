"""Frames: what is written is read again, and what is damaged, hostile or foreign is refused with a reason."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import xxhash
from hypothesis import given

from migrate import cbor
from migrate.errors import NotOurProtocol, RemoteProtocolError
from migrate.protocol.frames import (
    HEADER,
    PREFACE,
    UNKNOWN_OPTIONAL_BODY_MAX,
    check_body,
    check_preface,
    decode_body,
    decode_header,
    encode_again,
    encode_frame,
    encode_raw,
)
from migrate.protocol.messages import (
    MEBIBYTE,
    MESSAGES,
    OPTIONAL,
    Failure,
    Hello,
    Message,
    Paused,
    Preamble,
    Prepare,
    RoundEnd,
    ServerState,
    Settle,
    Transcript,
)
from tests.freeze_frames import GOLDEN, path_of, read_annotated
from tests.specimens import ANY_MESSAGE, SPECIMENS

each_kind = pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: kind.__name__)


class CutShort(Exception):
    """The bytes end inside a frame; a link would wait for more."""


def read(data: bytes) -> Message | None:
    """The message in the frame with which `data` begins, or None if it is one to be skipped."""
    if len(data) < HEADER.size:
        raise CutShort
    header = decode_header(data[: HEADER.size])
    body = data[HEADER.size : HEADER.size + header.length]
    if len(body) < header.length:
        raise CutShort
    if header.skippable:
        check_body(header, body)
        return None
    return decode_body(header, body)


def refusal_of(data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        read(data)
    return str(caught.value)


def body_of(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = cbor.decode(encode_frame(message)[HEADER.size :])
    return body


def frame_of(kind: type[Message], plain: Any) -> bytes:
    return encode_raw(kind.TYPE, cbor.encode(plain))


# What is written is read again


@each_kind
def test_every_specimen_comes_back(kind: type[Message]) -> None:
    assert read(encode_frame(SPECIMENS[kind])) == SPECIMENS[kind]


@given(ANY_MESSAGE)
def test_every_message_comes_back(message: Message) -> None:
    assert read(encode_frame(message)) == message


@given(ANY_MESSAGE)
def test_equal_messages_are_equal_bytes(message: Message) -> None:
    assert encode_frame(message) == encode_frame(attrs.evolve(message))


@given(ANY_MESSAGE)
def test_a_message_that_was_in_a_frame_has_the_same_frame_again(message: Message) -> None:
    heard = read(encode_frame(message))
    assert heard is not None
    assert encode_again(heard) == encode_frame(message)


def test_a_frame_is_laid_out_as_the_module_says() -> None:
    frame = encode_frame(Prepare(generation=7))
    assert frame[:8].hex(" ") == "00 30 00 00 00 00 00 0d"
    assert frame[8:16] == xxhash.xxh3_64_digest(frame[:8] + frame[16:])
    assert frame[16:] == b"\xa1\x6ageneration\x07"


def test_type_numbers_are_unique_and_only_the_transcript_may_be_skipped() -> None:
    assert {number: kind.TYPE for number, kind in MESSAGES.items()} == {number: number for number in MESSAGES}
    assert len(MESSAGES) == len(SPECIMENS) == 30
    assert [kind for number, kind in MESSAGES.items() if number >= OPTIONAL] == [Transcript]


def test_a_message_larger_than_its_frame_is_never_written() -> None:
    state = ServerState(beginning=bytes(3 * MEBIBYTE), rolling=b"", total_bytes=0, buffer_size=1)
    with pytest.raises(ValueError, match=r"ServerState needs 31457\d\d bytes; its frame holds at most 3145728"):
        encode_frame(state)


def test_the_longest_failure_fits_its_frame() -> None:
    longest = "\N{DESKTOP COMPUTER}"
    failure = Failure(phase=longest * 128, error=longest * 128, message=longest * 4096)
    assert read(encode_frame(failure)) == failure


@pytest.mark.parametrize("with_content", [0, 1, 2048, 4095, 4096])
def test_the_largest_batch_fits_its_frame(with_content: int) -> None:
    extent = {"gpa": 2**64 - 4096, "length": 2**64 - 4096}
    plain: dict[str, Any] = {
        "round": 2**32 - 1,
        "extents": [extent] * with_content,
        "zero": [extent] * (4096 - with_content),
        "checksum": 2**64 - 1,
    }
    kind = MESSAGES[16]
    assert isinstance(read(frame_of(kind, plain)), kind)
    plain["zero"].append(extent)
    assert "more than 20489 items" in refusal_of(frame_of(kind, plain))


# Headers


HEADERS: list[tuple[str, bytes, str]] = [
    (
        "an unknown mandatory type",
        HEADER.pack(0x0F, 0, 0, 0),
        "frame of unknown mandatory type 0x000f; known are 0x1, ",
    ),
    ("the last mandatory type", HEADER.pack(0x7FFF, 0, 0, 0), "unknown mandatory type 0x7fff"),
    ("type zero", HEADER.pack(0, 0, 0, 0), "unknown mandatory type 0x0000"),
    ("a byte that must be zero", HEADER.pack(1, 1, 0, 0), "bytes 2 and 3 must be zero"),
    ("the other byte that must be zero", HEADER.pack(1, 0x8000, 0, 0), "00 01 80 00"),
    ("a body over its cap", HEADER.pack(1, 0, 4097, 0), "frame Hello announces 4097 bytes; at most 4096 are allowed"),
    ("a body of 4 GiB", HEADER.pack(35, 0, 2**32 - 1, 0), "ServerState announces 4294967295 bytes; at most 3145728"),
    (
        "an optional body over its cap",
        HEADER.pack(OPTIONAL, 0, UNKNOWN_OPTIONAL_BODY_MAX + 1, 0),
        "frame 0x8000 announces 1048577 bytes; at most 1048576",
    ),
]


@pytest.mark.parametrize(("header", "reason"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_a_header_is_refused_before_its_body_is_read(header: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_header(header)
    assert reason in str(caught.value)


@each_kind
def test_a_body_as_large_as_its_cap_is_announced_in_peace(kind: type[Message]) -> None:
    assert decode_header(HEADER.pack(kind.TYPE, 0, kind.BODY_MAX, 0)).length == kind.BODY_MAX


@pytest.mark.parametrize("body", [b"", b"\xff\xff", bytes(1000)], ids=len)
def test_a_frame_of_an_unknown_optional_type_may_be_skipped(body: bytes) -> None:
    assert read(encode_raw(OPTIONAL, body)) is None
    assert read(encode_raw(0xFFFF, body)) is None


def test_a_skipped_frame_is_checked_all_the_same() -> None:
    frame = encode_raw(OPTIONAL + 1, b"something new")
    assert refusal_of(frame[:-1] + b"!") == "frame 0x8001: checksum does not match its 13 bytes"


# Damage


@pytest.mark.parametrize("kind", [Paused, RoundEnd, Hello, Settle], ids=lambda kind: kind.__name__)
def test_every_single_bit_flip_is_found(kind: type[Message]) -> None:
    frame = encode_frame(SPECIMENS[kind])
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((RemoteProtocolError, CutShort)):
            read(bytes(damaged))


def test_two_swapped_bytes_are_found() -> None:
    frame = encode_frame(SPECIMENS[Hello])
    for position in range(HEADER.size, len(frame) - 1):
        damaged = bytearray(frame)
        damaged[position], damaged[position + 1] = frame[position + 1], frame[position]
        if damaged != frame:
            assert refusal_of(bytes(damaged)) == f"frame Hello: checksum does not match its {len(frame) - 16} bytes"


@each_kind
def test_a_frame_cut_short_anywhere_is_no_message(kind: type[Message]) -> None:
    frame = encode_frame(SPECIMENS[kind])
    for length in range(len(frame)):
        with pytest.raises(CutShort):
            read(frame[:length])


@each_kind
def test_a_body_under_another_type_is_refused(kind: type[Message]) -> None:
    frame = encode_frame(SPECIMENS[kind])
    for other in MESSAGES:
        if other != kind.TYPE and len(frame) - HEADER.size <= MESSAGES[other].BODY_MAX:
            assert "checksum" in refusal_of(other.to_bytes(2, "big") + frame[2:])


# Bodies that arrive undamaged and are wrong


BODIES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "frame Prepare, at byte 0: the data ends inside an item"),
    ("no CBOR", b"\xff", "frame Prepare, at byte 0"),
    ("a float", b"\xa1\x6ageneration\xf9\x3c\x00", "at byte 12: only false, true and null are allowed, no floats"),
    ("a tag", b"\xc0\xa0", "at byte 0: tags are not allowed"),
    ("an indefinite map", b"\xbf\xff", "at byte 0: indefinite lengths are not allowed"),
    ("a long integer", b"\xa1\x6ageneration\x18\x07", "an integer is not in its shortest form"),
    ("trailing bytes", b"\xa1\x6ageneration\x07\x00", "at byte 13: 1 bytes follow the item"),
    ("a key twice", b"\xa2\x6ageneration\x07\x6ageneration\x08", "Duplicate map key"),
    ("a number as key", b"\xa1\x01\x02", "map key must be a text string"),
    ("a list", b"\x81\x07", "frame Prepare, expected an object, got a list of 1 element"),
    ("no field", b"\xa0", "frame Prepare, generation: required and missing"),
    ("another field", b"\xa1\x61x\x07", "frame Prepare, generation: required and missing"),
    ("a field too many", b"\xa2\x61x\x07\x6ageneration\x07", "x: unknown field 'x'; known here: generation"),
    ("bytes as key", b"\xa2\x41x\x07\x6ageneration\x07", "unknown field"),
    ("a text", b"\xa1\x6ageneration\x61x", "frame Prepare, generation: expected an integer, got 'x'"),
    ("a bool", b"\xa1\x6ageneration\xf5", "frame Prepare, generation: expected an integer, got True"),
    ("null", b"\xa1\x6ageneration\xf6", "frame Prepare, generation: expected an integer, got None"),
    (
        "a negative",
        b"\xa1\x6ageneration\x20",
        "frame Prepare, generation: -1 is out of range: 0 to 18446744073709551615",
    ),
    ("invalid UTF-8", b"\xa1\x61\xff\x00", "invalid start byte"),
]


@pytest.mark.parametrize(("body", "reason"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_a_body_that_is_no_message_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    assert reason in refusal_of(encode_raw(Prepare.TYPE, body))


def _in_preamble(*path: str | int) -> Callable[[Any], bytes]:
    """A preamble with a value at `path`."""

    def frame(value: Any) -> bytes:
        plain: Any = body_of(SPECIMENS[Preamble])
        place = plain
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return frame_of(Preamble, plain)

    return frame


PARTS: list[tuple[bytes, str]] = [
    (_in_preamble("variants", 1, "version")("6"), "frame Preamble, variants[1].version: expected an integer, got '6'"),
    (_in_preamble("variants", 1, "document")("6"), "frame Preamble, variants[1].document: expected a byte string"),
    (_in_preamble("ram", 0, "gpa")(-1), "frame Preamble, ram[0].gpa: -1 is out of range"),
    (_in_preamble("ram")([{"gpa": 0}]), "frame Preamble, ram[0].length: required and missing"),
    (_in_preamble("withheld", 0, "reasons", 0, "extra")(1), "withheld[0].reasons[0].extra: unknown field 'extra'"),
    (_in_preamble("spec_digest")(bytes(31)), "spec_digest: 31 elements; exactly 32 are wanted"),
    (_in_preamble("machine")("m" * 129), "machine: 129 elements; at most 128 are wanted"),
    (_in_preamble("machine")(b"m"), "machine: expected a string"),
]


@pytest.mark.parametrize(("frame", "reason"), PARTS, ids=[row[1][:60] for row in PARTS])
def test_what_is_wrong_deep_in_a_message_is_named_by_its_path(frame: bytes, reason: str) -> None:
    assert reason in refusal_of(frame)


LONG = "A" * 1000
LOUD: list[tuple[str, bytes]] = [
    ("a long text", frame_of(Prepare, {"generation": LONG})),
    ("a long byte string", frame_of(Prepare, {"generation": b"A" * 900})),
    ("a long list", frame_of(Prepare, {"generation": ["A"] * 400})),
    ("a long field name", frame_of(Prepare, {"generation": 1, LONG[:900]: 2})),
    ("a long field name again", frame_of(Settle, {LONG[:900]: 2})),
    ("a long key twice", encode_raw(Hello.TYPE, b"\xa2" + 2 * (cbor.encode(LONG) + b"\x00"))),
    ("a long key and a bad value", encode_raw(Hello.TYPE, b"\xa2" + 2 * (cbor.encode("\n" * 1000) + b"\x00"))),
    ("a long body that is a text", frame_of(Hello, LONG)),
]


@pytest.mark.parametrize("frame", [row[1] for row in LOUD], ids=[row[0] for row in LOUD])
def test_an_error_never_repeats_more_than_64_characters_of_foreign_data(frame: bytes) -> None:
    message = refusal_of(frame)
    assert "A" * 65 not in message
    assert message.isprintable()
    assert len(message) < 300


# The preface


def test_the_preface_is_no_text_and_says_what_follows() -> None:
    check_preface(b"\x89MIG\r\n\x1a\n")
    assert PREFACE.hex() == "894d49470d0a1a0a"
    with pytest.raises(UnicodeDecodeError):
        PREFACE.decode()


@pytest.mark.parametrize(
    ("stranger", "quoted"),
    [
        (b"HTTP/1.1", "b'HTTP/1.1'"),
        (b"SSH-2.0-", "b'SSH-2.0-'"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", r"b'\x16\x03\x01"),
        (b"", "b''"),
        (PREFACE[:7], r"\x1a'"),
        (PREFACE.replace(b"\r\n", b"\n"), r"MIG\n"),
        (bytes(byte & 0x7F for byte in PREFACE), r"b'\tMIG"),
        (bytes(10_000), "…"),
    ],
    ids=["http", "ssh", "tls", "silence", "cut short", "line ends", "seven bits", "noise"],
)
def test_a_stranger_is_told_from_a_damaged_stream(stranger: bytes, quoted: str) -> None:
    with pytest.raises(NotOurProtocol) as caught:
        check_preface(stranger)
    assert str(caught.value).startswith("the peer does not speak this protocol: it sent ")
    assert quoted in str(caught.value)
    assert len(str(caught.value)) < 160


# Golden frames


@each_kind
def test_every_message_is_read_and_written_as_when_it_was_published(kind: type[Message]) -> None:
    frozen = read_annotated(path_of(kind).read_text())
    assert read(frozen) == SPECIMENS[kind]
    assert encode_frame(SPECIMENS[kind]) == frozen


def test_every_golden_frame_is_of_a_message_that_we_still_know() -> None:
    assert {path.name for path in GOLDEN.glob("*.hex")} == {path_of(kind).name for kind in MESSAGES.values()}
