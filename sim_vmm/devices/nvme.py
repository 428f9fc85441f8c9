"""An NVMe controller: registers, and the positions of its queues (device-payloads §5).

Commands are not executed yet: a doorbell makes the controller fetch what was submitted and complete it at once, and the
driver consumes the completions, so that heads, tails and the phase tag move as they would.

Derived, and rebuilt on import: whether the controller is enabled, which gates the doorbells.  Upstream caches that
and forgets to restore it, so that the guest's doorbells are refused after a migration (#981, #1156).
"""

from typing import ClassVar, Final

import attrs

from sim_vmm.devices.base import Arrived, Device, Refuse, refusal
from sim_vmm.devices.pci import EMPTY_BAR, PciFunction, mmio_base, ring_base
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.payloads import (
    Bar,
    BarKind,
    CompletionQueueState,
    NvmeCtrlV2,
    Payload,
    PciDeviceV1,
    Schema,
    SubmissionQueueState,
)
from sim_vmm.spec import PciPath

CC_ENABLE: Final = 1 << 0
CSTS_READY: Final = 1 << 0
#: 64 KiB queues at most, contiguous queues required, doorbell stride 0, NVM command set.
CAP: Final = 0x0000_0020_0101_07FF

ADMIN: Final = 0
QUEUE_ID_MAX: Final = 15
QUEUE_SIZE_MIN: Final = 2
QUEUE_SIZE_MAX: Final = 65536
ADMIN_QUEUE_SIZE_MAX: Final = 4096
VECTORS: Final = QUEUE_ID_MAX + 1

ADMIN_QUEUE_SIZE: Final = 32
IO_QUEUE_SIZE: Final = 1024
IO_QUEUE: Final = 1

NVME_BARS: Final = (
    Bar(BarKind.MMIO64, 0x4000, 0),
    EMPTY_BAR,
    EMPTY_BAR,
    EMPTY_BAR,
    Bar(BarKind.MMIO, 0x1000, 0),
    EMPTY_BAR,
)

RESET: Final = NvmeCtrlV2(
    cap=CAP, cc=0, csts=0, aqa=0, acq_base=0, asq_base=0, dbbuf_shadow=0, dbbuf_evtidx=0, cqs=(), sqs=()
)


class DoorbellRefused(Exception):
    """A doorbell of a queue that does not exist, or of a controller that is not enabled."""


class Nvme(Device):
    """`has_write_cache` and the serial number come from the spec and do not travel (device-payloads §5)."""

    kind: ClassVar[str] = "nvme_disk"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((NvmeCtrlV2.SCHEMA,), (PciDeviceV1.SCHEMA,))

    def __init__(self, key: str, path: PciPath, serial_number: bytes, *, has_write_cache: bool) -> None:
        super().__init__(key)
        self._path = path
        self.serial_number = serial_number
        self.has_write_cache = has_write_cache
        self.pci = PciFunction(key, NVME_BARS, vectors=VECTORS)
        self._registers = RESET
        self._cqs: dict[int, CompletionQueueState] = {}
        self._sqs: dict[int, SubmissionQueueState] = {}
        self._enabled = False

    @property
    def is_enabled(self) -> bool:
        return self._enabled

    def driver_probe(self) -> None:
        """Set up the admin queues, enable the controller, create one pair of I/O queues."""
        self.pci.configure(mmio_base(self._path))
        base = ring_base(self._path)
        size = ADMIN_QUEUE_SIZE
        self._registers = attrs.evolve(
            RESET,
            cc=CC_ENABLE,
            csts=CSTS_READY,
            aqa=(size - 1) << 16 | (size - 1),
            acq_base=base,
            asq_base=base + 0x1_0000,
        )
        self._cqs, self._sqs = {}, {}
        self._create_queues(ADMIN, size, base, base + 0x1_0000)
        self._create_queues(IO_QUEUE, IO_QUEUE_SIZE, base + 0x2_0000, base + 0x4_0000)
        self._derive()

    def driver_io(self) -> None:
        if self._enabled:
            self.submit(IO_QUEUE)

    def submit(self, queue: int) -> None:
        """Submit one command to submission queue `queue`, ring its doorbell, consume the completion.

        Raises:
            DoorbellRefused: the controller is not enabled, or has no such queue; nothing has changed.
        """
        sq = self._sqs.get(queue)
        if not self._enabled or sq is None:
            problem = "there is no such queue" if self._enabled else "the controller is not enabled"
            raise DoorbellRefused(f"device {self.key!r}: doorbell of submission queue {queue}: {problem}")
        tail = (sq.tail + 1) % sq.size
        self._sqs[queue] = attrs.evolve(sq, head=tail, tail=tail)
        cq = self._cqs[sq.cq_id]
        cq_tail = (cq.tail + 1) % cq.size
        phase = cq.phase ^ (cq_tail == 0)
        self._cqs[sq.cq_id] = attrs.evolve(cq, head=cq_tail, tail=cq_tail, phase=phase)
        if self.pci.uses_msix:
            self.pci.raise_vector(cq.iv)

    def set_doorbell_buffers(self, shadow: int, evtidx: int) -> None:
        """The guest gives the controller pages (guest addresses) for shadow doorbells."""
        self._registers = attrs.evolve(self._registers, dbbuf_shadow=shadow, dbbuf_evtidx=evtidx)

    def _create_queues(self, number: int, size: int, cq_base: int, sq_base: int) -> None:
        self._cqs[number] = CompletionQueueState(
            id=number, size=size, head=0, tail=0, avail=size - 1, phase=True, base=cq_base, iv=number
        )
        self._sqs[number] = SubmissionQueueState(id=number, size=size, head=0, tail=0, base=sq_base, cq_id=number)

    def _derive(self) -> None:
        self._enabled = bool(self._registers.cc & CC_ENABLE and self._registers.csts & CSTS_READY)

    def _payloads(self) -> tuple[Payload, ...]:
        cqs = tuple(self._cqs[number] for number in sorted(self._cqs))
        sqs = tuple(self._sqs[number] for number in sorted(self._sqs))
        return attrs.evolve(self._registers, cqs=cqs, sqs=sqs), self.pci.export()

    def _take(self, arrived: Arrived) -> None:
        pci, nvme = arrived.of(PciDeviceV1), arrived.of(NvmeCtrlV2)
        self.pci.check(pci)
        _check_queues(nvme, refusal(self.key, NvmeCtrlV2.SCHEMA))
        self.pci.take(pci)
        self._registers = nvme
        self._cqs = {cq.id: cq for cq in nvme.cqs}
        self._sqs = {sq.id: sq for sq in nvme.sqs}
        self._derive()


def _check_queues(nvme: NvmeCtrlV2, refuse: Refuse) -> None:
    """The rules of device-payloads §5, and that positions lie inside their queue."""
    lists: dict[str, tuple[CompletionQueueState | SubmissionQueueState, ...]] = {"cqs": nvme.cqs, "sqs": nvme.sqs}
    for field, queues in lists.items():
        seen: set[int] = set()
        for index, queue in enumerate(queues):
            where = f"{field}[{index}]"
            if queue.id > QUEUE_ID_MAX:
                raise refuse(f"{where}.id", f"{queue.id}; queues have ids 0 to {QUEUE_ID_MAX}")
            if queue.id in seen:
                raise refuse(f"{where}.id", f"{queue.id} occurs twice")
            seen.add(queue.id)
            _check_shape(where, queue, refuse)
    for index, cq in enumerate(nvme.cqs):
        if cq.avail >= cq.size:
            raise refuse(f"cqs[{index}].avail", f"{cq.avail} free entries in a queue of {cq.size}")
        if cq.iv >= VECTORS:
            raise refuse(f"cqs[{index}].iv", f"{cq.iv}; this device has vectors 0 to {VECTORS - 1}")
    completion_ids = {cq.id for cq in nvme.cqs}
    for index, sq in enumerate(nvme.sqs):
        if sq.cq_id not in completion_ids:
            raise refuse(f"sqs[{index}].cq_id", f"completion queue {sq.cq_id} does not exist")
        if sq.id != ADMIN and sq.cq_id == ADMIN:
            raise refuse(f"sqs[{index}].cq_id", "0; an I/O submission queue must not complete to the admin queue")


def _check_shape(where: str, queue: CompletionQueueState | SubmissionQueueState, refuse: Refuse) -> None:
    if queue.base % PAGE_SIZE:
        raise refuse(f"{where}.base", f"{queue.base:#x} is not a multiple of the page size {PAGE_SIZE:#x}")
    largest = ADMIN_QUEUE_SIZE_MAX if queue.id == ADMIN else QUEUE_SIZE_MAX
    if not QUEUE_SIZE_MIN <= queue.size <= largest:
        raise refuse(f"{where}.size", f"{queue.size}; queue {queue.id} has {QUEUE_SIZE_MIN} to {largest} entries")
    for field, position in (("head", queue.head), ("tail", queue.tail)):
        if position >= queue.size:
            raise refuse(f"{where}.{field}", f"{position} lies outside a queue of {queue.size} entries")
