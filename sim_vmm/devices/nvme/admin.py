"""The admin commands (NVMe 1.1 §5, Doorbell Buffer Config from 1.3 §5.7).

`nvme-ctrl` has no place for settings, so no command here makes any: a feature that a guest could set would be lost on
its way to another host (upstream's #1156).  A feature has one value; setting it to that succeeds, setting it to another
is refused as not changeable.  The write cache is the exception that guests depend on: switching it off is answered with
success and changes nothing (upstream's #493).

An asynchronous event request is held until there is an event, and here is none: it is taken and never answered, which
needs no state.  Abort is best effort, and this controller is never found in the middle of a command: it aborts nothing
and says so.
"""

from collections.abc import Callable
from typing import Final

from sim_vmm.devices.nvme.identify import Identity, log_page
from sim_vmm.devices.nvme.layout import AdminOpcode, Command, Feature, Status
from sim_vmm.devices.nvme.prp import CommandFailed, write_data
from sim_vmm.devices.nvme.queue_set import QUEUE_ID_MAX, VECTORS, QueueSet
from sim_vmm.devices.nvme.queues import DoorbellBuffers
from sim_vmm.devices.nvme.registers import Registers
from sim_vmm.memory import PAGE_SIZE, GuestAddressError, GuestMemory

NOT_ABORTED: Final = 1
#: Numbers of I/O queues, as Set and Get Features count them: from 0, in both halves.
GRANTED_QUEUES: Final = (QUEUE_ID_MAX - 1) << 16 | (QUEUE_ID_MAX - 1)

_SAVE: Final = 1 << 31
_SELECT: Final = 0x7 << 8
_COALESCING_DISABLED: Final = 1 << 16
_UNDER: Final = 1 << 20
_SENSOR: Final = 0xF << 16
_COMPOSITE_LIMIT_KELVIN: Final = 373

_FIXED_FEATURES: Final = {
    Feature.ARBITRATION: 0x7,  # no limit to a burst
    Feature.POWER_MANAGEMENT: 0,
    Feature.ERROR_RECOVERY: 0,
    Feature.INTERRUPT_COALESCING: 0,
    Feature.WRITE_ATOMICITY: 0,
    Feature.ASYNC_EVENTS: 0,
}


class AdminCommands:
    """Executes what is fetched from the admin queue of one controller."""

    def __init__(self, memory: GuestMemory, registers: Registers, queues: QueueSet, identity: Identity) -> None:
        self._memory = memory
        self._registers = registers
        self._queues = queues
        self._identity = identity
        self._commands: dict[int, Callable[[Command], int | None]] = {
            AdminOpcode.DELETE_SQ: self._delete_sq,
            AdminOpcode.CREATE_SQ: self._create_sq,
            AdminOpcode.GET_LOG_PAGE: self._get_log_page,
            AdminOpcode.DELETE_CQ: self._delete_cq,
            AdminOpcode.CREATE_CQ: self._create_cq,
            AdminOpcode.IDENTIFY: self._identify,
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.SET_FEATURES: self._set_features,
            AdminOpcode.GET_FEATURES: self._get_features,
            AdminOpcode.ASYNC_EVENT: self._hold,
        }
        if identity.doorbell_buffers:
            self._commands[AdminOpcode.DOORBELL_BUFFERS] = self._use_doorbell_buffers

    def execute(self, command: Command) -> int | None:
        """The result (dword 0 of the completion), or None if the command is held.

        Raises:
            CommandFailed: with the status to complete it with.
        """
        if command.opcode not in self._commands:
            raise CommandFailed(Status.INVALID_OPCODE)
        return self._commands[command.opcode](command)

    def _delete_sq(self, command: Command) -> int:
        self._queues.delete_sq(command.cdw10 & 0xFFFF)
        return 0

    def _delete_cq(self, command: Command) -> int:
        self._queues.delete_cq(command.cdw10 & 0xFFFF)
        return 0

    def _create_sq(self, command: Command) -> int:
        if not self._registers.has_sq_entry_size:
            raise CommandFailed(Status.INVALID_QUEUE_SIZE)
        self._queues.create_sq(command)
        return 0

    def _create_cq(self, command: Command) -> int:
        if not self._registers.has_cq_entry_size:
            raise CommandFailed(Status.INVALID_QUEUE_SIZE)
        self._queues.create_cq(command)
        return 0

    def _identify(self, command: Command) -> int:
        write_data(self._memory, command, self._identity.identify(command))
        return 0

    def _get_log_page(self, command: Command) -> int:
        write_data(self._memory, command, log_page(command))
        return 0

    def _abort(self, command: Command) -> int:
        if command.cdw10 & 0xFFFF not in self._queues.sqs:
            raise CommandFailed(Status.INVALID_FIELD)
        return NOT_ABORTED

    def _hold(self, _command: Command) -> None:
        return None

    def _set_features(self, command: Command) -> int:
        if command.cdw10 & _SAVE:
            raise CommandFailed(Status.FEATURE_NOT_SAVEABLE)
        match command.cdw10 & 0xFF:
            case Feature.NUMBER_OF_QUEUES:
                if 0xFFFF in (command.cdw11 & 0xFFFF, command.cdw11 >> 16):
                    raise CommandFailed(Status.INVALID_FIELD)
                if len(self._queues.cqs) > 1:
                    raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR)
                return GRANTED_QUEUES
            case Feature.WRITE_CACHE:
                self._feature(command)
                return 0
            case _:
                if command.cdw11 != self._feature(command):
                    raise CommandFailed(Status.FEATURE_NOT_CHANGEABLE)
                return 0

    def _get_features(self, command: Command) -> int:
        if command.cdw10 & _SELECT:
            raise CommandFailed(Status.INVALID_FIELD)
        return self._feature(command)

    def _feature(self, command: Command) -> int:
        """The value of the feature that `command` names; its dword 11 may say which of several."""
        match command.cdw10 & 0xFF:
            case number if number in _FIXED_FEATURES:
                return _FIXED_FEATURES[Feature(number)]
            case Feature.NUMBER_OF_QUEUES:
                return GRANTED_QUEUES
            case Feature.WRITE_CACHE if self._identity.has_write_cache:
                return 1
            case Feature.INTERRUPT_VECTOR if command.cdw11 & 0xFFFF < VECTORS:
                return _COALESCING_DISABLED | command.cdw11 & 0xFFFF
            case Feature.TEMPERATURE_THRESHOLD:
                return _temperature_threshold(command.cdw11)
            case _:
                raise CommandFailed(Status.INVALID_FIELD)

    def _use_doorbell_buffers(self, command: Command) -> int:
        if command.prp1 == command.prp2 or not command.prp1 or not command.prp2:
            raise CommandFailed(Status.INVALID_FIELD)
        if command.prp1 % PAGE_SIZE or command.prp2 % PAGE_SIZE:
            raise CommandFailed(Status.INVALID_FIELD)
        try:
            self._memory.read(command.prp1, PAGE_SIZE)
            self._memory.read(command.prp2, PAGE_SIZE)
        except GuestAddressError as error:
            raise CommandFailed(Status.INVALID_FIELD) from error
        self._queues.use_buffers(DoorbellBuffers(self._memory, command.prp1, command.prp2))
        return 0


def _temperature_threshold(asked: int) -> int:
    """Thresholds as upstream answers them: none but the composite temperature's is ever reached from above."""
    which = asked & (_SENSOR | _UNDER)
    if asked & _UNDER:
        return which
    return which | (0xFFFF if asked & _SENSOR else _COMPOSITE_LIMIT_KELVIN)
