"""What runs inside an emulated machine: programs whose whole state is in it (program.py).

    idle[:filled]              nothing; with RAM full of random bytes (idle.py)
    stamp                      writes to RAM and console so that a loss shows (stamp.py)
    ledger                     numbered records on disk, in RAM, on the console and on the wire (ledger.py)
    dirty:RATE,WORKING_SET     writes to RAM at a rate (dirty.py)
    features[:legacy]          uses every feature that it is shown, or none that came late (features.py)

Their texts, as `--guest` takes them, are read by `make_guest`; a new host finds a program in RAM with `guest_in`.
"""

from typing import Final

from sim_vmm.guest.console_records import Record, RecordsAudit, audit_records, read_records
from sim_vmm.guest.dirty import DirtyGuest
from sim_vmm.guest.features import FeaturesGuest
from sim_vmm.guest.idle import IdleGuest
from sim_vmm.guest.layout import SystemLayout
from sim_vmm.guest.ledger import LedgerGuest
from sim_vmm.guest.program import GuestDoesNotFit, GuestProgram, Heartbeat, KnownProgram, read_heartbeat
from sim_vmm.guest.stamp import Stamp, StampGuest, read_stamp
from sim_vmm.memory import GuestMemory

__all__ = [
    "GUESTS",
    "DirtyGuest",
    "FeaturesGuest",
    "GuestDoesNotFit",
    "GuestProgram",
    "Heartbeat",
    "IdleGuest",
    "KnownProgram",
    "LedgerGuest",
    "Record",
    "RecordsAudit",
    "Stamp",
    "StampGuest",
    "SystemLayout",
    "audit_records",
    "guest_in",
    "guest_text",
    "make_guest",
    "read_heartbeat",
    "read_records",
    "read_stamp",
]

#: The programs that `--guest` knows.
GUESTS: Final[dict[str, type[KnownProgram]]] = {
    cls.name: cls for cls in (IdleGuest, StampGuest, LedgerGuest, DirtyGuest, FeaturesGuest)
}


def make_guest(text: str) -> GuestProgram:
    """The guest program that is called `text`, with its arguments: `ledger`, `dirty:200M,64M`.

    Raises:
        ValueError: there is none of this name, or its arguments are not as it wants them.
    """
    name, _, arguments = text.partition(":")
    if name not in GUESTS:
        raise ValueError(f"unknown guest program {name!r}; known are {', '.join(sorted(GUESTS))}")
    return GUESTS[name].parse(arguments)


def guest_text(program: GuestProgram) -> str:
    """What `make_guest` makes this program of, but for the seed of its RAM."""
    match program:
        case DirtyGuest(rate=rate, working_set=working_set):
            return f"{program.name}:{rate},{working_set}"
        case IdleGuest(is_filled=True):
            return f"{program.name}:filled"
        case FeaturesGuest(is_legacy=True):
            return f"{program.name}:legacy"
        case _:
            return program.name


def guest_in(memory: GuestMemory) -> GuestProgram:
    """The program whose state is in this RAM, which is all that a new host has to go by; `idle` if there is none."""
    found = (program.found_in(memory) for program in GUESTS.values())
    return next((program for program in found if program is not None), IdleGuest())
