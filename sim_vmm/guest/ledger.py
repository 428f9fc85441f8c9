"""The ledger: numbered records that go to disk, RAM, console and wire, one after the other, for somebody to check.

A record is made in phases, and is in progress until the last:

    WRITE        the record goes into the buffer and its write into the disk's queue
    WRITING      nothing is done until the disk's interrupt has come, and with it the completion
    FLUSH        every `flush_every`-th record: a flush goes into the disk's queue
    FLUSHING     as WRITING
    STAMP        the record is written to a page of the ring in RAM
    PRINT        `ledger <sequence> at <uptime> ns` goes to COM1
    SEND         a frame with the sequence number goes into the NIC's queue
    ACKNOWLEDGE  the counter of acknowledged records is raised: from now on this record must be found everywhere

Record n is in disk block n modulo the number of blocks, and in page n modulo the number of pages of the ring.  All
numbers are in the state page (see `LedgerState`); the phase is in register r12 of vCPU 0, so a
migration that loses registers, RAM, a pending interrupt or a queue's position is found out by records that are lost or
made twice, or by a ledger that stands still.  Only an interrupt makes the ledger look for
completions: drivers that also look now and then would hide lost interrupts.

A machine without a writable disk, or without a NIC, has a ledger without.  A request that the disk refuses is counted
and made again; so is one counted, in another place, that ends without having been outstanding.
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar, Final, Self

import attrs

from sim_vmm.guest.hardware import open_peripherals, probe_peripherals
from sim_vmm.guest.layout import SystemLayout, fill_system
from sim_vmm.guest.peripherals import NO_SLOT, Chosen, Completion, Disk, Peripherals
from sim_vmm.guest.program import STATE_GPA, refuse_arguments, require_running
from sim_vmm.guest.record import decode_run, encode_record
from sim_vmm.machine import Machine
from sim_vmm.memory import GuestMemory
from sim_vmm.wire import BROADCAST, SequencedFrame

MAGIC: Final = int.from_bytes(b"ledger\x01!", "little")
RING_PAGES_MAX: Final = 256
RECORD_BYTES: Final = 512
"""Of a record in RAM; on a disk it fills a block."""

PHASE_REGISTER: Final = "r12"


class Phase(IntEnum):
    """What is to be done next for the record in progress."""

    WRITE = 0
    WRITING = 1
    FLUSH = 2
    FLUSHING = 3
    STAMP = 4
    PRINT = 5
    SEND = 6
    ACKNOWLEDGE = 7


_STATE: Final = struct.Struct("<QQQQQQQQIIIIIIQQQ")


@attrs.define
class LedgerState:
    """The state page, field by field: u64, from `ring_pages` on u32, from `disk_failures` on u64 again; little-endian.

    `sequence` is the record in progress, `started_ns` the uptime at its beginning.  `disk_blocks` is 0 without a disk.
    Slots are indices among the PCI devices in key order.  `run` tells the records of this life of the machine from what
    an earlier one left on the same disk.
    """

    magic: int
    steps: int
    uptime_ns: int
    sequence: int
    acknowledged: int
    started_ns: int
    disk_blocks: int
    ring_first_page: int
    ring_pages: int
    block_size: int
    disk_slot: int
    nic_slot: int
    flush_every: int
    moves_per_step: int
    disk_failures: int
    disk_surprises: int
    run: int

    @classmethod
    def load(cls, memory: GuestMemory) -> Self | None:
        """None if no ledger was booted in this RAM."""
        state = cls(*_STATE.unpack(memory.read(STATE_GPA, _STATE.size)))
        return state if state.magic == MAGIC else None

    def store(self, memory: GuestMemory) -> None:
        memory.write(STATE_GPA, _STATE.pack(*attrs.astuple(self)))


@attrs.frozen(kw_only=True)
class LedgerGuest:
    """See the module.  `seed` makes the RAM that looks used; a step does at most `moves_per_step` moves, a phase each.

    A record takes seven moves or nine, so with five a step the machine is paused in every phase sooner or later.
    """

    name: ClassVar[str] = "ledger"
    seed: int = 0
    flush_every: int = 8
    moves_per_step: int = 5
    probe: Callable[[Machine, SystemLayout], Chosen] = probe_peripherals
    open: Callable[[Machine, Chosen], Peripherals] = open_peripherals

    @classmethod
    def parse(cls, arguments: str) -> Self:
        refuse_arguments(cls.name, arguments)
        return cls()

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        state = LedgerState.load(memory)
        return None if state is None else cls(flush_every=state.flush_every, moves_per_step=state.moves_per_step)

    def boot(self, machine: Machine) -> None:
        layout = SystemLayout(machine.memory.page_count)
        chosen = self.probe(machine, layout)
        fill_system(machine, self.seed)
        around = self.open(machine, chosen)
        run = 1 if around.disk is None else 1 + _last_run(around.disk)
        ring_pages = min(len(layout.working_set), RING_PAGES_MAX)
        LedgerState(
            magic=MAGIC,
            steps=0,
            uptime_ns=machine.clock.uptime_ns(),
            sequence=1,
            acknowledged=0,
            started_ns=0,
            disk_blocks=0 if around.disk is None else around.disk.blocks,
            ring_first_page=layout.working_set.start,
            ring_pages=ring_pages,
            block_size=RECORD_BYTES if around.disk is None else around.disk.block_size,
            disk_slot=chosen.disk,
            nic_slot=chosen.nic,
            flush_every=self.flush_every,
            moves_per_step=self.moves_per_step,
            disk_failures=0,
            disk_surprises=0,
            run=run,
        ).store(machine.memory)
        _enter(machine, Phase.WRITE)
        disk = "no disk" if chosen.disk == NO_SLOT else f"disk in slot {chosen.disk}"
        nic = "no NIC" if chosen.nic == NO_SLOT else f"NIC in slot {chosen.nic}"
        around.console.write(f"ledger guest: {disk}, {nic}, {ring_pages} pages in the ring\n".encode())

    def step(self, machine: Machine) -> None:
        require_running(machine)
        state = LedgerState.load(machine.memory)
        assert state is not None, "this machine was not booted with the ledger guest"
        turn = _Turn(machine, state, self.open(machine, Chosen(state.disk_slot, state.nic_slot)))
        for _ in range(state.moves_per_step):
            if not turn.take_interrupts() and not turn.move():
                break
        state.steps += 1
        state.uptime_ns = machine.clock.uptime_ns()
        state.store(machine.memory)


@attrs.frozen
class _Turn:
    """One step: the state as loaded, to be stored again at its end."""

    machine: Machine
    state: LedgerState
    around: Peripherals

    def take_interrupts(self) -> bool:
        """Serve the devices that have interrupted; whether the record has gone on by that."""
        if self.around.nic is not None:
            self.around.nic.poll()
        completions = [] if self.around.disk is None else self.around.disk.poll()
        for completion in completions:
            self._completed(completion)
        return bool(completions)

    def _completed(self, completion: Completion) -> None:
        phase = self._phase
        if phase not in (Phase.WRITING, Phase.FLUSHING) or completion.token != self.state.sequence:
            self.state.disk_surprises += 1
        elif not completion.is_done:
            self.state.disk_failures += 1
            self._enter(Phase.WRITE if phase is Phase.WRITING else Phase.FLUSH)
        elif phase is Phase.WRITING and self.state.sequence % self.state.flush_every == 0:
            self._enter(Phase.FLUSH)
        else:
            self._enter(Phase.STAMP)

    def move(self) -> bool:
        """Do the next phase; False if it must be waited for something."""
        match self._phase:
            case Phase.WRITE:
                return self._write()
            case Phase.FLUSH:
                return self._submitted(Phase.FLUSHING, self._disk.submit_flush(self.state.sequence))
            case Phase.STAMP:
                self._stamp()
            case Phase.PRINT:
                line = f"ledger {self.state.sequence} at {self.state.started_ns} ns\n"
                self.around.console.write(line.encode())
                self._enter(Phase.SEND)
            case Phase.SEND:
                return self._send()
            case Phase.ACKNOWLEDGE:
                self.state.acknowledged = self.state.sequence
                self.state.sequence += 1
                self._enter(Phase.WRITE)
            case Phase.WRITING | Phase.FLUSHING:
                return False
        return True

    def _write(self) -> bool:
        self.state.started_ns = self.machine.clock.uptime_ns()
        if self.around.disk is None:
            self._enter(Phase.STAMP)
            return True
        block = self.state.sequence % self.state.disk_blocks
        record = self._record(self.state.block_size)
        return self._submitted(Phase.WRITING, self._disk.submit_write(block, record, self.state.sequence))

    def _stamp(self) -> None:
        page = self.state.ring_first_page + self.state.sequence % self.state.ring_pages
        self.machine.memory.write(self.machine.memory.gpa_of(page), self._record(RECORD_BYTES))
        self._enter(Phase.PRINT)

    def _send(self) -> bool:
        nic = self.around.nic
        if nic is not None:
            frame = SequencedFrame(
                destination=BROADCAST,
                source=nic.mac,
                sequence=self.state.sequence,
                uptime_ns=self.state.started_ns,
            )
            if not nic.send(frame.encode()):
                return False
        self._enter(Phase.ACKNOWLEDGE)
        return True

    def _submitted(self, phase: Phase, has_room: bool) -> bool:
        """Go on to wait for the request, if the queue had room for it; else the phase is done again."""
        if has_room:
            self._enter(phase)
        return has_room

    def _record(self, length: int) -> bytes:
        return encode_record(self.state.sequence, self.state.started_ns, self.state.run, length)

    def _enter(self, phase: Phase) -> None:
        _enter(self.machine, phase)

    @property
    def _phase(self) -> Phase:
        return Phase(self.machine.vcpus[0].registers[PHASE_REGISTER])

    @property
    def _disk(self) -> Disk:
        assert self.around.disk is not None
        return self.around.disk


def _enter(machine: Machine, phase: Phase) -> None:
    machine.vcpus[0].registers[PHASE_REGISTER] = int(phase)


def _last_run(disk: Disk) -> int:
    """The run of the ledger that this disk has from earlier, 0 if it has none: its record 1 was in block 1."""
    block = 1 % disk.blocks
    has_room = disk.submit_read(block, token=0)
    read = disk.poll()
    assert has_room, "a queue that has just been set up is empty"
    assert len(read) == 1, "nothing keeps the disk from reading at once"
    return decode_run(read[0].data) if read[0].is_done else 0
