"""The hot paths beside RAM: specs, frames, CBOR, device state, dirty pages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import cbor2
import numpy as np

from benchmarks.measure import Allowance, Result, compare, within
from migrate import cbor
from migrate.payloads import decode_payload, encode_payload
from migrate.plain import make_converter
from migrate.protocol import frames
from migrate.protocol.messages import DeviceState as DeviceMessage
from migrate.protocol.messages import Extent, Message, Payload, RamBatch
from migrate.specs import BY_NUMBER
from migrate.specs.offer import Variant, offer
from migrate.specs.reading import parse_json
from sim_vmm.clock import SystemClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.dirty import DirtyPages
from sim_vmm.guest import StampGuest
from sim_vmm.machine import DeviceState, Machine
from sim_vmm.payloads import Schema
from sim_vmm.spec import Board, PciPath, Spec, SpecKey, build_spec
from sim_vmm.spec.components import (
    Component,
    FileStorageBackend,
    NvmeDisk,
    SerialNumber,
    SerialPort,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
)

ALLOWED_S: Final = 0.05
"""What export and import may each cost a blackout (issue 3, "Must show" 5)."""

EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "web-server.json"
PAGES_4_GIB: Final = (4 << 30) // 4096


def results() -> Iterator[Result | Allowance]:
    yield from specs()
    yield frames_and_back()
    yield strict_cbor()
    yield from device_states()
    yield dirty_pages()


def specs() -> Iterator[Result]:
    text = EXAMPLE.read_text()
    version = next(v for number, v in sorted(BY_NUMBER.items(), reverse=True) if _parses(v, text))
    spec, plain = version.decode(parse_json(text)), json.loads(text)
    (newest, *_) = (entry for entry in offer(spec) if isinstance(entry, Variant))
    reader = BY_NUMBER[newest.version]
    yield compare(
        "offer of the example spec: every version, each checked by decoding it",
        lambda: list(offer(spec)),
        lambda: json.loads(json.dumps(plain)),
        against="one json.dumps and json.loads",
        limit=0.015,
        unit="offers",
        repeats=10,
    )
    yield compare(
        "the target's reading of one variant: strict CBOR to a machine's spec",
        lambda: reader.decode(cbor.decode(newest.document)),
        lambda: json.loads(text),
        against="json.loads of the same document",
        limit=0.035,
        unit="specs",
        repeats=20,
    )


def _parses(version: Any, text: str) -> bool:
    try:
        version.decode(parse_json(text))
    except Exception:  # whatever is wrong with it, another version may read it
        return False
    return True


def frames_and_back() -> Result:
    extents = tuple(Extent(gpa=index * 8192, length=4096) for index in range(64))
    message: Message = RamBatch(round=3, extents=extents, zero=(), checksum=2**63)
    data = frames.encode_frame(message)
    plain = make_converter().unstructure(message)
    body = cbor2.dumps(plain, canonical=True)

    def there_and_back() -> Message:
        header = frames.decode_header(frames.encode_frame(message)[:16])
        return frames.decode_body(header, data[16:])

    return compare(
        "a frame there and back: a RAM batch of 64 extents",
        there_and_back,
        lambda: (cbor2.dumps(plain, canonical=True), cbor2.loads(body)),
        against="cbor2 alone",
        limit=0.22,
        unit="frames",
        repeats=20,
    )


def strict_cbor() -> Result:
    data = cbor.encode([{"gpa": index * 4096, "length": 4096, "name": f"extent {index}"} for index in range(1000)])
    return compare(
        "strict CBOR: scan, then load",
        lambda: cbor.decode(data),
        lambda: cbor2.loads(data),
        against="cbor2.loads",
        limit=0.09,
        amount=len(data) / 1e6,
        unit="MB",
    )


def machine_with_26_devices() -> Spec:
    """8 disks of either kind, 8 NICs, a serial port, and the firmware configuration that every machine has."""
    parts: dict[str, Component] = {"com1": SerialPort(SerialNumber.COM1)}
    for index in range(8):
        nvme, disk, nic = (f"{kind}-{index}" for kind in ("nvme", "disk", "nic"))
        for name in (nvme, disk):
            parts[f"{name}-backend"] = FileStorageBackend(f"/{name}.raw", False, 512, None)
        parts[f"{nic}-backend"] = VirtioNetworkBackend(nic)
        parts[nvme] = NvmeDisk(SpecKey.parse(f"{nvme}-backend"), PciPath(0, 4 + index, 0), bytes(20), True)
        parts[disk] = VirtioDisk(SpecKey.parse(f"{disk}-backend"), PciPath(0, 12 + index, 0))
        parts[nic] = VirtioNic(SpecKey.parse(f"{nic}-backend"), UUID(int=index + 1), PciPath(0, 20 + index, 0))
    return build_spec(
        Board(cpus=1, memory_mb=64, enable_pcie=False), {SpecKey.parse(key): part for key, part in parts.items()}
    )


def device_states() -> Iterator[Allowance]:
    def make() -> Machine:
        return Machine.create(machine_with_26_devices(), host_clock=SystemClock(), counters=InjectionCounters())

    source, target = make(), make()
    StampGuest().boot(source)
    source.start()
    source.pause()
    target.receive()

    def export() -> list[DeviceMessage]:
        return [
            DeviceMessage(
                device=state.key,
                payloads=tuple(
                    Payload(kind=payload.SCHEMA.kind, version=payload.SCHEMA.version, data=encode_payload(payload))
                    for payload in state.payloads
                ),
            )
            for state in source.export_devices()
        ]

    def import_(messages: list[DeviceMessage]) -> None:
        target.import_devices(
            DeviceState(
                message.device,
                tuple(decode_payload(Schema(part.kind, part.version), part.data) for part in message.payloads),
            )
            for message in messages
        )

    messages = export()
    yield within(f"blackout: export of a machine with {len(messages)} devices, as checked CBOR", export, ALLOWED_S)
    yield within("blackout: import of the same, from CBOR", lambda: import_(messages), ALLOWED_S)
    source.close()
    target.close()


def dirty_pages() -> Result:
    pages = np.sort(np.random.Generator(np.random.SFC64(2)).choice(PAGES_4_GIB, PAGES_4_GIB // 100, replace=False))
    flags = np.zeros(PAGES_4_GIB, dtype=np.bool_)
    flags[pages] = True
    dirty = DirtyPages(PAGES_4_GIB)

    def take_all() -> None:
        dirty.mark(pages)
        dirty.begin_round()
        while dirty.take(256).size:
            pass
        dirty.settle()

    return compare(
        "dirty pages of 4 GiB, 1 % scattered: mark, fix the round, take in batches of 256",
        take_all,
        lambda: np.flatnonzero(flags),
        against="one np.flatnonzero",
        limit=0.22,
        amount=len(pages) / 1e6,
        unit="million pages",
    )
