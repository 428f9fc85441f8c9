"""The modern interface: four regions of one BAR, found through capabilities of the function (VIRTIO 1.2 §4.1.4).

    0x0000  common configuration     0x1000  interrupt causes     0x2000  the device's own     0x3000  notifications

A register is read and written in its own width, 64-bit ones as two halves or at once (§4.1.3.1); what does not fit that
reads as zero, and a write of it is ignored.  The access capability for guests that cannot reach a BAR (§4.1.4.9) is
left out: its window would be state that no payload carries.
"""

import struct
from collections.abc import Callable
from typing import Final

from sim_vmm.devices.virtio.status import NO_VECTOR
from sim_vmm.devices.virtio.transport import VirtioTransport
from sim_vmm.integers import U32_MAX
from sim_vmm.payloads import VirtQueueState

MODERN_BAR: Final = 2
REGION_BYTES: Final = 0x1000
COMMON: Final = 0x0000
ISR: Final = 0x1000
DEVICE: Final = 0x2000
NOTIFY: Final = 0x3000
#: Queue n is notified at `NOTIFY` + n times this.
NOTIFY_MULTIPLIER: Final = 4

CAP_COMMON: Final = 1
CAP_NOTIFY: Final = 2
CAP_ISR: Final = 3
CAP_DEVICE: Final = 4

# struct virtio_pci_modern_common_cfg

DEVICE_FEATURE_SELECT: Final = 0
DEVICE_FEATURE: Final = 4
DRIVER_FEATURE_SELECT: Final = 8
DRIVER_FEATURE: Final = 12
CONFIG_VECTOR: Final = 16
QUEUE_COUNT: Final = 18
DEVICE_STATUS: Final = 20
CONFIG_GENERATION: Final = 21
QUEUE_SELECT: Final = 22
QUEUE_SIZE: Final = 24
QUEUE_VECTOR: Final = 26
QUEUE_ENABLE: Final = 28
QUEUE_NOTIFY_OFFSET: Final = 30
QUEUE_DESCRIPTORS: Final = 32
QUEUE_AVAILABLE: Final = 40
QUEUE_USED: Final = 48
QUEUE_NOTIFY_DATA: Final = 56
COMMON_BYTES: Final = 60

_RING_REGISTERS: Final = {QUEUE_DESCRIPTORS: "descr_gpa", QUEUE_AVAILABLE: "avail_gpa", QUEUE_USED: "used_gpa"}


def capabilities(config_size: int) -> tuple[bytes, ...]:
    """The bodies of the vendor-specific capabilities (§4.1.4): what is where in the BAR."""
    regions = ((CAP_COMMON, COMMON, COMMON_BYTES), (CAP_ISR, ISR, 1), (CAP_DEVICE, DEVICE, config_size))
    found = tuple(struct.pack("<BBBxxII", kind, MODERN_BAR, 0, offset, length) for kind, offset, length in regions)
    notify = struct.pack("<BBBxxIII", CAP_NOTIFY, MODERN_BAR, 0, NOTIFY, REGION_BYTES, NOTIFY_MULTIPLIER)
    return (*found, notify)


def modern_read(transport: VirtioTransport, offset: int, size: int) -> int:
    region, within = offset & ~(REGION_BYTES - 1), offset % REGION_BYTES
    match region:
        case 0x0000:
            return _read_common(transport, within, size)
        case 0x1000 if within == 0:
            return transport.read_isr()
        case 0x2000:
            return int.from_bytes(transport.owner.config_space()[within : within + size], "little")
        case _:
            return 0


def modern_write(transport: VirtioTransport, offset: int, size: int, value: int) -> None:
    region, within = offset & ~(REGION_BYTES - 1), offset % REGION_BYTES
    match region:
        case 0x0000:
            _write_common(transport, within, size, value)
        case 0x2000:
            transport.owner.write_config(within, value.to_bytes(size, "little"))
        case 0x3000 if within % NOTIFY_MULTIPLIER == 0:
            transport.notify(within // NOTIFY_MULTIPLIER)
        case _:
            pass


def _read_common(transport: VirtioTransport, offset: int, size: int) -> int:
    ring = offset & ~7
    if ring in _RING_REGISTERS and size in (4, 8) and offset % size == 0:
        queue = transport.selected
        return 0 if queue is None else getattr(queue, _RING_REGISTERS[ring]) >> 8 * (offset - ring)
    width, read = _READS.get(offset, (0, None))
    return read(transport) if read is not None and width == size else 0


def _write_common(transport: VirtioTransport, offset: int, size: int, value: int) -> None:
    ring = offset & ~7
    if ring in _RING_REGISTERS and size in (4, 8) and offset % size == 0:
        _write_ring_address(transport, _RING_REGISTERS[ring], 8 * (offset - ring), size, value)
        return
    width, write = _WRITES.get(offset, (0, None))
    if write is not None and width == size:
        write(transport, value)


def _write_ring_address(transport: VirtioTransport, field: str, shift: int, size: int, value: int) -> None:
    """Where a ring is may be said until the queue is enabled."""
    queue = transport.selected
    if queue is not None and not queue.enabled:
        kept = getattr(queue, field) & ~(((1 << 8 * size) - 1) << shift)
        transport.set_selected(**{field: kept | value << shift})


def _feature_window(features: int, select: int) -> int:
    return features >> 32 * select & U32_MAX if select < 2 else 0


def _write_driver_features(transport: VirtioTransport, value: int) -> None:
    select = transport.state.driver_feature_select
    if select < 2:
        kept = transport.negotiated_features & ~(U32_MAX << 32 * select)
        transport.accept_features(kept | value << 32 * select, modern=True)


def _write_queue_size(transport: VirtioTransport, value: int) -> None:
    """A driver may make a queue smaller; a size that is none is ignored (§4.1.4.3.1)."""
    queue = transport.selected
    if queue is not None and not queue.enabled and value and not value & (value - 1):
        largest = transport.control_size_max if queue.is_control else transport.size_maxima[queue.id]
        if value <= largest:
            transport.set_selected(size=value)


def _enable_queue(transport: VirtioTransport, value: int) -> None:
    """Only 1 means anything: a queue is disabled by a reset of the device."""
    if value == 1:
        transport.set_selected(enabled=True, mapping_valid=True)


def _of_queue(read: Callable[[VirtQueueState], int], absent: int = 0) -> Callable[[VirtioTransport], int]:
    """A register of the selected queue; `absent` is what it reads as if there is no such queue."""
    return lambda transport: absent if transport.selected is None else read(transport.selected)


def _queue_vector(transport: VirtioTransport) -> int:
    queue = transport.selected
    return NO_VECTOR if queue is None else transport.state.msix_queue_vec[queue.id]


_READS: Final[dict[int, tuple[int, Callable[[VirtioTransport], int]]]] = {
    DEVICE_FEATURE_SELECT: (4, lambda t: t.state.device_feature_select),
    DEVICE_FEATURE: (4, lambda t: _feature_window(t.offered, t.state.device_feature_select)),
    DRIVER_FEATURE_SELECT: (4, lambda t: t.state.driver_feature_select),
    DRIVER_FEATURE: (4, lambda t: _feature_window(t.negotiated_features, t.state.driver_feature_select)),
    CONFIG_VECTOR: (2, lambda t: t.state.msix_cfg_vec),
    QUEUE_COUNT: (2, lambda t: len(t.queues)),
    DEVICE_STATUS: (1, lambda t: t.state.status),
    CONFIG_GENERATION: (1, lambda t: t.see_generation()),
    QUEUE_SELECT: (2, lambda t: t.state.queue_select),
    QUEUE_SIZE: (2, _of_queue(lambda queue: queue.size)),
    QUEUE_VECTOR: (2, _queue_vector),
    QUEUE_ENABLE: (2, _of_queue(lambda queue: int(queue.enabled))),
    QUEUE_NOTIFY_OFFSET: (2, _of_queue(lambda queue: queue.id)),
    QUEUE_NOTIFY_DATA: (2, _of_queue(lambda queue: queue.notify_data)),
}
"""Width and reader of each register by its offset; ring addresses apart."""

_WRITES: Final[dict[int, tuple[int, Callable[[VirtioTransport, int], None]]]] = {
    DEVICE_FEATURE_SELECT: (4, lambda t, value: t.select(device_feature_select=value)),
    DRIVER_FEATURE_SELECT: (4, lambda t, value: t.select(driver_feature_select=value)),
    DRIVER_FEATURE: (4, _write_driver_features),
    CONFIG_VECTOR: (2, lambda t, value: t.set_config_vector(value)),
    DEVICE_STATUS: (1, lambda t, value: t.write_status(value, modern=True)),
    QUEUE_SELECT: (2, lambda t, value: t.select(queue_select=value)),
    QUEUE_SIZE: (2, _write_queue_size),
    QUEUE_VECTOR: (2, lambda t, value: t.set_queue_vector(value)),
    QUEUE_ENABLE: (2, _enable_queue),
}
