"""The shapes that payloads had before, as upstream's history had them without saying so (device-payloads §8).

Each says what could be said at its time and no more.  What a later version adds is as it was at the device's birth for
whoever reads one of these: `conversions.py`.
"""

from typing import ClassVar

import attrs

from sim_vmm.integers import U8, U16, U32, U64
from sim_vmm.payloads.nvme import CompletionQueueState, SubmissionQueueState
from sim_vmm.payloads.schema import Schema
from sim_vmm.payloads.virtio import VirtioDeviceState, VirtQueueState

# pci-virtio before 2025-12-05 (upstream 69900998): the legacy interface


@attrs.frozen(kw_only=True)
class LegacyVirtioDeviceState:
    """`negotiated_features` has 32 bits, as the legacy interface shows (VIRTIO 1.2 §4.1.4.8)."""

    status: U8
    queue_select: U16
    negotiated_features: U32
    msix_cfg_vec: U16
    msix_queue_vec: tuple[U16, ...]
    isr_queue: bool
    isr_cfg: bool


@attrs.frozen(kw_only=True)
class LegacyVirtQueueState:
    """The three rings lie one behind the other, from the page that the guest named; all addresses are said."""

    id: U16
    size: U16
    descr_gpa: U64
    avail_gpa: U64
    used_gpa: U64
    mapping_valid: bool
    live: bool
    avail_cur_idx: U16
    used_idx: U16


@attrs.frozen(kw_only=True)
class PciVirtioV1:
    """`queues` are those in use."""

    SCHEMA: ClassVar[Schema] = Schema("pci-virtio", 1)
    device: LegacyVirtioDeviceState
    queues: tuple[LegacyVirtQueueState, ...]


# pci-virtio before 2026-05-05 (upstream f2096047): queues no longer in use are forgotten


@attrs.frozen(kw_only=True)
class VirtQueuesInUse:
    """`len` queues are in use, and `queues` has that many."""

    len: U64
    queues: tuple[VirtQueueState, ...]


@attrs.frozen(kw_only=True)
class PciVirtioV2:
    SCHEMA: ClassVar[Schema] = Schema("pci-virtio", 2)
    device: VirtioDeviceState
    queues: VirtQueuesInUse


# nvme-ctrl before 2025-09-03 (upstream 6dae4dc3): no doorbell buffers


@attrs.frozen(kw_only=True)
class NvmeCtrlV1:
    SCHEMA: ClassVar[Schema] = Schema("nvme-ctrl", 1)
    cap: U64
    cc: U32
    csts: U32
    aqa: U32
    acq_base: U64
    asq_base: U64
    cqs: tuple[CompletionQueueState, ...]
    sqs: tuple[SubmissionQueueState, ...]


# qemu-fwcfg before 2024-05-28 (upstream 3c0f9983): every host made its own entries


@attrs.frozen(kw_only=True)
class QemuFwCfgV1:
    """`selector` 0xFFFF is none."""

    SCHEMA: ClassVar[Schema] = Schema("qemu-fwcfg", 1)
    dma_addr: U64
    selector: U16
    offset: U32
