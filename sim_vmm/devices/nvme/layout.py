"""What an NVMe controller and its driver agree on: NVM Express 1.1, and the doorbell buffers of 1.3.

Both sides use this module, as they do sim_vmm/virtqueue.py; all integers are little-endian.  The layouts are tested
against numbers written out from the specification, and against Linux's driver where its headers are at hand.

    registers (BAR 0)      below, then at 0x1000 + 8 × queue the tail doorbell of submission queue `queue`, and 4 bytes
                           on the head doorbell of completion queue `queue` (doorbell stride 0)
    submission entry       64 bytes, see `Command`
    completion entry       16 bytes, see `Completion`; its last bit is the phase tag
    doorbell buffers       two pages of guest RAM with the same layout as the doorbells: the shadow of the doorbells,
                           and the position from which on the controller wants a real one (the event index)
"""

import struct
from enum import IntEnum
from typing import Final, Self

import attrs

from sim_vmm.integers import U16_MAX

#: The class code of a controller: mass storage, non-volatile memory, NVM Express (NVMe 1.1 §2.1.5).
NVME_CLASS: Final = 0x010802


class Register(IntEnum):
    """Offsets in BAR 0."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30


DOORBELLS: Final = 0x1000

CC_ENABLE: Final = 1 << 0
CC_COMMAND_SET: Final = 0x7 << 4
CC_PAGE_SIZE: Final = 0xF << 7
CC_ARBITRATION: Final = 0x7 << 11
CC_SHUTDOWN: Final = 0x3 << 14
CC_SQ_ENTRY_SHIFT: Final = 16
CC_CQ_ENTRY_SHIFT: Final = 20
CC_KNOWN: Final = 0x00FF_FFF1

CSTS_READY: Final = 1 << 0
CSTS_FATAL: Final = 1 << 1
CSTS_SHUTDOWN_COMPLETE: Final = 2 << 2
CSTS_KNOWN: Final = CSTS_READY | CSTS_FATAL | CSTS_SHUTDOWN_COMPLETE

AQA_KNOWN: Final = 0x0FFF_0FFF

#: As powers of two, for CC and for Identify.
SQ_ENTRY_LOG2: Final = 6
CQ_ENTRY_LOG2: Final = 4

ADMIN: Final = 0
NAMESPACE: Final = 1
ALL_NAMESPACES: Final = 0xFFFF_FFFF


class AdminOpcode(IntEnum):
    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    DOORBELL_BUFFERS = 0x7C


class IoOpcode(IntEnum):
    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_ZEROES = 0x08


class Feature(IntEnum):
    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B


class Cns(IntEnum):
    """What Identify is asked for."""

    NAMESPACE = 0
    CONTROLLER = 1
    ACTIVE_NAMESPACES = 2


class LogPage(IntEnum):
    ERRORS = 1
    HEALTH = 2
    FIRMWARE = 3


class Status(IntEnum):
    """Status code type × 256 + status code."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_PRP_OFFSET = 0x013
    WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281


#: Errors of this type and above (of the medium) may pass; asking again after any other is in vain.
_FIRST_MEDIA_ERROR: Final = 0x200
_STATUS_MASK: Final = 0x7FF
_DO_NOT_RETRY: Final = 1 << 14

_COMMAND: Final = struct.Struct("<BBHI16xQQ6I")
_COMPLETION: Final = struct.Struct("<IIHHHH")
COMMAND_BYTES: Final = _COMMAND.size
COMPLETION_BYTES: Final = _COMPLETION.size


@attrs.frozen(kw_only=True)
class Command:
    """A submission entry.  `flags`: fused operation and data pointer type, both 0 here (no fusing, PRPs)."""

    opcode: int
    command_id: int
    flags: int = 0
    namespace: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0

    @classmethod
    def parse(cls, entry: bytes) -> Self:
        opcode, flags, command_id, namespace, prp1, prp2, cdw10, cdw11, cdw12, *_ = _COMMAND.unpack(entry)
        return cls(
            opcode=opcode,
            command_id=command_id,
            flags=flags,
            namespace=namespace,
            prp1=prp1,
            prp2=prp2,
            cdw10=cdw10,
            cdw11=cdw11,
            cdw12=cdw12,
        )

    def pack(self) -> bytes:
        head = (self.opcode, self.flags, self.command_id, self.namespace, self.prp1, self.prp2)
        return _COMMAND.pack(*head, self.cdw10, self.cdw11, self.cdw12, 0, 0, 0)


@attrs.frozen(kw_only=True)
class Completion:
    """A completion entry.  `sq_head` says how far the controller has read the submission queue `sq_id`."""

    command_id: int
    status: Status
    result: int
    sq_id: int
    sq_head: int
    phase: bool

    @classmethod
    def parse(cls, entry: bytes) -> Self:
        """Raises ValueError for a status that is not in `Status`."""
        result, _, sq_head, sq_id, command_id, status = _COMPLETION.unpack(entry)
        return cls(
            command_id=command_id,
            status=Status(status >> 1 & _STATUS_MASK),
            result=result,
            sq_id=sq_id,
            sq_head=sq_head,
            phase=bool(status & 1),
        )

    def pack(self) -> bytes:
        do_not_retry = _DO_NOT_RETRY if 0 < self.status < _FIRST_MEDIA_ERROR else 0
        status = (self.status | do_not_retry) << 1 | self.phase
        return _COMPLETION.pack(self.result, 0, self.sq_head, self.sq_id, self.command_id, status)


def tail_doorbell(queue: int) -> int:
    """Where the doorbell of submission queue `queue` lies, from the first doorbell; in the buffers too."""
    return 8 * queue


def head_doorbell(queue: int) -> int:
    """The same for completion queue `queue`."""
    return 8 * queue + 4


def wants_doorbell(event_index: int, new: int, old: int) -> bool:
    """Whether a driver that moves a shadow doorbell from `old` to `new` must ring the real one too.

    It must if the move passes `event_index`, positions taken modulo 65536 as Linux does (`nvme_dbbuf_need_event`).
    """
    return (new - event_index - 1) & U16_MAX < (new - old) & U16_MAX
