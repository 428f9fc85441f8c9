"""Specs and machines for tests."""

import base64
from collections.abc import Mapping
from uuid import UUID

from sim_vmm.birth import NEWEST, Birth
from sim_vmm.clock import ManualClock
from sim_vmm.devices.failure_injector import InjectionCounters
from sim_vmm.machine import Machine
from sim_vmm.platform import Wires
from sim_vmm.spec import Board, PciPath, Spec, SpecKey, build_spec
from sim_vmm.spec.components import (
    BlobStorageBackend,
    Component,
    FileStorageBackend,
    NvmeDisk,
    Pvpanic,
    SerialNumber,
    SerialPort,
    VirtioDisk,
    VirtioNetworkBackend,
    VirtioNic,
)

MIB = 1 << 20
BLOB = bytes(range(256)) * 8

COM1: dict[str, Component] = {"com1": SerialPort(SerialNumber.COM1)}

EVERY_DEVICE: dict[str, Component] = {
    **COM1,
    "com2": SerialPort(SerialNumber.COM2),
    "pvpanic": Pvpanic(True),
    "boot": NvmeDisk(SpecKey.parse("boot-backend"), PciPath(0, 4, 0), b"boot".ljust(20, b"\0"), True),
    "boot-backend": FileStorageBackend("/disk.raw", False, 512, None),
    "cloud-init": VirtioDisk(SpecKey.parse("cloud-init-backend"), PciPath(0, 24, 0)),
    "cloud-init-backend": BlobStorageBackend(base64.b64encode(BLOB).decode(), False),
    "nic": VirtioNic(SpecKey.parse("nic-backend"), UUID(int=0xABCDEF), PciPath(0, 8, 0)),
    "nic-backend": VirtioNetworkBackend("opte0"),
}


def make_spec(components: Mapping[str, Component], *, cpus: int = 2, memory_mb: int = 4) -> Spec:
    board = Board(cpus=cpus, memory_mb=memory_mb, enable_pcie=False)
    return build_spec(board, {SpecKey.parse(key): component for key, component in components.items()})


def make_machine(
    components: Mapping[str, Component] = EVERY_DEVICE,
    *,
    host_clock: ManualClock | None = None,
    counters: InjectionCounters | None = None,
    birth: Birth = NEWEST,
    wires: Wires | None = None,
) -> Machine:
    return Machine.create(
        make_spec(components),
        host_clock=host_clock or ManualClock(monotonic=10**9, wall=1_700_000_000 * 10**9),
        counters=counters or InjectionCounters(),
        birth=birth,
        wires=wires,
    )
