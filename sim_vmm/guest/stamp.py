"""A guest that notices what a migration loses of its RAM and its console.

Every step it takes the next sequence number and writes it, with the guest's uptime, to some pages of a working set in
rotation; every few steps it prints a numbered record on COM1, reads a block of every disk and sends a frame from every
NIC, and looks at what earlier interrupts have brought.  Afterwards `stale_pages` finds a page of the working set that
missed a write, and `audit_records` reads the console for records that are lost or repeated.

It writes to no disk, so a machine with it can migrate wherever its disks are.
"""

import struct
from typing import ClassVar, Final, Self

import attrs

from sim_vmm.drivers.uart import UartDriver
from sim_vmm.guest.hardware import open_all, probe_peripherals
from sim_vmm.guest.layout import SystemLayout, fill_system
from sim_vmm.guest.program import beat, read_heartbeat, refuse_arguments, require_running
from sim_vmm.machine import Machine
from sim_vmm.memory import GuestMemory
from sim_vmm.wire import BROADCAST, SequencedFrame

STAMP_MAGIC: Final = 0x706D_6174_7361_2101

_STAMP: Final = struct.Struct("<QQ")


@attrs.frozen
class Stamp:
    """The last step that a `stamp` guest has finished: its number, from 1, and the guest's uptime then, in ns."""

    sequence: int
    uptime_ns: int


@attrs.frozen(kw_only=True)
class StampGuest:
    """See the module.  `seed` makes the pseudo-random pages; the other two are what one step does."""

    name: ClassVar[str] = "stamp"
    seed: int = 0
    pages_per_step: int = 16
    steps_per_record: int = 10

    @classmethod
    def parse(cls, arguments: str) -> Self:
        refuse_arguments(cls.name, arguments)
        return cls()

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        return None if read_stamp(memory) is None else cls()

    def boot(self, machine: Machine) -> None:
        probe_peripherals(machine, SystemLayout(machine.memory.page_count))
        fill_system(machine, self.seed)
        beat(machine, STAMP_MAGIC, 0)
        cpus, pages = machine.spec.board.cpus, machine.memory.page_count
        UartDriver(machine.bus).write(f"stamp guest: {cpus} vCPUs, {pages} pages of RAM\n".encode())

    def step(self, machine: Machine) -> None:
        require_running(machine)
        memory = machine.memory
        last = read_stamp(memory)
        assert last is not None, "this machine was not booted with the stamp guest"
        now = Stamp(last.sequence + 1, machine.clock.uptime_ns())
        stamp = _STAMP.pack(now.sequence, now.uptime_ns)
        for page in self._pages_of_step(memory, now.sequence):
            memory.write(memory.gpa_of(page), stamp)
        beat(machine, STAMP_MAGIC, now.sequence)
        if now.sequence % self.steps_per_record == 0:
            record = now.sequence // self.steps_per_record
            UartDriver(machine.bus).write(f"record {record} at {now.uptime_ns} ns\n".encode())
            _use_devices(machine, record)

    def stale_pages(self, memory: GuestMemory) -> list[int]:
        """Pages of the working set that do not hold the last sequence number that was written to them, ascending."""
        last = read_stamp(memory)
        if last is None:
            return []
        working_set = SystemLayout(memory.page_count).working_set
        steps_per_turn = -(-len(working_set) // self.pages_per_step)
        expected = dict.fromkeys(working_set, 0)
        for sequence in range(max(1, last.sequence - steps_per_turn), last.sequence + 1):
            expected.update(dict.fromkeys(self._pages_of_step(memory, sequence), sequence))
        return [page for page, sequence in expected.items() if _stamp_at(memory, page).sequence != sequence]

    def _pages_of_step(self, memory: GuestMemory, sequence: int) -> list[int]:
        working_set = SystemLayout(memory.page_count).working_set
        start = (sequence - 1) * self.pages_per_step
        return [working_set[index % len(working_set)] for index in range(start, start + self.pages_per_step)]


def read_stamp(memory: GuestMemory) -> Stamp | None:
    """The last finished step of a `stamp` guest (sequence 0 before the first), or None if none was booted here."""
    heartbeat = read_heartbeat(memory)
    return None if heartbeat is None or heartbeat.magic != STAMP_MAGIC else Stamp(heartbeat.steps, heartbeat.uptime_ns)


def _use_devices(machine: Machine, record: int) -> None:
    """One request to every disk, one frame from every NIC; what has no room now is left out."""
    disks, nics = open_all(machine)
    for disk in disks:
        disk.poll()
        disk.submit_read(record % disk.blocks, token=record)
    for nic in nics:
        nic.poll()
        frame = SequencedFrame(
            destination=BROADCAST, source=nic.mac, sequence=record, uptime_ns=machine.clock.uptime_ns()
        )
        nic.send(frame.encode())


def _stamp_at(memory: GuestMemory, page: int) -> Stamp:
    return Stamp(*_STAMP.unpack(memory.read(memory.gpa_of(page), _STAMP.size)))
