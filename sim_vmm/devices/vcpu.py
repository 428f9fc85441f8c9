"""Virtual processors: registers, and the interrupts that wait to be taken (device-payloads §7).

There is no instruction set here: a guest program is Python that may keep values in the general registers and nowhere
else outside RAM.  What a processor does have is its local APIC, because there an interrupt is between the device that
raised it and the guest that takes it.  A message (MSI) sets the bit of its vector in the request register, and the
bit stays until the guest takes the interrupt: it travels in the payload, or a device would wait for ever for a guest
that waits for its interrupt.

Interrupt pins are levels: a device drives its line and the line is up as long as the device says so.  Lines do not
travel; each device drives its own again after an import (upstream's #727).  All pins lead to `PIN_VECTOR` of vCPU 0,
and as levels they are pending until the device is satisfied, however often they are taken.

A guest runs its handlers to the end within one step, so the in-service register is empty whenever a machine is paused.
"""

from collections.abc import Callable
from typing import ClassVar, Final

import attrs

from sim_vmm.devices.base import Arrived, Device, refusal
from sim_vmm.payloads import LapicPage, LapicV1, Payload, Schema, VcpuGpregsV1, VcpuRunstateV1

#: The vector of all interrupt pins: IRQ 11 of a guest that maps IRQs from vector 0x20 on.
PIN_VECTOR: Final = 0x2B
#: An APIC takes no vectors below this (Intel SDM volume 3, "Valid Interrupt Vectors").
FIRST_VALID_VECTOR: Final = 0x10
#: Where messages to APICs go; bits 12 to 19 name the APIC (Intel SDM volume 3, "Message Address Register Format").
MESSAGE_ADDRESS: Final = 0xFEE0_0000

RUN_INITIALISED: Final = 1
RUN_RUNNING: Final = 2
APIC_VERSION: Final = 0x0005_0014
APIC_BASE_ENABLED: Final = 0xFEE0_0800
APIC_BASE_BOOTSTRAP: Final = 1 << 8
SPURIOUS_ENABLED: Final = 0x1FF
LVT_MASKED: Final = 0x1_0000
WORDS: Final = 8
ZEROS: Final = (0,) * WORDS

_RESET_REGISTERS: Final = VcpuGpregsV1(
    **dict.fromkeys((field.name for field in attrs.fields(VcpuGpregsV1)), 0) | {"rip": 0xFFF0, "rflags": 0x2}
)


class Vcpu(Device):
    """The processor `number`.  `line_asserted` says whether a pin that leads here is up."""

    kind: ClassVar[str] = "vcpu"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = (
        (VcpuRunstateV1.SCHEMA,),
        (VcpuGpregsV1.SCHEMA,),
        (LapicV1.SCHEMA,),
    )

    def __init__(self, number: int, line_asserted: Callable[[], bool] = lambda: False) -> None:
        super().__init__(f"vcpu-{number}")
        self._line_asserted = line_asserted
        #: The general registers by name, 64 bits each; a guest program may use r8 to r15 as it likes.
        self.registers: dict[str, int] = attrs.asdict(_RESET_REGISTERS)
        self._run_state = VcpuRunstateV1(
            run_state=RUN_RUNNING | RUN_INITIALISED if number == 0 else 0,
            sipi_vector=0,
            intr_shadow=False,
            pending_nmi=False,
            pending_extint=False,
            pending_exception=0,
            pending_intinfo=0,
        )
        self._lapic = LapicV1(
            page=LapicPage(
                id=number,
                version=APIC_VERSION,
                tpr=0,
                svr=SPURIOUS_ENABLED,
                isr=ZEROS,
                tmr=ZEROS,
                irr=ZEROS,
                esr=0,
                lvt_timer=LVT_MASKED,
                icr_timer=0,
                dcr_timer=0,
            ),
            msr_apicbase=APIC_BASE_ENABLED | (APIC_BASE_BOOTSTRAP if number == 0 else 0),
            timer_target=0,
            esr_pending=0,
        )
        self._requested: set[int] = set()

    def request(self, vector: int) -> None:
        """An interrupt message for this processor; one that is pending already is not counted twice."""
        if FIRST_VALID_VECTOR <= vector <= 0xFF:
            self._requested.add(vector)

    def pending(self) -> list[int]:
        """The vectors that wait to be taken, highest first."""
        waiting = self._requested | {PIN_VECTOR} if self._line_asserted() else self._requested
        return sorted(waiting, reverse=True)

    def take_interrupt(self) -> int | None:
        """The guest takes the pending interrupt of the highest vector; None if there is none."""
        waiting = self.pending()
        if not waiting:
            return None
        self._requested.discard(waiting[0])
        return waiting[0]

    def take(self, vector: int) -> bool:
        """The guest takes this one vector, as with all others masked; says whether it was pending."""
        was_pending = vector in self.pending()
        self._requested.discard(vector)
        return was_pending

    def _payloads(self) -> tuple[Payload, ...]:
        words = [0] * WORDS
        for vector in self._requested:
            words[vector // 32] |= 1 << vector % 32
        page = attrs.evolve(self._lapic.page, irr=tuple(words))
        return self._run_state, VcpuGpregsV1(**self.registers), attrs.evolve(self._lapic, page=page)

    def _take(self, arrived: Arrived) -> None:
        run_state, registers, lapic = arrived.of(VcpuRunstateV1), arrived.of(VcpuGpregsV1), arrived.of(LapicV1)
        refuse = refusal(self.key, LapicV1.SCHEMA)
        for field in ("isr", "tmr", "irr"):
            words: tuple[int, ...] = getattr(lapic.page, field)
            if len(words) != WORDS:
                raise refuse(f"page.{field}", f"{len(words)} words; 256 vectors take {WORDS}")
        if lapic.page.id != self._lapic.page.id:
            raise refuse("page.id", f"{lapic.page.id}; this processor's APIC has id {self._lapic.page.id}")
        if any(lapic.page.isr):
            raise refuse("page.isr", "an interrupt is in service; a guest is paused between its handlers only")
        if lapic.page.irr[0] & (1 << FIRST_VALID_VECTOR) - 1:
            raise refuse("page.irr[0]", f"{lapic.page.irr[0]:#x}; there are no vectors below {FIRST_VALID_VECTOR}")
        self._run_state = run_state
        self.registers = attrs.asdict(registers)
        self._lapic = lapic
        self._derive()

    def _derive(self) -> None:
        self._requested = {
            32 * index + bit for index, word in enumerate(self._lapic.page.irr) for bit in range(32) if word >> bit & 1
        }


class InterruptController:
    """Brings messages to the APIC that they name, and keeps the level of every device's pin.

    `lines` is derived state: nothing of it travels, every device drives its own line again after an import.
    """

    def __init__(self, cpus: int) -> None:
        self.lines: dict[str, bool] = {}
        self.vcpus: Final = tuple(
            Vcpu(number, self._any_line if number == 0 else lambda: False) for number in range(cpus)
        )

    def message(self, address: int, data: int) -> None:
        """An interrupt message; one that names no APIC of this machine is lost, as on hardware."""
        number = address >> 12 & 0xFF
        if address & ~0xF_FFFF == MESSAGE_ADDRESS and number < len(self.vcpus):
            self.vcpus[number].request(data & 0xFF)

    def set_line(self, device: str, asserted: bool) -> None:
        self.lines[device] = asserted

    def _any_line(self) -> bool:
        return any(self.lines.values())
