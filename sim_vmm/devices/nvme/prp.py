"""Where a command's data lies in guest RAM: physical region pages (NVMe 1.1 §4.3).

PRP 1 names the first bytes, at any dword of a page.  If the rest fits one page, PRP 2 names it; otherwise PRP 2 names a
list of pages.  A list ends with its page; if more pages are needed than its last slot can name, that slot names the
next list.
"""

import struct
from collections.abc import Iterator
from typing import Final

import attrs

from sim_vmm.devices.nvme.layout import Command, Status
from sim_vmm.memory import PAGE_SIZE, GuestAddressError, GuestMemory

_ENTRY: Final = struct.Struct("<Q")


@attrs.frozen
class CommandFailed(Exception):
    """A command ends with an error status."""

    status: Status


def read_data(memory: GuestMemory, command: Command, length: int) -> bytes:
    """The `length` bytes, at least 1, that the guest hands over with `command`.

    Raises:
        CommandFailed: a PRP with an offset where there must be none, or data or a list that is not in RAM.
    """
    try:
        return b"".join(memory.read(gpa, size) for gpa, size in segments(memory, command, length))
    except GuestAddressError as error:
        raise CommandFailed(Status.DATA_TRANSFER_ERROR) from error


def write_data(memory: GuestMemory, command: Command, data: bytes) -> None:
    """Give `data`, at least 1 byte, to the guest.  Errors as `read_data`; a part may have been written then."""
    try:
        start = 0
        for gpa, size in list(segments(memory, command, len(data))):
            memory.write(gpa, data[start : start + size])
            start += size
    except GuestAddressError as error:
        raise CommandFailed(Status.DATA_TRANSFER_ERROR) from error


def segments(memory: GuestMemory, command: Command, length: int) -> Iterator[tuple[int, int]]:
    """(guest address, bytes) of each piece of the data.

    Raises:
        CommandFailed: a PRP with an offset where there must be none.
        GuestAddressError: a list is not in RAM.
    """
    if command.prp1 % 4:
        raise CommandFailed(Status.INVALID_PRP_OFFSET)
    first = min(length, PAGE_SIZE - command.prp1 % PAGE_SIZE)
    yield command.prp1, first
    left = length - first
    if left == 0:
        return
    pages = iter([command.prp2]) if left <= PAGE_SIZE else _listed(memory, command.prp2, -(-left // PAGE_SIZE))
    for gpa in pages:
        if gpa % PAGE_SIZE:
            raise CommandFailed(Status.INVALID_PRP_OFFSET)
        size = min(left, PAGE_SIZE)
        yield gpa, size
        left -= size


def _listed(memory: GuestMemory, entry: int, count: int) -> Iterator[int]:
    """The `count` pages of the list whose first entry is at guest address `entry`."""
    while True:
        if entry % _ENTRY.size:
            raise CommandFailed(Status.INVALID_PRP_OFFSET)
        slots = (PAGE_SIZE - entry % PAGE_SIZE) // _ENTRY.size
        here = count if count <= slots else slots - 1
        named = memory.read(entry, _ENTRY.size * (here if count <= slots else slots))
        gpas = [gpa for (gpa,) in _ENTRY.iter_unpack(named)]
        yield from gpas[:here]
        count -= here
        if count == 0:
            return
        entry = gpas[here]
