"""A guest that does nothing: RAM stays as it is, devices stay reset.

`idle:filled` has its RAM full of random bytes, which nothing can make smaller: what a migration moves at most.  The
first MiB stays empty, where other programs have their state.
"""

from typing import ClassVar, Final, Self

import attrs
import numpy as np

from sim_vmm.machine import MIB, Machine
from sim_vmm.memory import GuestMemory

FILLED: Final = "filled"


@attrs.frozen
class IdleGuest:
    name: ClassVar[str] = "idle"
    is_filled: bool = False

    @classmethod
    def parse(cls, arguments: str) -> Self:
        if arguments not in ("", FILLED):
            raise ValueError(f"guest program {cls.name!r} takes {FILLED!r} or no arguments: {arguments!r}")
        return cls(is_filled=arguments == FILLED)

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        """It leaves no trace, so it is never found."""
        return None

    def boot(self, machine: Machine) -> None:
        if not self.is_filled:
            return
        random = np.random.Generator(np.random.SFC64(1))
        for region in machine.memory.layout:
            for gpa in range(max(region.gpa, MIB), region.end, MIB):
                machine.memory.write(gpa, random.bytes(min(MIB, region.end - gpa)))

    def step(self, machine: Machine) -> None:
        pass
