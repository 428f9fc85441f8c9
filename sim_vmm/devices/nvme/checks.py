"""Which state of a controller can be taken over: the rules of device-payloads §5, and that its parts agree.

Upstream takes any registers and any positions; here a value that the controller would have to ignore, or could not have
come to by itself, is refused by name.
"""

from sim_vmm.devices.base import Refuse
from sim_vmm.devices.nvme.layout import (
    ADMIN,
    AQA_KNOWN,
    CC_ENABLE,
    CC_KNOWN,
    CSTS_KNOWN,
    CSTS_READY,
)
from sim_vmm.devices.nvme.queue_set import (
    ADMIN_QUEUE_SIZE_MAX,
    QUEUE_ID_MAX,
    QUEUE_SIZE_MAX,
    QUEUE_SIZE_MIN,
    VECTORS,
)
from sim_vmm.devices.nvme.queues import NO_VECTOR, available_entries
from sim_vmm.devices.nvme.registers import CAP
from sim_vmm.memory import PAGE_SIZE, GuestAddressError, GuestMemory
from sim_vmm.payloads import CompletionQueueState, NvmeCtrlV2, SubmissionQueueState


def check_state(nvme: NvmeCtrlV2, refuse: Refuse, *, doorbell_buffers: bool) -> None:
    """Raises ImportFailed for the first value that a controller, with or without doorbell buffers, cannot take."""
    _check_registers(nvme, refuse)
    _check_queues(nvme, refuse)
    _check_admin_queues(nvme, refuse)
    _check_buffers(nvme, refuse, offered=doorbell_buffers)


def check_buffers_in_ram(nvme: NvmeCtrlV2, refuse: Refuse, memory: GuestMemory) -> None:
    """Raises ImportFailed if a doorbell buffer is not in RAM: no controller has taken such a page."""
    for field, base in (("dbbuf_shadow", nvme.dbbuf_shadow), ("dbbuf_evtidx", nvme.dbbuf_evtidx)):
        try:
            memory.read(base, PAGE_SIZE)
        except GuestAddressError as error:
            raise refuse(field, str(error)) from error


def _check_registers(nvme: NvmeCtrlV2, refuse: Refuse) -> None:
    if nvme.cap != CAP:
        raise refuse("cap", f"{nvme.cap:#x}; this controller has {CAP:#x}")
    for field, value, known in (
        ("cc", nvme.cc, CC_KNOWN),
        ("csts", nvme.csts, CSTS_KNOWN),
        ("aqa", nvme.aqa, AQA_KNOWN),
    ):
        if unknown := value & ~known:
            raise refuse(field, f"unknown bits {unknown:#x}; known are {known:#x}")
    for field, base in (("asq_base", nvme.asq_base), ("acq_base", nvme.acq_base)):
        _check_page(field, base, refuse)
    if nvme.csts & CSTS_READY and not nvme.cc & CC_ENABLE:
        raise refuse("csts", f"{nvme.csts:#x} says ready; cc, {nvme.cc:#x}, is not enabled")


def _check_queues(nvme: NvmeCtrlV2, refuse: Refuse) -> None:
    lists: dict[str, tuple[CompletionQueueState | SubmissionQueueState, ...]] = {"cqs": nvme.cqs, "sqs": nvme.sqs}
    for field, queues in lists.items():
        seen: list[int] = []
        for index, queue in enumerate(queues):
            where = f"{field}[{index}]"
            if queue.id > QUEUE_ID_MAX:
                raise refuse(f"{where}.id", f"{queue.id}; queues have ids 0 to {QUEUE_ID_MAX}")
            if queue.id in seen:
                raise refuse(f"{where}.id", f"{queue.id} occurs twice")
            seen.append(queue.id)
            _check_shape(where, queue, refuse)
        if seen != sorted(seen):
            raise refuse(field, f"ids {', '.join(map(str, seen))}; queues are listed by id")
    for index, cq in enumerate(nvme.cqs):
        free = available_entries(cq.size, cq.head, cq.tail)
        if cq.avail != free:
            raise refuse(f"cqs[{index}].avail", f"{cq.avail}; from head and tail, {free} of {cq.size} entries are free")
        if cq.iv >= VECTORS and cq.iv != NO_VECTOR:
            raise refuse(
                f"cqs[{index}].iv", f"{cq.iv}; this device has vectors 0 to {VECTORS - 1}, and {NO_VECTOR:#x} is none"
            )
    completion_ids = {cq.id for cq in nvme.cqs}
    for index, sq in enumerate(nvme.sqs):
        if sq.cq_id not in completion_ids:
            raise refuse(f"sqs[{index}].cq_id", f"completion queue {sq.cq_id} does not exist")
        if sq.id != ADMIN and sq.cq_id == ADMIN:
            raise refuse(f"sqs[{index}].cq_id", "0; an I/O submission queue must not complete to the admin queue")


def _check_shape(where: str, queue: CompletionQueueState | SubmissionQueueState, refuse: Refuse) -> None:
    _check_page(f"{where}.base", queue.base, refuse)
    largest = ADMIN_QUEUE_SIZE_MAX if queue.id == ADMIN else QUEUE_SIZE_MAX
    if not QUEUE_SIZE_MIN <= queue.size <= largest:
        raise refuse(f"{where}.size", f"{queue.size}; queue {queue.id} has {QUEUE_SIZE_MIN} to {largest} entries")
    for field, position in (("head", queue.head), ("tail", queue.tail)):
        if position >= queue.size:
            raise refuse(f"{where}.{field}", f"{position} lies outside a queue of {queue.size} entries")


def _check_admin_queues(nvme: NvmeCtrlV2, refuse: Refuse) -> None:
    """A ready controller has the admin queues that its registers name; one that is not ready has no queues."""
    is_ready = bool(nvme.csts & CSTS_READY)
    lists: tuple[tuple[str, tuple[CompletionQueueState | SubmissionQueueState, ...], int, int], ...] = (
        ("cqs", nvme.cqs, nvme.acq_base, (nvme.aqa >> 16) + 1),
        ("sqs", nvme.sqs, nvme.asq_base, (nvme.aqa & 0xFFF) + 1),
    )
    for field, queues, base, size in lists:
        if not is_ready:
            if queues:
                raise refuse(field, f"{len(queues)} queues; the controller is not ready and has none")
            continue
        if not queues or queues[0].id != ADMIN:
            raise refuse(field, "no admin queue; the controller is ready and has one")
        if (queues[0].base, queues[0].size) != (base, size):
            raise refuse(
                f"{field}[0]",
                f"{queues[0].size} entries at {queues[0].base:#x}; the registers say {size} at {base:#x}",
            )
    if is_ready and nvme.sqs[0].cq_id != ADMIN:
        raise refuse("sqs[0].cq_id", f"{nvme.sqs[0].cq_id}; the admin queue completes to the admin queue")


def _check_buffers(nvme: NvmeCtrlV2, refuse: Refuse, *, offered: bool) -> None:
    buffers = {"dbbuf_shadow": nvme.dbbuf_shadow, "dbbuf_evtidx": nvme.dbbuf_evtidx}
    for field, base in buffers.items():
        if not base:
            continue
        if not offered:
            raise refuse(field, f"{base:#x}; this controller has no doorbell buffers")
        if not nvme.csts & CSTS_READY:
            raise refuse(field, f"{base:#x}; the controller is not ready and has no doorbell buffers")
        _check_page(field, base, refuse)
    absent = [field for field, base in buffers.items() if not base]
    if len(absent) == 1:
        raise refuse(absent[0], "0; doorbell buffers are two pages, or none")


def _check_page(field: str, base: int, refuse: Refuse) -> None:
    if base % PAGE_SIZE:
        raise refuse(field, f"{base:#x} is not a multiple of the page size {PAGE_SIZE:#x}")
