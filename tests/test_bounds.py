"""What a peer may announce, and what it costs us to refuse the rest: nothing, as it is refused by its heads.

Elsewhere: headers of frames (test_frames.py), pages of RAM (test_engine_ram.py), what strangers may do to a daemon
(test_daemon_strangers.py).
"""

from typing import Any, Final

import attrs
import pytest

from migrate import cbor
from migrate.cbor import DOCUMENT, Budget, CborError
from migrate.errors import RemoteProtocolError
from migrate.payloads import PayloadError, decode_payload, encode_payload
from migrate.protocol import frames
from migrate.protocol.frames import HEADER, decode_body, decode_header, encode_frame, encode_raw, memory_max
from migrate.protocol.messages import (
    ITEMS_MAX,
    KIBIBYTE,
    MEBIBYTE,
    MESSAGES,
    Accept,
    DeviceState,
    Failure,
    Message,
    Payload,
    Preamble,
    RamBatch,
    RamPages,
    Ready,
    Refuse,
    ServerState,
)
from migrate.reasons import TEXT_MAX, Reason, sayable
from sim_vmm.payloads import PAYLOADS, InMemoryBlockBackendV1
from tests.fuzzing.conversations import converse_with_target
from tests.fuzzing.generation import segments_of
from tests.fuzzing.limits import peak_memory
from tests.fuzzing.seeds import seeds
from tests.specimens import CACHE

WIDE = "\U0001f5a5"
REFUSING_BYTES: Final = 64 * KIBIBYTE
"""What a refusal may take: an exception, its traceback, a line, and pieces of the long texts that were looked at."""


#: What a body announces, in which frame, and how it is refused.
ANNOUNCED: list[tuple[str, type[Message], bytes, str]] = [
    ("a list of 2^64-1", Ready, b"\x9b" + b"\xff" * 8, "the data ends inside an item"),
    ("a map of 2^64-1", Ready, b"\xbb" + b"\xff" * 8, "the data ends inside an item"),
    ("bytes of 2^64-1", Ready, b"\x5b" + b"\xff" * 8, "the data ends inside an item"),
    ("text of 2^64-1", Ready, b"\x7b" + b"\xff" * 8, "the data ends inside an item"),
    ("one item more than there are bytes", Accept, b"\x99\x01\x00" + b"\x80" * 255, "the data ends inside an item"),
    ("one item too many", Preamble, b"\x99\x20\x00" + b"\x00" * ITEMS_MAX, f"more than {ITEMS_MAX} items"),
    ("a million items", Preamble, b"\x9a\x00\x0f\x42\x40" + b"\x80" * 1_000_000, f"more than {ITEMS_MAX} items"),
    ("as many, nested", Preamble, b"\x99\x10\x00" + b"\x82\x00\x00" * 0x1000, f"more than {ITEMS_MAX} items"),
    ("extents beyond all pages", RamBatch, b"\x99\x50\x09" + b"\x00" * 0x5009, "more than 20489 items"),
    ("17 levels", Ready, b"\x81" * 17 + b"\x00", "nested more than 16 levels"),
    ("17 levels of maps", Ready, b"\xa1\x60" * 17 + b"\x00", "nested more than 16 levels"),
    ("small frame, many lists", Ready, b"\x99\x03\xfd" + b"\x80" * 1021, "would take more than 67584 bytes"),
    ("small frame, many maps", Ready, b"\x99\x03\xfd" + b"\xa0" * 1021, "would take more than 67584 bytes"),
    ("64 KiB of lists", Accept, b"\x99\x1f\xfe" + b"\x80" * 0x1FFE, "would take more than 196608 bytes"),
    ("64 KiB of wide text", Accept, cbor.encode("a" * 60_000 + WIDE), "would take more than 196608 bytes"),
    (
        "8 MiB of wide text",
        Preamble,
        cbor.encode("a" * (8 * MEBIBYTE - 9) + WIDE),
        "would take more than 16842752 bytes",
    ),
    (
        "8 MiB of wide text, in parts",
        DeviceState,
        cbor.encode(["é" * 4096] * 1000),
        "would take more than 16842752 bytes",
    ),
    ("a tag in place of a bignum", Ready, b"\xc2\x5a\x00\x10\x00\x00", "tags are not allowed"),
    ("an endless list", Ready, b"\x9f" + b"\x00" * 1000, "indefinite lengths are not allowed"),
    ("an endless text", Ready, b"\x7f" + b"\x61a" * 400, "indefinite lengths are not allowed"),
]


@pytest.mark.parametrize(("kind", "body", "reason"), [row[1:] for row in ANNOUNCED], ids=[row[0] for row in ANNOUNCED])
def test_what_costs_too_much_is_refused_before_there_is_any_of_it(
    kind: type[Message], body: bytes, reason: str
) -> None:
    header = decode_header(encode_raw(kind.TYPE, body)[: HEADER.size])
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_body(header, body)  # once before it is weighed: what is compiled at first use is no cost of an input
    with peak_memory() as peak, pytest.raises(RemoteProtocolError, match=reason):
        decode_body(header, body)
    assert peak[0] < REFUSING_BYTES


#: What fits its frame, and the bounds: the other side of each line above.
ALLOWED: list[tuple[str, Message]] = [
    ("the longest wide failure", Failure(phase=WIDE * 128, error=WIDE * 128, message=WIDE * 4096)),
    ("a refusal of 900 reasons", Refuse(reasons=(CACHE,) * 900)),
    ("a full console", ServerState(beginning=bytes(MEBIBYTE), rolling=bytes(MEBIBYTE), total_bytes=1, buffer_size=1)),
    ("scattered pages", RamPages(round=1, pages=bytes(8 * 4096), zero=bytes(8 * 4096 // 2), checksum=1)),
]


@pytest.mark.parametrize("message", [row[1] for row in ALLOWED], ids=[row[0] for row in ALLOWED])
def test_what_is_allowed_takes_no_more_than_twice_the_cap(message: Message) -> None:
    frame = encode_frame(message)
    header, body = decode_header(frame[: HEADER.size]), frame[HEADER.size :]
    decode_body(header, body)
    with peak_memory() as peak:
        assert decode_body(header, body) == message
    assert peak[0] <= memory_max(type(message))


def test_every_frame_has_a_budget_of_twice_its_cap_and_small_change() -> None:
    for kind in MESSAGES.values():
        contents = 16 * MEBIBYTE if kind is RamBatch else 0
        assert memory_max(kind) == 2 * (kind.BODY_MAX + contents) + 64 * KIBIBYTE
    assert frames.SMALL_FRAME_BYTES == 64 * KIBIBYTE


#: Plain data, and what it is reckoned at: items, and bytes of text, four for each byte unless all of it is ASCII.
RECKONED: list[tuple[Any, int]] = [
    (0, 1 * 96),
    (b"x" * 23, 1 * 96),
    (b"x" * 24, 1 * 96 + 24),
    ("x" * 23, 1 * 96 + 4 * 24),
    ("x" * 24, 1 * 96 + 24),
    ("é" * 24, 1 * 96 + 4 * 48),
    ("a" * 100_000 + "é", 1 * 96 + 4 * 100_002),
    ([0, 0], 3 * 96),
    ({"a": 0}, 3 * 96 + 4 * 2),
    ([[], {}, [0]], 5 * 96),
]


@pytest.mark.parametrize(("plain", "cost"), RECKONED, ids=lambda value: str(value)[:24])
def test_the_cost_of_plain_data_is_reckoned_from_its_heads(plain: Any, cost: int) -> None:
    data = cbor.encode(plain)
    assert cbor.decode(data, Budget(items=10, memory=cost)) == plain
    with pytest.raises(CborError, match=f"more than {cost - 1} bytes"):
        cbor.decode(data, Budget(items=10, memory=cost - 1))


HEAVY: list[tuple[str, Any]] = [
    ("empty lists", [[]] * 5000),
    ("empty maps", [{}] * 5000),
    ("maps of one", [{"ab": -70_000}] * 2000),
    ("maps of five", [{f"key {n}": 2**40 for n in range(5)}] * 700),
    ("one large map", {f"{n:x}": n for n in range(2500)}),
    ("nested lists", [[[[[[[[2**63]]]]]]]] * 600),
    ("large integers", [2**64 - 1] * 5000),
    ("short wide texts", ["a" * 19 + WIDE] * 3000),
    ("long wide texts", ["a" * 500 + WIDE] * 300),
    ("short bytes", [b"x" * 23] * 5000),
]


@pytest.mark.parametrize("plain", [row[1] for row in HEAVY], ids=[row[0] for row in HEAVY])
def test_plain_data_never_takes_more_than_it_was_reckoned_at(plain: Any) -> None:
    data = cbor.encode(plain)
    low, high = 0, 1 << 30  # the least budget with which it is read
    while low < high:
        middle = (low + high) // 2
        try:
            cbor.decode(data, Budget(items=1 << 20, memory=middle))
            high = middle
        except CborError:
            low = middle + 1
    cbor.decode(data, Budget(items=1 << 20, memory=low))
    with peak_memory() as peak:
        cbor.decode(data, Budget(items=1 << 20, memory=low))
    assert peak[0] <= low + 4 * KIBIBYTE


def test_a_payload_has_the_bounds_of_a_document() -> None:
    schema = next(iter(PAYLOADS))
    for body, reason in (
        (b"\x99\x20\x00" + b"\x00" * 0x2000, f"more than {DOCUMENT.items} items"),
        (cbor.encode("a" * (5 * MEBIBYTE) + WIDE), f"more than {DOCUMENT.memory} bytes"),
    ):
        with pytest.raises(PayloadError, match=reason):
            decode_payload(schema, body)


@pytest.mark.parametrize(("count", "refused"), [(2, False), (3, True)])
def test_the_states_of_all_devices_have_a_bound_together(count: int, refused: bool) -> None:
    """Each fits its frame; they are kept until the last has come."""
    kind, version = InMemoryBlockBackendV1.SCHEMA.kind, InMemoryBlockBackendV1.SCHEMA.version
    data = encode_payload(InMemoryBlockBackendV1(bytes(7 * MEBIBYTE)))
    large = encode_frame(DeviceState(device="com1", payloads=(Payload(kind=kind, version=version, data=data),)))
    seed = seeds("target")[0]
    before = [segment.encode() for segment in segments_of(seed[1:]) if segment.type < DeviceState.TYPE]
    last = ""
    for segment in segments_of(bytes(converse_with_target(seed[:1] + b"".join(before) + large * count).said_bytes)):
        last = segment.plain.get("message", "")
    assert ("more than 16777216 bytes of device state" in last) is refused


# What a peer is told


def reason(**fields: str) -> Reason:
    return attrs.evolve(CACHE, **fields)


SAID: list[tuple[str, tuple[Reason, ...], int, bool]] = [
    ("one", (CACHE,), 1, True),
    ("hundreds", (CACHE,) * 500, 500, True),
    ("too many", (CACHE,) * 5000, 862, False),
    ("a long one", (reason(have="x" * (1 << 20)),), 1, True),
    ("long ones", (reason(have="x" * (1 << 20)),) * 400, 198, False),
    ("wide ones", (reason(have=WIDE * 600, need=WIDE * 600),) * 400, 52, False),
]


@pytest.mark.parametrize(("reasons", "count", "all_said"), [row[1:] for row in SAID], ids=[row[0] for row in SAID])
def test_a_refusal_fits_its_frame_and_what_may_be_read_from_one(
    reasons: tuple[Reason, ...], count: int, all_said: bool
) -> None:
    said = sayable(reasons)
    assert len(said) == count
    frame = encode_frame(Refuse(reasons=said))
    assert decode_body(decode_header(frame[: HEADER.size]), frame[HEADER.size :]) == Refuse(reasons=said)
    assert all(len(text) <= TEXT_MAX for one in said for text in attrs.astuple(one))
    if not all_said:
        assert said[-1].have == f"{len(reasons) - count + 1} reasons more than can be said"
