"""One realistic specimen of every message, and strategies that draw any message of a kind."""

import typing
from enum import Enum
from typing import Any, Final

import attrs
from hypothesis import strategies as st

from migrate.protocol.messages import (
    MESSAGES,
    Abandon,
    Accept,
    Attach,
    Commit,
    Declined,
    DeviceExports,
    DevicesEnd,
    DeviceState,
    Extent,
    Failure,
    Gone,
    Hello,
    HelloFor,
    Inquire,
    KindExports,
    KindVersions,
    MachineBirth,
    Message,
    Owned,
    Paused,
    Payload,
    Preamble,
    Prepare,
    RamBatch,
    RamPages,
    Ready,
    Refuse,
    Released,
    RoundEnd,
    RoundStored,
    ServerState,
    Settle,
    Standing,
    Streams,
    TimeOfDay,
    Transcript,
    Unknown,
    Welcome,
)
from migrate.reasons import Reason
from migrate.specs.offer import Variant, Withheld
from sim_vmm.integers import AtMost, Exactly, Range

GIB: Final = 1 << 30

CACHE: Final = Reason(
    component="boot",
    field="has_write_cache",
    have="false",
    need="spec version 6 or newer",
)

MODERN: Final = Reason(
    component="nic",
    field="pci-virtio.device.negotiated_features",
    have="0x110000240",
    need="pci-virtio version 2 or newer",
)

_ALL: Final[tuple[Message, ...]] = (
    Hello(protocol_versions=(1,), node="rack-7", release="r6"),
    HelloFor(protocol_versions=(1,), node="rack-7", release="r6", migration=bytes(range(16, 32))),
    Welcome(protocol_version=1, node="rack-3", release="r3"),
    Preamble(
        machine="web-server",
        birth=MachineBirth(release="r6", vm_id=bytes(range(16)), shows=("modern-virtio", "nvme-doorbell-buffers")),
        spec_digest=bytes(range(32)),
        variants=(Variant(version=6, document=b"\xa1\x65board\xa0"), Variant(version=3, document=b"\xa0")),
        withheld=(Withheld(version=1, reasons=(CACHE,)),),
        obstacles=(),
        exports=(
            DeviceExports(device="com1", payloads=(KindExports(kind="uart-16550", versions=(1,), withheld=()),)),
            DeviceExports(
                device="nic",
                payloads=(
                    KindExports(kind="pci-virtio", versions=(3, 2), withheld=(Withheld(version=1, reasons=(MODERN,)),)),
                    KindExports(kind="pci-virtio-viona", versions=(1, 0), withheld=()),
                ),
            ),
        ),
        ram=(Extent(gpa=0, length=3 * GIB), Extent(gpa=4 * GIB, length=GIB)),
    ),
    Accept(spec_version=3, imports=(KindVersions(kind="pci-virtio", versions=(3, 2)),)),
    Refuse(reasons=(CACHE,)),
    Streams(token=bytes(range(16)), count=3),
    Attach(token=bytes(range(16)), number=2),
    RamBatch(
        round=2,
        extents=(Extent(gpa=0x1000, length=0x2000), Extent(gpa=4 * GIB, length=0x1000)),
        zero=(Extent(gpa=0x4000, length=0x10000),),
        checksum=0x2D06_8005_38D3_94C2,
    ),
    RamPages(
        round=2,
        pages=bytes.fromhex("0000000100000002 0010000000000001"),
        zero=bytes.fromhex("0000000400000010"),
        checksum=0x2D06_8005_38D3_94C2,
    ),
    RoundEnd(round=2, pages=19, zero_pages=16),
    RoundStored(round=2),
    Paused(),
    TimeOfDay(
        guest_freq=2_000_000_000,
        guest_tsc=7_200_000_000_000,
        hrtime=86_400_000_000_000,
        hres_sec=1_700_000_000,
        hres_ns=123_456_789,
        boot_hrtime=-3_600_000_000_000,
    ),
    DeviceState(device="com1", payloads=(Payload(kind="uart-16550", version=1, data=b"\xa1\x61x\x18\x60"),)),
    DevicesEnd(devices=17),
    ServerState(beginning=b"hello\n", rolling=b"", total_bytes=6, buffer_size=1 << 20),
    Prepare(generation=2),
    Ready(generation=2),
    Commit(generation=2),
    Owned(generation=2),
    Declined(generation=2),
    Released(generation=2),
    Settle(machine="web-server", generation=2, owned=False),
    Abandon(generation=2),
    Inquire(
        machine=bytes(range(16)),
        name="web-server",
        generation=2,
        standing=Standing.HOLDS,
        node="rack-7-0123456789abcdef",
        source="rack-3-fedcba9876543210",
    ),
    Gone(generation=2),
    Unknown(generation=2),
    Failure(phase="devices", error="DeviceStateError", message="device 'nic': its queue 1 is in no legal state"),
    Transcript(digest=0x2D06_8005_38D3_94C2),
)

SPECIMENS: Final[dict[type[Message], Message]] = {type(message): message for message in _ALL}

TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def _of_annotation(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's annotation, limits included."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _of_limited(arguments[0], arguments[1])
    if origin is tuple:
        return st.lists(_of_annotation(arguments[0]), max_size=3).map(tuple)
    if attrs.has(annotation):
        return messages_of(annotation)
    if issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    return {int: st.integers(), str: TEXTS, bytes: st.binary(max_size=12), bool: st.booleans()}[annotation]


def _of_limited(kind: Any, limit: Range | Exactly | AtMost) -> st.SearchStrategy[Any]:
    match limit:
        case Range(low, high):
            return st.sampled_from([low, high]) | st.integers(low, high)
        case Exactly(length):
            assert kind is bytes
            return st.binary(min_size=length, max_size=length)
        case AtMost(length) if kind is str:
            return TEXTS | st.sampled_from(["x" * length, "\U0001f5a5" * length, "\n"])
        case AtMost():
            return _of_annotation(kind)


def messages_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any value of a message class, or of a class that is part of one."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{field.name: _of_annotation(hints[field.name]) for field in attrs.fields(kind)})


STRATEGIES: Final[dict[type[Message], st.SearchStrategy[Message]]] = {
    kind: messages_of(kind) for kind in MESSAGES.values()
}
ANY_MESSAGE: Final[st.SearchStrategy[Message]] = st.one_of(*STRATEGIES.values())
