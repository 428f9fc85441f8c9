"""A virtio NIC: its queues and frames, its control queue, and which frames it receives."""

from sim_vmm.devices.virtio_nic.layout import PAIRS_MAX, queue_shapes
from sim_vmm.devices.virtio_nic.nic import Link, NicCounters, VirtioNic

__all__ = ["PAIRS_MAX", "Link", "NicCounters", "VirtioNic", "queue_shapes"]
