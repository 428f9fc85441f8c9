"""The guest's NVMe driver: one pair of I/O queues, blocks in and out.

The driver has no state of its own.  All that it knows is in guest RAM from `base` on, so any process that has the
machine can make a driver object and go on, with commands of another driver object outstanding:

    0x0000    state (`_State`): positions, phases, command ids in use, what the controller said of itself
    0x1000    admin submission queue        0x2000    admin completion queue
    0x3000    I/O submission queue          0x4000    I/O completion queue
    0x5000    shadow doorbells              0x6000    event indices
    0x7000    what Identify returns
    0x8000    a PRP list of 256 bytes for each command id
    0xC000    free for the driver's user, up to the end of the area (`data`)

A command id is in use from its submission to its completion.  Completions are found by their phase tag, so interrupts
are a hint; with a vector, MSI-X is set up for them, without one the pin is used.
"""

import struct
from typing import Final

import attrs

from sim_vmm.devices.nvme.layout import (
    ADMIN,
    ALL_NAMESPACES,
    CC_CQ_ENTRY_SHIFT,
    CC_ENABLE,
    CC_SQ_ENTRY_SHIFT,
    COMMAND_BYTES,
    COMPLETION_BYTES,
    CQ_ENTRY_LOG2,
    CSTS_FATAL,
    CSTS_READY,
    DOORBELLS,
    NAMESPACE,
    NVME_CLASS,
    SQ_ENTRY_LOG2,
    AdminOpcode,
    Cns,
    Command,
    Completion,
    Feature,
    IoOpcode,
    Register,
    Status,
    head_doorbell,
    tail_doorbell,
    wants_doorbell,
)
from sim_vmm.devices.pci_config import REVISION, STATUS, STATUS_INTERRUPT
from sim_vmm.drivers import DriverFailed, GuestView
from sim_vmm.drivers.pci import PciSlot
from sim_vmm.integers import U32_MAX
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.spec import PciPath

AREA_BYTES: Final = 0x4_0000
IO_QUEUE: Final = 1
ADMIN_ENTRIES: Final = 16
#: A page of submission entries; also the number of command ids.
ENTRIES_MAX: Final = PAGE_SIZE // COMMAND_BYTES

_ADMIN_SQ: Final = 0x1000
_ADMIN_CQ: Final = 0x2000
_IO_SQ: Final = 0x3000
_IO_CQ: Final = 0x4000
_SHADOW: Final = 0x5000
_EVENT_INDEX: Final = 0x6000
_IDENTIFY: Final = 0x7000
_LISTS: Final = 0x8000
_LIST_BYTES: Final = 0x100
_DATA: Final = 0xC000

_MAGIC: Final = 0x3076_6972_6476_6E21
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
#: MSI-X entry 0 is for the admin queue, entry 1 for the I/O queue.
_MSIX_ENTRIES: Final = 2


@attrs.define(kw_only=True)
class _State:
    """As it lies in RAM, eight bytes each.  Positions are the driver's, phases those of the entries it expects.

    `ids` has a bit for each command id in use, `place` is the number of the PCI function, `vector` 0 for the pin.
    """

    magic: int = _MAGIC
    registers: int
    place: int
    vector: int
    blocks: int = 0
    block_size: int = 0
    has_write_cache: int = 0
    uses_buffers: int = 0
    sq_entries: int
    cq_entries: int
    ids: int = 0
    admin_tail: int = 0
    admin_head: int = 0
    admin_phase: int = 1
    tail: int = 0
    head: int = 0
    phase: int = 1
    sq_head: int = 0


_STATE: Final = struct.Struct(f"<{len(attrs.fields(_State))}Q")
_STATE_FIELDS: Final = tuple(field.name for field in attrs.fields(_State))


class NvmeDriver:
    """The driver of one controller, with its memory at guest address `base` (a multiple of the page size)."""

    def __init__(self, machine: GuestView, base: int) -> None:
        self._memory = machine.memory
        self._bus = machine.bus
        self._vcpu = machine.vcpus[0]
        self._base = base

    @property
    def data(self) -> range:
        """Guest addresses that the driver leaves to its user."""
        return range(self._base + _DATA, self._base + AREA_BYTES)

    @property
    def blocks(self) -> int:
        return self._load().blocks

    @property
    def block_size(self) -> int:
        return self._load().block_size

    @property
    def has_write_cache(self) -> bool:
        """Whether a completed write may be lost with the power unless it is flushed."""
        return bool(self._load().has_write_cache)

    @property
    def uses_doorbell_buffers(self) -> bool:
        return bool(self._load().uses_buffers)

    @property
    def outstanding(self) -> int:
        """How many commands have been submitted and have not been returned by `completions()`."""
        return self._load().ids.bit_count()

    # Setting up

    def probe(
        self,
        path: PciPath,
        *,
        vector: int | None = None,
        sq_entries: int = ENTRIES_MAX,
        cq_entries: int = ENTRIES_MAX,
        doorbell_buffers: bool = True,
    ) -> None:
        """Set up the controller at `path`: its BARs, its admin queues, what it is, its I/O queues.

        Admin completions come as interrupt `vector`, the others as the next; None is for the pin.  Doorbell buffers are
        used if wanted and offered.  A controller that was in use is reset.

        Raises:
            DriverFailed: there is none, it does not become ready, or refuses a command.
        """
        slot = PciSlot(self._bus, path)
        if slot.read(REVISION, 4) >> 8 != NVME_CLASS:
            raise DriverFailed(f"there is no NVMe controller at {path}")
        slot.set_up(vector, _MSIX_ENTRIES)
        registers = slot.bar(0)
        self._bus.write(registers + Register.CC, 4, 0)
        self._memory.write(self._base, bytes(_DATA))
        self._store(
            _State(
                registers=registers,
                place=path.bus << 8 | path.device << 3 | path.function,
                vector=vector or 0,
                sq_entries=sq_entries,
                cq_entries=cq_entries,
            )
        )
        self._enable(registers)
        self._identify()
        self.admin_done(AdminOpcode.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=0)
        self._create_queues(sq_entries, cq_entries)
        if doorbell_buffers and self._offers_buffers():
            self.use_doorbell_buffers()

    def use_doorbell_buffers(self) -> None:
        """From now on positions are in the shadow page, and the doorbells are rung only where the controller asks."""
        shadow, event_index = self._base + _SHADOW, self._base + _EVENT_INDEX
        self.admin_done(AdminOpcode.DOORBELL_BUFFERS, prp1=shadow, prp2=event_index)
        self._store(attrs.evolve(self._load(), uses_buffers=1))

    def _enable(self, registers: int) -> None:
        self._bus.write(registers + Register.AQA, 4, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1))
        self._bus.write(registers + Register.ASQ, 8, self._base + _ADMIN_SQ)
        self._bus.write(registers + Register.ACQ, 8, self._base + _ADMIN_CQ)
        sizes = SQ_ENTRY_LOG2 << CC_SQ_ENTRY_SHIFT | CQ_ENTRY_LOG2 << CC_CQ_ENTRY_SHIFT
        self._bus.write(registers + Register.CC, 4, sizes | CC_ENABLE)
        status = self._bus.read(registers + Register.CSTS, 4)
        if status & (CSTS_READY | CSTS_FATAL) != CSTS_READY:
            raise DriverFailed(f"the controller does not become ready: its status is {status:#x}")

    def _identify(self) -> None:
        controller = self.identify(Cns.CONTROLLER)
        namespace = self.identify(Cns.NAMESPACE, NAMESPACE)
        state = self._load()
        state.has_write_cache = controller[525] & 1
        state.blocks = int.from_bytes(namespace[:8], "little")
        state.block_size = 1 << namespace[128 + 2]
        self._store(state)

    def _offers_buffers(self) -> bool:
        return bool(self.identify(Cns.CONTROLLER)[257] & 1)

    def _create_queues(self, sq_entries: int, cq_entries: int) -> None:
        contiguous, interrupts = 1, 2
        self.admin_done(
            AdminOpcode.CREATE_CQ,
            prp1=self._base + _IO_CQ,
            cdw10=(cq_entries - 1) << 16 | IO_QUEUE,
            cdw11=IO_QUEUE << 16 | contiguous | interrupts,
        )
        self.admin_done(
            AdminOpcode.CREATE_SQ,
            prp1=self._base + _IO_SQ,
            cdw10=(sq_entries - 1) << 16 | IO_QUEUE,
            cdw11=IO_QUEUE << 16 | contiguous,
        )

    # Admin commands, one at a time

    def identify(self, what: Cns, namespace: int = 0) -> bytes:
        """4096 bytes; raises DriverFailed as `admin_done`."""
        self.admin_done(AdminOpcode.IDENTIFY, namespace=namespace, prp1=self._base + _IDENTIFY, cdw10=what)
        return self._memory.read(self._base + _IDENTIFY, PAGE_SIZE)

    def admin_done(self, opcode: int, **fields: int) -> int:
        """The result of an admin command that must succeed.

        Raises:
            DriverFailed: it did not.
        """
        completion = self.admin(opcode, **fields)
        if completion is None or completion.status is not Status.SUCCESS:
            outcome = "no completion" if completion is None else completion.status.name
            raise DriverFailed(f"admin command {opcode:#x}: {outcome}")
        return completion.result

    def admin(self, opcode: int, **fields: int) -> Completion | None:
        """Submit an admin command with these fields of `Command`; its completion, or None if there is none yet."""
        state = self._load()
        command = Command(opcode=opcode, command_id=state.admin_tail, **fields)
        self._memory.write(self._base + _ADMIN_SQ + COMMAND_BYTES * state.admin_tail, command.pack())
        state.admin_tail = (state.admin_tail + 1) % ADMIN_ENTRIES
        self._store(state)
        self._bus.write(state.registers + DOORBELLS + tail_doorbell(ADMIN), 4, state.admin_tail)
        entry = self._memory.read(self._base + _ADMIN_CQ + COMPLETION_BYTES * state.admin_head, COMPLETION_BYTES)
        if entry[14] & 1 != state.admin_phase:
            return None
        state.admin_head = (state.admin_head + 1) % ADMIN_ENTRIES
        state.admin_phase ^= state.admin_head == 0
        self._store(state)
        self._bus.write(state.registers + DOORBELLS + head_doorbell(ADMIN), 4, state.admin_head)
        return Completion.parse(entry)

    # Input and output

    def submit_read(self, block: int, count: int, gpa: int) -> int | None:
        """Read `count` blocks from `block` on to guest address `gpa`, which is a multiple of 4, in one command.

        Returns its command id, which `completions()` will give back, or None if the queue has no room now.
        """
        return self._transfer(IoOpcode.READ, block, count, gpa)

    def submit_write(self, block: int, count: int, gpa: int) -> int | None:
        """Write `count` blocks, 128 KiB at most, from guest address `gpa`.  Otherwise as `submit_read`."""
        return self._transfer(IoOpcode.WRITE, block, count, gpa)

    def submit_write_zeroes(self, block: int, count: int) -> int | None:
        """Make `count` blocks, at most 65,536, zero.  Otherwise as `submit_read`."""
        return self._submit(IoOpcode.WRITE_ZEROES, {"cdw10": block & U32_MAX, "cdw11": block >> 32, "cdw12": count - 1})

    def submit_flush(self) -> int | None:
        """Make lasting what has been written and completed.  Otherwise as `submit_read`."""
        return self._submit(IoOpcode.FLUSH, {"namespace": ALL_NAMESPACES})

    def completions(self) -> list[Completion]:
        """The completions that have come in since the last call, in order; their command ids are free again."""
        state = self._load()
        found: list[Completion] = []
        while True:
            entry = self._memory.read(self._base + _IO_CQ + COMPLETION_BYTES * state.head, COMPLETION_BYTES)
            if entry[14] & 1 != state.phase:
                break
            completion = Completion.parse(entry)
            found.append(completion)
            state.ids &= ~(1 << completion.command_id)
            state.sq_head = completion.sq_head
            state.head = (state.head + 1) % state.cq_entries
            state.phase ^= state.head == 0
        if found:
            self._store(state)
            self._ring(state, head_doorbell(IO_QUEUE), state.head)
        return found

    def take_interrupt(self) -> bool:
        """Take the interrupt of the I/O queue, if it is pending; that of the admin queue is taken with it.

        A pin cannot be taken, only satisfied, by `completions()`; with doorbell buffers it may stay up a little longer.
        """
        state = self._load()
        if state.vector:
            self._vcpu.take(state.vector)
            return self._vcpu.take(state.vector + 1)
        path = PciPath(state.place >> 8, state.place >> 3 & 31, state.place & 7)
        return bool(PciSlot(self._bus, path).read(STATUS, 2) & STATUS_INTERRUPT)

    def _transfer(self, opcode: IoOpcode, block: int, count: int, gpa: int) -> int | None:
        length = count * self._load().block_size
        fields = {"cdw10": block & U32_MAX, "cdw11": block >> 32, "cdw12": count - 1, "prp1": gpa}
        second = gpa - gpa % PAGE_SIZE + PAGE_SIZE
        return self._submit(opcode, fields, pages=range(second, gpa + length, PAGE_SIZE))

    def _submit(self, opcode: IoOpcode, fields: dict[str, int], pages: range = range(0)) -> int | None:
        """`pages` are those of the data after its first."""
        state = self._load()
        command_id = (~state.ids & state.ids + 1).bit_length() - 1
        if command_id >= ENTRIES_MAX or (state.tail + 1) % state.sq_entries == state.sq_head:
            return None
        if len(pages) == 1:
            fields["prp2"] = pages[0]
        elif pages:
            fields["prp2"] = self._base + _LISTS + _LIST_BYTES * command_id
            self._memory.write(fields["prp2"], b"".join(_U64.pack(page) for page in pages))
        command = Command(opcode=opcode, command_id=command_id, **{"namespace": NAMESPACE, **fields})
        self._memory.write(self._base + _IO_SQ + COMMAND_BYTES * state.tail, command.pack())
        state.tail = (state.tail + 1) % state.sq_entries
        state.ids |= 1 << command_id
        self._store(state)
        self._ring(state, tail_doorbell(IO_QUEUE), state.tail)
        return command_id

    def _ring(self, state: _State, doorbell: int, position: int) -> None:
        if state.uses_buffers:
            shadow = self._base + _SHADOW + doorbell
            old = _U32.unpack(self._memory.read(shadow, 4))[0]
            self._memory.write(shadow, _U32.pack(position))
            event_index = _U32.unpack(self._memory.read(self._base + _EVENT_INDEX + doorbell, 4))[0]
            if not wants_doorbell(event_index, position, old):
                return
        self._bus.write(state.registers + DOORBELLS + doorbell, 4, position)

    def _load(self) -> _State:
        """Raises DriverFailed if no driver has been set up here."""
        words = _STATE.unpack(self._memory.read(self._base, _STATE.size))
        state = _State(**dict(zip(_STATE_FIELDS, words, strict=True)))
        if state.magic != _MAGIC:
            raise DriverFailed(f"no NVMe driver has been set up at guest address {self._base:#x}")
        return state

    def _store(self, state: _State) -> None:
        self._memory.write(self._base, _STATE.pack(*attrs.astuple(state)))
