"""Device state as it travels: one class for each kind and version of payload (device-payloads §5 and §6).

A payload is a value of plain types, so that the layer above can turn any of them into bytes by one generic rule.  The
widths of its integers are in the annotations; rules between fields are checked by the device that imports it.

A version is never edited once released: a change of shape is a new class with the next number.  Upstream changed
pci-virtio and nvme-ctrl without a new number (device-payloads §8); we number those changes, so the shapes here are
pci-virtio 3 (1 is legacy, 2 adds the modern interface, 3 adds `peak`) and nvme-ctrl 2 (2 adds doorbell buffers).
"""

import builtins
from enum import StrEnum
from typing import Annotated, ClassVar, Final

import attrs

from sim_vmm.integers import U8, U16, U32, U64, Exactly


@attrs.frozen
class Schema:
    """What a payload is an instance of."""

    kind: str
    version: int

    def __str__(self) -> str:
        return f"{self.kind} v{self.version}"


# PCI


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


# virtio


@attrs.frozen(kw_only=True)
class VirtioDeviceState:
    """`mode`: 0 legacy, 1 modern, 2 transitional.  A vector of 0xFFFF is none."""

    status: U8
    queue_select: U16
    negotiated_features: U64
    device_feature_select: U32
    driver_feature_select: U32
    config_generation: U8
    config_generation_seen: bool
    device_config_size: U64
    mode: U32
    msix_cfg_vec: U16
    msix_queue_vec: tuple[U16, ...]
    isr_queue: bool
    isr_cfg: bool


@attrs.frozen(kw_only=True)
class VirtQueueState:
    """`avail_cur_idx` is the next available index to consume, `used_idx` the next used index to publish."""

    id: U16
    size: U16
    descr_gpa: U64
    avail_gpa: U64
    used_gpa: U64
    mapping_valid: bool
    live: bool
    enabled: bool
    is_control: bool
    notify_data: U16
    avail_cur_idx: U16
    used_idx: U16


@attrs.frozen(kw_only=True)
class VirtQueuesState:
    """`len` queues are in use; `peak` is the largest number ever, and `queues` has that many."""

    len: U64
    peak: U64
    queues: tuple[VirtQueueState, ...]


@attrs.frozen(kw_only=True)
class PciVirtioV3:
    SCHEMA: ClassVar[Schema] = Schema("pci-virtio", 3)
    device: VirtioDeviceState
    queues: VirtQueuesState


class Promisc(StrEnum):
    """What a link receives beyond its own addresses."""

    NONE = "none"
    ALL_MULTI = "all_multi"
    ALL = "all"


MacAddress = Annotated[bytes, Exactly(6)]


@attrs.frozen(kw_only=True)
class PciVirtioVionaV1:
    SCHEMA: ClassVar[Schema] = Schema("pci-virtio-viona", 1)
    promisc: Promisc
    filter: U8
    unicast_mac_filters: tuple[MacAddress, ...]
    multicast_mac_filters: tuple[MacAddress, ...]


# NVMe


@attrs.frozen(kw_only=True)
class CompletionQueueState:
    """`avail` entries are free for the controller; `phase` is the tag of the entries it writes; `iv` the vector."""

    id: U16
    size: U32
    head: U16
    tail: U16
    avail: U16
    phase: bool
    base: U64
    iv: U16


@attrs.frozen(kw_only=True)
class SubmissionQueueState:
    id: U16
    size: U32
    head: U16
    tail: U16
    base: U64
    cq_id: U16


@attrs.frozen(kw_only=True)
class NvmeCtrlV2:
    """`dbbuf_shadow` and `dbbuf_evtidx` are guest addresses of the doorbell buffers, 0 if there are none."""

    SCHEMA: ClassVar[Schema] = Schema("nvme-ctrl", 2)
    cap: U64
    cc: U32
    csts: U32
    aqa: U32
    acq_base: U64
    asq_base: U64
    dbbuf_shadow: U64
    dbbuf_evtidx: U64
    cqs: tuple[CompletionQueueState, ...]
    sqs: tuple[SubmissionQueueState, ...]


# Legacy devices


@attrs.frozen(kw_only=True)
class Uart16550V1:
    SCHEMA: ClassVar[Schema] = Schema("uart-16550", 1)
    intr_enable: U8
    intr_status: U8
    line_ctrl: U8
    line_status: U8
    modem_ctrl: U8
    modem_status: U8
    scratch: U8
    div_low: U8
    div_high: U8
    thre_state: bool
    rx_fifo: bytes
    tx_fifo: bytes


class FwCfgValueKind(StrEnum):
    """What an entry's content is: the directory of files, the frame buffer's configuration, or plain bytes."""

    FILE_DIR = "file_dir"
    RAM_FB = "ram_fb"
    BYTES = "bytes"


@attrs.frozen(kw_only=True)
class FwCfgEntry:
    """`bytes` is the content of an entry of kind `bytes`, and empty for the others."""

    selector: U16
    name: str
    kind: FwCfgValueKind
    bytes: builtins.bytes


@attrs.frozen(kw_only=True)
class FwCfgSelected:
    """`cached_value` is content that was made when the guest selected it, and that it goes on reading."""

    selector: U16
    offset: U32
    cached_value: bytes | None


@attrs.frozen(kw_only=True)
class QemuFwCfgV2:
    SCHEMA: ClassVar[Schema] = Schema("qemu-fwcfg", 2)
    dma_addr: U64
    selected: FwCfgSelected | None
    entries: tuple[FwCfgEntry, ...]


# Backends and test devices


@attrs.frozen
class InMemoryBlockBackendV1:
    SCHEMA: ClassVar[Schema] = Schema("in-memory-block-backend", 1)
    bytes: builtins.bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")


@attrs.frozen
class TestdevMigrationFailureV1:
    SCHEMA: ClassVar[Schema] = Schema("testdev-migration-failure", 1)
    __test__: ClassVar[bool] = False  # the name looks like a test class to pytest


Payload = (
    PciDeviceV1
    | PciVirtioV3
    | PciVirtioVionaV1
    | NvmeCtrlV2
    | Uart16550V1
    | QemuFwCfgV2
    | InMemoryBlockBackendV1
    | TestdevMigrationFailureV1
)

PAYLOADS: Final[dict[Schema, type[Payload]]] = {
    cls.SCHEMA: cls
    for cls in (
        PciDeviceV1,
        PciVirtioV3,
        PciVirtioVionaV1,
        NvmeCtrlV2,
        Uart16550V1,
        QemuFwCfgV2,
        InMemoryBlockBackendV1,
        TestdevMigrationFailureV1,
    )
}
