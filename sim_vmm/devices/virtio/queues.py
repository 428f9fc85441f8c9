"""Queues as a virtio device offers them at reset."""

import attrs

from sim_vmm.payloads import VirtQueueState


@attrs.frozen
class QueueShape:
    """A queue as the device offers it: its size (the largest, except in legacy mode) and its purpose."""

    size_max: int
    is_control: bool = False


def fresh_queue(number: int, shape: QueueShape) -> VirtQueueState:
    """Queue `number` as it is after a reset."""
    return VirtQueueState(
        id=number,
        size=shape.size_max,
        descr_gpa=0,
        avail_gpa=0,
        used_gpa=0,
        mapping_valid=False,
        live=False,
        enabled=False,
        is_control=shape.is_control,
        notify_data=number,
        avail_cur_idx=0,
        used_idx=0,
    )
