"""Numbered records on a console, and what may have become of them.

`stamp` prints a line every few steps: `record <number> at <uptime> ns`.  A record that is lost, repeated, torn or out
of order shows what a migration did to the console; the longest time between two is the blackout as the guest saw it.
"""

import re
from collections import Counter
from itertools import pairwise
from typing import Final

import attrs


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
