"""The device of each component of a spec."""

from collections.abc import Callable
from typing import Final

from sim_vmm.birth import NEWEST, Birth
from sim_vmm.devices.base import Device
from sim_vmm.devices.blob import BlobBackend, decode_blob
from sim_vmm.devices.failure_injector import FailureInjector, InjectionCounters
from sim_vmm.devices.fixed import P9fs, PciBridge, Pvpanic, SoftNpuP9, SoftNpuPciPort, SoftNpuPort, VirtioSocket
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.uart import Uart
from sim_vmm.devices.virtio_disk import VirtioDisk
from sim_vmm.devices.virtio_nic import VirtioNic
from sim_vmm.spec import Spec, SpecKey, components
from sim_vmm.spec.components import SerialNumber

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


def make_devices(
    spec: Spec, console: Sink, counters: InjectionCounters, birth: Birth = NEWEST
) -> dict[SpecKey, Device]:
    """The devices of all components of `spec`, reset, showing what `birth` says.

    COM1 prints to `console`, nobody listens to the other ports.
    Boot settings, network backends and backends outside the machine are no devices, nor is a pvpanic without
    `enable_isa`.
    """
    made = ((key, _make(spec, key, console, counters, birth)) for key in spec.components)
    return {key: device for key, device in made if device is not None}


def _make(spec: Spec, key: SpecKey, console: Sink, counters: InjectionCounters, birth: Birth) -> Device | None:
    name = str(key)
    match spec.components[key]:
        case components.VirtioDisk(backend_id, path):
            backend = spec.components[backend_id]
            readonly = isinstance(backend, components.StorageBackend) and backend.readonly
            return VirtioDisk(name, path, readonly=readonly)
        case components.NvmeDisk(_, path, serial_number, has_write_cache):
            return Nvme(name, path, serial_number, has_write_cache=has_write_cache)
        case components.VirtioNic(_, interface_id, path):
            return VirtioNic(name, path, MAC_PREFIX + interface_id.bytes[-3:])
        case components.SerialPort(num):
            return Uart(name, console if num is SerialNumber.COM1 else _discard)
        case components.Pvpanic(enable_isa=True):
            return Pvpanic(name)
        case components.MigrationFailureInjector(fail_exports, fail_imports):
            return FailureInjector(name, counters, fail_exports=fail_exports, fail_imports=fail_imports)
        case components.BlobStorageBackend(text, readonly):
            return BlobBackend(name, decode_blob(text), readonly=readonly)
        case component:
            refusing = _REFUSING.get(type(component))
            return None if refusing is None else refusing(name)


def _discard(_data: bytes) -> None:
    """The sink of a port to which nobody listens."""
