"""Devices for tests, one maker for each kind, and what tests do with their state."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs

from sim_vmm.clock import GuestClock, ManualClock
from sim_vmm.devices.base import Device
from sim_vmm.devices.blob import BlobBackend
from sim_vmm.devices.failure_injector import FailureInjector, InjectionCounters
from sim_vmm.devices.fixed import Pvpanic
from sim_vmm.devices.fw_cfg import SELECTOR_FILE_DIR, FwCfg
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.rtc import Rtc
from sim_vmm.devices.uart import Uart
from sim_vmm.devices.vcpu import Vcpu
from sim_vmm.devices.virtio_disk import VirtioDisk
from sim_vmm.devices.virtio_nic import VirtioNic
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.drivers.uart import UartDriver
from sim_vmm.drivers.virtio_blk import VirtioBlkDriver
from sim_vmm.drivers.virtio_net import VirtioNetDriver
from sim_vmm.payloads import FwCfgEntry, FwCfgValueKind, Payload
from sim_vmm.spec import PciPath
from sim_vmm.storage import VolatileDisk
from tests.bench import Bench

PATH = PciPath(0, 16, 0)
MAC = b"\xa8\x40\x25\0\0\1"
BROADCAST_FRAME = b"\xff" * 6 + MAC + b"\x88\xb5" + bytes(46)
ENTRIES = (
    FwCfgEntry(selector=0x19, name="file-dir", kind=FwCfgValueKind.FILE_DIR, bytes=b""),
    FwCfgEntry(selector=0x20, name="etc/e820", kind=FwCfgValueKind.BYTES, bytes=b"memory map"),
    FwCfgEntry(selector=0x21, name="etc/ramfb", kind=FwCfgValueKind.RAM_FB, bytes=b""),
)


#: What the guest of a device on its own bench has: RAM, where its driver's memory is, its interrupt vector.
RAM_BYTES = 1 << 19
AREA = 0x1_0000
VECTOR = 0x40


def on_bench(device: Any) -> Any:
    """The device, attached to a bench of its own, which lives as long."""
    device.bench = Bench(device, memory_bytes=RAM_BYTES)
    device.is_driven = False
    weakref.finalize(device, device.bench.memory.close)
    return device


def disk() -> VirtioDisk:
    backend = VolatileDisk(size=1 << 20, readonly=False, block_size=512)
    return cast("VirtioDisk", on_bench(VirtioDisk("disk", PATH, backend)))


def nic() -> VirtioNic:
    return cast("VirtioNic", on_bench(VirtioNic("nic", PATH, MAC)))


def nvme() -> Nvme:
    backend = VolatileDisk(size=1 << 20, readonly=False, block_size=512)
    return cast("Nvme", on_bench(Nvme("nvme", PATH, bytes(20), has_write_cache=True, backend=backend)))


def uart(sink: Callable[[bytes], None] = lambda _data: None) -> Uart:
    return cast("Uart", on_bench(Uart("com2", sink)))


def fw_cfg(entries: Sequence[FwCfgEntry] = ENTRIES) -> FwCfg:
    return cast("FwCfg", on_bench(FwCfg(entries)))


def blob() -> BlobBackend:
    return BlobBackend("blob", bytes(100), readonly=False)


def injector() -> FailureInjector:
    return FailureInjector("injector", InjectionCounters(), fail_exports=0, fail_imports=0)


def rtc() -> Rtc:
    return Rtc(GuestClock(ManualClock()), 1_700_000_000 * 10**9)


DEVICES: list[Callable[[], Device]] = [
    disk,
    nic,
    nvme,
    uart,
    fw_cfg,
    blob,
    injector,
    rtc,
    lambda: Vcpu(0),
    lambda: Pvpanic("pvpanic"),
]


def export(device: Device) -> tuple[Payload, ...]:
    return device.export([schemas[0] for schemas in device.exports()])


def moved(device: Device, make: Callable[[], Any]) -> Any:
    """A new device that has taken over the state of `device`, and the guest's RAM with it."""
    new = make()
    if hasattr(device, "bench"):
        new.bench.memory.view[:] = device.bench.memory.view
        new.is_driven = device.is_driven  # type: ignore[attr-defined]
    new.import_(export(device))
    return new


def booted(make: Callable[[], Any]) -> Any:
    """A device that the guest's driver has set up."""
    device = make()
    bench: Any = getattr(device, "bench", None)
    match device:
        case VirtioDisk():
            VirtioBlkDriver(bench, AREA).probe(PATH, vector=VECTOR)
        case VirtioNic():
            VirtioNetDriver(bench, AREA).probe(PATH, vector=VECTOR)
        case Nvme():
            NvmeDriver(bench, AREA).probe(PATH, vector=VECTOR)
        case Uart():
            UartDriver(bench.bus, device.ports[0].start).probe()
        case FwCfg():
            device.select(SELECTOR_FILE_DIR)
            device.read(4)
    device.is_driven = True
    return device


def use(device: Any) -> None:
    """The guest uses the device once, if its driver has set it up, so that its state moves on."""
    bench: Any = getattr(device, "bench", None)
    is_driven = getattr(device, "is_driven", False)
    match device:
        case VirtioDisk() if is_driven:
            disk_driver = VirtioBlkDriver(bench, AREA)
            disk_driver.submit_flush()
            disk_driver.poll()
        case VirtioNic() if is_driven:
            nic_driver = VirtioNetDriver(bench, AREA)
            nic_driver.send(BROADCAST_FRAME)
            nic_driver.reclaim()
        case Nvme() if is_driven:
            nvme_driver = NvmeDriver(bench, AREA)
            nvme_driver.submit_flush()
            list(nvme_driver.completions())
        case Uart():
            device.transmit(b"x")
        case FwCfg():
            device.read(1)
        case Vcpu():
            device.request(0x31)
            device.registers["r8"] += 1
        case _:
            pass


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
