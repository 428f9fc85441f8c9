"""Configuration space: how the guest finds a PCI function and sets it up (PCI 3.0 §6).

Nothing here has state: the space is a view of the registers in `PciFunction`.  A guest learns the size of a BAR by
writing all ones to it and reading back which of them stayed.
"""

import struct
from typing import Final

from sim_vmm.devices.pci import BAR_COUNT, MSIX_PENDING, MSIX_TABLE, PciFunction
from sim_vmm.integers import U32_MAX
from sim_vmm.payloads import BarKind

REGISTER_BYTES: Final = 4

VENDOR_ID: Final = 0x00
DEVICE_ID: Final = 0x02
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION: Final = 0x08
BAR_0: Final = 0x10
SUBSYSTEM_VENDOR_ID: Final = 0x2C
SUBSYSTEM_ID: Final = 0x2E
CAPABILITIES: Final = 0x34
INTERRUPT_LINE: Final = 0x3C
FIRST_CAPABILITY: Final = 0x40

STATUS_INTERRUPT: Final = 1 << 3
STATUS_CAPABILITIES: Final = 1 << 4
PIN_A: Final = 1

CAPABILITY_VENDOR: Final = 0x09
CAPABILITY_MSIX: Final = 0x11
MSIX_CONTROL_OFFSET: Final = 2

#: The low bits of a base address register say what it is (PCI 3.0 §6.2.5.1).
BAR_IS_PORTS: Final = 0b0001
BAR_IS_64_BIT: Final = 0b0100

#: What a read gives where there is no function.
NOBODY: Final = 0xFFFF_FFFF


def config_read(function: PciFunction, offset: int, size: int) -> int:
    """The guest reads `size` bytes at `offset`; beyond the first 256 bytes there is nothing."""
    first, end = offset // REGISTER_BYTES, -(-(offset + size) // REGISTER_BYTES)
    value = 0
    for number in range(first, end):
        value |= _register(function, number * REGISTER_BYTES) << 8 * REGISTER_BYTES * (number - first)
    return value >> 8 * (offset % REGISTER_BYTES) & (1 << 8 * size) - 1


def config_write(function: PciFunction, offset: int, size: int, value: int) -> None:
    """The guest writes a register; what is not writable, or written in pieces, stays."""
    msix = _msix_offset(function)
    if offset == COMMAND and size in (2, 4):
        function.set_command(value & 0xFFFF)
    elif offset == INTERRUPT_LINE:
        function.set_intr_line(value)
    elif BAR_0 <= offset < BAR_0 + 4 * BAR_COUNT and offset % 4 == 0 and size == 4:
        _write_bar(function, (offset - BAR_0) // 4, value)
    elif msix is not None and (offset, size) in ((msix, 4), (msix + MSIX_CONTROL_OFFSET, 2)):
        function.set_msix_control(value >> 16 if size == 4 else value)


def _write_bar(function: PciFunction, index: int, value: int) -> None:
    below = function.bars[index - 1] if index else None
    if below is not None and below.kind is BarKind.MMIO64:
        function.set_bar(index - 1, below.value & U32_MAX | value << 32)
    elif function.bars[index].kind is BarKind.MMIO64:
        function.set_bar(index, function.bars[index].value & ~U32_MAX | value)
    else:
        function.set_bar(index, value)


def _register(function: PciFunction, offset: int) -> int:
    """The four bytes at `offset`, a multiple of four."""
    identity = function.identity
    if offset >= FIRST_CAPABILITY:
        begin = offset - FIRST_CAPABILITY
        return int.from_bytes(_capability_list(function)[begin : begin + REGISTER_BYTES], "little")
    if BAR_0 <= offset < BAR_0 + REGISTER_BYTES * BAR_COUNT:
        return _bars(function)[(offset - BAR_0) // REGISTER_BYTES]
    if offset == VENDOR_ID:
        return identity.vendor | identity.device << 16
    if offset == COMMAND:
        status = STATUS_INTERRUPT * function.interrupt_asked | STATUS_CAPABILITIES * _has_capabilities(function)
        return function.command | status << 16
    if offset == REVISION:
        return identity.revision | identity.class_code << 8
    if offset == SUBSYSTEM_VENDOR_ID:
        return identity.subsystem_vendor | identity.subsystem << 16
    if offset == CAPABILITIES:
        return FIRST_CAPABILITY * _has_capabilities(function)
    if offset == INTERRUPT_LINE:
        return function.intr_line | PIN_A << 8
    return 0


def _bars(function: PciFunction) -> list[int]:
    words = [0] * BAR_COUNT
    for index, bar in enumerate(function.bars):
        match bar.kind:
            case BarKind.PIO:
                words[index] = bar.value & U32_MAX | BAR_IS_PORTS
            case BarKind.MMIO:
                words[index] = bar.value & U32_MAX
            case BarKind.MMIO64:
                words[index] = bar.value & U32_MAX | BAR_IS_64_BIT
                words[index + 1] = bar.value >> 32
            case BarKind.EMPTY:
                pass
    return words


def _has_capabilities(function: PciFunction) -> bool:
    return _msix_offset(function) is not None or bool(function.capabilities)


def _capability_list(function: PciFunction) -> bytes:
    """Number, link and body of each capability: MSI-X first, so that its place is fixed."""
    found = []
    if _msix_offset(function) is not None:
        bar = function.msix_bar or 0
        found.append(
            (CAPABILITY_MSIX, struct.pack("<HII", function.msix_control, MSIX_TABLE | bar, MSIX_PENDING | bar))
        )
    for body in function.capabilities:  # a vendor-specific capability says its own length first
        found.append((CAPABILITY_VENDOR, bytes([len(body) + 3]) + body))
    space = bytearray()
    for place, (number, body) in enumerate(found):
        length = -(-(2 + len(body)) // REGISTER_BYTES) * REGISTER_BYTES
        link = FIRST_CAPABILITY + len(space) + length if place + 1 < len(found) else 0
        space += (bytes([number, link]) + body).ljust(length, b"\0")
    return bytes(space)


def _msix_offset(function: PciFunction) -> int | None:
    return FIRST_CAPABILITY if function.vectors and function.msix_bar is not None else None
