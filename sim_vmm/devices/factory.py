"""The device of each component of a spec."""

from collections.abc import Callable
from typing import Final

import attrs

from sim_vmm.birth import NEWEST, Birth
from sim_vmm.devices.base import Device
from sim_vmm.devices.blob import BlobBackend, decode_blob
from sim_vmm.devices.failure_injector import FailureInjector, InjectionCounters
from sim_vmm.devices.fixed import P9fs, PciBridge, Pvpanic, SoftNpuP9, SoftNpuPciPort, SoftNpuPort, VirtioSocket
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.uart import Uart
from sim_vmm.devices.virtio_disk import VirtioDisk
from sim_vmm.devices.virtio_nic import VirtioNic
from sim_vmm.platform import BlockBackend, Wires
from sim_vmm.spec import Spec, SpecKey, components
from sim_vmm.spec.components import SerialNumber
from sim_vmm.storage import Storage
from sim_vmm.wire import NoWires

#: Where the output of a serial port goes; bytes of any number.
Sink = Callable[[bytes], None]

#: The first three bytes of the MAC addresses that we hand out; the rest is from the interface id.
MAC_PREFIX: Final = bytes([0xA8, 0x40, 0x25])

_REFUSING: Final[dict[type[components.Component], type[Device]]] = {
    components.PciBridge: PciBridge,
    components.VirtioSocket: VirtioSocket,
    components.SoftNpuPciPort: SoftNpuPciPort,
    components.SoftNpuPort: SoftNpuPort,
    components.SoftNpuP9: SoftNpuP9,
    components.P9fs: P9fs,
}


#: Where a PC has its serial ports; eight each.
SERIAL_PORTS: Final = {
    SerialNumber.COM1: range(0x3F8, 0x400),
    SerialNumber.COM2: range(0x2F8, 0x300),
    SerialNumber.COM3: range(0x3E8, 0x3F0),
    SerialNumber.COM4: range(0x2E8, 0x2F0),
}


@attrs.frozen(kw_only=True)
class Surroundings:
    """What the devices of a machine are made with.

    COM1 prints to `console`, nobody listens to the other ports.  `storage` holds the disks that are not blobs.
    `wires` has one for each NIC.
    """

    console: Sink
    counters: InjectionCounters
    storage: Storage
    birth: Birth = NEWEST
    wires: Wires = attrs.field(factory=NoWires)


def make_devices(spec: Spec, around: Surroundings) -> dict[SpecKey, Device]:
    """The devices of all components of `spec`, reset, showing what their birth says.

    Boot settings, network backends and backends outside the machine are no devices, nor is a pvpanic without
    `enable_isa`.

    Raises:
        OSError: a disk cannot be opened.
    """
    blobs = {
        key: BlobBackend(str(key), decode_blob(blob.base64), readonly=blob.readonly)
        for key, blob in spec.of_kind(components.BlobStorageBackend)
    }

    def backend_of(key: SpecKey) -> BlockBackend:
        match spec.components[key]:
            case components.CrucibleStorageBackend() | components.FileStorageBackend() as backend:
                return around.storage.open(str(key), backend)
            case _:
                return blobs[key]

    made = ((key, _make(spec, key, around, backend_of)) for key in spec.components if key not in blobs)
    return {**blobs, **{key: device for key, device in made if device is not None}}


def _make(
    spec: Spec, key: SpecKey, around: Surroundings, backend_of: Callable[[SpecKey], BlockBackend]
) -> Device | None:
    name = str(key)
    birth = around.birth
    match spec.components[key]:
        case components.VirtioDisk(backend_id, path):
            return VirtioDisk(name, path, backend_of(backend_id), legacy_only=not birth.modern_virtio)
        case components.NvmeDisk(backend_id, path, serial_number, has_write_cache):
            return Nvme(
                name,
                path,
                serial_number,
                has_write_cache=has_write_cache,
                backend=backend_of(backend_id),
                doorbell_buffers=birth.doorbell_buffers,
            )
        case components.VirtioNic(_, interface_id, path):
            mac = MAC_PREFIX + interface_id.bytes[-3:]
            return VirtioNic(name, path, mac, birth=birth, wire=around.wires.plug(name, mac))
        case components.SerialPort(num):
            sink = around.console if num is SerialNumber.COM1 else _discard
            return Uart(name, sink, SERIAL_PORTS[num])
        case components.Pvpanic(enable_isa=True):
            return Pvpanic(name)
        case components.MigrationFailureInjector(fail_exports, fail_imports):
            return FailureInjector(name, around.counters, fail_exports=fail_exports, fail_imports=fail_imports)
        case component:
            refusing = _REFUSING.get(type(component))
            return None if refusing is None else refusing(name)


def _discard(_data: bytes) -> None:
    """The sink of a port to which nobody listens."""
