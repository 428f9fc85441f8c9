"""Spec version 1 (API 1.0.0, INITIAL), frozen.

Every object is strict but two, which published readers let pass: PCI paths and entries of a boot order.  The top level
is strict too, so even `"smbios": null` is refused.  An NVMe disk always has a write cache, because nothing else
existed.  Field tables: instance-specs §2-§5.
"""

from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

import attrs
import cattrs
from cattrs.gen import make_dict_unstructure_fn

from migrate.plain import Secret, class_hook
from migrate.specs.version import Kind, SpecVersion
from migrate.specs.wire_types import SerialNumberBytes, register_tagged, spec_converter
from sim_vmm.integers import U8, U32, U64, U64_MAX, Range
from sim_vmm.spec import board as machine_board
from sim_vmm.spec import components as machine
from sim_vmm.spec.keys import PciPath, SpecKey

# Board


class CpuVendor(StrEnum):
    AMD = "amd"
    INTEL = "intel"


@attrs.frozen(kw_only=True)
class CpuidEntry:
    leaf: U32
    subleaf: U32 | None = None
    eax: U32
    ebx: U32
    ecx: U32
    edx: U32


@attrs.frozen(kw_only=True)
class Cpuid:
    entries: tuple[CpuidEntry, ...]
    vendor: CpuVendor


@attrs.frozen(kw_only=True)
class I440Fx:
    enable_pcie: bool


class HyperVFeature(StrEnum):
    REFERENCE_TSC = "reference_tsc"


@attrs.frozen(kw_only=True)
class HyperV:
    features: tuple[HyperVFeature, ...]


@attrs.frozen
class Bhyve:
    """The default interface: a tag without a value, and left out when written."""


Chipset = Annotated[I440Fx, "the only chipset so far"]
GuestHvInterface = Bhyve | HyperV


@attrs.frozen(kw_only=True)
class Board:
    """`memory_mb` in MiB.  `guest_hv_interface` and `cpuid` are left out when they have their default."""

    cpus: U8
    memory_mb: U64
    chipset: Chipset
    guest_hv_interface: GuestHvInterface = Bhyve()
    cpuid: Cpuid | None = None


# Devices


@attrs.frozen(kw_only=True)
class VirtioDisk:
    backend_id: SpecKey
    pci_path: PciPath


@attrs.frozen(kw_only=True)
class NvmeDisk:
    backend_id: SpecKey
    pci_path: PciPath
    serial_number: SerialNumberBytes


@attrs.frozen(kw_only=True)
class VirtioNic:
    backend_id: SpecKey
    interface_id: UUID
    pci_path: PciPath


class SerialPortNumber(StrEnum):
    COM1 = "com1"
    COM2 = "com2"
    COM3 = "com3"
    COM4 = "com4"


@attrs.frozen(kw_only=True)
class SerialPort:
    num: SerialPortNumber


@attrs.frozen(kw_only=True)
class PciPciBridge:
    downstream_bus: U8
    pci_path: PciPath


@attrs.frozen(kw_only=True)
class QemuPvpanic:
    enable_isa: bool


@attrs.frozen(kw_only=True)
class BootOrderEntry:
    """Tolerates unknown keys."""

    id: SpecKey


@attrs.frozen(kw_only=True)
class BootSettings:
    order: tuple[BootOrderEntry, ...]


@attrs.frozen(kw_only=True)
class SoftNpuPciPort:
    pci_path: PciPath


@attrs.frozen(kw_only=True)
class SoftNpuPort:
    link_name: str
    backend_id: SpecKey


@attrs.frozen(kw_only=True)
class SoftNpuP9:
    pci_path: PciPath


@attrs.frozen(kw_only=True)
class P9fs:
    source: str
    target: str
    chunk_size: U32
    pci_path: PciPath


@attrs.frozen(kw_only=True)
class MigrationFailureInjector:
    fail_exports: U32
    fail_imports: U32


# Backends


@attrs.frozen(kw_only=True)
class CrucibleStorageBackend:
    request_json: Annotated[str, Secret()] = attrs.field(repr=False)
    readonly: bool


@attrs.frozen(kw_only=True)
class FileStorageBackend:
    """`workers`: null or missing for the server's choice; written as null."""

    path: str
    readonly: bool
    block_size: U32
    workers: Annotated[int, Range(1, U64_MAX)] | None = None


@attrs.frozen(kw_only=True)
class BlobStorageBackend:
    base64: Annotated[str, Secret()] = attrs.field(repr=False)
    readonly: bool


@attrs.frozen(kw_only=True)
class VirtioNetworkBackend:
    vnic_name: str


@attrs.frozen(kw_only=True)
class DlpiNetworkBackend:
    vnic_name: str


# The document

Component = (
    VirtioDisk
    | NvmeDisk
    | VirtioNic
    | SerialPort
    | PciPciBridge
    | QemuPvpanic
    | BootSettings
    | SoftNpuPciPort
    | SoftNpuPort
    | SoftNpuP9
    | P9fs
    | MigrationFailureInjector
    | CrucibleStorageBackend
    | FileStorageBackend
    | BlobStorageBackend
    | VirtioNetworkBackend
    | DlpiNetworkBackend
)


@attrs.frozen(kw_only=True)
class Document:
    board: Board
    components: dict[SpecKey, Component]


def _order_to_wire(order: tuple[SpecKey, ...]) -> tuple[BootOrderEntry, ...]:
    return tuple(BootOrderEntry(id=key) for key in order)


def _order_from_wire(order: tuple[BootOrderEntry, ...]) -> tuple[SpecKey, ...]:
    return tuple(entry.id for entry in order)


KINDS: Final = {
    "virtio_disk": Kind(wire=VirtioDisk, machine=machine.VirtioDisk),
    "nvme_disk": Kind(wire=NvmeDisk, machine=machine.NvmeDisk, implied={"has_write_cache": True}),
    "virtio_nic": Kind(wire=VirtioNic, machine=machine.VirtioNic),
    "serial_port": Kind(wire=SerialPort, machine=machine.SerialPort),
    "pci_pci_bridge": Kind(wire=PciPciBridge, machine=machine.PciBridge),
    "qemu_pvpanic": Kind(wire=QemuPvpanic, machine=machine.Pvpanic),
    "boot_settings": Kind(
        wire=BootSettings, machine=machine.BootSettings, reshaped={"order": (_order_to_wire, _order_from_wire)}
    ),
    "soft_npu_pci_port": Kind(wire=SoftNpuPciPort, machine=machine.SoftNpuPciPort),
    "soft_npu_port": Kind(wire=SoftNpuPort, machine=machine.SoftNpuPort),
    "soft_npu_p9": Kind(wire=SoftNpuP9, machine=machine.SoftNpuP9),
    "p9fs": Kind(wire=P9fs, machine=machine.P9fs),
    "migration_failure_injector": Kind(wire=MigrationFailureInjector, machine=machine.MigrationFailureInjector),
    "crucible_storage_backend": Kind(wire=CrucibleStorageBackend, machine=machine.CrucibleStorageBackend),
    "file_storage_backend": Kind(wire=FileStorageBackend, machine=machine.FileStorageBackend),
    "blob_storage_backend": Kind(wire=BlobStorageBackend, machine=machine.BlobStorageBackend),
    "virtio_network_backend": Kind(wire=VirtioNetworkBackend, machine=machine.VirtioNetworkBackend),
    "dlpi_network_backend": Kind(wire=DlpiNetworkBackend, machine=machine.DlpiNetworkBackend),
}


def _board_to_wire(board: machine_board.Board) -> Board:
    return Board(
        cpus=board.cpus,
        memory_mb=board.memory_mb,
        chipset=I440Fx(enable_pcie=board.enable_pcie),
        guest_hv_interface=Bhyve()
        if board.hyper_v is None
        else HyperV(features=tuple(sorted(HyperVFeature(feature.value) for feature in board.hyper_v))),
        cpuid=None
        if board.cpuid is None
        else Cpuid(
            entries=tuple(CpuidEntry(**attrs.asdict(entry)) for entry in board.cpuid.entries),
            vendor=CpuVendor(board.cpuid.vendor.value),
        ),
    )


def _board_from_wire(board: Board) -> machine_board.Board:
    interface = board.guest_hv_interface
    cpuid = board.cpuid
    return machine_board.Board(
        cpus=board.cpus,
        memory_mb=board.memory_mb,
        enable_pcie=board.chipset.enable_pcie,
        hyper_v=frozenset(machine_board.HyperVFeature(feature.value) for feature in interface.features)
        if isinstance(interface, HyperV)
        else None,
        cpuid=None
        if cpuid is None
        else machine_board.Cpuid(
            machine_board.CpuVendor(cpuid.vendor.value),
            tuple(machine_board.CpuidEntry(**attrs.asdict(entry)) for entry in cpuid.entries),
        ),
    )


BOARD: Final = (_board_to_wire, _board_from_wire)

CHIPSETS: Final = {"i440_fx": I440Fx}
GUEST_HV_INTERFACES: Final = {"bhyve": Bhyve, "hyper_v": HyperV}


def document_converter(kinds: dict[str, Kind], component: Any) -> cattrs.Converter:
    """A converter for documents whose components are the union `component`, in envelopes tagged as `kinds` says."""
    converter = spec_converter()
    converter.register_structure_hook(BootOrderEntry, class_hook(BootOrderEntry, converter, unknown_fields="ignored"))
    register_tagged(converter, Chipset, CHIPSETS, content="value", unknown="UnknownVariant")
    register_tagged(converter, GuestHvInterface, GUEST_HV_INTERFACES, content="value", unknown="UnknownVariant")
    wire_classes = {tag: kind.wire for tag, kind in kinds.items()}
    register_tagged(converter, component, wire_classes, content="component", unknown="UnknownComponentType")
    converter.register_unstructure_hook(Board, make_dict_unstructure_fn(Board, converter, _cattrs_omit_if_default=True))
    return converter


VERSION: Final = SpecVersion(
    number=1, document=Document, kinds=KINDS, board=BOARD, converter=document_converter(KINDS, Component)
)
