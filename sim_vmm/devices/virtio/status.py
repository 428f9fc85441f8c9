"""Bits and numbers of the virtio transport (VIRTIO 1.2 §2.1, §6; checked against the Linux headers by a test)."""

from typing import Final

STATUS_ACK: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 0x40
STATUS_FAILED: Final = 0x80
STATUS_READY: Final = STATUS_ACK | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK
STATUS_KNOWN: Final = STATUS_READY | STATUS_NEEDS_RESET | STATUS_FAILED

#: The device has the legacy interface only; its driver has accepted VERSION_1; it has both interfaces, and neither a
#: modern driver (as yet) nor any reason to hide one.
MODE_LEGACY: Final = 0
MODE_MODERN: Final = 1
MODE_TRANSITIONAL: Final = 2
MODES: Final = (MODE_LEGACY, MODE_MODERN, MODE_TRANSITIONAL)

FEATURE_VERSION_1: Final = 1 << 32
#: What the transport itself offers.  Not among it: indirect descriptors, event indices, packed rings, queue reset.
TRANSPORT_FEATURES: Final = FEATURE_VERSION_1

NO_VECTOR: Final = 0xFFFF

ISR_QUEUE: Final = 1 << 0
ISR_CONFIG: Final = 1 << 1

VENDOR: Final = 0x1AF4
#: Transitional devices have these PCI device ids and their virtio type as subsystem id (VIRTIO 1.2 §4.1.2.1).
DEVICE_NET: Final = 0x1000
DEVICE_BLOCK: Final = 0x1001
TYPE_NET: Final = 1
TYPE_BLOCK: Final = 2
