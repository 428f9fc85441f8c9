"""Spec version 6 (API 6.0.0, NVME_WRITE_CACHE), frozen.

Version 3 in which an NVMe disk says whether it has a volatile write cache.  The field has no default: a version 3 disk
is refused here (instance-specs §10).
"""

from typing import Final

import attrs

from migrate.specs import v1, v2, v3
from migrate.specs.version import Kind, SpecVersion
from migrate.specs.wire_types import SerialNumberBytes
from sim_vmm.spec import components as machine
from sim_vmm.spec.keys import PciPath, SpecKey


@attrs.frozen(kw_only=True)
class NvmeDisk:
    backend_id: SpecKey
    pci_path: PciPath
    serial_number: SerialNumberBytes
    has_write_cache: bool


Component = (
    v1.VirtioDisk
    | NvmeDisk
    | v1.VirtioNic
    | v1.SerialPort
    | v1.PciPciBridge
    | v1.QemuPvpanic
    | v1.BootSettings
    | v3.VirtioSocket
    | v1.SoftNpuPciPort
    | v1.SoftNpuPort
    | v1.SoftNpuP9
    | v1.P9fs
    | v1.MigrationFailureInjector
    | v1.CrucibleStorageBackend
    | v1.FileStorageBackend
    | v1.BlobStorageBackend
    | v1.VirtioNetworkBackend
    | v1.DlpiNetworkBackend
)


@attrs.frozen(kw_only=True)
class Document:
    """`smbios`: null or missing if unset; written as null.  Other unknown fields are ignored."""

    board: v1.Board
    components: dict[SpecKey, Component]
    smbios: v2.SmbiosType1Input | None = None


KINDS: Final = {**v3.KINDS, "nvme_disk": Kind(wire=NvmeDisk, machine=machine.NvmeDisk)}

VERSION: Final = SpecVersion(
    number=6,
    document=Document,
    kinds=KINDS,
    board=v1.BOARD,
    converter=v2.document_converter(Document, KINDS, Component),
)
