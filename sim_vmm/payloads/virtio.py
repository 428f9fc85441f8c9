"""State of virtio devices: the transport, and a NIC's receive filters (device-payloads §5)."""

from enum import StrEnum
from typing import Annotated, ClassVar

import attrs

from sim_vmm.integers import U8, U16, U32, U64, Exactly
from sim_vmm.payloads.schema import Schema


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
