"""Virtio over PCI: the transport, its two register interfaces, and the base of the devices that have them."""

from sim_vmm.devices.virtio.device import LEGACY_BARS, MSIX_BAR, VIRTIO_BARS, VirtioDevice, virtio_function
from sim_vmm.devices.virtio.queues import QueueShape
from sim_vmm.devices.virtio.status import (
    DEVICE_BLOCK,
    DEVICE_NET,
    FEATURE_VERSION_1,
    MODE_LEGACY,
    MODE_MODERN,
    MODE_TRANSITIONAL,
    NO_VECTOR,
    STATUS_ACK,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
    STATUS_READY,
    TRANSPORT_FEATURES,
    TYPE_BLOCK,
    TYPE_NET,
)
from sim_vmm.devices.virtio.transport import Owner, VirtioTransport

__all__ = [
    "DEVICE_BLOCK",
    "DEVICE_NET",
    "FEATURE_VERSION_1",
    "LEGACY_BARS",
    "MODE_LEGACY",
    "MODE_MODERN",
    "MODE_TRANSITIONAL",
    "MSIX_BAR",
    "NO_VECTOR",
    "STATUS_ACK",
    "STATUS_DRIVER",
    "STATUS_DRIVER_OK",
    "STATUS_FAILED",
    "STATUS_FEATURES_OK",
    "STATUS_NEEDS_RESET",
    "STATUS_READY",
    "TRANSPORT_FEATURES",
    "TYPE_BLOCK",
    "TYPE_NET",
    "VIRTIO_BARS",
    "Owner",
    "QueueShape",
    "VirtioDevice",
    "VirtioTransport",
    "virtio_function",
]
