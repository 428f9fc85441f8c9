"""What RAM and console of a machine tell of its guest's work, for reports."""

from typing import Any

from sim_vmm.guest import DirtyGuest, GuestProgram, StampGuest, audit_records, read_heartbeat, read_records, read_stamp
from sim_vmm.machine import Machine


def guest_facts(program: GuestProgram, machine: Machine) -> dict[str, Any]:
    """How far the program came, and what it misses.  A ledger is not judged here but by its reader, from artefacts."""
    heartbeat = read_heartbeat(machine.memory)
    return {
        "program": program.name,
        "sequence": None if heartbeat is None else heartbeat.steps,
        "stale_pages": program.stale_pages(machine.memory) if isinstance(program, StampGuest | DirtyGuest) else [],
        "records": _records(program, machine) if isinstance(program, StampGuest) else None,
    }


def _records(program: StampGuest, machine: Machine) -> dict[str, Any]:
    """Those of `stamp` on the console."""
    state, stamp = machine.console.export(), read_stamp(machine.memory)
    assert stamp is not None, "the program was found in this RAM"
    text = state.beginning + state.rolling
    audit = audit_records(text)
    return {
        "acknowledged": stamp.sequence // program.steps_per_record,
        "found": len(read_records(text)),
        "lost": list(audit.lost),
        "repeated": list(audit.repeated),
        "out_of_order": len(audit.out_of_order),
        "torn": len(audit.torn),
        "largest_gap_ms": audit.largest_gap_ns / 1e6,
    }
