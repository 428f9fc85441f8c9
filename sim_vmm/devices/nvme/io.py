"""The commands of I/O queues (NVMe 1.1 §6): read, write, write zeroes, flush.

A write is checked whole before any of it is done.  Its completion means what the controller has told the guest: with a
volatile write cache, that a later flush will make it lasting; without one, or with FUA, that it is.
"""

from typing import Final

from sim_vmm.devices.nvme.cache import WriteCache
from sim_vmm.devices.nvme.identify import TRANSFER_BYTES_MAX
from sim_vmm.devices.nvme.layout import ALL_NAMESPACES, NAMESPACE, Command, IoOpcode, Status
from sim_vmm.devices.nvme.prp import CommandFailed, read_data, write_data
from sim_vmm.memory import GuestMemory

#: In dword 12: on completion the data is on the medium, what is read too.
FORCE_UNIT_ACCESS: Final = 1 << 30


class IoCommands:
    """Executes what is fetched from the I/O queues of one controller."""

    def __init__(self, memory: GuestMemory, cache: WriteCache, *, has_write_cache: bool) -> None:
        self._memory = memory
        self._cache = cache
        self._has_write_cache = has_write_cache

    def execute(self, command: Command) -> None:
        """Do it; the result is always 0.

        Raises:
            CommandFailed: with the status to complete it with.
        """
        is_flush_of_all = command.opcode == IoOpcode.FLUSH and command.namespace == ALL_NAMESPACES
        if command.namespace != NAMESPACE and not is_flush_of_all:
            raise CommandFailed(Status.INVALID_NAMESPACE)
        match command.opcode:
            case IoOpcode.FLUSH:
                self._flush()
            case IoOpcode.READ:
                self._read(command)
            case IoOpcode.WRITE:
                offset, length = self._writable_range(command)
                self._write(command, offset, read_data(self._memory, command, _transferable(length)))
            case IoOpcode.WRITE_ZEROES:
                offset, length = self._writable_range(command)
                self._write(command, offset, bytes(length))
            case _:
                raise CommandFailed(Status.INVALID_OPCODE)

    def _flush(self) -> None:
        try:
            self._cache.flush()
        except OSError as error:
            raise CommandFailed(Status.WRITE_FAULT) from error

    def _read(self, command: Command) -> None:
        offset, length = self._range(command)
        _transferable(length)
        try:
            if command.cdw12 & FORCE_UNIT_ACCESS:
                self._cache.flush()
            data = self._cache.read(offset, length)
        except OSError as error:
            raise CommandFailed(Status.UNRECOVERED_READ_ERROR) from error
        write_data(self._memory, command, data)

    def _write(self, command: Command, offset: int, data: bytes) -> None:
        try:
            if self._has_write_cache and not command.cdw12 & FORCE_UNIT_ACCESS:
                self._cache.write(offset, data)
            else:
                self._cache.write_through(offset, data)
        except OSError as error:
            raise CommandFailed(Status.WRITE_FAULT) from error

    def _range(self, command: Command) -> tuple[int, int]:
        """Offset and length in bytes of what `command` is about."""
        backend = self._cache.backend
        offset = (command.cdw11 << 32 | command.cdw10) * backend.block_size
        length = ((command.cdw12 & 0xFFFF) + 1) * backend.block_size
        if offset + length > backend.size // backend.block_size * backend.block_size:
            raise CommandFailed(Status.LBA_OUT_OF_RANGE)
        return offset, length

    def _writable_range(self, command: Command) -> tuple[int, int]:
        found = self._range(command)
        if self._cache.backend.readonly:
            raise CommandFailed(Status.WRITE_PROTECTED)
        return found


def _transferable(length: int) -> int:
    if length > TRANSFER_BYTES_MAX:
        raise CommandFailed(Status.INVALID_FIELD)
    return length
