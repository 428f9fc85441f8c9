"""The PCI face of a device: command register, base address registers, MSI-X vectors (device-payloads §5).

Derived, and rebuilt on import: which addresses the device answers at, from the BARs and the command register.  Whether
interrupts go by MSI-X or by the pin is asked of the registers each time.
"""

from typing import Final

import attrs

from sim_vmm.devices.base import InterruptPin, Refuse, refusal
from sim_vmm.integers import U16_MAX, U32_MAX
from sim_vmm.payloads import Bar, BarKind, Bars, Msix, MsixEntry, PciDeviceV1
from sim_vmm.spec import PciPath

COMMAND_IO: Final = 1 << 0
COMMAND_MEMORY: Final = 1 << 1
COMMAND_BUS_MASTER: Final = 1 << 2
COMMAND_INTX_DISABLE: Final = 1 << 10
COMMAND_KNOWN: Final = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE

BAR_COUNT: Final = 6
#: Where an x86 guest lets interrupt messages go, and the vectors it hands out for them.
MSI_ADDRESS: Final = 0xFEE0_0000
FIRST_VECTOR: Final = 0x30

EMPTY_BAR: Final = Bar(BarKind.EMPTY, 0, 0)


def mmio_base(path: PciPath) -> int:
    """Where firmware places the memory of the device at `path`: 1 MiB for each, below 4 GiB."""
    return 0xC000_0000 + ((path.bus % 4 * 32 + path.device) * 8 + path.function) * 0x10_0000 % 0x3000_0000


def ring_base(path: PciPath) -> int:
    """Where a driver places the rings of the device at `path`, 2 MiB for each; nobody walks them yet."""
    return 0x100_0000 + (path.device * 8 + path.function) * 0x20_0000


class PciFunction:
    """The PCI registers of the device `key`, and its interrupt pin.

    `bars` is the layout at reset, six entries; `vectors` the number of MSI-X vectors, 0 for a device without MSI-X.
    """

    def __init__(self, key: str, bars: tuple[Bar, ...], vectors: int) -> None:
        self.key = key
        self.pin = InterruptPin()
        self.vectors = vectors
        self._command = 0
        self._intr_line = 0
        self._bars = bars
        self._msix: Msix | None = None
        if vectors:
            masked = MsixEntry(addr=0, data=0, is_vec_masked=True, is_pending=False)
            self._msix = Msix(count=vectors, is_enabled=False, is_func_masked=False, entries=(masked,) * vectors)
        self._answers: dict[int, range] = {}

    def configure(self, base: int) -> None:
        """What firmware and driver do at boot: place the BARs from address `base` on, switch decoding and MSI-X on."""
        bars = list(self._bars)
        for index, bar in enumerate(bars):
            if bar.kind is BarKind.PIO:
                bars[index] = attrs.evolve(bar, value=0xC000 + (base >> 20) % 24 * 0x200)
            elif bar.kind is not BarKind.EMPTY:
                bars[index] = attrs.evolve(bar, value=base)
                base += bar.size
        self._bars = tuple(bars)
        self._command = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER
        self._intr_line = 11
        if self._msix is not None:
            entries = tuple(
                MsixEntry(addr=MSI_ADDRESS, data=FIRST_VECTOR + vector, is_vec_masked=False, is_pending=False)
                for vector in range(self.vectors)
            )
            self._msix = attrs.evolve(self._msix, is_enabled=True, entries=entries)
        self._derive()

    @property
    def uses_msix(self) -> bool:
        return self._msix is not None and self._msix.is_enabled

    def mask_vector(self, vector: int) -> None:
        """The guest masks one MSI-X vector: from now on its interrupts stay pending."""
        self._set_entry(vector, is_vec_masked=True)

    def unmask_vector(self, vector: int) -> bool:
        """The guest unmasks one MSI-X vector; says whether a pending interrupt is delivered by that."""
        was_pending = self._entry(vector).is_pending
        self._set_entry(vector, is_vec_masked=False, is_pending=False)
        return was_pending

    def raise_vector(self, vector: int) -> MsixEntry | None:
        """Send interrupt message `vector`: the message delivered, or None if it is masked and now pending."""
        entry = self._entry(vector)
        assert self._msix is not None
        if entry.is_vec_masked or self._msix.is_func_masked:
            self._set_entry(vector, is_pending=True)
            return None
        return entry

    def set_pin(self, wanted: bool) -> None:
        """Drive the interrupt pin, unless interrupts go by MSI-X or the guest has disabled the pin."""
        self.pin.asserted = wanted and not self.uses_msix and not self._command & COMMAND_INTX_DISABLE

    def bar_at(self, address: int) -> int | None:
        """Which BAR answers at `address` (memory or port), if any."""
        return next((index for index, answers in self._answers.items() if address in answers), None)

    def address_of_bar(self, index: int) -> int:
        return self._bars[index].value

    def export(self) -> PciDeviceV1:
        return PciDeviceV1(
            reg_command=self._command, reg_intr_line=self._intr_line, bars=Bars(self._bars), msix=self._msix
        )

    def check(self, payload: PciDeviceV1) -> None:
        """Raises ImportFailed for the first value that this function cannot take (device-payloads §5)."""
        refuse = refusal(self.key, PciDeviceV1.SCHEMA)
        if unknown := payload.reg_command & ~COMMAND_KNOWN:
            raise refuse("reg_command", f"unknown bits {unknown:#x}; known are {COMMAND_KNOWN:#x}")
        _check_bars(payload.bars.entries, refuse)
        if payload.msix is None:
            if self._msix is not None:
                raise refuse("msix", f"absent; this device has {self.vectors} vectors")
            return
        if self._msix is None:
            raise refuse("msix", "present; this device has no MSI-X")
        if payload.msix.count != self.vectors:
            raise refuse("msix.count", f"{payload.msix.count}; this device has {self.vectors} vectors")
        if len(payload.msix.entries) != self.vectors:
            raise refuse("msix.entries", f"{len(payload.msix.entries)} entries; this device has {self.vectors} vectors")

    def take(self, payload: PciDeviceV1) -> None:
        """Take over state that `check` has passed."""
        self._command = payload.reg_command
        self._intr_line = payload.reg_intr_line
        self._bars = payload.bars.entries
        self._msix = payload.msix
        self._derive()

    def _derive(self) -> None:
        answers = {}
        for index, bar in enumerate(self._bars):
            decoding = COMMAND_IO if bar.kind is BarKind.PIO else COMMAND_MEMORY
            if bar.kind is not BarKind.EMPTY and self._command & decoding:
                answers[index] = range(bar.value, bar.value + bar.size)
        self._answers = answers

    def _entry(self, vector: int) -> MsixEntry:
        assert self._msix is not None, f"{self.key} has no MSI-X"
        return self._msix.entries[vector]

    def _set_entry(self, vector: int, **changes: bool) -> None:
        assert self._msix is not None
        entries = list(self._msix.entries)
        entries[vector] = attrs.evolve(entries[vector], **changes)
        self._msix = attrs.evolve(self._msix, entries=tuple(entries))


def _check_bars(bars: tuple[Bar, ...], refuse: Refuse) -> None:
    if len(bars) != BAR_COUNT:
        raise refuse("bars.entries", f"{len(bars)} entries; a PCI function has {BAR_COUNT}")
    for index, bar in enumerate(bars):
        field = f"bars.entries[{index}]"
        match bar.kind:
            case BarKind.PIO if bar.size > U16_MAX:
                raise refuse(f"{field}.size", f"{bar.size:#x} does not fit the 16 bits of a port BAR")
            case BarKind.MMIO if bar.size > U32_MAX:
                raise refuse(f"{field}.size", f"{bar.size:#x} does not fit the 32 bits of an mmio BAR")
            case BarKind.MMIO64 if index == BAR_COUNT - 1:
                raise refuse(f"{field}.kind", "mmio64 in the last slot; it takes two")
            case BarKind.MMIO64 if bars[index + 1].kind is not BarKind.EMPTY:
                raise refuse(
                    f"{field}.kind", f"mmio64 takes the next slot too, which is {bars[index + 1].kind}, not empty"
                )
            case _:
                pass
