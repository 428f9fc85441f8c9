"""Components of a machine, in the form that the machine is built from.

These classes never travel: they may change freely, and each published spec version (`migrate.specs`) maps them to its
own frozen ones.  `KIND` is the component's name in messages.
"""

from enum import StrEnum
from typing import ClassVar, Final
from uuid import UUID

import attrs

from sim_vmm.spec.keys import PciPath, SpecKey

NVME_SERIAL_NUMBER_BYTES: Final = 20


def _redacted(value: object) -> str:
    """Crucible requests carry encryption keys and blobs carry cloud-init secrets: neither belongs in a log."""
    return f"<{len(str(value))} characters>"


class SerialNumber(StrEnum):
    COM1 = "com1"
    COM2 = "com2"
    COM3 = "com3"
    COM4 = "com4"


class Feature(StrEnum):
    """Parts of a VMM that a build may lack (instance-specs §3, marks † and ‡)."""

    FALCON = "falcon"
    FAILURE_INJECTION = "failure-injection"


# Devices


@attrs.frozen
class VirtioDisk:
    KIND: ClassVar[str] = "virtio_disk"
    backend_id: SpecKey
    pci_path: PciPath


@attrs.frozen
class NvmeDisk:
    """`has_write_cache`: the controller advertises a volatile cache, so the guest flushes (instance-specs §10)."""

    KIND: ClassVar[str] = "nvme_disk"
    backend_id: SpecKey
    pci_path: PciPath
    serial_number: bytes
    has_write_cache: bool


@attrs.frozen
class VirtioNic:
    KIND: ClassVar[str] = "virtio_nic"
    backend_id: SpecKey
    interface_id: UUID
    pci_path: PciPath


@attrs.frozen
class SerialPort:
    KIND: ClassVar[str] = "serial_port"
    num: SerialNumber


@attrs.frozen
class PciBridge:
    KIND: ClassVar[str] = "pci_pci_bridge"
    downstream_bus: int
    pci_path: PciPath


@attrs.frozen
class Pvpanic:
    """Without `enable_isa` the component is accepted and no device is made."""

    KIND: ClassVar[str] = "qemu_pvpanic"
    enable_isa: bool


@attrs.frozen
class BootSettings:
    """Not a device: the order in which firmware tries the disks."""

    KIND: ClassVar[str] = "boot_settings"
    order: tuple[SpecKey, ...]


@attrs.frozen
class VirtioSocket:
    KIND: ClassVar[str] = "virtio_socket"
    guest_cid: int
    pci_path: PciPath


@attrs.frozen
class SoftNpuPciPort:
    KIND: ClassVar[str] = "soft_npu_pci_port"
    pci_path: PciPath


@attrs.frozen
class SoftNpuPort:
    KIND: ClassVar[str] = "soft_npu_port"
    link_name: str
    backend_id: SpecKey


@attrs.frozen
class SoftNpuP9:
    KIND: ClassVar[str] = "soft_npu_p9"
    pci_path: PciPath


@attrs.frozen
class P9fs:
    KIND: ClassVar[str] = "p9fs"
    source: str
    target: str
    chunk_size: int
    pci_path: PciPath


@attrs.frozen
class MigrationFailureInjector:
    """The first `fail_exports` exports and the first `fail_imports` imports of this device fail, per process."""

    KIND: ClassVar[str] = "migration_failure_injector"
    fail_exports: int
    fail_imports: int


# Backends


@attrs.frozen
class CrucibleStorageBackend:
    KIND: ClassVar[str] = "crucible_storage_backend"
    request_json: str = attrs.field(repr=_redacted)
    readonly: bool


@attrs.frozen
class FileStorageBackend:
    KIND: ClassVar[str] = "file_storage_backend"
    path: str
    readonly: bool
    block_size: int
    workers: int | None


@attrs.frozen
class BlobStorageBackend:
    KIND: ClassVar[str] = "blob_storage_backend"
    base64: str = attrs.field(repr=_redacted)
    readonly: bool


@attrs.frozen
class VirtioNetworkBackend:
    KIND: ClassVar[str] = "virtio_network_backend"
    vnic_name: str


@attrs.frozen
class DlpiNetworkBackend:
    KIND: ClassVar[str] = "dlpi_network_backend"
    vnic_name: str


Disk = VirtioDisk | NvmeDisk
StorageBackend = CrucibleStorageBackend | FileStorageBackend | BlobStorageBackend
Backend = StorageBackend | VirtioNetworkBackend | DlpiNetworkBackend
PciDevice = VirtioDisk | NvmeDisk | VirtioNic | PciBridge | VirtioSocket | SoftNpuPciPort | SoftNpuP9 | P9fs
Device = PciDevice | SerialPort | Pvpanic | BootSettings | SoftNpuPort | MigrationFailureInjector
Component = Device | Backend

#: What a build must contain for a component to become a device.
NEEDS_FEATURE: Final[dict[type[Component], Feature]] = {
    SoftNpuPciPort: Feature.FALCON,
    SoftNpuPort: Feature.FALCON,
    SoftNpuP9: Feature.FALCON,
    P9fs: Feature.FALCON,
    DlpiNetworkBackend: Feature.FALCON,
    MigrationFailureInjector: Feature.FAILURE_INJECTION,
}
