"""The queues that a controller has, and the doorbell buffers that go with them.

Every submission queue completes to a completion queue that exists, an I/O queue never to the admin queue, and nothing
is deleted on which something depends.  Commands that wait in a submission queue when the guest deletes it are aborted
by that, without a completion of their own (NVMe 1.1 §5.6).
"""

from typing import Final

from sim_vmm.devices.nvme.layout import ADMIN, Command, Status
from sim_vmm.devices.nvme.prp import CommandFailed
from sim_vmm.devices.nvme.queues import NO_VECTOR, CompletionQueue, DoorbellBuffers, SubmissionQueue
from sim_vmm.memory import PAGE_SIZE

QUEUE_ID_MAX: Final = 15
VECTORS: Final = QUEUE_ID_MAX + 1
QUEUE_SIZE_MIN: Final = 2
QUEUE_SIZE_MAX: Final = 65536
ADMIN_QUEUE_SIZE_MAX: Final = 4096

_CONTIGUOUS: Final = 1 << 0
_INTERRUPTS: Final = 1 << 1


class QueueSet:
    """`cqs` and `sqs` by queue id.  The methods carry out admin commands and raise CommandFailed, changing nothing."""

    def __init__(self) -> None:
        self.cqs: dict[int, CompletionQueue] = {}
        self.sqs: dict[int, SubmissionQueue] = {}
        self.buffers: DoorbellBuffers | None = None

    def clear(self) -> None:
        self.cqs, self.sqs, self.buffers = {}, {}, None

    def add_pair(self, number: int, cq: CompletionQueue, sq: SubmissionQueue) -> None:
        self.cqs[number], self.sqs[number] = cq, sq

    def buffers_of(self, queue: int) -> DoorbellBuffers | None:
        """The doorbell buffers if they apply to queues of this id."""
        return None if queue == ADMIN else self.buffers

    def served_by(self, cq: CompletionQueue) -> list[SubmissionQueue]:
        """The submission queues that complete to `cq`, by id."""
        return [sq for _, sq in sorted(self.sqs.items()) if sq.cq_id == cq.id]

    def create_cq(self, command: Command) -> None:
        number, size = _shape(command, self.cqs)
        vector = command.cdw11 >> 16
        if vector >= VECTORS:
            raise CommandFailed(Status.INVALID_INTERRUPT_VECTOR)
        cq = CompletionQueue(number, size, command.prp1, vector if command.cdw11 & _INTERRUPTS else NO_VECTOR)
        if self.buffers is not None:
            self.buffers.seed_completion(cq)
        self.cqs[number] = cq

    def create_sq(self, command: Command) -> None:
        number, size = _shape(command, self.sqs)
        cq = command.cdw11 >> 16
        if cq == ADMIN or cq not in self.cqs:
            raise CommandFailed(Status.COMPLETION_QUEUE_INVALID)
        sq = SubmissionQueue(number, size, command.prp1, cq)
        if self.buffers is not None:
            self.buffers.seed_submission(sq)
        self.sqs[number] = sq

    def delete_cq(self, number: int) -> None:
        if number == ADMIN or number not in self.cqs:
            raise CommandFailed(Status.INVALID_QUEUE_ID)
        if self.served_by(self.cqs[number]):
            raise CommandFailed(Status.INVALID_QUEUE_DELETION)
        del self.cqs[number]

    def delete_sq(self, number: int) -> None:
        if number == ADMIN or number not in self.sqs:
            raise CommandFailed(Status.INVALID_QUEUE_ID)
        del self.sqs[number]

    def use_buffers(self, buffers: DoorbellBuffers) -> None:
        """From now on the positions of I/O queues are in `buffers`, which take the present ones.

        Raises:
            GuestAddressError: a page is not in RAM; then it is not used.
        """
        for number, sq in self.sqs.items():
            if number != ADMIN:
                buffers.seed_submission(sq)
        for number, cq in self.cqs.items():
            if number != ADMIN:
                buffers.seed_completion(cq)
        self.buffers = buffers


def _shape(command: Command, taken: dict[int, CompletionQueue] | dict[int, SubmissionQueue]) -> tuple[int, int]:
    """The id and size of the queue that `command` creates; ids in `taken` cannot be had."""
    number, size = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    if number == ADMIN or number > QUEUE_ID_MAX or number in taken:
        raise CommandFailed(Status.INVALID_QUEUE_ID)
    if size < QUEUE_SIZE_MIN:
        raise CommandFailed(Status.INVALID_QUEUE_SIZE)
    if not command.cdw11 & _CONTIGUOUS:
        raise CommandFailed(Status.INVALID_FIELD)
    if command.prp1 % PAGE_SIZE:
        raise CommandFailed(Status.INVALID_PRP_OFFSET)
    return number, size
