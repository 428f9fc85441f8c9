"""The PCI face of a device: command register, base address registers, MSI-X vectors (device-payloads §5).

The guest finds functions and sets them up through their configuration space (pci_config.py); the table of interrupt
messages lies behind one of the BARs.

Derived, and rebuilt on import: which addresses the device answers at, from the BARs and the command register, and the
level of the pin.  Whether interrupts go by MSI-X or by the pin is asked of the registers each time.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import attrs

from sim_vmm.devices.base import Device, InterruptPin, Refuse, refusal
from sim_vmm.integers import U16_MAX, U32_MAX, U64_MAX
from sim_vmm.payloads import Bar, BarKind, Bars, Msix, MsixEntry, PciDeviceV1
from sim_vmm.platform import Interrupts, Platform
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

#: The MSI-X table and, behind it, the pending bits, in the BAR that holds them; room for 128 vectors.
MSIX_TABLE: Final = 0
MSIX_PENDING: Final = 0x800
MSIX_ENTRY: Final = struct.Struct("<QII")
MSIX_ENTRY_MASKED: Final = 1
#: The bits of the MSI-X message control register (PCI 3.0 §6.8.2.3).
MSIX_ENABLE: Final = 1 << 15
MSIX_FUNCTION_MASK: Final = 1 << 14


@attrs.frozen(kw_only=True)
class PciIdentity:
    """What a function says it is: the identification registers of PCI 3.0 §6.2.1.  `class_code` has 24 bits."""

    vendor: int
    device: int
    class_code: int
    subsystem_vendor: int = 0
    subsystem: int = 0
    revision: int = 0


#: A function of which nobody needs to know what it is.
ANONYMOUS: Final = PciIdentity(vendor=0x01DE, device=0xFFFF, class_code=0xFF0000)


def mmio_base(path: PciPath) -> int:
    """Where firmware places the memory of the device at `path`: 64 KiB for each, in the hole below 4 GiB."""
    return 0xC000_0000 + ((path.bus % 32 * 32 + path.device) * 8 + path.function) * 0x1_0000


class PciFunction:
    """The PCI registers of the device `key`, and its interrupt pin.

    `bars` is the layout at reset, six entries; `vectors` the number of MSI-X vectors, 0 for a device without MSI-X;
    `msix_bar` the BAR behind which their table lies.  `capabilities` are the bodies of vendor-specific capabilities,
    without the three bytes that begin each (PCI 3.0 §6.7).
    """

    def __init__(
        self,
        key: str,
        bars: tuple[Bar, ...],
        vectors: int,
        *,
        path: PciPath,
        msix_bar: int | None = None,
        identity: PciIdentity = ANONYMOUS,
        capabilities: tuple[bytes, ...] = (),
    ) -> None:
        self.key = key
        self.path = path
        self.identity = identity
        self.capabilities = capabilities
        self.msix_bar = msix_bar
        self.pin = InterruptPin()
        self.vectors = vectors
        #: Called when the addresses that this function answers at may have changed; the bus sets it.
        self.decoding_changed: Callable[[], None] = lambda: None
        self._interrupts: Interrupts | None = None
        self._command = 0
        self._intr_line = 0
        self._bars = bars
        self._msix: Msix | None = None
        if vectors:
            masked = MsixEntry(addr=0, data=0, is_vec_masked=True, is_pending=False)
            self._msix = Msix(count=vectors, is_enabled=False, is_func_masked=False, entries=(masked,) * vectors)
        self._answers: dict[int, range] = {}
        self._pin_wanted = False

    def attach(self, platform: Platform) -> None:
        self._interrupts = platform.interrupts

    def configure(self, base: int) -> None:
        """What firmware and driver do at boot: place the BARs from address `base` on, switch decoding and MSI-X on."""
        bars = list(self._bars)
        for index, bar in enumerate(bars):
            if bar.kind is BarKind.PIO:
                bars[index] = attrs.evolve(bar, value=0xC000 + (base >> 16) % 24 * 0x200)
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

    # Registers, as configuration space shows them

    @property
    def bars(self) -> tuple[Bar, ...]:
        return self._bars

    @property
    def command(self) -> int:
        return self._command

    @property
    def intr_line(self) -> int:
        return self._intr_line

    @property
    def interrupt_asked(self) -> bool:
        """The device wants its pin up, whether or not the pin may be (the interrupt bit of the status register)."""
        return self._pin_wanted

    def set_command(self, value: int) -> None:
        self._command = value & COMMAND_KNOWN
        self._derive()

    def set_intr_line(self, value: int) -> None:
        self._intr_line = value & 0xFF

    def set_bar(self, index: int, value: int) -> None:
        """The guest writes a base address; the bits below the size of the BAR are wired to zero."""
        bar = self._bars[index]
        widest = {BarKind.PIO: U16_MAX, BarKind.MMIO: U32_MAX, BarKind.MMIO64: U64_MAX, BarKind.EMPTY: 0}[bar.kind]
        bars = list(self._bars)
        bars[index] = attrs.evolve(bar, value=value & widest & ~(bar.size - 1) if bar.size else 0)
        self._bars = tuple(bars)
        self._derive()

    @property
    def msix_control(self) -> int:
        """The MSI-X message control register."""
        if self._msix is None:
            return 0
        enabled, masked = self._msix.is_enabled, self._msix.is_func_masked
        return self.vectors - 1 | MSIX_ENABLE * enabled | MSIX_FUNCTION_MASK * masked

    def set_msix_control(self, value: int) -> None:
        """The guest enables MSI-X, or masks all vectors; messages that were held back by the mask go out."""
        if self._msix is None:
            return
        self._msix = attrs.evolve(
            self._msix, is_enabled=bool(value & MSIX_ENABLE), is_func_masked=bool(value & MSIX_FUNCTION_MASK)
        )
        self._derive()
        for vector in range(self.vectors):
            self._send_if_pending(vector)

    def msix_read(self, offset: int, size: int) -> int:
        """The guest reads the vector table (4 or 8 bytes) or the pending bits."""
        if self._msix is None:
            return 0
        if offset >= MSIX_PENDING:
            bits = sum(entry.is_pending << vector for vector, entry in enumerate(self._msix.entries))
            content = bits.to_bytes(-(-self.vectors // 64) * 8, "little")
            offset -= MSIX_PENDING
        else:
            content = b"".join(MSIX_ENTRY.pack(e.addr, e.data, e.is_vec_masked) for e in self._msix.entries)
        return int.from_bytes(content[offset : offset + size], "little")

    def msix_write(self, offset: int, size: int, value: int) -> None:
        """The guest writes a part of the vector table, whose fields are 4 bytes wide; unmasking may send a message."""
        vector, field = divmod(offset - MSIX_TABLE, MSIX_ENTRY.size)
        if self._msix is None or vector >= self.vectors or field % size or size not in (4, 8):
            return
        raw = bytearray(
            MSIX_ENTRY.pack(self._entry(vector).addr, self._entry(vector).data, self._entry(vector).is_vec_masked)
        )
        raw[field : field + size] = value.to_bytes(size, "little")
        address, data, control = MSIX_ENTRY.unpack(raw)
        self._set_entry(vector, addr=address, data=data, is_vec_masked=bool(control & MSIX_ENTRY_MASKED))
        self._send_if_pending(vector)

    # Interrupts

    @property
    def uses_msix(self) -> bool:
        return self._msix is not None and self._msix.is_enabled

    def mask_vector(self, vector: int) -> None:
        """The guest masks one MSI-X vector: from now on its interrupts stay pending."""
        self._set_entry(vector, is_vec_masked=True)

    def unmask_vector(self, vector: int) -> bool:
        """The guest unmasks one MSI-X vector; says whether a pending interrupt is delivered by that."""
        self._set_entry(vector, is_vec_masked=False)
        return self._send_if_pending(vector)

    def raise_vector(self, vector: int) -> MsixEntry | None:
        """Send interrupt message `vector`: the message delivered, or None if it is masked and now pending."""
        entry = self._entry(vector)
        assert self._msix is not None
        if entry.is_vec_masked or self._msix.is_func_masked:
            self._set_entry(vector, is_pending=True)
            return None
        if self._interrupts is not None:
            self._interrupts.message(entry.addr, entry.data)
        return entry

    def set_pin(self, wanted: bool) -> None:
        """Drive the interrupt pin, unless interrupts go by MSI-X or the guest has disabled the pin."""
        self._pin_wanted = wanted
        self.pin.asserted = wanted and not self.uses_msix and not self._command & COMMAND_INTX_DISABLE
        if self._interrupts is not None:
            self._interrupts.set_line(self.key, self.pin.asserted)

    # Addresses

    def answers(self) -> dict[int, range]:
        """The memory addresses or ports at which each BAR answers now."""
        return self._answers

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
        self.decoding_changed()
        self.set_pin(self._pin_wanted)

    def _entry(self, vector: int) -> MsixEntry:
        assert self._msix is not None, f"{self.key} has no MSI-X"
        return self._msix.entries[vector]

    def _send_if_pending(self, vector: int) -> bool:
        entry = self._entry(vector)
        assert self._msix is not None
        if not entry.is_pending or entry.is_vec_masked or self._msix.is_func_masked or not self._msix.is_enabled:
            return False
        self._set_entry(vector, is_pending=False)
        self.raise_vector(vector)
        return True

    def _set_entry(self, vector: int, **changes: Any) -> None:
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


class PciDevice(Device):
    """A device with a PCI face; the bus leads accesses to its BARs to it, but those to its vector table to `pci`."""

    pci: PciFunction

    def attach(self, platform: Platform) -> None:
        super().attach(platform)
        self.pci.attach(platform)
