"""Devices for tests, one maker for each kind, and what tests do with their state."""

from collections.abc import Callable
from typing import Any

import attrs

from sim_vmm.devices.base import Device
from sim_vmm.devices.blob import BlobBackend
from sim_vmm.devices.failure_injector import FailureInjector, InjectionCounters
from sim_vmm.devices.fixed import Pvpanic
from sim_vmm.devices.fw_cfg import FwCfg
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.uart import Uart
from sim_vmm.devices.virtio_disk import VirtioDisk
from sim_vmm.devices.virtio_nic import VirtioNic
from sim_vmm.payloads import FwCfgEntry, FwCfgValueKind, Payload
from sim_vmm.spec import PciPath

PATH = PciPath(0, 16, 0)
MAC = b"\xa8\x40\x25\0\0\1"
ENTRIES = (
    FwCfgEntry(selector=0x19, name="file-dir", kind=FwCfgValueKind.FILE_DIR, bytes=b""),
    FwCfgEntry(selector=0x20, name="etc/e820", kind=FwCfgValueKind.BYTES, bytes=b"memory map"),
    FwCfgEntry(selector=0x21, name="etc/ramfb", kind=FwCfgValueKind.RAM_FB, bytes=b""),
)


def disk() -> VirtioDisk:
    return VirtioDisk("disk", PATH, readonly=False)


def nic() -> VirtioNic:
    return VirtioNic("nic", PATH, MAC)


def nvme() -> Nvme:
    return Nvme("nvme", PATH, bytes(20), has_write_cache=True)


def uart() -> Uart:
    return Uart("com2", lambda _data: None)


def fw_cfg() -> FwCfg:
    return FwCfg(ENTRIES)


def blob() -> BlobBackend:
    return BlobBackend("blob", bytes(100), readonly=False)


def injector() -> FailureInjector:
    return FailureInjector("injector", InjectionCounters(), fail_exports=0, fail_imports=0)


DEVICES: list[Callable[[], Device]] = [disk, nic, nvme, uart, fw_cfg, blob, injector, lambda: Pvpanic("pvpanic")]


def export(device: Device) -> tuple[Payload, ...]:
    return device.export([schemas[0] for schemas in device.exports()])


def moved(device: Device, make: Callable[[], Any]) -> Any:
    """A new device that has taken over the state of `device`."""
    new = make()
    new.import_(export(device))
    return new


def booted(make: Callable[[], Any]) -> Any:
    device = make()
    device.driver_probe()
    return device


def replaced(value: Any, path: str, new: object) -> Any:
    """`value` with the field at `path`, such as `queues.queues[0].size`, set to `new`."""
    head, _, rest = path.partition(".")
    name, _, index = head.partition("[")
    old = getattr(value, name)
    if index:
        position = int(index.rstrip("]"))
        item = new if not rest else replaced(old[position], rest, new)
        return attrs.evolve(value, **{name: (*old[:position], item, *old[position + 1 :])})
    return attrs.evolve(value, **{name: new if not rest else replaced(old, rest, new)})
