"""What a peer sends that does not keep to the protocol: well framed, with the right checksums, and not true.

A lie takes the place of a message on its way.  It follows from that message, its bytes and the number of a way to tell
it, so the same lie can be told in a simulation and by a proxy between two daemons.

    wrong-message       a message that its sender may not say now
    unknown-version     a version of the protocol, the spec or a payload that nobody knows, or that was not offered
    bad-extents         guest memory that is not there, not in order, not of whole pages, or too much
    oversize            a frame that announces more than its type allows
    wrong-count         one too many, or one too few
    no-evidence         "I know nothing of that generation", of which nothing may follow
"""

import struct
from typing import Any, Final

import attrs
import xxhash

from migrate.engine.ram import ZERO_PAGES_MAX
from migrate.faults.plan import Untruth
from migrate.protocol import frames
from migrate.protocol.conversation import NEXT
from migrate.protocol.messages import (
    MESSAGES,
    Abandon,
    Accept,
    Commit,
    Declined,
    DevicesEnd,
    DeviceState,
    Extent,
    Gone,
    Hello,
    KindVersions,
    Message,
    Owned,
    Paused,
    Payload,
    Preamble,
    Prepare,
    RamBatch,
    RamContent,
    RamPages,
    Ready,
    Refuse,
    Released,
    Role,
    RoundEnd,
    RoundStored,
    ServerState,
    Unknown,
    Welcome,
)
from migrate.specs.offer import Variant
from sim_vmm.memory import PAGE_SIZE

UNKNOWN_VERSION: Final = 0x7FFF
"""Of anything: fits every version's integer, and no build knows it."""
OVERSIZE_SENT_MAX: Final = 64 * 1024
"""Of a frame that is too large, only so much follows its header: nobody should wait for more."""


def ways(what: Untruth, name: str, sender: Role) -> int:
    """In how many ways `sender` can tell this lie in the place of a message called `name`."""
    match what:
        case Untruth.WRONG_MESSAGE:
            return len(_out_of_turn(name, sender))
        case Untruth.OVERSIZE | Untruth.NO_EVIDENCE:
            return 1
        case _:
            return len(_FALSE[what, name])


def told(what: Untruth, sender: Role, message: Message, data: bytes, way: int = 0) -> bytes:
    """What `sender` sends instead of `data`, which encodes `message`, with the preface before and guest RAM behind it.

    `way` counts from 0, and again from 0 when there are no more.
    """
    preface = frames.PREFACE if data.startswith(frames.PREFACE) else b""
    way %= ways(what, type(message).__name__, sender)
    if what is Untruth.OVERSIZE:
        return preface + _oversize(type(message))
    if what is Untruth.NO_EVIDENCE:
        return preface + frames.encode_frame(Unknown(generation=getattr(message, "generation", 0)))
    if what is Untruth.WRONG_MESSAGE:
        kind = _out_of_turn(type(message).__name__, sender)[way]
        return preface + frames.encode_frame(_SPECIMENS[kind](getattr(message, "generation", 1)))
    false = _FALSE[what, type(message).__name__][way](message)
    return preface + frames.encode_frame(false) + bytes(false.content_bytes if isinstance(false, RamContent) else 0)


def _oversize(kind: type[Message]) -> bytes:
    body = bytes(kind.BODY_MAX + 1)
    return frames.encode_raw(kind.TYPE, body)[: frames.HEADER.size + OVERSIZE_SENT_MAX]


# Wrong messages

_SPECIMENS: Final[dict[type[Message], Any]] = {
    Hello: lambda _: Hello(protocol_versions=(1,), node="nobody", release="none"),
    Welcome: lambda _: Welcome(protocol_version=1, node="nobody", release="none"),
    Accept: lambda _: Accept(spec_version=1, imports=()),
    Refuse: lambda _: Refuse(reasons=()),
    RoundEnd: lambda _: RoundEnd(round=0, pages=0, zero_pages=0),
    RoundStored: lambda _: RoundStored(round=0),
    Paused: lambda _: Paused(),
    DevicesEnd: lambda _: DevicesEnd(devices=0),
    ServerState: lambda _: ServerState(beginning=b"", rolling=b"", total_bytes=0, buffer_size=0),
    **{
        kind: (lambda generation, kind=kind: kind(generation=generation))
        for kind in (Prepare, Ready, Commit, Owned, Declined, Released, Abandon, Gone, Unknown)
    },
}
"""A message of a kind; of the handoff's, about that generation."""


def _out_of_turn(name: str, sender: Role) -> tuple[type[Message], ...]:
    """What `sender` may not say where it may say that: the peer's messages first, then its own of other phases.

    A `Failure` may be said anywhere, so in its place only what is the peer's is surely wrong.
    """
    phases: dict[type[Message], set[str]] = {kind: set() for kind in MESSAGES.values()}
    for phase, role, kind in NEXT:
        if role is sender:
            phases[kind].add(phase.value)
    here = next(phases[kind] for kind in phases if kind.__name__ == name)
    theirs = tuple(kind for kind in _SPECIMENS if not phases[kind])
    mine = tuple(kind for kind in _SPECIMENS if phases[kind] and not phases[kind] & here)
    return theirs + (mine if here else ())


# What is false in a message of the right kind


def _all_unknown(preamble: Preamble) -> Preamble:
    exports = tuple(
        attrs.evolve(
            device,
            payloads=tuple(attrs.evolve(payload, versions=(UNKNOWN_VERSION,)) for payload in device.payloads),
        )
        for device in preamble.exports
    )
    return attrs.evolve(preamble, exports=exports)


def _unknown_payload(state: DeviceState) -> DeviceState:
    first = state.payloads[0] if state.payloads else Payload(kind="nothing", version=1, data=b"\xa0")
    return attrs.evolve(state, payloads=(attrs.evolve(first, version=UNKNOWN_VERSION), *state.payloads[1:]))


def _variant(preamble: Preamble) -> tuple[Variant, ...]:
    return tuple(attrs.evolve(variant, version=UNKNOWN_VERSION) for variant in preamble.variants)


def _longer(ram: tuple[Extent, ...]) -> tuple[Extent, ...]:
    return (*ram[:-1], attrs.evolve(ram[-1], length=ram[-1].length + PAGE_SIZE))


def _batch(message: RamBatch, *extents: tuple[int, int], zero: tuple[tuple[int, int], ...] = ()) -> RamBatch:
    """A batch of the same round that names these ranges; what follows it is zero, and its checksum says so."""
    named, zeros = (tuple(Extent(gpa=gpa, length=length) for gpa, length in ranges) for ranges in (extents, zero))
    content = bytes(sum(extent.length for extent in named))
    return RamBatch(round=message.round, extents=named, zero=zeros, checksum=xxhash.xxh3_64_intdigest(content))


def _pages(message: RamPages, *runs: tuple[int, int], zero: tuple[tuple[int, int], ...] = ()) -> RamPages:
    """The same in page frames and counts."""
    named, zeros = (b"".join(struct.pack("!II", *run) for run in rows) for rows in (runs, zero))
    content = bytes(PAGE_SIZE * sum(count for _, count in runs))
    return RamPages(round=message.round, pages=named, zero=zeros, checksum=xxhash.xxh3_64_intdigest(content))


_FALSE: Final[dict[tuple[Untruth, str], tuple[Any, ...]]] = {
    (Untruth.UNKNOWN_VERSION, "Hello"): (lambda hello: attrs.evolve(hello, protocol_versions=(UNKNOWN_VERSION,)),),
    (Untruth.UNKNOWN_VERSION, "Preamble"): (
        lambda preamble: attrs.evolve(preamble, variants=_variant(preamble)),
        _all_unknown,
    ),
    (Untruth.UNKNOWN_VERSION, "Accept"): (
        lambda accept: attrs.evolve(accept, spec_version=UNKNOWN_VERSION),
        lambda accept: attrs.evolve(
            accept, imports=tuple(KindVersions(kind=it.kind, versions=(UNKNOWN_VERSION,)) for it in accept.imports)
        ),
    ),
    (Untruth.UNKNOWN_VERSION, "DeviceState"): (_unknown_payload,),
    (Untruth.BAD_EXTENTS, "Preamble"): (
        lambda preamble: attrs.evolve(preamble, ram=_longer(preamble.ram)),
        lambda preamble: attrs.evolve(preamble, ram=preamble.ram * 2),
        lambda preamble: attrs.evolve(preamble, ram=()),
    ),
    (Untruth.BAD_EXTENTS, "RamBatch"): (
        lambda batch: _batch(batch, (1 << 46, PAGE_SIZE)),  # where no RAM is
        lambda batch: _batch(batch, (0, PAGE_SIZE), (0, PAGE_SIZE)),  # twice
        lambda batch: _batch(batch, (PAGE_SIZE, PAGE_SIZE), (0, PAGE_SIZE)),  # descending
        lambda batch: _batch(batch, (0, PAGE_SIZE + 512)),
        lambda batch: _batch(batch, (512, PAGE_SIZE)),
        lambda batch: _batch(batch, (0, 0)),
        lambda batch: _batch(batch, (0, PAGE_SIZE), zero=((0, PAGE_SIZE),)),  # both
        lambda batch: _batch(batch, ((1 << 64) - PAGE_SIZE, 2 * PAGE_SIZE)),  # past the end of all addresses
        lambda batch: _batch(batch, zero=((0, ZERO_PAGES_MAX * PAGE_SIZE),)),  # past the end of RAM, or over a hole
        lambda batch: _batch(batch, zero=((0, (ZERO_PAGES_MAX + 1) * PAGE_SIZE),)),  # too many
    ),
    (Untruth.BAD_EXTENTS, "RamPages"): (
        lambda batch: _pages(batch, (1 << 31, 1)),  # where no RAM is
        lambda batch: _pages(batch, (0, 1), (0, 1)),  # twice
        lambda batch: _pages(batch, (1, 1), (0, 1)),  # descending
        lambda batch: _pages(batch, (0, 2), (1, 2)),  # overlapping
        lambda batch: _pages(batch, (0, 0)),
        lambda batch: _pages(batch, (0, 1), zero=((0, 1),)),  # both
        lambda batch: _pages(batch, ((1 << 32) - 1, 2)),  # past the end of all addresses
        lambda batch: attrs.evolve(_pages(batch, (0, 1)), zero=b"half"),  # no whole runs
        lambda batch: _pages(batch, zero=((0, ZERO_PAGES_MAX),)),  # past the end of RAM, or over a hole
        lambda batch: _pages(batch, zero=((0, ZERO_PAGES_MAX + 1),)),  # too many
    ),
    (Untruth.WRONG_COUNT, "RoundEnd"): (
        lambda end: attrs.evolve(end, pages=end.pages + 1),
        lambda end: attrs.evolve(end, pages=_one_less(end.pages)),
        lambda end: attrs.evolve(end, zero_pages=end.zero_pages + 1),
        lambda end: attrs.evolve(end, round=end.round + 1),
    ),
    (Untruth.WRONG_COUNT, "RoundStored"): (
        lambda stored: attrs.evolve(stored, round=stored.round + 1),
        lambda stored: attrs.evolve(stored, round=_one_less(stored.round)),
    ),
    (Untruth.WRONG_COUNT, "DevicesEnd"): (
        lambda end: attrs.evolve(end, devices=end.devices + 1),
        lambda end: attrs.evolve(end, devices=_one_less(end.devices)),
    ),
}
"""The ways to tell a lie in a message."""


def _one_less(count: int) -> int:
    return count - 1 if count else 2
