"""A controller's registers in BAR 0, below its doorbells (NVMe 1.1 §3.1).

The guest sets up the admin queues (AQA, ASQ, ACQ), then sets CC.EN and waits for CSTS.RDY; clearing CC.EN resets all
but those three.  This controller is ready, or has failed, by the time the write is over.  What it cannot do sets
CSTS.CFS, controller fatal status, out of which only a reset leads.

INTMS and INTMC read as zero and ignore writes, as upstream's: a guest that uses MSI-X must not touch them, and one that
uses the pin can mask it in the PCI command register, which travels as they would not.
"""

import struct
from typing import Final

import attrs

from sim_vmm.devices.nvme.layout import (
    AQA_KNOWN,
    CC_ARBITRATION,
    CC_COMMAND_SET,
    CC_CQ_ENTRY_SHIFT,
    CC_ENABLE,
    CC_KNOWN,
    CC_PAGE_SIZE,
    CC_SHUTDOWN,
    CC_SQ_ENTRY_SHIFT,
    CQ_ENTRY_LOG2,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUTDOWN_COMPLETE,
    SQ_ENTRY_LOG2,
    Register,
)
from sim_vmm.integers import U64_MAX
from sim_vmm.memory import PAGE_SIZE

#: 65,536 entries a queue, contiguous queues only, ready within 500 ms, doorbell stride 0, NVM commands, 4 KiB pages.
CAP: Final = 0x0000_0020_0101_FFFF
#: 1.1, the first version with a list of active namespaces.
VERSION: Final = 0x0001_0100

_FILE: Final = struct.Struct("<QIIIIIIIIQQ8x")
#: The driver must not change these while the controller is enabled.
_FIXED: Final = CC_COMMAND_SET | CC_PAGE_SIZE | CC_ARBITRATION


@attrs.define
class Registers:
    """CC, CSTS, AQA, ASQ and ACQ, zero at reset.  `asq` and `acq` are multiples of the page size."""

    cc: int = 0
    csts: int = 0
    aqa: int = 0
    asq: int = 0
    acq: int = 0

    def take(self, *, cc: int, csts: int, aqa: int, asq: int, acq: int) -> None:
        self.cc, self.csts, self.aqa, self.asq, self.acq = cc, csts, aqa, asq, acq

    @property
    def is_working(self) -> bool:
        """Whether the controller takes doorbells: enabled, ready, not failed."""
        return bool(self.cc & CC_ENABLE) and self.csts & (CSTS_READY | CSTS_FATAL) == CSTS_READY

    @property
    def sq_entries(self) -> int:
        """How many entries the admin submission queue has."""
        return (self.aqa & 0xFFF) + 1

    @property
    def cq_entries(self) -> int:
        return (self.aqa >> 16 & 0xFFF) + 1

    @property
    def has_sq_entry_size(self) -> bool:
        """Whether the driver has said that entries of I/O submission queues have 64 bytes, as they must."""
        return self.cc >> CC_SQ_ENTRY_SHIFT & 0xF == SQ_ENTRY_LOG2

    @property
    def has_cq_entry_size(self) -> bool:
        return self.cc >> CC_CQ_ENTRY_SHIFT & 0xF == CQ_ENTRY_LOG2

    def read(self, offset: int, size: int) -> int:
        """The `size` bytes at `offset`; what is not a register reads as zero."""
        file = _FILE.pack(CAP, VERSION, 0, 0, self.cc, 0, self.csts, 0, self.aqa, self.asq, self.acq)
        return int.from_bytes(file[offset : offset + size], "little")

    def set_admin_queue(self, offset: int, size: int, value: int) -> None:
        """Write AQA, ASQ or ACQ, the addresses at once or by halves; ignored if the controller is enabled."""
        if self.cc & CC_ENABLE:
            return
        match offset, size:
            case Register.AQA, 4:
                self.aqa = value & AQA_KNOWN
            case ((Register.ASQ | Register.ACQ), 8):
                self._set_address(Register(offset), U64_MAX, value)
            case ((Register.ASQ | Register.ACQ), 4):
                self._set_address(Register(offset), 0xFFFF_FFFF, value)
            case _ if size == 4 and offset - 4 in (Register.ASQ, Register.ACQ):
                self._set_address(Register(offset - 4), 0xFFFF_FFFF << 32, value << 32)

    def _set_address(self, register: Register, mask: int, value: int) -> None:
        old = self.asq if register is Register.ASQ else self.acq
        new = (old & ~mask | value & mask) & -PAGE_SIZE
        if register is Register.ASQ:
            self.asq = new
        else:
            self.acq = new

    def enable(self, cc: int) -> bool:
        """CC.EN goes from 0 to 1: whether the controller can work like that.  If not, it has failed."""
        self.cc = cc & CC_KNOWN
        can_work = not cc & _FIXED and self.sq_entries >= 2 and self.cq_entries >= 2
        self.csts = CSTS_READY if can_work else CSTS_FATAL
        return can_work

    def reset(self) -> None:
        """CC.EN goes from 1 to 0."""
        self.cc = self.csts = 0

    def change(self, cc: int) -> None:
        """A write of CC that changes neither CC.EN nor what is fixed while it is set."""
        fixed = _FIXED if self.cc & CC_ENABLE else 0
        self.cc = cc & CC_KNOWN & ~fixed | self.cc & fixed

    def fail(self) -> None:
        self.csts |= CSTS_FATAL

    def finish_shutdown(self) -> None:
        """CSTS.SHST follows CC.SHN: complete if a shutdown is asked for, normal operation if not."""
        self.csts &= ~CSTS_SHUTDOWN_COMPLETE
        if self.cc & CC_SHUTDOWN:
            self.csts |= CSTS_SHUTDOWN_COMPLETE
