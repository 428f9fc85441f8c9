"""What runs inside an emulated machine.

All state of a guest is in its RAM and its devices.  A program object has parameters only, so a process that has taken
over RAM and devices goes on with a program object of its own where the other stopped: if anything was lost in between,
the guest is the one to notice.

`stamp` is made to notice.  Every step it takes the next sequence number and writes it, with the guest's uptime, to some
pages of a working set in rotation; every few steps it prints a numbered record on COM1.  Afterwards `stale_pages` finds
a page of the working set that missed a write, and `read_records` reads the console for records that are lost or
repeated and for the longest silence, which is the blackout as the guest saw it.

    page 1           the state: magic, sequence number, uptime of the last step (u64, little-endian each)
    from page 16     a quarter of RAM, at most 256 MiB, of pseudo-random pages: the booted system
    then             a sixteenth of that of pages that were touched and are zero
    then             the working set: page i holds the last sequence number written to it and its uptime
"""

import re
import struct
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Final, Protocol

import attrs
import numpy as np

from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE, GuestMemory

STAMP_MAGIC: Final = 0x706D_6174_7361_2101
STATE_PAGE: Final = 1
FIRST_FILLED_PAGE: Final = 16
FILLED_PAGES_MAX: Final = 65536  # 256 MiB
WORKING_SET_PAGES_MAX: Final = 4096  # 16 MiB
FILL_CHUNK_PAGES: Final = 1024

_STATE: Final = struct.Struct("<QQQ")
_STAMP: Final = struct.Struct("<QQ")


class GuestProgram(Protocol):
    """A program for a machine.  It has no state of its own: see the module."""

    name: ClassVar[str]

    def boot(self, machine: Machine) -> None:
        """Run once, at the machine's birth, before or just after it starts."""

    def step(self, machine: Machine) -> None:
        """Run a little; called again and again while the machine is running."""


class IdleGuest:
    """Does nothing: RAM stays as it is, devices stay reset."""

    name: ClassVar[str] = "idle"

    def boot(self, machine: Machine) -> None:
        pass

    def step(self, machine: Machine) -> None:
        pass


@attrs.frozen
class StampLayout:
    """Which pages `stamp` uses on a machine of `page_count` pages, of which it needs at least 256 (1 MiB)."""

    page_count: int

    @property
    def filled(self) -> range:
        count = min(self.page_count // 4, FILLED_PAGES_MAX)
        return range(FIRST_FILLED_PAGE, FIRST_FILLED_PAGE + count)

    @property
    def zeroed(self) -> range:
        return range(self.filled.stop, self.filled.stop + len(self.filled) // 16)

    @property
    def working_set(self) -> range:
        return range(self.zeroed.stop, self.zeroed.stop + min(self.page_count // 16, WORKING_SET_PAGES_MAX))


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

    def boot(self, machine: Machine) -> None:
        memory = machine.memory
        layout = StampLayout(memory.page_count)
        generator = np.random.Generator(np.random.SFC64(self.seed))
        for first in range(layout.filled.start, layout.filled.stop, FILL_CHUNK_PAGES):
            pages = np.arange(first, min(first + FILL_CHUNK_PAGES, layout.filled.stop))
            words = generator.integers(1, 1 << 64, size=(len(pages), PAGE_SIZE // 8), dtype=np.uint64)
            memory.write_pages(pages, words.view(np.uint8))
        zeroed = np.array(layout.zeroed, dtype=np.int64)
        memory.write_pages(zeroed, np.zeros((len(zeroed), PAGE_SIZE), dtype=np.uint8))
        for device in machine.devices.values():
            device.driver_probe()
        memory.write(memory.gpa_of(STATE_PAGE), _STATE.pack(STAMP_MAGIC, 0, machine.clock.uptime_ns()))
        board = machine.spec.board
        machine.com1.transmit(f"stamp guest: {board.cpus} vCPUs, {memory.page_count} pages of RAM\n".encode())

    def step(self, machine: Machine) -> None:
        assert machine.state is MachineState.RUNNING, f"the guest must not run while the machine is {machine.state}"
        memory = machine.memory
        last = read_stamp(memory)
        assert last is not None, "this machine was not booted with the stamp guest"
        now = Stamp(last.sequence + 1, machine.clock.uptime_ns())
        stamp = _STAMP.pack(now.sequence, now.uptime_ns)
        for page in self._pages_of_step(memory, now.sequence):
            memory.write(memory.gpa_of(page), stamp)
        memory.write(memory.gpa_of(STATE_PAGE), _STATE.pack(STAMP_MAGIC, now.sequence, now.uptime_ns))
        if now.sequence % self.steps_per_record == 0:
            record = now.sequence // self.steps_per_record
            machine.com1.transmit(f"record {record} at {now.uptime_ns} ns\n".encode())
            for device in machine.devices.values():
                device.driver_io()

    def stale_pages(self, memory: GuestMemory) -> list[int]:
        """Pages of the working set that do not hold the last sequence number that was written to them, ascending."""
        last = read_stamp(memory)
        if last is None:
            return []
        working_set = StampLayout(memory.page_count).working_set
        steps_per_turn = -(-len(working_set) // self.pages_per_step)
        expected = dict.fromkeys(working_set, 0)
        for sequence in range(max(1, last.sequence - steps_per_turn), last.sequence + 1):
            expected.update(dict.fromkeys(self._pages_of_step(memory, sequence), sequence))
        return [page for page, sequence in expected.items() if _stamp_at(memory, page).sequence != sequence]

    def _pages_of_step(self, memory: GuestMemory, sequence: int) -> list[int]:
        working_set = StampLayout(memory.page_count).working_set
        start = (sequence - 1) * self.pages_per_step
        return [working_set[index % len(working_set)] for index in range(start, start + self.pages_per_step)]


#: The programs that `--guest` knows.
GUESTS: Final[dict[str, Callable[[], GuestProgram]]] = {cls.name: cls for cls in (IdleGuest, StampGuest)}


def make_guest(text: str) -> GuestProgram:
    """The guest program that is called `text`.

    Raises:
        ValueError: there is none of this name.
    """
    if text not in GUESTS:
        raise ValueError(f"unknown guest program {text!r}; known are {', '.join(sorted(GUESTS))}")
    return GUESTS[text]()


def read_stamp(memory: GuestMemory) -> Stamp | None:
    """The last finished step of a `stamp` guest (sequence 0 before the first), or None if none was booted here."""
    magic, sequence, uptime_ns = _STATE.unpack(memory.read(memory.gpa_of(STATE_PAGE), _STATE.size))
    return Stamp(sequence, uptime_ns) if magic == STAMP_MAGIC else None


def _stamp_at(memory: GuestMemory, page: int) -> Stamp:
    return Stamp(*_STAMP.unpack(memory.read(memory.gpa_of(page), _STAMP.size)))


@attrs.frozen
class Record:
    """A record as found on the console: its number, from 1, and the guest's uptime, in ns."""

    number: int
    uptime_ns: int


@attrs.frozen(kw_only=True)
class RecordsAudit:
    """What the records of a console say: no attribute but `largest_gap_ns` should hold anything.

    `lost` and `repeated` are record numbers; `out_of_order` are records with a lower number or an earlier time than
    the one before; `torn` are lines that begin as a record and do not end as one.
    """

    lost: tuple[int, ...]
    repeated: tuple[int, ...]
    out_of_order: tuple[Record, ...]
    torn: tuple[bytes, ...]
    largest_gap_ns: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.repeated or self.out_of_order or self.torn)


_RECORD_LINE: Final = re.compile(rb"record ([0-9]+) at ([0-9]+) ns")


def read_records(console: bytes) -> tuple[Record, ...]:
    """The complete records in the text of a console, in the order in which they stand there."""
    matches = (_RECORD_LINE.fullmatch(line) for line in console.split(b"\n")[:-1])
    return tuple(Record(int(match[1]), int(match[2])) for match in matches if match is not None)


def audit_records(console: bytes) -> RecordsAudit:
    """Hold the records of a console against each other; a last line that is not finished yet is left out."""
    records = read_records(console)
    occurrences = Counter(record.number for record in records)
    pairs = list(pairwise(records))
    lines = console.split(b"\n")[:-1]
    return RecordsAudit(
        lost=tuple(number for number in range(1, max(occurrences, default=0) + 1) if number not in occurrences),
        repeated=tuple(sorted(number for number, times in occurrences.items() if times > 1)),
        out_of_order=tuple(b for a, b in pairs if b.number < a.number or b.uptime_ns < a.uptime_ns),
        torn=tuple(line for line in lines if b"record " in line and _RECORD_LINE.fullmatch(line) is None),
        largest_gap_ns=max([0, *(b.uptime_ns - a.uptime_ns for a, b in pairs)]),
    )
