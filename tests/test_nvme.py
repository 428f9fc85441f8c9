"""An NVMe controller, driven through its registers and queues by the guest's driver."""

from typing import Any

import attrs
import pytest

from sim_vmm.devices.nvme.cache import CACHED_BYTES_MAX
from sim_vmm.devices.nvme.io import FORCE_UNIT_ACCESS
from sim_vmm.devices.nvme.layout import (
    CC_ENABLE,
    COMMAND_BYTES,
    COMPLETION_BYTES,
    CSTS_FATAL,
    CSTS_READY,
    CSTS_SHUTDOWN_COMPLETE,
    DOORBELLS,
    AdminOpcode,
    Cns,
    Command,
    Completion,
    Feature,
    IoOpcode,
    LogPage,
    Register,
    Status,
    head_doorbell,
    tail_doorbell,
    wants_doorbell,
)
from sim_vmm.devices.nvme.prp import CommandFailed, segments
from sim_vmm.drivers import DriverFailed
from sim_vmm.drivers.nvme import NvmeDriver
from sim_vmm.memory import PAGE_SIZE, GuestMemory
from tests.nvme import BASE, BLOCK, BLOCKS, PATH, RAM_BYTES, REGISTERS, SERIAL, Disk, Rig, moved, probed

OK = Status.SUCCESS
IO_SQ = BASE + 0x3000
IO_CQ = BASE + 0x4000
OUTSIDE = RAM_BYTES


def statuses(completions: list[Completion]) -> list[tuple[int, Status]]:
    return [(completion.command_id, completion.status) for completion in completions]


def admin(rig: Rig, opcode: int, **fields: int) -> tuple[Status, int] | None:
    completion = rig.driver.admin(opcode, **fields)
    return None if completion is None else (completion.status, completion.result)


def submit_raw(rig: Rig, command: Command, slot: int = 0) -> Completion | None:
    """Put one command into the I/O queue of a rig whose driver has not used it, and ring."""
    rig.memory.write(IO_SQ + COMMAND_BYTES * slot, command.pack())
    rig.set_register(DOORBELLS + tail_doorbell(1), slot + 1)
    entry = rig.memory.read(IO_CQ + COMPLETION_BYTES * slot, COMPLETION_BYTES)
    return Completion.parse(entry) if entry[14] & 1 else None


# What both sides agree on: bytes written out from NVM Express 1.1 §4.2 and §4.6


def test_a_command_lies_in_64_bytes_as_the_specification_says() -> None:
    command = Command(
        opcode=0x02, command_id=0x1234, namespace=1, prp1=0x1000, prp2=0x2000, cdw10=0xA, cdw11=0xB, cdw12=0xC
    )
    assert command.pack().hex() == (
        "02003412"
        + "01000000"
        + "00" * 16
        + "0010000000000000"
        + "0020000000000000"
        + "0a0000000b0000000c000000"
        # dwords 13 to 15
        + "00" * 12
    )
    assert Command.parse(command.pack()) == command


def test_a_completion_lies_in_16_bytes_as_the_specification_says() -> None:
    completion = Completion(
        command_id=0x1234, status=Status.INVALID_QUEUE_ID, result=0x55, sq_id=3, sq_head=9, phase=True
    )
    # status field: do not retry, type 1, code 1, phase 1
    assert completion.pack().hex() == "55000000" + "00000000" + "09000300" + "3412" + "0382"
    assert Completion.parse(completion.pack()) == completion
    assert attrs.evolve(completion, status=Status.WRITE_FAULT).pack()[14:].hex() == "0105"  # may be tried again


@pytest.mark.parametrize(
    ("event_index", "new", "old", "wanted"),
    [(0, 1, 0, True), (5, 1, 0, False), (0, 2, 1, False), (63, 0, 63, True), (10, 0, 63, False), (1, 4, 0, True)],
)
def test_a_doorbell_is_wanted_when_the_position_passes_the_event_index(
    event_index: int, new: int, old: int, wanted: bool
) -> None:
    assert wants_doorbell(event_index, new, old) is wanted


# Registers


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (Register.CAP, 8, 0x20_0101_FFFF),
        (Register.CAP, 4, 0x0101_FFFF),
        (Register.CAP + 4, 4, 0x20),
        (Register.VS, 4, 0x1_0100),
        (Register.INTMS, 4, 0),
        (Register.CSTS, 4, 0),
        (0x38, 4, 0),
        (0xFFC, 4, 0),
        (DOORBELLS, 4, 0),
    ],
)
def test_registers_read_as_at_reset(offset: int, size: int, value: int) -> None:
    rig = Rig.make()
    rig.nvme.pci.configure(REGISTERS)
    assert rig.register(offset, size) == value


def test_admin_queue_addresses_are_written_at_once_or_by_halves() -> None:
    rig = Rig.make()
    rig.nvme.pci.configure(REGISTERS)
    rig.set_register(Register.ASQ, 0x1_2345_6789, 8)
    rig.set_register(Register.ACQ + 4, 0x7)
    rig.set_register(Register.ACQ, 0x8000)
    assert rig.register(Register.ASQ, 8) == 0x1_2345_6000
    assert rig.register(Register.ACQ, 8) == 0x7_0000_8000


def test_an_enabled_controller_keeps_its_admin_queues() -> None:
    rig = probed()
    before = rig.state
    for register in (Register.AQA, Register.ASQ, Register.ACQ, Register.INTMS, Register.CAP, Register.CSTS):
        rig.set_register(register, 0xFFFF_FFFF)
    assert rig.state == before


@pytest.mark.parametrize(
    ("aqa", "cc"),
    [(0, CC_ENABLE), (0x1F, CC_ENABLE), (0x1F_001F, CC_ENABLE | 1 << 7), (0x1F_001F, CC_ENABLE | 1 << 4)],
    ids=["queues of one entry", "a completion queue of one entry", "8 KiB pages", "another command set"],
)
def test_what_the_controller_cannot_do_is_fatal_until_it_is_reset(aqa: int, cc: int) -> None:
    rig = Rig.make()
    rig.nvme.pci.configure(REGISTERS)
    rig.set_register(Register.AQA, aqa)
    rig.set_register(Register.CC, cc)
    assert rig.register(Register.CSTS) == CSTS_FATAL
    assert moved(rig).register(Register.CSTS) == CSTS_FATAL
    rig.set_register(Register.CC, 0)
    assert rig.register(Register.CSTS) == 0
    rig.driver.probe(PATH)
    assert rig.register(Register.CSTS) == CSTS_READY


def test_a_reset_forgets_queues_and_doorbell_buffers_and_keeps_the_admin_queue_registers() -> None:
    rig = probed()
    aqa = rig.register(Register.AQA)
    rig.set_register(Register.CC, 0)
    state = rig.state
    assert (state.cc, state.csts, state.cqs, state.sqs, state.dbbuf_shadow) == (0, 0, (), (), 0)
    assert rig.register(Register.AQA) == aqa != 0


def test_a_shutdown_writes_the_cache_back_and_is_reported() -> None:
    rig = probed()
    rig.memory.write(rig.driver.data.start, b"w" * BLOCK)
    rig.driver.submit_write(0, 1, rig.driver.data.start)
    assert rig.disk.medium[:1] == b"\0"
    rig.set_register(Register.CC, rig.register(Register.CC) | 1 << 14)
    assert rig.register(Register.CSTS) == CSTS_READY | CSTS_SHUTDOWN_COMPLETE
    assert rig.disk.medium[:1] == b"w"


def test_queues_that_are_not_in_ram_are_fatal() -> None:
    rig = Rig.make()
    rig.nvme.pci.configure(REGISTERS)
    rig.set_register(Register.AQA, 0x1F_001F)
    rig.set_register(Register.ASQ, OUTSIDE, 8)
    rig.set_register(Register.CC, CC_ENABLE)
    rig.set_register(DOORBELLS, 1)
    assert rig.register(Register.CSTS) == CSTS_READY | CSTS_FATAL
    assert moved(rig).register(Register.CSTS) == CSTS_READY | CSTS_FATAL


def test_a_driver_says_what_went_wrong() -> None:
    rig = Rig.make()
    with pytest.raises(DriverFailed, match="no NVMe driver has been set up at guest address 0x10000"):
        rig.driver.completions()
    with pytest.raises(DriverFailed, match=r"there is no NVMe controller at 0\.17\.0"):
        rig.driver.probe(attrs.evolve(PATH, device=17))
    rig.driver.probe(PATH)
    with pytest.raises(DriverFailed, match="admin command 0x6: INVALID_NAMESPACE"):
        rig.driver.identify(Cns.NAMESPACE, 2)
    with pytest.raises(DriverFailed, match="admin command 0xc: no completion"):
        rig.driver.admin_done(AdminOpcode.ASYNC_EVENT)


# Admin commands


@pytest.mark.parametrize("has_write_cache", [True, False])
def test_identify_says_what_the_spec_says(has_write_cache: bool) -> None:
    rig = probed(has_write_cache=has_write_cache)
    controller = rig.driver.identify(Cns.CONTROLLER)
    assert len(controller) == 4096
    assert controller[4:24] == SERIAL
    assert (controller[77], controller[512:514].hex(), controller[516]) == (5, "6644", 1)
    assert controller[525] == has_write_cache
    namespace = rig.driver.identify(Cns.NAMESPACE, 1)
    assert int.from_bytes(namespace[:8], "little") == BLOCKS
    assert (namespace[99], namespace[130]) == (0, 9)
    assert rig.driver.identify(Cns.ACTIVE_NAMESPACES)[:8].hex() == "0100000000000000"
    assert not any(rig.driver.identify(Cns.ACTIVE_NAMESPACES, 1))
    assert (rig.driver.blocks, rig.driver.block_size) == (BLOCKS, BLOCK)
    assert rig.driver.has_write_cache is has_write_cache


def test_identify_says_that_a_read_only_disk_is_one() -> None:
    rig = probed(disk=Disk(readonly=True))
    assert rig.driver.identify(Cns.NAMESPACE, 1)[99] == 1


def test_doorbell_buffers_are_there_only_for_guests_that_were_born_with_them() -> None:
    rig = probed(doorbell_buffers=False)
    assert rig.driver.identify(Cns.CONTROLLER)[257] == 0
    assert not rig.driver.uses_doorbell_buffers
    assert admin(rig, AdminOpcode.DOORBELL_BUFFERS, prp1=0x1000, prp2=0x2000) == (Status.INVALID_OPCODE, 0)
    rig = probed()
    assert rig.driver.uses_doorbell_buffers


GET, SET, ID = AdminOpcode.GET_FEATURES, AdminOpcode.SET_FEATURES, AdminOpcode.IDENTIFY
IO_CQ_OPCODE, IO_SQ_OPCODE = AdminOpcode.CREATE_CQ, AdminOpcode.CREATE_SQ
UNCHANGEABLE = Status.FEATURE_NOT_CHANGEABLE
PAGE = BASE + 0x2_0000

ADMIN_CASES: list[tuple[int, dict[str, int], Status, int]] = [
    (GET, {"cdw10": Feature.WRITE_CACHE}, OK, 1),
    (SET, {"cdw10": Feature.WRITE_CACHE, "cdw11": 0}, OK, 0),
    (GET, {"cdw10": Feature.NUMBER_OF_QUEUES}, OK, 0xE_000E),
    (SET, {"cdw10": Feature.NUMBER_OF_QUEUES, "cdw11": 3}, Status.COMMAND_SEQUENCE_ERROR, 0),
    (SET, {"cdw10": Feature.NUMBER_OF_QUEUES, "cdw11": 0xFFFF}, Status.INVALID_FIELD, 0),
    (GET, {"cdw10": Feature.ARBITRATION}, OK, 7),
    (GET, {"cdw10": Feature.INTERRUPT_COALESCING}, OK, 0),
    (SET, {"cdw10": Feature.INTERRUPT_COALESCING, "cdw11": 0}, OK, 0),
    (SET, {"cdw10": Feature.INTERRUPT_COALESCING, "cdw11": 0x101}, UNCHANGEABLE, 0),
    (SET, {"cdw10": Feature.INTERRUPT_COALESCING | 1 << 31}, Status.FEATURE_NOT_SAVEABLE, 0),
    (GET, {"cdw10": Feature.INTERRUPT_VECTOR, "cdw11": 3}, OK, 0x1_0003),
    (GET, {"cdw10": Feature.INTERRUPT_VECTOR, "cdw11": 16}, Status.INVALID_FIELD, 0),
    (SET, {"cdw10": Feature.INTERRUPT_VECTOR, "cdw11": 3}, UNCHANGEABLE, 0),
    (GET, {"cdw10": Feature.TEMPERATURE_THRESHOLD}, OK, 373),
    (GET, {"cdw10": Feature.TEMPERATURE_THRESHOLD, "cdw11": 1 << 16}, OK, 0x1_FFFF),
    (GET, {"cdw10": Feature.TEMPERATURE_THRESHOLD, "cdw11": 1 << 20}, OK, 1 << 20),
    (SET, {"cdw10": Feature.ASYNC_EVENTS, "cdw11": 1}, UNCHANGEABLE, 0),
    (GET, {"cdw10": 0xC0}, Status.INVALID_FIELD, 0),
    (GET, {"cdw10": Feature.ARBITRATION | 3 << 8}, Status.INVALID_FIELD, 0),
    (ID, {"cdw10": 3, "prp1": PAGE}, Status.INVALID_FIELD, 0),
    (ID, {"cdw10": Cns.NAMESPACE, "namespace": 0, "prp1": PAGE}, Status.INVALID_NAMESPACE, 0),
    (ID, {"cdw10": Cns.ACTIVE_NAMESPACES, "namespace": 0xFFFF_FFFE, "prp1": PAGE}, Status.INVALID_NAMESPACE, 0),
    (ID, {"cdw10": Cns.CONTROLLER, "prp1": OUTSIDE}, Status.DATA_TRANSFER_ERROR, 0),
    (ID, {"cdw10": Cns.CONTROLLER, "prp1": PAGE + 2}, Status.INVALID_PRP_OFFSET, 0),
    (ID, {"cdw10": Cns.CONTROLLER, "prp1": PAGE, "flags": 0x40}, Status.INVALID_FIELD, 0),
    (AdminOpcode.GET_LOG_PAGE, {"cdw10": LogPage.HEALTH | 127 << 16, "prp1": PAGE}, OK, 0),
    (AdminOpcode.GET_LOG_PAGE, {"cdw10": 0x42 | 127 << 16, "prp1": PAGE}, Status.INVALID_LOG_PAGE, 0),
    (AdminOpcode.GET_LOG_PAGE, {"cdw10": LogPage.ERRORS | 0xFFFF << 16, "prp1": PAGE}, Status.INVALID_FIELD, 0),
    (AdminOpcode.ABORT, {"cdw10": 1}, OK, 1),
    (AdminOpcode.ABORT, {"cdw10": 9}, Status.INVALID_FIELD, 0),
    (0x10, {}, Status.INVALID_OPCODE, 0),
    (0xFF, {}, Status.INVALID_OPCODE, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 2, "cdw11": 1}, OK, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 1, "cdw11": 1}, Status.INVALID_QUEUE_ID, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16, "cdw11": 1}, Status.INVALID_QUEUE_ID, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 16, "cdw11": 1}, Status.INVALID_QUEUE_ID, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 0 << 16 | 2, "cdw11": 1}, Status.INVALID_QUEUE_SIZE, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 2, "cdw11": 0}, Status.INVALID_FIELD, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE + 64, "cdw10": 7 << 16 | 2, "cdw11": 1}, Status.INVALID_PRP_OFFSET, 0),
    (IO_CQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 2, "cdw11": 16 << 16 | 3}, Status.INVALID_INTERRUPT_VECTOR, 0),
    (IO_SQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 2, "cdw11": 1 << 16 | 1}, OK, 0),
    (IO_SQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 1, "cdw11": 1 << 16 | 1}, Status.INVALID_QUEUE_ID, 0),
    (IO_SQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 2, "cdw11": 2 << 16 | 1}, Status.COMPLETION_QUEUE_INVALID, 0),
    (IO_SQ_OPCODE, {"prp1": PAGE, "cdw10": 7 << 16 | 2, "cdw11": 0 << 16 | 1}, Status.COMPLETION_QUEUE_INVALID, 0),
    (AdminOpcode.DELETE_CQ, {"cdw10": 1}, Status.INVALID_QUEUE_DELETION, 0),
    (AdminOpcode.DELETE_CQ, {"cdw10": 0}, Status.INVALID_QUEUE_ID, 0),
    (AdminOpcode.DELETE_CQ, {"cdw10": 5}, Status.INVALID_QUEUE_ID, 0),
    (AdminOpcode.DELETE_SQ, {"cdw10": 0}, Status.INVALID_QUEUE_ID, 0),
    (AdminOpcode.DELETE_SQ, {"cdw10": 5}, Status.INVALID_QUEUE_ID, 0),
    (AdminOpcode.DELETE_SQ, {"cdw10": 1}, OK, 0),
    (AdminOpcode.DOORBELL_BUFFERS, {"prp1": PAGE, "prp2": PAGE + 0x1000}, OK, 0),
    (AdminOpcode.DOORBELL_BUFFERS, {"prp1": PAGE, "prp2": PAGE + 4}, Status.INVALID_FIELD, 0),
    (AdminOpcode.DOORBELL_BUFFERS, {"prp1": PAGE, "prp2": PAGE}, Status.INVALID_FIELD, 0),
    (AdminOpcode.DOORBELL_BUFFERS, {"prp1": 0, "prp2": PAGE}, Status.INVALID_FIELD, 0),
    (AdminOpcode.DOORBELL_BUFFERS, {"prp1": PAGE, "prp2": OUTSIDE}, Status.INVALID_FIELD, 0),
]


@pytest.mark.parametrize(
    ("opcode", "fields", "status", "result"), ADMIN_CASES, ids=[f"{c[0]:#x}-{c[1]}-{c[2].name}" for c in ADMIN_CASES]
)
def test_an_admin_command_is_answered_as_the_specification_says_here_and_after_a_move(
    opcode: int, fields: dict[str, int], status: Status, result: int
) -> None:
    rig = probed(probe={"doorbell_buffers": False})
    before = rig.state
    target = moved(rig)
    for machine in (rig, target):
        assert admin(machine, opcode, **fields) == (status, result)
    assert target.state == rig.state
    if status is not OK:
        assert (rig.state.cqs[1:], rig.state.sqs[1:]) == (before.cqs[1:], before.sqs[1:])


def test_a_controller_without_a_write_cache_has_no_such_feature() -> None:
    rig = probed(has_write_cache=False)
    for opcode in (GET, SET):
        assert admin(rig, opcode, cdw10=Feature.WRITE_CACHE) == (Status.INVALID_FIELD, 0)


def test_the_number_of_queues_can_be_asked_for_while_there_are_none() -> None:
    rig = probed()
    for opcode in (AdminOpcode.DELETE_SQ, AdminOpcode.DELETE_CQ):
        assert admin(rig, opcode, cdw10=1) == (OK, 0)
    assert admin(rig, SET, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=0x3_0003) == (OK, 0xE_000E)
    assert [cq.id for cq in rig.state.cqs] == [0]


def test_queues_need_an_entry_size() -> None:
    rig = Rig.make()
    rig.driver.probe(PATH)
    rig.set_register(Register.CC, CC_ENABLE)  # both sizes zero
    for opcode, fields in ((IO_CQ_OPCODE, {"cdw11": 1}), (IO_SQ_OPCODE, {"cdw11": 1 << 16 | 1})):
        assert admin(rig, opcode, prp1=PAGE, cdw10=7 << 16 | 2, **fields) == (Status.INVALID_QUEUE_SIZE, 0)


def test_log_pages_say_that_all_is_well() -> None:
    rig = probed()
    rig.memory.write(PAGE, b"\xff" * 1024)
    assert admin(rig, AdminOpcode.GET_LOG_PAGE, cdw10=LogPage.HEALTH | 127 << 16, prp1=PAGE) == (OK, 0)
    page = rig.memory.read(PAGE, 513)
    assert (page[0], int.from_bytes(page[1:3], "little"), page[3]) == (0, 300, 100)
    assert page[511:] == b"\0\xff"


def test_asynchronous_event_requests_are_held_and_nothing_waits_for_them() -> None:
    rig = probed()
    for _ in range(20):
        assert admin(rig, AdminOpcode.ASYNC_EVENT) is None
    assert rig.driver.identify(Cns.CONTROLLER)[4:24] == SERIAL
    rig = moved(rig)
    assert rig.driver.identify(Cns.CONTROLLER)[4:24] == SERIAL


# Input and output


@pytest.mark.parametrize("has_write_cache", [True, False])
@pytest.mark.parametrize(
    ("count", "offset"),
    [(1, 0), (1, 4), (8, 0), (8, 512), (16, 0), (16, 4), (17, 0), (24, 100), (256, 0), (256, 1024)],
)
def test_what_is_written_is_read_again(count: int, offset: int, has_write_cache: bool) -> None:
    rig = probed(has_write_cache=has_write_cache, ram_bytes=1 << 20)
    driver, source, target = rig.driver, 0x8_0000 + offset, 0xC_0000 + offset
    pattern = bytes(i * 7 % 251 for i in range(count * BLOCK))
    rig.memory.write(source, pattern)
    assert (driver.submit_write(100, count, source), driver.submit_read(100, count, target)) == (0, 1)
    assert statuses(rig.drain()) == [(0, OK), (1, OK)]
    assert rig.memory.read(target, count * BLOCK) == pattern
    rig.nvme.quiesce()
    assert rig.disk.data[100 * BLOCK : (100 + count) * BLOCK] == pattern


def test_write_zeroes_needs_no_data() -> None:
    rig = probed(disk=Disk(b"\xff" * BLOCK * BLOCKS))
    rig.driver.submit_write_zeroes(1, BLOCKS - 2)
    rig.driver.submit_flush()
    assert statuses(rig.drain()) == [(0, OK), (1, OK)]
    assert rig.disk.medium == b"\xff" * BLOCK + bytes((BLOCKS - 2) * BLOCK) + b"\xff" * BLOCK


READ, WRITE, ZEROES, FLUSH = IoOpcode.READ, IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.FLUSH

IO_CASES: list[tuple[int, dict[str, int], Status]] = [
    (READ, {"namespace": 1, "prp1": PAGE}, OK),
    (READ, {"namespace": 2, "prp1": PAGE}, Status.INVALID_NAMESPACE),
    (READ, {"namespace": 0xFFFF_FFFF, "prp1": PAGE}, Status.INVALID_NAMESPACE),
    (FLUSH, {"namespace": 0xFFFF_FFFF}, OK),
    (FLUSH, {"namespace": 1}, OK),
    (FLUSH, {"namespace": 0}, Status.INVALID_NAMESPACE),
    (READ, {"namespace": 1, "prp1": PAGE, "cdw10": BLOCKS - 1}, OK),
    (READ, {"namespace": 1, "prp1": PAGE, "cdw10": BLOCKS}, Status.LBA_OUT_OF_RANGE),
    (WRITE, {"namespace": 1, "prp1": PAGE, "cdw10": BLOCKS - 1, "cdw12": 1}, Status.LBA_OUT_OF_RANGE),
    (WRITE, {"namespace": 1, "prp1": PAGE, "cdw11": 1}, Status.LBA_OUT_OF_RANGE),
    (ZEROES, {"namespace": 1, "cdw12": BLOCKS}, Status.LBA_OUT_OF_RANGE),
    (READ, {"namespace": 1, "prp1": PAGE, "prp2": PAGE, "cdw12": 256}, Status.INVALID_FIELD),
    (WRITE, {"namespace": 1, "prp1": PAGE, "prp2": PAGE, "cdw12": 256}, Status.INVALID_FIELD),
    (READ, {"namespace": 1, "prp1": OUTSIDE}, Status.DATA_TRANSFER_ERROR),
    (WRITE, {"namespace": 1, "prp1": OUTSIDE}, Status.DATA_TRANSFER_ERROR),
    (WRITE, {"namespace": 1, "prp1": PAGE, "prp2": OUTSIDE, "cdw12": 31}, Status.DATA_TRANSFER_ERROR),
    (WRITE, {"namespace": 1, "prp1": PAGE + 1}, Status.INVALID_PRP_OFFSET),
    (WRITE, {"namespace": 1, "prp1": PAGE, "prp2": PAGE + 8, "cdw12": 8}, Status.INVALID_PRP_OFFSET),
    (READ, {"namespace": 1, "prp1": PAGE, "prp2": PAGE + 4, "cdw12": 31}, Status.INVALID_PRP_OFFSET),
    (READ, {"namespace": 1, "prp1": PAGE, "flags": 1}, Status.INVALID_FIELD),
    (0x05, {"namespace": 1}, Status.INVALID_OPCODE),
]


@pytest.mark.parametrize(
    ("opcode", "fields", "status"), IO_CASES, ids=[f"{c[0]:#x}-{c[1]}-{c[2].name}" for c in IO_CASES]
)
def test_an_io_command_is_answered_as_the_specification_says(
    opcode: int, fields: dict[str, int], status: Status
) -> None:
    rig = probed(probe={"doorbell_buffers": False})
    completion = submit_raw(rig, Command(opcode=opcode, command_id=0x77, **fields))
    assert completion is not None
    assert (completion.command_id, completion.status, completion.sq_id, completion.sq_head) == (0x77, status, 1, 1)
    assert not any(rig.disk.data)


@pytest.mark.parametrize("opcode", [WRITE, ZEROES])
def test_a_read_only_disk_is_not_written(opcode: int) -> None:
    rig = probed(disk=Disk(readonly=True), probe={"doorbell_buffers": False})
    completion = submit_raw(rig, Command(opcode=opcode, command_id=0, namespace=1, prp1=PAGE))
    assert completion is not None
    assert completion.status is Status.WRITE_PROTECTED


def test_a_disk_that_fails_makes_the_command_fail_and_a_flush_can_be_tried_again() -> None:
    rig = probed()
    rig.memory.write(PAGE, b"d" * BLOCK)
    rig.driver.submit_write(0, 1, PAGE)
    rig.driver.submit_write(1, 1, PAGE)
    rig.disk.broken = True
    rig.driver.submit_flush()
    rig.driver.submit_read(5, 1, PAGE)
    assert [completion.status for completion in rig.drain()] == [
        OK,
        OK,
        Status.WRITE_FAULT,
        Status.UNRECOVERED_READ_ERROR,
    ]
    with pytest.raises(OSError, match="broken"):
        rig.nvme.quiesce()
    rig.disk.broken = False
    rig.driver.submit_flush()
    assert statuses(rig.drain()) == [(0, OK)]
    assert rig.disk.medium[: 2 * BLOCK] == b"d" * 2 * BLOCK


def test_without_a_cache_a_write_that_fails_is_not_kept() -> None:
    rig = probed(has_write_cache=False)
    rig.memory.write(PAGE, b"d" * BLOCK)
    rig.disk.broken = True
    rig.driver.submit_write(0, 1, PAGE)
    rig.disk.broken = False
    rig.nvme.quiesce()
    assert [completion.status for completion in rig.drain()] == [Status.WRITE_FAULT]
    assert not any(rig.disk.data)


def test_lists_of_pages_go_on_in_the_next_list() -> None:
    with GuestMemory.create(1 << 20) as memory:
        slots = PAGE_SIZE // 8
        memory.write(0x1FF0, (0x1_0000).to_bytes(8, "little") + (0x3000).to_bytes(8, "little"))
        memory.write(0x3000, b"".join((0x2_0000 + PAGE_SIZE * i).to_bytes(8, "little") for i in range(slots)))
        command = Command(opcode=READ, command_id=0, prp1=0x4800, prp2=0x1FF0)
        length = 2048 + 4 * PAGE_SIZE - 100
        assert list(segments(memory, command, length)) == [
            (0x4800, 2048),
            (0x1_0000, PAGE_SIZE),
            (0x2_0000, PAGE_SIZE),
            (0x2_1000, PAGE_SIZE),
            (0x2_2000, PAGE_SIZE - 100),
        ]
        exactly = 2048 + PAGE_SIZE * 2  # the last slot names a page, since it is the last one
        assert list(segments(memory, command, exactly))[1:] == [(0x1_0000, PAGE_SIZE), (0x3000, PAGE_SIZE)]
        with pytest.raises(CommandFailed):
            list(segments(memory, attrs.evolve(command, prp1=2), length))


# The write cache


def test_with_a_write_cache_a_power_cut_takes_what_was_not_flushed() -> None:
    rig = probed()
    for block, letter in ((0, b"a"), (1, b"b")):
        rig.memory.write(PAGE, letter * BLOCK)
        rig.driver.submit_write(block, 1, PAGE)
        if block == 0:
            rig.driver.submit_flush()
    assert len(rig.drain()) == 3
    assert rig.disk.medium[: 2 * BLOCK] == b"a" * BLOCK + bytes(BLOCK)


def test_without_a_write_cache_what_was_completed_is_on_the_medium() -> None:
    rig = probed(has_write_cache=False)
    rig.memory.write(PAGE, b"a" * BLOCK)
    rig.driver.submit_write(0, 1, PAGE)
    assert len(rig.drain()) == 1
    assert rig.disk.medium[:BLOCK] == b"a" * BLOCK


def test_forced_unit_access_goes_to_the_medium_and_so_does_what_was_written_before() -> None:
    rig = probed(probe={"doorbell_buffers": False})
    rig.memory.write(PAGE, b"a" * BLOCK)
    for slot, (opcode, block, flags) in enumerate([(WRITE, 0, 0), (WRITE, 1, FORCE_UNIT_ACCESS), (WRITE, 2, 0)]):
        submit_raw(rig, Command(opcode=opcode, command_id=0, namespace=1, prp1=PAGE, cdw10=block, cdw12=flags), slot)
    assert rig.disk.medium[: 3 * BLOCK] == b"a" * 2 * BLOCK + bytes(BLOCK)
    command = Command(opcode=READ, command_id=0, namespace=1, prp1=PAGE, cdw10=2, cdw12=FORCE_UNIT_ACCESS)
    submit_raw(rig, command, slot=3)
    assert rig.disk.medium[: 3 * BLOCK] == b"a" * 3 * BLOCK


def test_switching_the_write_cache_off_is_answered_with_success_and_changes_nothing() -> None:
    """Upstream's #493."""
    rig = probed()
    assert admin(rig, SET, cdw10=Feature.WRITE_CACHE, cdw11=0) == (OK, 0)
    assert admin(rig, GET, cdw10=Feature.WRITE_CACHE) == (OK, 1)
    rig.memory.write(PAGE, b"a" * BLOCK)
    rig.driver.submit_write(0, 1, PAGE)
    assert rig.disk.medium[:1] == b"\0"


def test_a_write_cache_that_is_full_is_written_back() -> None:
    rig = probed(disk=Disk(bytes(4 << 20)))
    rig.driver.submit_write_zeroes(0, CACHED_BYTES_MAX // BLOCK)
    rig.driver.submit_write_zeroes(0, CACHED_BYTES_MAX // BLOCK)
    assert not rig.nvme.cache.is_flushed
    rig.driver.submit_write_zeroes(CACHED_BYTES_MAX // BLOCK, 1)
    assert rig.nvme.cache.is_flushed


def test_a_disk_knows_at_once_that_it_is_written_to() -> None:
    """Or a machine whose disk cannot travel would be paused before anybody finds out."""
    rig = probed()
    rig.memory.write(PAGE, b"a" * BLOCK)
    rig.driver.submit_write(0, 1, PAGE)
    assert any(rig.disk.data)


def test_a_pause_writes_the_cache_back() -> None:
    rig = probed()
    rig.memory.write(PAGE, b"a" * BLOCK)
    rig.driver.submit_write(1, 1, PAGE)
    rig.driver.submit_write(0, 1, PAGE)
    assert rig.disk.data[: 2 * BLOCK] == bytes(BLOCK) + b"a" * BLOCK
    assert not any(rig.disk.medium)
    target = moved(rig)
    assert rig.disk.medium[: 2 * BLOCK] == b"a" * 2 * BLOCK
    target.driver.submit_read(0, 1, PAGE + PAGE_SIZE)
    assert len(target.drain()) == 3
    assert target.memory.read(PAGE + PAGE_SIZE, BLOCK) == b"a" * BLOCK


# Turns, full queues, doorbells


@pytest.mark.parametrize("doorbell_buffers", [True, False])
def test_a_controller_takes_no_more_than_its_turn(doorbell_buffers: bool) -> None:
    rig = probed(probe={"doorbell_buffers": doorbell_buffers})
    rig.nvme.commands_per_turn = 0
    for _ in range(5):
        rig.driver.submit_flush()
    rig.nvme.commands_per_turn = 2
    taken = []
    for _ in range(4):
        rig.nvme.poll()
        taken.append(rig.state.sqs[1].head)
    assert taken == [2, 4, 5, 5]
    assert statuses(rig.driver.completions()) == [(number, OK) for number in range(5)]


@pytest.mark.parametrize("doorbell_buffers", [True, False])
def test_while_the_completion_queue_is_full_commands_wait_and_none_is_lost(doorbell_buffers: bool) -> None:
    rig = probed(probe={"cq_entries": 4, "doorbell_buffers": doorbell_buffers})
    assert [rig.driver.submit_flush() for _ in range(8)] == list(range(8))
    rig.nvme.poll()
    state = rig.state
    assert (state.sqs[1].head, state.cqs[1].avail) == (3, 0)
    rig = moved(rig)
    rig.nvme.poll()
    assert rig.state.sqs[1].head == 3
    # the driver's doorbell alone lets it go on, with buffers because the controller has asked for it
    seen = [statuses(rig.driver.completions()) for _ in range(3)]
    assert seen == [[(0, OK), (1, OK), (2, OK)], [(3, OK), (4, OK), (5, OK)], [(6, OK), (7, OK)]]


def test_a_driver_finds_no_room_in_a_full_submission_queue() -> None:
    rig = probed(probe={"sq_entries": 4})
    rig.nvme.commands_per_turn = 0
    assert [rig.driver.submit_flush() for _ in range(4)] == [0, 1, 2, None]
    rig.nvme.commands_per_turn = 8
    assert len(rig.drain()) == 3
    assert rig.driver.submit_flush() == 0


def test_shadow_doorbells_save_doorbells_and_the_controller_asks_for_them_when_it_goes_idle() -> None:
    rig = probed()
    rig.nvme.commands_per_turn = 1
    before = rig.bus.rung
    for _ in range(4):
        rig.driver.submit_flush()
    assert rig.bus.rung == before + 1 + 3  # idle each time: one command a ring
    rig.nvme.commands_per_turn = 0
    for _ in range(10):
        rig.driver.submit_flush()
    assert rig.bus.rung == before + 4 + 1  # busy: told once, it finds the others
    rig.nvme.commands_per_turn = 8
    assert len(rig.drain()) == 14


@pytest.mark.parametrize("doorbell_buffers", [True, False])
@pytest.mark.parametrize(
    ("doorbell", "value"),
    [
        (tail_doorbell(1), 64),
        (tail_doorbell(1), 0x1_0001),
        (head_doorbell(1), 64),
        (head_doorbell(1), 2),
        (tail_doorbell(7), 1),
        (head_doorbell(7), 1),
        (tail_doorbell(200), 1),
    ],
)
def test_a_doorbell_that_makes_no_sense_changes_nothing(doorbell: int, value: int, doorbell_buffers: bool) -> None:
    rig = probed(probe={"doorbell_buffers": doorbell_buffers})
    rig.driver.submit_flush()
    before = rig.state
    rig.memory.write(BASE + 0x5000 + doorbell, value.to_bytes(4, "little"))
    rig.set_register(DOORBELLS + doorbell, value)
    assert rig.state == before


def test_buffers_configured_over_a_queue_in_use_go_on_with_its_positions() -> None:
    rig = probed(probe={"doorbell_buffers": False})
    rig.driver.submit_flush()
    rig.drain()
    rig.memory.write(BASE + 0x5000, b"\xff" * PAGE_SIZE)
    rig.driver.use_doorbell_buffers()
    rig.driver.submit_flush()
    assert statuses(rig.drain()) == [(0, OK)]
    assert rig.state.sqs[1].head == 2


def test_a_deleted_queue_and_a_new_one_in_its_place_start_from_zero() -> None:
    rig = probed()
    rig.driver.submit_flush()
    rig.drain()
    assert admin(rig, AdminOpcode.DELETE_SQ, cdw10=1) == (OK, 0)
    assert admin(rig, IO_SQ_OPCODE, prp1=PAGE, cdw10=7 << 16 | 1, cdw11=1 << 16 | 1) == (OK, 0)
    assert (rig.state.sqs[1].head, rig.state.sqs[1].tail) == (0, 0)
    assert rig.memory.read(BASE + 0x5000 + tail_doorbell(1), 4) == bytes(4)


# Interrupts

VECTOR = 0x40


def take_interrupts(rig: Rig) -> list[int]:
    vcpu = rig.interrupts.vcpus[0]
    return [vector for vector in iter(vcpu.take_interrupt, None) if vector is not None]


def test_each_completion_queue_has_its_interrupt() -> None:
    rig = probed(probe={"vector": VECTOR})
    assert take_interrupts(rig) == [VECTOR]
    rig.driver.submit_flush()
    assert take_interrupts(rig) == [VECTOR + 1]
    assert not rig.pin


def test_a_queue_created_without_interrupts_gives_none_here_and_after_a_move() -> None:
    rig = probed(probe={"vector": VECTOR, "doorbell_buffers": False})
    for opcode in (AdminOpcode.DELETE_SQ, AdminOpcode.DELETE_CQ):
        admin(rig, opcode, cdw10=1)
    admin(rig, IO_CQ_OPCODE, prp1=IO_CQ, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1)
    admin(rig, IO_SQ_OPCODE, prp1=IO_SQ, cdw10=63 << 16 | 1, cdw11=1 << 16 | 1)
    rig = moved(rig)
    take_interrupts(rig)
    rig.driver.submit_flush()
    assert statuses(rig.driver.completions()) == [(0, OK)]
    assert take_interrupts(rig) == []


def test_a_masked_interrupt_stays_pending_through_a_move_and_comes_once() -> None:
    rig = probed(probe={"vector": VECTOR})
    take_interrupts(rig)
    rig.nvme.pci.mask_vector(1)
    rig.driver.submit_flush()
    rig.driver.submit_flush()
    rig = moved(rig)
    assert take_interrupts(rig) == []
    table = REGISTERS + 0x4000
    rig.bus.write(table + 16 + 8, 8, VECTOR + 1)  # unmask entry 1
    assert take_interrupts(rig) == [VECTOR + 1]
    assert len(rig.driver.completions()) == 2
    assert take_interrupts(rig) == []


def test_an_interrupt_that_the_guest_has_not_taken_is_taken_after_the_move() -> None:
    rig = probed(probe={"vector": VECTOR})
    take_interrupts(rig)
    rig.driver.submit_flush()
    assert take_interrupts(moved(rig)) == [VECTOR + 1]


@pytest.mark.parametrize("doorbell_buffers", [True, False])
def test_the_pin_is_up_while_there_are_completions_to_read(doorbell_buffers: bool) -> None:
    rig = probed(probe={"doorbell_buffers": doorbell_buffers})
    levels = [rig.pin]
    rig.driver.submit_flush()
    levels.append(rig.pin)
    rig = moved(rig)
    levels.append(rig.pin)
    rig.driver.completions()
    rig.nvme.poll()  # with buffers, nobody may have rung
    assert [*levels, rig.pin] == [False, True, True, False]


@pytest.mark.parametrize("vector", [VECTOR, None])
def test_the_driver_takes_its_interrupt_once_a_message_and_a_pin_until_it_is_satisfied(vector: int | None) -> None:
    rig = probed(probe={"vector": vector, "doorbell_buffers": False})
    assert not rig.driver.take_interrupt()
    rig.driver.submit_flush()
    rig = moved(rig)
    assert rig.driver.take_interrupt()
    assert rig.driver.take_interrupt() is (vector is None)
    rig.driver.completions()
    assert not rig.driver.take_interrupt()


def test_every_driver_object_goes_on_where_the_last_one_stopped() -> None:
    rig = probed()
    NvmeDriver(rig, BASE).submit_flush()
    assert NvmeDriver(rig, BASE).outstanding == 1
    assert statuses(NvmeDriver(rig, BASE).completions()) == [(0, OK)]
    assert NvmeDriver(rig, BASE).outstanding == 0


def test_two_controllers_do_not_know_of_each_other() -> None:
    rigs = [probed(), probed()]
    data: list[Any] = []
    for letter, rig in zip((b"a", b"b"), rigs, strict=True):
        rig.memory.write(PAGE, letter * BLOCK)
        rig.driver.submit_write(0, 1, PAGE)
        rig.driver.submit_flush()
        data.append(rig.disk.data[:1])
    assert data == [b"a", b"b"]
