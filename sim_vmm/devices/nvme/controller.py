"""The NVMe controller as a device: what its registers, doorbells and queues make it do (device-payloads §5).

A command is fetched, executed and completed in one go, so a pause never meets one half done: what the controller has
taken is done once and has its completion, and what it has not taken lies in its submission queue, travels with the
guest's RAM, and is taken on the other side.  The controller takes at most `commands_per_turn` commands of a queue for
each doorbell and each poll, and none while the completion queue is full: they wait.  A pause also writes the write
cache back.  What the guest has submitted without a doorbell, by doorbell buffers, is found at the next poll.

Derived, and rebuilt on import: whether the controller is enabled, which gates the doorbells; the queue objects; the
doorbell buffers; the level of the pin.  Upstream caches the first and forgets it, so that the guest's doorbells are
refused after a migration though the registers say enabled (#981, #1156).

Whether there is a volatile write cache, and the serial number, come from the spec and do not travel; nor do settings of
features, for there are none (admin.py).
"""

from typing import ClassVar, Final

from sim_vmm.devices.base import Arrived, refusal
from sim_vmm.devices.nvme.admin import AdminCommands
from sim_vmm.devices.nvme.cache import WriteCache
from sim_vmm.devices.nvme.checks import check_buffers_in_ram, check_state
from sim_vmm.devices.nvme.identify import OXIDE_VENDOR, Identity
from sim_vmm.devices.nvme.io import IoCommands
from sim_vmm.devices.nvme.layout import (
    ADMIN,
    CC_ENABLE,
    CC_SHUTDOWN,
    DOORBELLS,
    NVME_CLASS,
    Command,
    Register,
    Status,
)
from sim_vmm.devices.nvme.prp import CommandFailed
from sim_vmm.devices.nvme.queue_set import VECTORS, QueueSet
from sim_vmm.devices.nvme.queues import NO_VECTOR, CompletionQueue, DoorbellBuffers, SubmissionQueue
from sim_vmm.devices.nvme.registers import CAP, Registers
from sim_vmm.devices.pci import EMPTY_BAR, PciDevice, PciFunction, PciIdentity
from sim_vmm.memory import GuestAddressError
from sim_vmm.payloads import Bar, BarKind, NvmeCtrlV2, Payload, PciDeviceV1, Schema
from sim_vmm.platform import BlockBackend, Platform
from sim_vmm.spec import PciPath

REGISTERS_BAR: Final = 0
MSIX_BAR: Final = 4
NVME_BARS: Final = (
    Bar(BarKind.MMIO64, 0x4000, 0),
    EMPTY_BAR,
    EMPTY_BAR,
    EMPTY_BAR,
    Bar(BarKind.MMIO, 0x1000, 0),
    EMPTY_BAR,
)
IDENTITY: Final = PciIdentity(vendor=OXIDE_VENDOR, device=0x0000, class_code=NVME_CLASS)


class Nvme(PciDevice):
    """`serial_number` is 20 bytes.  `doorbell_buffers` is whether the guest was shown that feature at birth."""

    kind: ClassVar[str] = "nvme_disk"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((NvmeCtrlV2.SCHEMA,), (PciDeviceV1.SCHEMA,))

    #: How many commands of one queue are taken for a doorbell or a poll; the others wait for the next.
    commands_per_turn: int = 8

    def __init__(
        self,
        key: str,
        path: PciPath,
        serial_number: bytes,
        *,
        has_write_cache: bool,
        backend: BlockBackend,
        doorbell_buffers: bool = True,
    ) -> None:
        super().__init__(key)
        self.pci = PciFunction(key, NVME_BARS, vectors=VECTORS, path=path, msix_bar=MSIX_BAR, identity=IDENTITY)
        self.cache = WriteCache(backend)
        self._identity = Identity(
            serial_number, backend, has_write_cache=has_write_cache, doorbell_buffers=doorbell_buffers
        )
        self._registers = Registers()
        self._queues = QueueSet()
        self._enabled = False
        self.note_birth()

    def attach(self, platform: Platform) -> None:
        super().attach(platform)
        self._admin = AdminCommands(platform.memory, self._registers, self._queues, self._identity)
        self._io = IoCommands(platform.memory, self.cache, has_write_cache=self.has_write_cache)

    @property
    def has_write_cache(self) -> bool:
        return self._identity.has_write_cache

    # What the guest does

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        return self._registers.read(offset, size) if bar == REGISTERS_BAR else 0

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar != REGISTERS_BAR:
            return
        if offset >= DOORBELLS:
            if size == 4 and offset % 4 == 0:
                self._doorbell(*divmod((offset - DOORBELLS) // 4, 2), value)
        elif offset == Register.CC and size == 4:
            self._configure(value)
        else:
            self._registers.set_admin_queue(offset, size, value)

    def _configure(self, value: int) -> None:
        is_enabled, enable = bool(self._registers.cc & CC_ENABLE), bool(value & CC_ENABLE)
        if enable and not is_enabled:
            if self._registers.enable(value):
                self._create_admin_queues()
        elif is_enabled and not enable:
            self._registers.reset()
            self._queues.clear()
        else:
            self._registers.change(value)
        if value & CC_SHUTDOWN and not self.cache.is_flushed:
            self._shut_down()
        self._registers.finish_shutdown()
        self._derive()

    def _create_admin_queues(self) -> None:
        registers = self._registers
        self._queues.add_pair(
            ADMIN,
            CompletionQueue(ADMIN, registers.cq_entries, registers.acq, vector=0),
            SubmissionQueue(ADMIN, registers.sq_entries, registers.asq, cq_id=ADMIN),
        )

    def _shut_down(self) -> None:
        try:
            self.cache.flush()
        except OSError:
            self._registers.fail()

    def _doorbell(self, queue: int, is_head: int, value: int) -> None:
        """The guest rings; a doorbell of a queue that there is not, or of a disabled controller, does nothing."""
        if not self._enabled:
            return
        buffers = self._queues.buffers_of(queue)
        if is_head:
            cq = self._queues.cqs.get(queue)
            if cq is None:
                return
            if buffers is None:
                cq.consume_to(value)
            else:
                buffers.look_at_head(cq)
            self._serve(self._queues.served_by(cq))
        else:
            sq = self._queues.sqs.get(queue)
            if sq is None:
                return
            if buffers is None:
                sq.submit_to(value)
            self._serve([sq])

    # What the controller does

    def poll(self) -> None:
        if self._enabled:
            for number, cq in self._queues.cqs.items():
                if (buffers := self._queues.buffers_of(number)) is not None:
                    buffers.look_at_head(cq)
            self._serve([sq for _, sq in sorted(self._queues.sqs.items())])

    def quiesce(self) -> None:
        """Raises OSError if the backend does not take what is in the write cache; then the machine must not go."""
        if not self.cache.is_flushed:
            self.cache.flush()

    def _serve(self, sqs: list[SubmissionQueue]) -> None:
        """Give each of `sqs` its turn.  Queue memory that is not RAM is fatal: the guest must reset the controller."""
        try:
            for sq in sqs:
                self._turn(sq, self._queues.cqs[sq.cq_id], self._queues.buffers_of(sq.id))
        except GuestAddressError:
            self._registers.fail()
            self._derive_enabled()
        self._derive_pin()

    def _turn(self, sq: SubmissionQueue, cq: CompletionQueue, buffers: DoorbellBuffers | None) -> None:
        if buffers is not None:
            buffers.look_at_head(cq)
            buffers.look_at_tail(sq)
        before = cq.tail
        for _ in range(self.commands_per_turn):
            if sq.is_empty or cq.is_full:
                break
            self._take_command(sq, cq)
        if cq.tail != before and cq.vector != NO_VECTOR and self.pci.uses_msix:
            self.pci.raise_vector(cq.vector)
        if buffers is not None and sq.is_empty:
            buffers.ask_for_tail(sq)
        elif buffers is not None and cq.is_full:
            buffers.ask_for_head(cq)

    def _take_command(self, sq: SubmissionQueue, cq: CompletionQueue) -> None:
        command = sq.fetch(self.platform.memory)
        status = Status.SUCCESS
        result: int | None = 0
        try:
            result = self._execute(sq, command)
        except CommandFailed as failure:
            status = failure.status
        if result is not None:
            cq.post(self.platform.memory, command, status, result, sq)

    def _execute(self, sq: SubmissionQueue, command: Command) -> int | None:
        if command.flags:
            raise CommandFailed(Status.INVALID_FIELD)
        if sq.id == ADMIN:
            return self._admin.execute(command)
        self._io.execute(command)
        return 0

    # State

    def _derive(self) -> None:
        """Everything that follows from the registers."""
        self._derive_enabled()
        self._derive_pin()

    def _derive_enabled(self) -> None:
        self._enabled = self._registers.is_working

    def _derive_pin(self) -> None:
        self.pci.set_pin(any(cq.wants_pin for cq in self._queues.cqs.values()))

    def _derive_buffers(self, nvme: NvmeCtrlV2) -> None:
        self._queues.buffers = None
        if nvme.dbbuf_shadow:
            self._queues.buffers = DoorbellBuffers(self.platform.memory, nvme.dbbuf_shadow, nvme.dbbuf_evtidx)

    def _payloads(self) -> tuple[Payload, ...]:
        registers, queues = self._registers, self._queues
        controller = NvmeCtrlV2(
            cap=CAP,
            cc=registers.cc,
            csts=registers.csts,
            aqa=registers.aqa,
            acq_base=registers.acq,
            asq_base=registers.asq,
            dbbuf_shadow=queues.buffers.shadow if queues.buffers else 0,
            dbbuf_evtidx=queues.buffers.event_index if queues.buffers else 0,
            cqs=tuple(queues.cqs[number].export() for number in sorted(queues.cqs)),
            sqs=tuple(queues.sqs[number].export() for number in sorted(queues.sqs)),
        )
        return controller, self.pci.export()

    def _take(self, arrived: Arrived) -> None:
        pci, nvme = arrived.of(PciDeviceV1), arrived.of(NvmeCtrlV2)
        refuse = refusal(self.key, NvmeCtrlV2.SCHEMA)
        self.pci.check(pci)
        check_state(nvme, refuse, doorbell_buffers=self._identity.doorbell_buffers)
        if nvme.dbbuf_shadow:
            check_buffers_in_ram(nvme, refuse, self.platform.memory)
        self.pci.take(pci)
        self._registers.take(cc=nvme.cc, csts=nvme.csts, aqa=nvme.aqa, asq=nvme.asq_base, acq=nvme.acq_base)
        self._queues.cqs = {cq.id: CompletionQueue.restore(cq) for cq in nvme.cqs}
        self._queues.sqs = {sq.id: SubmissionQueue.restore(sq) for sq in nvme.sqs}
        self._derive_buffers(nvme)
        self._derive()
