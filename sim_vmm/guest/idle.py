"""A guest that does nothing: RAM stays as it is, devices stay reset."""

from typing import ClassVar, Self

from sim_vmm.guest.program import refuse_arguments
from sim_vmm.machine import Machine
from sim_vmm.memory import GuestMemory


class IdleGuest:
    name: ClassVar[str] = "idle"

    @classmethod
    def parse(cls, arguments: str) -> Self:
        refuse_arguments(cls.name, arguments)
        return cls()

    @classmethod
    def found_in(cls, memory: GuestMemory) -> Self | None:
        """It leaves no trace, so it is never found."""
        return None

    def boot(self, machine: Machine) -> None:
        pass

    def step(self, machine: Machine) -> None:
        pass
