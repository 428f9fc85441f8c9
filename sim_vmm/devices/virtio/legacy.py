"""The legacy interface: a header of registers at ports, then the device's own configuration (VIRTIO 1.2 §4.1.4.10).

The two vector registers are there only while MSI-X is enabled, and the device's configuration begins behind them.  A
queue has the device's size and lies in one piece from a 4096-byte page that the driver names.
"""

from typing import Final

from sim_vmm.devices.virtio.status import NO_VECTOR
from sim_vmm.devices.virtio.transport import VirtioTransport
from sim_vmm.integers import U32_MAX
from sim_vmm.virtqueue import legacy_addresses

PORT_BAR: Final = 0

HOST_FEATURES: Final = 0
GUEST_FEATURES: Final = 4
QUEUE_PFN: Final = 8
QUEUE_SIZE: Final = 12
QUEUE_SELECT: Final = 14
QUEUE_NOTIFY: Final = 16
STATUS: Final = 18
ISR: Final = 19
CONFIG_VECTOR: Final = 20
QUEUE_VECTOR: Final = 22
HEADER_BYTES: Final = 20
HEADER_BYTES_MSIX: Final = 24

PAGE_SHIFT: Final = 12


def config_offset(transport: VirtioTransport) -> int:
    """Where the device's own configuration begins."""
    return HEADER_BYTES_MSIX if transport.pci.uses_msix else HEADER_BYTES


def legacy_read(transport: VirtioTransport, offset: int, size: int) -> int:
    start = config_offset(transport)
    if offset >= start:
        return int.from_bytes(transport.owner.config_space()[offset - start : offset - start + size], "little")
    queue = transport.selected
    match offset, size:
        case 0, 4:
            return transport.offered & U32_MAX
        case 4, 4:
            return transport.negotiated_features & U32_MAX
        case 8, 4:
            return queue.descr_gpa >> PAGE_SHIFT if queue is not None and queue.mapping_valid else 0
        case 12, 2:
            return 0 if queue is None else queue.size
        case 14, 2:
            return transport.state.queue_select
        case 18, 1:
            return transport.state.status
        case 19, 1:
            return transport.read_isr()
        case 20, 2:
            return transport.state.msix_cfg_vec
        case 22, 2:
            return NO_VECTOR if queue is None else transport.state.msix_queue_vec[queue.id]
        case _:
            return 0


def legacy_write(transport: VirtioTransport, offset: int, size: int, value: int) -> None:
    start = config_offset(transport)
    if offset >= start:
        transport.owner.write_config(offset - start, value.to_bytes(size, "little"))
        return
    match offset, size:
        case 4, 4:
            transport.accept_features(value, modern=False)
        case 8, 4:
            _place_queue(transport, value)
        case 14, 2:
            transport.select(queue_select=value)
        case 16, 2:
            transport.notify(value)
        case 18, 1:
            transport.write_status(value, modern=False)
        case 20, 2:
            transport.set_config_vector(value)
        case 22, 2:
            transport.set_queue_vector(value)
        case _:
            pass


def _place_queue(transport: VirtioTransport, page: int) -> None:
    """The driver names the page of the selected queue; page 0 takes the queue out of use and back to its beginning."""
    queue = transport.selected
    if queue is None:
        return
    if page == 0:
        transport.set_selected(descr_gpa=0, avail_gpa=0, used_gpa=0, mapping_valid=False, avail_cur_idx=0, used_idx=0)
        return
    where = legacy_addresses(page << PAGE_SHIFT, queue.size)
    transport.set_selected(
        descr_gpa=where.descriptors, avail_gpa=where.available, used_gpa=where.used, mapping_valid=True
    )
