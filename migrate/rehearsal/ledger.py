"""Is the ledger whole?  Judged from what a `ledger` guest left behind: its disk, its RAM, its console, its wire.

This is an independent reader.  It takes bytes, knows their formats from the description of the guest program (ledger.py
and record.py of sim_vmm/guest, sim_vmm/wire.py), and shares no code with it, so that one mistake cannot hide another.

What is proved, of every acknowledged record that its medium still has room for:

    none lost       it is on the disk, in RAM, on the console and on the wire, everywhere with the same time
    none twice      console and wire have it once; disk and RAM have nothing in its place that is not newer
    order kept      sequence numbers and times only ever rise
    none invented   nothing is anywhere that is beyond the record in progress

The record in progress may be anywhere or nowhere; it may not be twice.  How long the guest was away is the longest time
between two records that follow each other: by the guest's own clock as its disk and RAM have it, by the times on the
console, and by the clock of whoever listened on the wire.

A medium that the machine does not have, or that nobody recorded, is None and objects to nothing.
"""

import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import attrs

PAGE_BYTES: Final = 4096
STATE_OFFSET: Final = PAGE_BYTES
STATE: Final = struct.Struct("<QQQQQQQQIIIIIIQQQ")
STATE_MAGIC: Final = b"ledger\x01!"
RECORD: Final = struct.Struct("<8sQQQII")
RECORD_MAGIC: Final = b"LEDGER01"
RING_RECORD_BYTES: Final = 512
NO_SLOT: Final = 0xFFFF_FFFF

_LINE: Final = re.compile(rb"ledger ([0-9]+) at ([0-9]+) ns")
SHOWN_MAX: Final = 5
"""Sequence numbers that one violation lists."""

Ram = bytes | bytearray | memoryview


class NoLedger(Exception):
    """The artefacts are not those of a ledger guest."""


@attrs.frozen(kw_only=True)
class Entry:
    """A record as some medium has it; `when_ns` by the guest's clock, on the wire by the listener's.

    `run` is for disks, where records of earlier lives of a machine may be found.
    """

    sequence: int
    when_ns: int
    run: int | None = None


@attrs.frozen(kw_only=True)
class ConsoleText:
    """The text of a console of `total_bytes`, of which the middle may have expired."""

    beginning: bytes
    rolling: bytes
    total_bytes: int

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """The text in pieces without a hole, each from the beginning of a line on."""
        if len(self.beginning) + len(self.rolling) >= self.total_bytes:
            return (self.beginning + self.rolling,)
        return self.beginning, self.rolling.partition(b"\n")[2]


@attrs.frozen(kw_only=True)
class Artefacts:
    """What is left of a machine.  `ram` is all of it, page 0 first; `wire` the observer's entries of this machine."""

    ram: Ram
    disk: Ram | None = None
    console: ConsoleText | None = None
    wire: Sequence[Entry] | None = None


@attrs.frozen(kw_only=True)
class Program:
    """The state page of the guest; what it has of the disk is None without one."""

    sequence: int
    acknowledged: int
    disk_blocks: int
    block_size: int
    ring_first_page: int
    ring_pages: int
    disk_slot: int | None
    nic_slot: int | None
    disk_failures: int
    disk_surprises: int
    run: int


@attrs.frozen(kw_only=True)
class LedgerAudit:
    """`found` counts acknowledged records that are wherever they must be; the times are None where nothing tells."""

    acknowledged: int
    found: int
    violations: tuple[str, ...]
    away_by_clock_ms: float | None
    away_by_console_ms: float | None
    away_by_wire_ms: float | None

    @property
    def is_whole(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        return attrs.asdict(self) | {"violations": list(self.violations)}


def read_program(ram: Ram) -> Program:
    """Raises NoLedger if no ledger guest was booted in this RAM."""
    if len(ram) < STATE_OFFSET + STATE.size:
        raise NoLedger(f"{len(ram)} bytes of RAM hold no state page")
    fields = STATE.unpack_from(ram, STATE_OFFSET)
    magic, _steps, _uptime, sequence, acknowledged, _started, blocks, ring, *rest = fields
    ring_pages, block_size, disk, nic, _flush_every, _moves, failures, surprises, run = rest
    if magic.to_bytes(8, "little") != STATE_MAGIC:
        raise NoLedger("page 1 is not the state of a ledger guest")
    return Program(
        sequence=sequence,
        acknowledged=acknowledged,
        disk_blocks=blocks,
        block_size=block_size,
        ring_first_page=ring,
        ring_pages=ring_pages,
        disk_slot=None if disk == NO_SLOT else disk,
        nic_slot=None if nic == NO_SLOT else nic,
        disk_failures=failures,
        disk_surprises=surprises,
        run=run,
    )


def read_record(data: Ram) -> Entry | None:
    """The record in `data`; None if there is none, or it is damaged."""
    if len(data) < RECORD.size:
        return None
    magic, sequence, uptime_ns, run, length, checksum = RECORD.unpack_from(data)
    if magic != RECORD_MAGIC or not RECORD.size <= length <= len(data):
        return None
    body = bytearray(data[:length])
    body[RECORD.size - 4 : RECORD.size] = bytes(4)
    return Entry(sequence=sequence, when_ns=uptime_ns, run=run) if zlib.crc32(body) == checksum else None


def read_console(piece: bytes) -> tuple[list[Entry], list[bytes]]:
    """The records in a piece of console text, and the lines that are pieces of one; a last unfinished line is left."""
    entries, torn = [], []
    for line in piece.split(b"\n")[:-1]:
        if match := _LINE.fullmatch(line):
            entries.append(Entry(sequence=int(match[1]), when_ns=int(match[2])))
        elif re.search(rb"ledger [0-9]| at [0-9]+ ns", line):
            torn.append(line)
    return entries, torn


def read_wire(lines: Iterable[str], source: str | None = None) -> list[Entry]:
    """The records that a wire observer has written down, of the NIC with MAC `source` if that is given."""
    seen = (json.loads(line) for line in lines if line.strip())
    return [
        Entry(sequence=frame["sequence"], when_ns=frame["at_ns"])
        for frame in seen
        if frame.get("sequence") is not None and source in (None, frame["source"])
    ]


def audit_ledger(artefacts: Artefacts) -> LedgerAudit:
    """Hold the artefacts against each other.

    Raises:
        NoLedger: there is no ledger guest in the RAM.
    """
    program = read_program(artefacts.ram)
    books = [_ring(program, artefacts.ram)]
    if artefacts.disk is not None and program.disk_slot is not None:
        books.append(_disk(program, artefacts.disk))
    if artefacts.console is not None:
        books.append(_console(artefacts.console))
    if artefacts.wire is not None and program.nic_slot is not None:
        books.append(_wire(artefacts.wire))
    violations = [*_counter(program), *(problem for book in books for problem in book.problems(program))]
    violations += _disagreements(books)
    missing = {sequence for book in books for sequence in book.lost(program)}
    clock = [book for book in books if book.name in ("disk", "RAM")]
    return LedgerAudit(
        acknowledged=program.acknowledged,
        found=program.acknowledged - len(missing),
        violations=tuple(violations),
        away_by_clock_ms=_longest_gap_ms(max(clock, key=lambda book: len(book.entries)).entries),
        away_by_console_ms=next((_longest_gap_ms(book.entries) for book in books if book.name == "console"), None),
        away_by_wire_ms=next((_longest_gap_ms(book.entries) for book in books if book.name == "wire"), None),
    )


@attrs.frozen(kw_only=True)
class _Book:
    """One medium's records in its order; `kept` are the sequence numbers that it must have of those acknowledged.

    `damage` is what it holds that is no record and should be one.
    """

    name: str
    entries: list[Entry]
    kept: tuple[range, ...]
    damage: list[str] = attrs.field(factory=list)

    def lost(self, program: Program) -> list[int]:
        found = {entry.sequence for entry in self.entries}
        kept = (range(max(1, kept.start), min(kept.stop, program.acknowledged + 1)) for kept in self.kept)
        return [sequence for sequences in kept for sequence in sequences if sequence not in found]

    def problems(self, program: Program) -> Iterator[str]:
        yield from (f"{self.name}: {damage}" for damage in self.damage)
        if lost := self.lost(program):
            yield f"{self.name}: acknowledged records lost: {_some(lost)}"
        counts = Counter(entry.sequence for entry in self.entries)
        if repeated := sorted(sequence for sequence, count in counts.items() if count > 1):
            yield f"{self.name}: records made twice: {_some(repeated)}"
        if invented := sorted(sequence for sequence in counts if not 1 <= sequence <= program.acknowledged + 1):
            yield f"{self.name}: records that the guest has not made: {_some(invented)}"
        backwards = [b.sequence for a, b in pairwise(self.entries) if b.sequence < a.sequence or b.when_ns < a.when_ns]
        if backwards:
            yield f"{self.name}: records out of order: {_some(backwards)}"


def _counter(program: Program) -> Iterator[str]:
    if program.sequence != program.acknowledged + 1:
        yield f"RAM: record {program.sequence} is in progress after {program.acknowledged} were acknowledged"
    if program.disk_failures:
        yield f"RAM: the disk refused {program.disk_failures} requests"
    if program.disk_surprises:
        yield f"RAM: the disk completed {program.disk_surprises} requests that were not outstanding"


def _ring(program: Program, ram: Ram) -> _Book:
    first = program.ring_first_page * PAGE_BYTES
    offsets = (first + slot * PAGE_BYTES for slot in range(program.ring_pages))
    slots = ((slot, bytes(ram[offset : offset + RING_RECORD_BYTES])) for slot, offset in enumerate(offsets))
    return _circular("RAM", program, slots, program.ring_pages)


def _disk(program: Program, disk: Ram) -> _Book:
    size, blocks = program.block_size, program.disk_blocks
    if len(disk) < blocks * size:
        damage = f"{len(disk)} bytes; the guest found {blocks} blocks of {size}"
        return _Book(name="disk", entries=[], kept=(range(1, program.acknowledged + 1),), damage=[damage])
    used = {sequence % blocks for sequence in range(max(1, program.sequence + 1 - blocks), program.sequence + 1)}
    slots = ((block, bytes(disk[block * size : (block + 1) * size])) for block in sorted(used))
    return _circular("disk", program, slots, blocks)


def _circular(name: str, program: Program, slots: Iterable[tuple[int, bytes]], count: int) -> _Book:
    """A medium where record n is in slot n modulo `count`.

    What is in the place of the record in progress may be anything: it, the one that it replaces, one of an earlier run.
    """
    entries, damage = [], []
    for slot, data in slots:
        entry = read_record(data)
        if entry is not None and entry.run == program.run:
            entries.append(entry)
            if entry.sequence % count != slot:
                damage.append(f"record {entry.sequence} in the place of others, {slot}")
        elif any(data) and slot != program.sequence % count:
            damage.append(f"what is in place {slot} is no record of this run")
    entries.sort(key=lambda entry: entry.sequence)
    oldest = program.sequence + 1 - count
    return _Book(name=name, entries=entries, kept=(range(max(1, oldest), program.acknowledged + 1),), damage=damage)


def _console(console: ConsoleText) -> _Book:
    entries: list[Entry] = []
    kept, damage = [], []
    for number, piece in enumerate(console.pieces):
        found, torn = read_console(piece)
        damage += [f"torn: {line[:80]!r}" for line in torn[:SHOWN_MAX]]
        is_last = number == len(console.pieces) - 1
        first = found[0].sequence if number and found else 1
        # of a piece that others follow, the last sequence number is all that is known of its end
        last = 1 << 64 if is_last else (found[-1].sequence if found else 0)
        kept.append(range(first, last + 1))
        entries += found
    return _Book(name="console", entries=entries, kept=tuple(kept), damage=damage)


def _wire(entries: Sequence[Entry]) -> _Book:
    return _Book(name="wire", entries=list(entries), kept=(range(1, 1 << 64),))


def _disagreements(books: Sequence[_Book]) -> Iterator[str]:
    """Disk, RAM and console tell the same time of every record that they share."""
    times: dict[int, dict[str, int]] = {}
    for book in books:
        if book.name != "wire":
            for entry in book.entries:
                times.setdefault(entry.sequence, {})[book.name] = entry.when_ns
    differing = sorted(sequence for sequence, told in times.items() if len(set(told.values())) > 1)
    if differing:
        told = ", ".join(f"{when} ns on {name}" for name, when in times[differing[0]].items())
        yield f"records with different times: {_some(differing)}; the first has {told}"


def _longest_gap_ms(entries: Sequence[Entry]) -> float | None:
    following = (b.when_ns - a.when_ns for a, b in pairwise(entries) if b.sequence == a.sequence + 1)
    longest = max(following, default=None)
    return None if longest is None else longest / 1e6


def _some(sequences: Sequence[int]) -> str:
    more = f" and {len(sequences) - SHOWN_MAX} more" if len(sequences) > SHOWN_MAX else ""
    return ", ".join(map(str, sequences[:SHOWN_MAX])) + more
