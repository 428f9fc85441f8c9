"""Valid input to begin with, by target, and the findings of earlier days."""

import gzip
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import attrs

from migrate.engine.negotiation import Acceptable, judge, preamble_of
from migrate.payloads import encode_payload
from migrate.protocol.frames import encode_frame
from migrate.protocol.messages import (
    PROTOCOL_VERSIONS,
    Abandon,
    Commit,
    Declined,
    Failure,
    Gone,
    Hello,
    Inquire,
    Message,
    Owned,
    Ready,
    Refuse,
    Released,
    RoundStored,
    Settle,
    Standing,
    Unknown,
)
from migrate.specs import VERSIONS
from tests.freeze_frames import GOLDEN, read_annotated
from tests.fuzzing.conversations import (
    GENERATION,
    HERE,
    NAME,
    RELEASE,
    THERE,
    VM_ID,
    Flags,
    converse_with_source,
    make_machine,
)
from tests.fuzzing.driven import DRIVEN
from tests.fuzzing.targets import SCHEMAS
from tests.specimens import CACHE

FINDINGS: Final = Path(__file__).parent / "findings"
"""Inputs that were findings once, by target: each is run again with every test run."""

SPECS: Final = GOLDEN.parent / "specs"


def findings(target: str) -> list[Path]:
    return sorted((FINDINGS / target).glob("*"))


def read_finding(path: Path) -> bytes:
    """The input in a file; one that ends in `.gz` is compressed, as those are that are all size."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@lru_cache
def seeds(target: str) -> tuple[bytes, ...]:
    """Valid inputs of a target."""
    return tuple(_SEEDS[target]())


def _frames() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("*.hex")):
        yield read_annotated(path.read_text())


def _images() -> Iterator[bytes]:
    image = DRIVEN.image()
    yield image.encode()
    yield attrs.evolve(image, devices=image.devices[:1]).encode()


def _payloads() -> Iterator[bytes]:
    for payload in DRIVEN.payloads():
        yield bytes([SCHEMAS.index(payload.SCHEMA)]) + encode_payload(payload)


def _specs() -> Iterator[bytes]:
    numbers = [version.number for version in VERSIONS]
    for path in sorted(SPECS.glob("*.cbor")):
        number = int(path.suffixes[-2].removeprefix(".v"))
        yield bytes([numbers.index(number)]) + path.read_bytes()


def _conversation(flags: Flags, *messages: Message) -> bytes:
    return bytes([flags | Flags.FORGIVING]) + b"".join(map(encode_frame, messages))


def _inquiry(standing: Standing) -> Inquire:
    return Inquire(machine=VM_ID.bytes, name=NAME, generation=GENERATION, standing=standing, node=THERE, source=HERE)


def _to_source() -> Iterator[bytes]:
    """What a target says in every kind of conversation."""
    hello = Hello(protocol_versions=PROTOCOL_VERSIONS, node=THERE, release=RELEASE.name)
    with make_machine() as machine:
        verdict = judge(preamble_of(machine, RELEASE, NAME), RELEASE, {})
    assert isinstance(verdict, Acceptable), "a machine fits its own release"
    to_ready = (hello, verdict.answer, RoundStored(round=0), Ready(generation=GENERATION))
    settle = Settle(machine=NAME, generation=GENERATION, owned=False)
    failure = Failure(phase="devices", error="DeviceStateError", message="no")
    yield _conversation(Flags(0), *to_ready, Owned(generation=GENERATION))
    yield _conversation(
        Flags(0), attrs.evolve(hello, protocol_versions=(1,)), *to_ready[1:], Owned(generation=GENERATION)
    )
    yield _conversation(Flags(0), *to_ready, Declined(generation=GENERATION))
    yield _conversation(Flags(0), *to_ready, Unknown(generation=GENERATION))
    yield _conversation(Flags(0), *to_ready[:2], failure)
    yield _conversation(Flags(0), hello, Refuse(reasons=(CACHE,)))
    for flags in (Flags(0), Flags.COMMITTED):
        yield _conversation(flags, settle, Owned(generation=GENERATION))
        yield _conversation(flags, attrs.evolve(settle, owned=True))
        for standing in Standing:
            yield _conversation(flags, _inquiry(standing), Owned(generation=GENERATION))


def _to_target() -> Iterator[bytes]:
    """What a source says in every kind of conversation."""
    newest, oldest, *_ = map(converse_with_source, _to_source())
    for whole in (newest, oldest):
        yield bytes([Flags.FORGIVING]) + bytes(whole.said_bytes)
    yield bytes([Flags(0)]) + bytes(newest.said_bytes)
    commit, released = Commit(generation=GENERATION), Released(generation=GENERATION)
    yield _conversation(Flags.HOLDS, commit, released)
    for last in (Abandon, Gone, Unknown, Released):
        yield _conversation(Flags.HOLDS, last(generation=GENERATION))
        yield _conversation(Flags.OWES, last(generation=GENERATION))


_SEEDS: Final = {
    "frame": _frames,
    "image": _images,
    "payload": _payloads,
    "spec": _specs,
    "source": _to_source,
    "target": _to_target,
}
