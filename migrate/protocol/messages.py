"""Every message of the protocol, as a value.

A message is checked once, when it is built from bytes (`frames.decode_body`); nothing downstream validates its shape
again.  A published message is never edited: a new need gets a new message type or a new protocol version.  Type numbers
below `OPTIONAL` are mandatory (a reader that does not know one refuses, naming it); the others may be skipped.

Shapes for other languages: `messages.cddl`.  Who may send what when: `conversation.py`.
"""

import struct
from enum import StrEnum
from typing import Annotated, ClassVar, Final

import attrs

from migrate.reasons import Reason
from migrate.specs.offer import Variant, Withheld
from sim_vmm.integers import I64, U16, U32, U64, AtMost, Exactly

PROTOCOL_VERSIONS: Final = (2, 1)
"""What this build speaks, newest first.  2: guest RAM travels as `RamPages`, over several connections if wanted."""

OPTIONAL: Final = 0x8000
"""Types from here on may be skipped by a reader that does not know them."""

PAGE_BYTES: Final = 4096

RAM_BATCH_PAGES_MAX: Final = 4096
"""Pages with content in one batch, at most: 16 MiB."""

STREAMS_MAX: Final = 16
"""Further connections of one conversation, at most: published measurements have sixteen slower than eight."""

ITEMS_MAX: Final = 8192
"""CBOR items in one body, at most: so many are read and judged in some ms.  What is in byte strings does not count."""

RAM_BATCH_ITEMS_MAX: Final = 5 * RAM_BATCH_PAGES_MAX + 9
"""The same of a `RamBatch`: 5 for each extent, of which it may have as many as pages, zero ones included."""

KIBIBYTE: Final = 1024
MEBIBYTE: Final = 1024 * KIBIBYTE

NAME_MAX: Final = 128
"""Characters.  A text's limit counts characters, a byte string's bytes, a list's elements."""

Name = Annotated[str, AtMost(NAME_MAX)]
Text = Annotated[str, AtMost(4096)]


class Role(StrEnum):
    SOURCE = "source"
    TARGET = "target"

    @property
    def peer(self) -> "Role":
        return Role.TARGET if self is Role.SOURCE else Role.SOURCE


@attrs.frozen(kw_only=True)
class Hello:
    """The target opens the conversation.  `protocol_versions` newest first; `release` is what its build knows."""

    TYPE: ClassVar[int] = 1
    BODY_MAX: ClassVar[int] = 4 * KIBIBYTE
    protocol_versions: Annotated[tuple[U16, ...], AtMost(32)]
    node: Name
    release: Name


@attrs.frozen(kw_only=True)
class HelloFor:
    """A `Hello` for one migration, which both sides know beforehand by its id."""

    TYPE: ClassVar[int] = 8
    BODY_MAX: ClassVar[int] = 4 * KIBIBYTE
    protocol_versions: Annotated[tuple[U16, ...], AtMost(32)]
    node: Name
    release: Name
    migration: Annotated[bytes, Exactly(16)] = attrs.field(repr=lambda _: "<an id>")


@attrs.frozen(kw_only=True)
class Welcome:
    """The source picks the newest common protocol version."""

    TYPE: ClassVar[int] = 2
    BODY_MAX: ClassVar[int] = 4 * KIBIBYTE
    protocol_version: U16
    node: Name
    release: Name


@attrs.frozen(kw_only=True)
class Extent:
    """A range of guest-physical memory: both numbers are bytes and multiples of the page size."""

    gpa: U64
    length: U64


@attrs.frozen(kw_only=True)
class KindVersions:
    """Versions of one payload kind, newest first."""

    kind: Name
    versions: Annotated[tuple[U32, ...], AtMost(64)]


@attrs.frozen(kw_only=True)
class KindExports:
    """What one payload of a device can be exported as, right now.

    `versions` carry its state of the moment, newest first; 0 stands for leaving the payload out.  `withheld` are those
    that the source knows but that would lose something.
    """

    kind: Name
    versions: Annotated[tuple[U32, ...], AtMost(64)]
    withheld: Annotated[tuple[Withheld, ...], AtMost(64)]


@attrs.frozen(kw_only=True)
class DeviceExports:
    """What a device's state can be exported as, right now."""

    device: str
    payloads: Annotated[tuple[KindExports, ...], AtMost(64)]


@attrs.frozen(kw_only=True)
class MachineBirth:
    """What the guest is shown, wherever it runs: names of interfaces, ascending, and the system's UUID.

    `release` is that of the build that created the machine.
    """

    release: Name
    vm_id: Annotated[bytes, Exactly(16)]
    shows: Annotated[tuple[Name, ...], AtMost(64)]


@attrs.frozen(kw_only=True)
class Preamble:
    """Everything the target needs for its verdict.

    `variants` newest first, each a byte string that a reader may leave unread.  `withheld` are the versions that the
    source knows but that cannot carry this spec.  `obstacles` forbid the migration whatever the target says.
    """

    TYPE: ClassVar[int] = 3
    BODY_MAX: ClassVar[int] = 8 * MEBIBYTE
    machine: Name
    birth: MachineBirth
    spec_digest: Annotated[bytes, Exactly(32)]
    variants: Annotated[tuple[Variant, ...], AtMost(64)]
    withheld: Annotated[tuple[Withheld, ...], AtMost(64)]
    obstacles: tuple[Reason, ...]
    exports: tuple[DeviceExports, ...]
    ram: Annotated[tuple[Extent, ...], AtMost(64)]


@attrs.frozen(kw_only=True)
class Accept:
    """The target has built the machine and takes its state in these payload versions."""

    TYPE: ClassVar[int] = 4
    BODY_MAX: ClassVar[int] = 64 * KIBIBYTE
    spec_version: U32
    imports: tuple[KindVersions, ...]


@attrs.frozen(kw_only=True)
class Refuse:
    """No migration as things are: every reason, at least one.  Said by the target as its verdict, or as a welcome."""

    TYPE: ClassVar[int] = 5
    BODY_MAX: ClassVar[int] = MEBIBYTE
    reasons: tuple[Reason, ...]


@attrs.frozen(kw_only=True)
class Streams:
    """Before the target's verdict, from protocol version 2 on: so many further connections come, for guest RAM.

    Each opens with `Attach`, this token and its number, from 1.
    """

    TYPE: ClassVar[int] = 6
    BODY_MAX: ClassVar[int] = KIBIBYTE
    token: Annotated[bytes, Exactly(16)] = attrs.field(repr=lambda _: "<a token>")
    count: U16


@attrs.frozen(kw_only=True)
class Attach:
    """In place of `Hello`: this connection carries guest RAM of the conversation in which the token was said."""

    TYPE: ClassVar[int] = 7
    BODY_MAX: ClassVar[int] = KIBIBYTE
    token: Annotated[bytes, Exactly(16)] = attrs.field(repr=lambda _: "<a token>")
    number: U16


@attrs.frozen(kw_only=True)
class RamBatch:
    """Guest pages.  The contents of `extents`, in order, follow the frame as raw bytes; `zero` extents have no bytes.

    Extents ascend and do not overlap.  `checksum` is xxh3-64 of the raw bytes.
    """

    TYPE: ClassVar[int] = 16
    BODY_MAX: ClassVar[int] = 256 * KIBIBYTE
    round: U32
    extents: Annotated[tuple[Extent, ...], AtMost(RAM_BATCH_PAGES_MAX)]
    zero: Annotated[tuple[Extent, ...], AtMost(RAM_BATCH_PAGES_MAX)]
    checksum: U64

    @property
    def content_bytes(self) -> int:
        """How many raw bytes follow the frame."""
        return sum(extent.length for extent in self.extents)


@attrs.frozen(kw_only=True)
class RamPages:
    """Guest pages, from protocol version 2 on in the place of `RamBatch`.

    `pages` and `zero` are packed runs, 8 bytes each: the first page frame (guest-physical address / 4096) and how
    many, big-endian u32, ascending and disjoint.  The contents of `pages`, in order, follow the frame as raw bytes, at
    most 16 MiB; `zero` pages have no bytes.  `checksum` is xxh3-64 of the raw bytes.
    """

    TYPE: ClassVar[int] = 20
    BODY_MAX: ClassVar[int] = 68 * KIBIBYTE
    round: U32
    pages: Annotated[bytes, AtMost(8 * RAM_BATCH_PAGES_MAX)] = attrs.field(repr=lambda runs: f"<{len(runs) // 8} runs>")
    zero: Annotated[bytes, AtMost(8 * RAM_BATCH_PAGES_MAX)] = attrs.field(repr=lambda runs: f"<{len(runs) // 8} runs>")
    checksum: U64

    @property
    def content_bytes(self) -> int:
        """How many raw bytes follow the frame; of half a run, which nobody would take, nothing is counted."""
        whole = len(self.pages) // 8 * 8
        counts: tuple[int, ...] = struct.unpack(f"!{whole // 4}I", self.pages[:whole])[1::2]
        return PAGE_BYTES * sum(counts)


RamContent = RamPages | RamBatch
"""Raw bytes follow the frame."""


@attrs.frozen(kw_only=True)
class RoundEnd:
    """The round is complete; the counts are those of its batches."""

    TYPE: ClassVar[int] = 17
    BODY_MAX: ClassVar[int] = KIBIBYTE
    round: U32
    pages: U64
    zero_pages: U64


@attrs.frozen(kw_only=True)
class RoundStored:
    """The target has every page of the round in memory: the receipt that lets the source forget them."""

    TYPE: ClassVar[int] = 18
    BODY_MAX: ClassVar[int] = KIBIBYTE
    round: U32


@attrs.frozen(kw_only=True)
class Paused:
    """The guest is paused: what follows is final.  No answer is awaited before `Ready`."""

    TYPE: ClassVar[int] = 19
    BODY_MAX: ClassVar[int] = KIBIBYTE


@attrs.frozen(kw_only=True)
class TimeOfDay:
    """The guest's clock (protocol-phases §6): Hz, ticks, and nanoseconds or seconds of the source host's clocks."""

    TYPE: ClassVar[int] = 32
    BODY_MAX: ClassVar[int] = KIBIBYTE
    guest_freq: U64
    guest_tsc: U64
    hrtime: I64
    hres_sec: U64
    hres_ns: U64
    boot_hrtime: I64


@attrs.frozen(kw_only=True)
class Payload:
    """One part of a device's state: CBOR of the schema `(kind, version)`, left unread by those who don't know it."""

    kind: Name
    version: U32
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen(kw_only=True)
class DeviceState:
    """The whole state of one device."""

    TYPE: ClassVar[int] = 33
    BODY_MAX: ClassVar[int] = 8 * MEBIBYTE
    device: str
    payloads: Annotated[tuple[Payload, ...], AtMost(64)]


@attrs.frozen(kw_only=True)
class DevicesEnd:
    TYPE: ClassVar[int] = 34
    BODY_MAX: ClassVar[int] = KIBIBYTE
    devices: U32


@attrs.frozen(kw_only=True)
class ServerState:
    """What the VMM itself keeps for the guest: the console's history (control-api §7)."""

    TYPE: ClassVar[int] = 35
    BODY_MAX: ClassVar[int] = 3 * MEBIBYTE
    beginning: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    rolling: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    total_bytes: U64
    buffer_size: U64


@attrs.frozen(kw_only=True)
class Prepare:
    """The image is complete; it belongs to this generation of the machine's ownership."""

    TYPE: ClassVar[int] = 48
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Ready:
    """The target holds the complete image, has noted so, and does not run it."""

    TYPE: ClassVar[int] = 49
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Commit:
    """The source has given the machine away, for good unless the target declines."""

    TYPE: ClassVar[int] = 50
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Owned:
    """The target owns the machine and runs it."""

    TYPE: ClassVar[int] = 51
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Declined:
    """The target will never run this generation; the source may."""

    TYPE: ClassVar[int] = 52
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Released:
    """The source has noted that the machine is no longer its own.  Nothing is left to settle."""

    TYPE: ClassVar[int] = 53
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Settle:
    """The first form of `Inquire`, which does not say who asks; answered still, and no longer sent.

    `owned` is false while it only holds the image (READY again), true once it owns the machine (OWNED again).
    """

    TYPE: ClassVar[int] = 54
    BODY_MAX: ClassVar[int] = KIBIBYTE
    machine: Name
    generation: U64
    owned: bool


@attrs.frozen(kw_only=True)
class Abandon:
    """The image of this generation must never run: the source kept the machine."""

    TYPE: ClassVar[int] = 55
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


class Standing(StrEnum):
    """How a target stands to the generation that it asks about."""

    HOLDS = "holds"
    """It holds the complete image and runs nothing."""
    OWNS = "owns"
    """It owns that generation, and runs the machine."""
    PASSED_ON = "passed on"
    """It has owned that generation, and given the machine away since."""
    DECLINED = "declined"
    """It will never run it."""


@attrs.frozen(kw_only=True)
class Inquire:
    """A target comes back to settle a handoff, in place of `Hello`; who it is and whom it asks cannot be mistaken.

    `machine` is the system's UUID of the machine's birth, `name` what people call it; `node` asks, `source` is the node
    from which the machine came.
    """

    TYPE: ClassVar[int] = 56
    BODY_MAX: ClassVar[int] = 4 * KIBIBYTE
    machine: Annotated[bytes, Exactly(16)]
    name: Name
    generation: U64
    standing: Standing
    node: Name
    source: Name


@attrs.frozen(kw_only=True)
class Gone:
    """That generation is over: the journal of whoever asks went backwards, or it was declared dead."""

    TYPE: ClassVar[int] = 57
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Unknown:
    """No evidence of that generation here.  Nothing follows from it."""

    TYPE: ClassVar[int] = 58
    BODY_MAX: ClassVar[int] = KIBIBYTE
    generation: U64


@attrs.frozen(kw_only=True)
class Transcript:
    """Everything that was said before, in both directions, as one number (`Conversation.transcript`).

    The checksum of a frame tells whether it is whole, not whether it belongs here: a frame of an earlier attempt, sent
    again, is as good as any.  So before the target promises anything, it compares.  Who does not know this skips it.
    """

    TYPE: ClassVar[int] = OPTIONAL + 16
    BODY_MAX: ClassVar[int] = KIBIBYTE
    digest: U64


@attrs.frozen(kw_only=True)
class Failure:
    """The sender cannot go on; instead of its next message, or across the peer's.  The attempt is over."""

    TYPE: ClassVar[int] = 64
    BODY_MAX: ClassVar[int] = 20 * KIBIBYTE  # the longest text in the longest characters fits: it must get through
    phase: Name
    error: Name
    message: Text


Message = (
    Hello
    | HelloFor
    | Welcome
    | Preamble
    | Accept
    | Refuse
    | Streams
    | Attach
    | RamBatch
    | RamPages
    | RoundEnd
    | RoundStored
    | Paused
    | TimeOfDay
    | DeviceState
    | DevicesEnd
    | ServerState
    | Prepare
    | Ready
    | Commit
    | Owned
    | Declined
    | Released
    | Settle
    | Abandon
    | Inquire
    | Gone
    | Unknown
    | Failure
    | Transcript
)

MESSAGES: Final[dict[int, type[Message]]] = {
    kind.TYPE: kind
    for kind in (
        Hello,
        HelloFor,
        Welcome,
        Preamble,
        Accept,
        Refuse,
        Streams,
        Attach,
        RamBatch,
        RamPages,
        RoundEnd,
        RoundStored,
        Paused,
        TimeOfDay,
        DeviceState,
        DevicesEnd,
        ServerState,
        Prepare,
        Ready,
        Commit,
        Owned,
        Declined,
        Released,
        Settle,
        Abandon,
        Inquire,
        Gone,
        Unknown,
        Failure,
        Transcript,
    )
}
