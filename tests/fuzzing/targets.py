"""Functions of bytes that raise only on a finding: one for each thing that reads what a peer sent.

Some inputs begin with a byte that chooses: which payload schema, which spec version, how a conversation stands.  What
is read must also be written again and come back equal, and must be fit for use.
"""

from collections.abc import Callable
from typing import Any, Final

from migrate import cbor
from migrate.engine.image import ImageDamaged, PauseImage
from migrate.engine.negotiation import Acceptable, judge
from migrate.errors import MigrationError, RemoteProtocolError
from migrate.payloads import PayloadError, decode_payload, encode_payload
from migrate.protocol import frames
from migrate.protocol.messages import MESSAGES, Extent, MachineBirth, Preamble, Refuse
from migrate.specs import VERSIONS
from migrate.specs.digest import spec_digest
from migrate.specs.offer import Variant
from migrate.specs.reading import ParseError
from migrate.specs.version import SpecVersion
from sim_vmm.devices.errors import DeviceStateError
from sim_vmm.machine import MIB
from sim_vmm.memory import ram_layout
from sim_vmm.payloads import PAYLOADS, Payload, Schema
from sim_vmm.spec import Spec, SpecError
from tests.fuzzing import conversations
from tests.fuzzing.conversations import RELEASE, VM_ID, converse_with_source, converse_with_target, examine_conversation
from tests.fuzzing.driven import DRIVEN
from tests.fuzzing.limits import Finding, examine

Target = Callable[[bytes], None]

SCHEMAS: Final[tuple[Schema, ...]] = tuple(PAYLOADS)
DOCUMENT_MEMORY_MAX: Final = cbor.DOCUMENT.memory + frames.SMALL_FRAME_BYTES


def fuzz_frame(data: bytes) -> None:
    """One frame: as it is, and with length and checksum put right, which would keep everything else from being seen."""
    if len(data) < frames.HEADER.size:
        return
    head, body = data[: frames.HEADER.size], data[frames.HEADER.size :]
    header = _decode_header(head)
    if header is None:
        return
    signed = _decode_header(frames.encode_raw(header.type, body)[: frames.HEADER.size])
    if signed is None:
        return
    if signed.skippable:
        frames.check_body(signed, body)
        return
    if header.length == len(body) and header != signed:
        _decode_body(header, body)
    message = _decode_body(signed, body)
    if message is not None:
        again = frames.encode_frame(message)
        if len(again) != len(data) or frames.decode_body(signed_header(again), again[frames.HEADER.size :]) != message:
            raise Finding(f"{type(message).__name__} does not come back from its own frame")


def signed_header(frame: bytes) -> frames.Header:
    return frames.decode_header(frame[: frames.HEADER.size])


def _decode_header(head: bytes) -> Any:
    return examine(
        lambda: frames.decode_header(head), (RemoteProtocolError,), size=len(head), memory_max=frames.SMALL_FRAME_BYTES
    )


def _decode_body(header: frames.Header, body: bytes) -> Any:
    return examine(
        lambda: frames.decode_body(header, body),
        (RemoteProtocolError,),
        size=len(body),
        memory_max=frames.memory_max(MESSAGES[header.type]),
    )


def fuzz_image(data: bytes) -> None:
    """A pause image, which is a row of frames: as it is, and with its checksums put right."""
    for candidate in {data, resigned(data)}:
        image = examine(
            lambda candidate=candidate: PauseImage.decode(candidate),  # type: ignore[misc]
            (ImageDamaged,),
            size=len(candidate),
            memory_max=3 * len(candidate) + frames.memory_max(Preamble),
        )
        if image is not None:
            examine(
                lambda image=image: _restore(image),  # type: ignore[misc]
                (MigrationError,),
                size=len(candidate),
                memory_max=DOCUMENT_MEMORY_MAX,
            )


def _restore(image: PauseImage) -> None:
    with DRIVEN.receiver() as machine:
        image.restore(machine, RELEASE)


def resigned(stream: bytes) -> bytes:
    """The frames of a stream with the checksums that they should have."""
    signed, rest = bytearray(), memoryview(stream)
    while len(rest) >= frames.HEADER.size:
        kind, _, length, _ = frames.HEADER.unpack(rest[: frames.HEADER.size])
        body = bytes(rest[frames.HEADER.size :][:length])
        signed += frames.encode_raw(kind, body)
        rest = rest[frames.HEADER.size + len(body) :]
    return bytes(signed + rest)


def fuzz_payload(data: bytes) -> None:
    """A payload of the schema that the first byte chooses: decoded, imported, and the machine run with it."""
    if not data:
        return
    schema, body = SCHEMAS[data[0] % len(SCHEMAS)], data[1:]
    payload = examine(
        lambda: decode_payload(schema, body),
        (PayloadError,),
        size=len(body),
        memory_max=2 * len(body) + DOCUMENT_MEMORY_MAX,
    )
    if payload is None:
        return
    if decode_payload(schema, encode_payload(payload)) != payload:
        raise Finding(f"{schema} does not come back from its own bytes")
    examine(lambda: _import_and_run(payload), (), size=len(body), memory_max=DOCUMENT_MEMORY_MAX)


def _import_and_run(payload: Payload) -> None:
    with DRIVEN.receiver() as machine:
        try:
            machine.import_devices(DRIVEN.states_with(payload))
        except DeviceStateError:
            return
        machine.start()
        conversations.look_at(machine)


def fuzz_spec(data: bytes) -> None:
    """A spec document of the version that the first byte chooses: read, built, written again, and judged."""
    if not data:
        return
    version, document = VERSIONS[data[0] % len(VERSIONS)], data[1:]
    spec = examine(
        lambda: version.decode(cbor.decode(document)),
        (cbor.CborError, ParseError, SpecError),
        size=len(document),
        memory_max=2 * len(document) + DOCUMENT_MEMORY_MAX,
    )
    if spec is None:
        return
    if version.decode(cbor.decode(cbor.encode(version.encode(spec)))) != spec:
        raise Finding(f"a spec of version {version.number} does not come back from its own bytes")
    preamble = examine(
        lambda: _preamble(version, document, spec), (), size=len(document), memory_max=DOCUMENT_MEMORY_MAX
    )
    verdict = examine(
        lambda: judge(preamble, RELEASE, {}), (), size=len(document), memory_max=2 * len(document) + DOCUMENT_MEMORY_MAX
    )
    frames.encode_frame(verdict.answer if isinstance(verdict, Acceptable) else Refuse(reasons=verdict))


def _preamble(version: SpecVersion, document: bytes, spec: Spec) -> Preamble:
    """One that says nothing wrong of `spec`."""
    regions = ram_layout(max(spec.board.memory_mb, 1) * MIB)
    return Preamble(
        machine="fuzzed",
        birth=MachineBirth(release=RELEASE.name, vm_id=VM_ID.bytes, shows=()),
        spec_digest=spec_digest(spec),
        variants=(Variant(version=version.number, document=document),),
        withheld=(),
        obstacles=(),
        exports=(),
        ram=tuple(Extent(gpa=region.gpa, length=region.length) for region in regions),
    )


def fuzz_source(data: bytes) -> None:
    """A whole conversation with a source."""
    examine_conversation(converse_with_source, data)


def fuzz_target(data: bytes) -> None:
    """A whole conversation with a target."""
    examine_conversation(converse_with_target, data)


TARGETS: Final[dict[str, Target]] = {
    "frame": fuzz_frame,
    "image": fuzz_image,
    "payload": fuzz_payload,
    "spec": fuzz_spec,
    "source": fuzz_source,
    "target": fuzz_target,
}
