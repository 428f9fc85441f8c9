"""What a controller says of itself, its namespace and its health: Identify (NVMe 1.1 §5.11) and log pages (§5.10).

All of it follows from the spec, the backend and the birth of the machine, none of it from what the guest did: so
nothing here needs to travel.
"""

import struct
from typing import Final

from sim_vmm.devices.nvme.layout import (
    ALL_NAMESPACES,
    CQ_ENTRY_LOG2,
    NAMESPACE,
    SQ_ENTRY_LOG2,
    Cns,
    Command,
    LogPage,
    Status,
)
from sim_vmm.devices.nvme.prp import CommandFailed
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.platform import BlockBackend

IDENTIFY_BYTES: Final = 4096
OXIDE_VENDOR: Final = 0x01DE
#: The most that one command moves, as a power of two of pages, and in bytes.
TRANSFER_PAGES_LOG2: Final = 5
TRANSFER_BYTES_MAX: Final = PAGE_SIZE << TRANSFER_PAGES_LOG2

_OPTIONAL_DOORBELL_BUFFERS: Final = 1 << 8
_OPTIONAL_WRITE_ZEROES: Final = 1 << 3
_WRITE_CACHE_PRESENT: Final = 1 << 0
_WRITE_PROTECTED: Final = 1 << 0
_FIRMWARE: Final = b"1".ljust(8)
#: 27 °C; nothing here gets hotter.
_KELVIN: Final = 300


class Identity:
    """`serial_number` is 20 bytes; `doorbell_buffers` is whether the controller offers them."""

    def __init__(
        self, serial_number: bytes, backend: BlockBackend, *, has_write_cache: bool, doorbell_buffers: bool
    ) -> None:
        self.serial_number = serial_number
        self.backend = backend
        self.has_write_cache = has_write_cache
        self.doorbell_buffers = doorbell_buffers

    def identify(self, command: Command) -> bytes:
        """The answer to an Identify command, 4096 bytes.

        Raises:
            CommandFailed: it asks for something else, or for a namespace that there is not.
        """
        match command.cdw10 & 0xFF:
            case Cns.CONTROLLER:
                return self._controller()
            case Cns.NAMESPACE:
                if command.namespace != NAMESPACE:
                    raise CommandFailed(Status.INVALID_NAMESPACE)
                return self._namespace()
            case Cns.ACTIVE_NAMESPACES:
                if command.namespace >= ALL_NAMESPACES - 1:
                    raise CommandFailed(Status.INVALID_NAMESPACE)
                following = [NAMESPACE] if command.namespace < NAMESPACE else []
                return b"".join(number.to_bytes(4, "little") for number in following).ljust(IDENTIFY_BYTES, b"\0")
            case _:
                raise CommandFailed(Status.INVALID_FIELD)

    def _controller(self) -> bytes:
        data = bytearray(IDENTIFY_BYTES)
        struct.pack_into("<HH", data, 0, OXIDE_VENDOR, OXIDE_VENDOR)
        data[4:24] = self.serial_number
        data[24:64] = b" " * 40  # the model number; specs have no word for it
        data[64:72] = _FIRMWARE
        data[77] = TRANSFER_PAGES_LOG2
        struct.pack_into("<H", data, 256, _OPTIONAL_DOORBELL_BUFFERS if self.doorbell_buffers else 0)
        data[512] = SQ_ENTRY_LOG2 << 4 | SQ_ENTRY_LOG2
        data[513] = CQ_ENTRY_LOG2 << 4 | CQ_ENTRY_LOG2
        struct.pack_into("<IH", data, 516, NAMESPACE, _OPTIONAL_WRITE_ZEROES)
        data[525] = _WRITE_CACHE_PRESENT if self.has_write_cache else 0
        return bytes(data)

    def _namespace(self) -> bytes:
        data = bytearray(IDENTIFY_BYTES)
        blocks = self.backend.size // self.backend.block_size
        struct.pack_into("<QQQ", data, 0, blocks, blocks, blocks)
        data[99] = _WRITE_PROTECTED if self.backend.readonly else 0
        data[128 + 2] = self.backend.block_size.bit_length() - 1
        return bytes(data)


def log_page(command: Command) -> bytes:
    """The answer to a Get Log Page command; a length beyond the page reads as zeros.

    Raises:
        CommandFailed: there is no such page, or more is asked for than one command moves.
    """
    length = ((command.cdw10 >> 16) + 1) * 4
    if length > TRANSFER_BYTES_MAX:
        raise CommandFailed(Status.INVALID_FIELD)
    match command.cdw10 & 0xFF:
        case LogPage.ERRORS:
            page = b""
        case LogPage.HEALTH:
            page = struct.pack("<BHBB", 0, _KELVIN, 100, 10)
        case LogPage.FIRMWARE:
            page = b"\1".ljust(8, b"\0") + _FIRMWARE
        case _:
            raise CommandFailed(Status.INVALID_LOG_PAGE)
    return page[:length].ljust(length, b"\0")
