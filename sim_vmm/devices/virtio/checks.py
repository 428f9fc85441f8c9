"""What a virtio transport refuses to take over (device-payloads §5)."""

from typing import TYPE_CHECKING

from sim_vmm.devices.base import Refuse, refusal
from sim_vmm.devices.virtio.status import MODE_LEGACY, MODES, NO_VECTOR, STATUS_KNOWN
from sim_vmm.payloads import PciVirtioV3, VirtioDeviceState, VirtQueuesState, VirtQueueState

if TYPE_CHECKING:
    from sim_vmm.devices.virtio.transport import VirtioTransport


def check_payload(transport: "VirtioTransport", payload: PciVirtioV3) -> None:
    """Raises ImportFailed for the first value that `transport` cannot take."""
    refuse = refusal(transport.pci.key, PciVirtioV3.SCHEMA)
    _check_device(transport, payload.device, refuse)
    _check_counts(transport, payload.queues, refuse)
    for position, queue in enumerate(payload.queues.queues):
        _check_queue(transport, position, queue, payload.device.mode, refuse)


def _check_device(transport: "VirtioTransport", device: VirtioDeviceState, refuse: Refuse) -> None:
    if unknown := device.status & ~STATUS_KNOWN:
        raise refuse("device.status", f"unknown bits {unknown:#x}; known are {STATUS_KNOWN:#x}")
    if device.mode not in MODES:
        raise refuse("device.mode", f"{device.mode}; expected 0 (legacy), 1 (modern) or 2 (transitional)")
    if (device.mode == MODE_LEGACY) != transport.legacy_only:
        has = "the legacy interface only" if transport.legacy_only else "the modern interface too"
        raise refuse("device.mode", f"{device.mode}; this device was born with {has}")
    if device.device_config_size != transport.config_size:
        raise refuse(
            "device.device_config_size", f"{device.device_config_size}; this device has {transport.config_size}"
        )
    if unknown := device.negotiated_features & ~transport.offered:
        raise refuse(
            "device.negotiated_features", f"features {unknown:#x} are in force, and this device does not offer them"
        )
    if len(device.msix_queue_vec) != transport.capacity:
        raise refuse(
            "device.msix_queue_vec",
            f"{len(device.msix_queue_vec)} vectors; this device has {transport.capacity} queues",
        )
    for field, vector in (
        ("msix_cfg_vec", device.msix_cfg_vec),
        *((f"msix_queue_vec[{queue}]", vector) for queue, vector in enumerate(device.msix_queue_vec)),
    ):
        if vector != NO_VECTOR and vector >= transport.pci.vectors:
            raise refuse(
                f"device.{field}", f"{vector}; this device has vectors 0 to {transport.pci.vectors - 1}, or 0xffff"
            )


def _check_counts(transport: "VirtioTransport", queues: VirtQueuesState, refuse: Refuse) -> None:
    for field, count in (("len", queues.len), ("peak", queues.peak)):
        if not 1 <= count <= transport.capacity:
            raise refuse(f"queues.{field}", f"{count}; this device has 1 to {transport.capacity} queues")
    if queues.len > queues.peak:
        raise refuse("queues.len", f"{queues.len} queues in use, more than the most ever, {queues.peak}")
    if len(queues.queues) != queues.peak:
        raise refuse("queues.queues", f"{len(queues.queues)} queues; peak says {queues.peak}")


def _check_queue(transport: "VirtioTransport", position: int, queue: VirtQueueState, mode: int, refuse: Refuse) -> None:
    field = f"queues.queues[{position}]"
    if queue.id != position:
        raise refuse(f"{field}.id", f"{queue.id}; queues are listed by id, from 0")
    if queue.is_control and not transport.control_size_max:
        raise refuse(f"{field}.is_control", "set; this device has no control queue")
    if queue.notify_data != position:
        raise refuse(f"{field}.notify_data", f"{queue.notify_data}; this device uses {position}")
    if queue.live and not queue.mapping_valid:
        raise refuse(f"{field}.live", "set, and mapping_valid is not: a live queue has its rings somewhere")
    largest = transport.control_size_max if queue.is_control else transport.size_maxima[position]
    if mode == MODE_LEGACY:
        if queue.size != largest:
            raise refuse(f"{field}.size", f"{queue.size}; in legacy mode this queue has {largest}")
    elif queue.size == 0 or queue.size & (queue.size - 1) or queue.size > largest:
        raise refuse(f"{field}.size", f"{queue.size}; expected a power of two from 1 to {largest}")
