"""What a guest program is, and where its state lies.

All state of a guest is in its RAM, its processors' registers and its devices.  A program object has nothing but what it
reads there, so a process that has taken over a machine makes a program object of its own (`sim_vmm.guest.guest_in`) and
goes on where the other stopped, be it in the middle of something: if anything was lost in between, the guest is the one
to notice.

Map of guest RAM, by guest-physical address:

    page 1         the program's state.  It begins with a heartbeat: magic of the program, steps done, uptime at the
                   last step in ns (u64, little-endian each)
    1 MiB on       256 KiB for each PCI device, in key order: its driver's (`sim_vmm.drivers`)
    the end        what makes RAM look used: see `sim_vmm.guest.layout`
"""

import struct
from typing import ClassVar, Final, Protocol, Self

import attrs

from sim_vmm.lifecycle import MachineState
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE, GuestMemory

STATE_GPA: Final = 1 * PAGE_SIZE

_HEARTBEAT: Final = struct.Struct("<QQQ")


class GuestDoesNotFit(ValueError):
    """The machine has too little RAM for what the program is to do."""


class GuestProgram(Protocol):
    """A program for a machine.  It has no state of its own: see the module."""

    name: ClassVar[str]

    def boot(self, machine: Machine) -> None:
        """Run once, at the machine's birth, before or just after it starts.

        Raises:
            GuestDoesNotFit: it has too little RAM.
        """

    def step(self, machine: Machine) -> None:
        """Run a little; called again and again while the machine is running."""


class KnownProgram(GuestProgram, Protocol):
    """A program that people can ask for by its name, and that a new host finds in RAM."""

    @classmethod
    def parse(cls, arguments: str) -> Self:
        """The program with what stands behind its name and a colon, "" without one.

        Raises:
            ValueError: it is not what this program takes.
        """

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        """The program that has been booted in this RAM, with the parameters that it was booted with, or None."""


def refuse_arguments(name: str, arguments: str) -> None:
    """For a program that takes none.  Raises ValueError if there are any."""
    if arguments:
        raise ValueError(f"guest program {name!r} takes no arguments: {arguments!r}")


@attrs.frozen
class Heartbeat:
    """The last step that a program has finished, from 1, 0 before the first; the guest's uptime then, in ns."""

    magic: int
    steps: int
    uptime_ns: int


def read_heartbeat(memory: GuestMemory) -> Heartbeat | None:
    """The heartbeat of whatever program was booted in this RAM; None if none was, or one that has none (`idle`)."""
    beat = Heartbeat(*_HEARTBEAT.unpack(memory.read(STATE_GPA, _HEARTBEAT.size)))
    return beat if beat.magic else None


def beat(machine: Machine, magic: int, steps: int) -> None:
    """Note in RAM that the program has done `steps` steps, as of now."""
    machine.memory.write(STATE_GPA, _HEARTBEAT.pack(magic, steps, machine.clock.uptime_ns()))


def require_running(machine: Machine) -> None:
    """A step on a machine that does not run is a bug of whoever runs the guest."""
    assert machine.state is MachineState.RUNNING, f"the guest must not run while the machine is {machine.state}"
