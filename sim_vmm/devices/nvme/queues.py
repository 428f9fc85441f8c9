"""A controller's side of its queues, and of the doorbell buffers.

Entries lie in guest RAM; what the controller knows of a queue is two positions, and for a completion queue the phase
tag of the entries that it writes.  All of that travels (`nvme-ctrl`), and an import makes these objects from it.

The positions run from 0 to size - 1, and a queue whose tail is one before its head is full: at most size - 1 entries
wait.  The driver's half of the positions (the tail of a submission queue, the head of a completion queue) comes by
doorbell, or from the shadow page once the guest has configured doorbell buffers, which apply to I/O queues only.
"""

import struct
from typing import Final, Self

import attrs

from sim_vmm.devices.nvme.layout import (
    COMMAND_BYTES,
    COMPLETION_BYTES,
    Command,
    Completion,
    Status,
    head_doorbell,
    tail_doorbell,
)
from sim_vmm.memory import GuestMemory
from sim_vmm.payloads import CompletionQueueState, SubmissionQueueState

#: The vector of a completion queue that the guest created without interrupts.
NO_VECTOR: Final = 0xFFFF

_U32: Final = struct.Struct("<I")


@attrs.define
class SubmissionQueue:
    id: int
    size: int
    base: int
    cq_id: int
    head: int = 0
    tail: int = 0

    @classmethod
    def restore(cls, state: SubmissionQueueState) -> Self:
        return cls(state.id, state.size, state.base, state.cq_id, state.head, state.tail)

    def export(self) -> SubmissionQueueState:
        return SubmissionQueueState(
            id=self.id, size=self.size, head=self.head, tail=self.tail, base=self.base, cq_id=self.cq_id
        )

    @property
    def is_empty(self) -> bool:
        return self.head == self.tail

    def submit_to(self, tail: int) -> None:
        """The driver has filled the entries before `tail`.  A position outside the queue is ignored (NVMe 1.1 §3.1)."""
        if tail < self.size:
            self.tail = tail

    def fetch(self, memory: GuestMemory) -> Command:
        """The oldest command that waits.

        Raises:
            GuestAddressError: the entry is not in RAM; nothing is fetched.
        """
        command = Command.parse(memory.read(self.base + COMMAND_BYTES * self.head, COMMAND_BYTES))
        self.head = (self.head + 1) % self.size
        return command


@attrs.define
class CompletionQueue:
    id: int
    size: int
    base: int
    vector: int
    head: int = 0
    tail: int = 0
    phase: bool = True

    @classmethod
    def restore(cls, state: CompletionQueueState) -> Self:
        return cls(state.id, state.size, state.base, state.iv, state.head, state.tail, state.phase)

    def export(self) -> CompletionQueueState:
        return CompletionQueueState(
            id=self.id,
            size=self.size,
            head=self.head,
            tail=self.tail,
            avail=self.available,
            phase=self.phase,
            base=self.base,
            iv=self.vector,
        )

    @property
    def available(self) -> int:
        """Entries that the controller may still write."""
        return available_entries(self.size, self.head, self.tail)

    @property
    def is_full(self) -> bool:
        return self.available == 0

    @property
    def wants_pin(self) -> bool:
        """Whether a pin, where there is no MSI-X, must be up: the driver has interrupts on and completions to read."""
        return self.vector != NO_VECTOR and self.head != self.tail

    def consume_to(self, head: int) -> None:
        """The driver has read the entries before `head`.  It cannot have read what is not there: ignored."""
        if head < self.size and (head - self.head) % self.size <= (self.tail - self.head) % self.size:
            self.head = head

    def post(self, memory: GuestMemory, command: Command, status: Status, result: int, sq: SubmissionQueue) -> None:
        """Complete `command` of `sq`; the queue is not full.

        Raises:
            GuestAddressError: the entry is not in RAM; nothing is posted.
        """
        assert not self.is_full
        completion = Completion(
            command_id=command.command_id,
            status=status,
            result=result,
            sq_id=sq.id,
            sq_head=sq.head,
            phase=self.phase,
        )
        memory.write(self.base + COMPLETION_BYTES * self.tail, completion.pack())
        self.tail = (self.tail + 1) % self.size
        self.phase ^= self.tail == 0


def available_entries(size: int, head: int, tail: int) -> int:
    """How many entries are free in a completion queue: of `size`, one stays empty."""
    return size - 1 - (tail - head) % size


@attrs.frozen
class DoorbellBuffers:
    """The pages at guest addresses `shadow` and `event_index`; every method raises GuestAddressError if not in RAM."""

    memory: GuestMemory
    shadow: int
    event_index: int

    def seed_submission(self, sq: SubmissionQueue) -> None:
        """Make the pages agree with a queue, whatever the guest has left there (as QEMU and Propolis do)."""
        self._seed(tail_doorbell(sq.id), sq.tail)

    def seed_completion(self, cq: CompletionQueue) -> None:
        self._seed(head_doorbell(cq.id), cq.head)

    def look_at_tail(self, sq: SubmissionQueue) -> None:
        sq.submit_to(self._read(tail_doorbell(sq.id)))

    def look_at_head(self, cq: CompletionQueue) -> None:
        cq.consume_to(self._read(head_doorbell(cq.id)))

    def ask_for_tail(self, sq: SubmissionQueue) -> None:
        """The controller goes idle on `sq`: the next submission must ring."""
        self._write(self.event_index + tail_doorbell(sq.id), sq.tail)

    def ask_for_head(self, cq: CompletionQueue) -> None:
        """The controller is held up by `cq`, which is full: the next consumption must ring."""
        self._write(self.event_index + head_doorbell(cq.id), cq.head)

    def _seed(self, doorbell: int, position: int) -> None:
        self._write(self.shadow + doorbell, position)
        self._write(self.event_index + doorbell, position)

    def _read(self, doorbell: int) -> int:
        return int(_U32.unpack(self.memory.read(self.shadow + doorbell, _U32.size))[0])

    def _write(self, gpa: int, position: int) -> None:
        self.memory.write(gpa, _U32.pack(position))
