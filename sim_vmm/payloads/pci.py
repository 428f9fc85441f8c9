"""State of the PCI face of a device (device-payloads §5)."""

from enum import StrEnum
from typing import ClassVar

import attrs

from sim_vmm.integers import U8, U16, U32, U64
from sim_vmm.payloads.schema import Schema


class BarKind(StrEnum):
    EMPTY = "empty"
    PIO = "pio"
    MMIO = "mmio"
    MMIO64 = "mmio64"


@attrs.frozen
class Bar:
    """A base address register: `size` bytes, placed by the guest at `value`.  An mmio64 BAR takes the next slot too."""

    kind: BarKind
    size: U64
    value: U64


@attrs.frozen
class Bars:
    """Six entries."""

    entries: tuple[Bar, ...]


@attrs.frozen
class MsixEntry:
    addr: U64
    data: U32
    is_vec_masked: bool
    is_pending: bool


@attrs.frozen
class Msix:
    """`count` entries, one for each interrupt vector."""

    count: U16
    is_enabled: bool
    is_func_masked: bool
    entries: tuple[MsixEntry, ...]


@attrs.frozen(kw_only=True)
class PciDeviceV1:
    SCHEMA: ClassVar[Schema] = Schema("pci-device", 1)
    reg_command: U16
    reg_intr_line: U8
    bars: Bars
    msix: Msix | None
