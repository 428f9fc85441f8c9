"""A guest that uses an NVMe controller does not notice that its machine moves.

Derived state is tested by running the controller after the import, and the tests are tested by leaving it out.
"""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.devices.errors import ImportFailed
from sim_vmm.devices.nvme import Nvme
from sim_vmm.devices.nvme.layout import COMMAND_BYTES, COMPLETION_BYTES, DOORBELLS, Command, Completion, Status
from sim_vmm.devices.nvme.layout import IoOpcode as Io
from sim_vmm.devices.nvme.queues import CompletionQueue, SubmissionQueue
from sim_vmm.payloads import NvmeCtrlV2, PciDeviceV1, Schema, SubmissionQueueState
from tests.nvme import BLOCK, REGISTERS, Rig, export, moved, probed

OK = Status.SUCCESS


def outcome(completions: list[Completion]) -> list[tuple[int, Status]]:
    return [(completion.command_id, completion.status) for completion in completions]


# One derivation at a time: what goes wrong without it


def rings_its_doorbell() -> None:
    """Upstream's #981: the cached "enabled" was not derived again, so doorbells were refused."""
    rig = moved(probed(probe={"doorbell_buffers": False}))
    assert rig.state.csts & 1, "the registers say enabled either way"
    rig.driver.submit_flush()
    assert outcome(rig.driver.completions()) == [(0, OK)]


def is_polled() -> None:
    rig = probed()
    rig.nvme.commands_per_turn = 0
    rig.driver.submit_flush()
    rig = moved(rig)
    rig.nvme.commands_per_turn = 1
    rig.nvme.poll()
    assert outcome(rig.driver.completions()) == [(0, OK)]


def submits_without_a_doorbell() -> None:
    rig = probed()
    rig.nvme.commands_per_turn = 0
    rig.driver.submit_flush()
    rig = moved(rig)
    rung = rig.bus.rung
    rig.driver.submit_flush()
    assert rig.bus.rung == rung, "the controller is busy and has not asked for this one"
    rig.nvme.commands_per_turn = 8
    rig.nvme.poll()
    assert outcome(rig.driver.completions()) == [(0, OK), (1, OK)]


def waits_for_its_pin() -> None:
    rig = probed()
    rig.driver.submit_flush()
    rig = moved(rig)
    assert rig.pin


def has_its_registers_where_it_placed_them() -> None:
    rig = moved(probed())
    assert rig.register(0x1C) == 1


DERIVED: list[tuple[str, Any, Callable[[], None]]] = [
    ("_derive_enabled", Nvme, rings_its_doorbell),
    ("_derive_enabled", Nvme, is_polled),
    ("_derive_buffers", Nvme, submits_without_a_doorbell),
    ("_derive_pin", Nvme, waits_for_its_pin),
]


@pytest.mark.parametrize("goes_on", [*(case[2] for case in DERIVED), has_its_registers_where_it_placed_them])
def test_a_guest_goes_on_after_a_move(goes_on: Callable[[], None]) -> None:
    goes_on()


@pytest.mark.parametrize(("derivation", "owner", "goes_on"), DERIVED, ids=[f"{c[0]}-{c[2].__name__}" for c in DERIVED])
def test_a_derivation_that_is_left_out_of_the_import_is_noticed(
    derivation: str, owner: type[Nvme], goes_on: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    take, derive = owner._take, getattr(owner, derivation)
    importing = False

    def forgetful_take(self: Nvme, arrived: Any) -> None:
        nonlocal importing
        importing = True
        take(self, arrived)
        importing = False

    def maybe_derive(self: Nvme, *arguments: Any) -> None:
        if not importing:
            derive(self, *arguments)

    monkeypatch.setattr(owner, "_take", forgetful_take)
    monkeypatch.setattr(owner, derivation, maybe_derive)
    with pytest.raises(AssertionError):
        goes_on()


def completes_after_some_commands() -> None:
    rig = probed()
    for _ in range(3):
        rig.driver.submit_flush()
    assert len(rig.driver.completions()) == 3
    rig = moved(rig)
    rig.driver.submit_flush()
    rig.nvme.poll()
    assert outcome(rig.driver.completions()) == [(0, OK)]


def finds_what_it_wrote() -> None:
    rig = probed()
    page = rig.driver.data.start
    rig.memory.write(page, b"w" * BLOCK)
    rig.driver.submit_write(1, 1, page)
    rig.driver.submit_write(0, 1, page)
    rig = moved(rig)
    rig.driver.submit_read(0, 1, page + 4096)
    assert len(rig.drain()) == 3
    assert rig.memory.read(page + 4096, BLOCK) == b"w" * BLOCK


def forgetful_restore(queue: Any) -> Any:
    """A queue as if it had just been created (the shape of upstream's #1135)."""

    def restore(state: Any) -> Any:
        if isinstance(state, SubmissionQueueState):
            return queue(state.id, state.size, state.base, state.cq_id)
        return queue(state.id, state.size, state.base, state.iv)

    return restore


@pytest.mark.parametrize("queue", [SubmissionQueue, CompletionQueue])
def test_positions_that_are_lost_are_noticed(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    completes_after_some_commands()
    monkeypatch.setattr(queue, "restore", forgetful_restore(queue))
    with pytest.raises(AssertionError):
        completes_after_some_commands()


def test_a_cache_that_is_not_written_back_at_the_pause_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    finds_what_it_wrote()
    monkeypatch.setattr(Nvme, "quiesce", lambda self: None)
    with pytest.raises(AssertionError):
        finds_what_it_wrote()


# Positions and phases


def test_the_phase_tag_turns_on_both_sides_of_a_move() -> None:
    rig = probed(probe={"sq_entries": 4, "cq_entries": 4})
    phases = []
    for _ in range(12):
        rig.driver.submit_flush()
        (completion,) = rig.driver.completions()
        phases.append(completion.phase)
        rig = moved(rig)
    assert phases == [True] * 4 + [False] * 4 + [True] * 4


def test_the_queues_of_65536_entries_wrap() -> None:
    size, sq_base, cq_base = 65536, 0x10_0000, 0x60_0000
    rig = probed(ram_bytes=8 << 20, probe={"doorbell_buffers": False})
    nvme, pci = export(rig.nvme)
    assert isinstance(nvme, NvmeCtrlV2)
    last = size - 1
    at_the_end = attrs.evolve(
        nvme,
        sqs=(nvme.sqs[0], attrs.evolve(nvme.sqs[1], size=size, base=sq_base, head=last, tail=last)),
        cqs=(nvme.cqs[0], attrs.evolve(nvme.cqs[1], size=size, base=cq_base, head=last, tail=last, avail=last)),
    )
    rig.nvme.import_([at_the_end, pci])
    for slot, command_id in ((last, 1), (0, 2)):
        command = Command(opcode=Io.FLUSH, command_id=command_id, namespace=1)
        rig.memory.write(sq_base + COMMAND_BYTES * slot, command.pack())
    rig.nvme.commands_per_turn = 1
    rig.set_register(DOORBELLS + 8, 1)
    rig = moved(rig)
    rig.nvme.poll()
    found = [
        Completion.parse(rig.memory.read(cq_base + COMPLETION_BYTES * slot, COMPLETION_BYTES)) for slot in (last, 0)
    ]
    assert [(c.command_id, c.phase, c.sq_head) for c in found] == [(1, True, 0), (2, False, 1)]
    assert (rig.state.cqs[1].tail, rig.state.cqs[1].phase, rig.state.cqs[1].avail) == (1, False, last - 2)


def test_commands_that_wait_at_a_pause_are_carried_out_once_on_the_other_side() -> None:
    rig = probed(has_write_cache=False)
    rig.nvme.commands_per_turn = 0
    page = rig.driver.data.start
    for block in range(6):
        rig.memory.write(page + 4096 * block, bytes([block + 1]) * BLOCK)
        rig.driver.submit_write(block, 1, page + 4096 * block)
    rig.nvme.commands_per_turn = 2
    rig.nvme.poll()
    target = moved(rig)
    assert bytes(rig.disk.medium[: 6 * BLOCK : BLOCK]) == b"\1\2\0\0\0\0"
    assert outcome(target.driver.completions()) == [(0, OK), (1, OK)]
    assert outcome(target.drain()) == [(2, OK), (3, OK), (4, OK), (5, OK)]
    assert bytes(target.disk.medium[: 6 * BLOCK : BLOCK]) == b"\1\2\3\4\5\6"


def test_a_controller_born_without_doorbell_buffers_goes_back_to_the_first_version() -> None:
    rig = probed(doorbell_buffers=False)
    chosen = [Schema("nvme-ctrl", 1), PciDeviceV1.SCHEMA]
    old = rig.nvme.export(chosen)
    assert [payload.SCHEMA for payload in old] == chosen
    target = moved(rig, doorbell_buffers=False)
    target.nvme.import_(old)
    target.driver.submit_flush()
    assert outcome(target.drain()) == [(0, OK)]


# What is refused


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"cap": 0x20_0101_07FF}, "cap", "0x2001010[0-9a-f]*; this controller has 0x200101ffff"),
    ({"cc": 0x8000_0001}, "cc", "unknown bits 0x80000000"),
    ({"csts": 0x11}, "csts", "unknown bits 0x10"),
    ({"cc": 0}, "csts", "0x1 says ready; cc, 0x0, is not enabled"),
    ({"csts": 0}, "cqs", "2 queues; the controller is not ready and has none"),
    ({"csts": 0, "cqs": (), "sqs": ()}, "dbbuf_shadow", "not ready and has no doorbell buffers"),
    ({"aqa": 0x1000}, "aqa", "unknown bits 0x1000"),
    ({"aqa": 0x1F_001F}, r"cqs\[0\]", "16 entries at 0x12000; the registers say 32 at 0x12000"),
    ({"asq_base": 0x1_1004}, "asq_base", "0x11004 is not a multiple of the page size"),
    ({"asq_base": 0x1_0000}, r"sqs\[0\]", "16 entries at 0x11000; the registers say 16 at 0x10000"),
    ({"cqs": (), "sqs": ()}, "cqs", "no admin queue"),
    ({"dbbuf_shadow": 0}, "dbbuf_shadow", "doorbell buffers are two pages, or none"),
    ({"dbbuf_evtidx": 0}, "dbbuf_evtidx", "doorbell buffers are two pages, or none"),
    ({"dbbuf_evtidx": 0x800}, "dbbuf_evtidx", "0x800 is not a multiple of the page size"),
    ({"dbbuf_shadow": 0x4000_0000}, "dbbuf_shadow", "4096 bytes at guest address 0x40000000 are not RAM"),
]


@pytest.mark.parametrize(("changes", "field", "problem"), REFUSED, ids=[f"{c[1]}-{c[2]}" for c in REFUSED])
def test_state_that_no_controller_has_come_to_is_refused_and_changes_nothing(
    changes: dict[str, Any], field: str, problem: str
) -> None:
    rig = probed()
    nvme, pci = export(rig.nvme)
    target = Rig.make()
    before = export(target.nvme)
    with pytest.raises(ImportFailed, match=f"device 'nvme': nvme-ctrl v2, {field}: .*{problem}"):
        target.nvme.import_([attrs.evolve(nvme, **changes), pci])
    assert export(target.nvme) == before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"avail": 5}, r"cqs\[1\].avail: 5; from head and tail, 63 of 64 entries are free"),
        ({"iv": 16}, r"cqs\[1\].iv: 16; this device has vectors 0 to 15, and 0xffff is none"),
        ({"id": 0}, r"cqs\[1\].id: 0 occurs twice"),
    ],
)
def test_a_completion_queue_that_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    nvme, pci = export(probed().nvme)
    assert isinstance(nvme, NvmeCtrlV2)
    spoilt = attrs.evolve(nvme, cqs=(nvme.cqs[0], attrs.evolve(nvme.cqs[1], **changes)))
    target = Rig.make()
    with pytest.raises(ImportFailed, match=problem):
        target.nvme.import_([spoilt, pci])


def test_queues_out_of_order_are_refused() -> None:
    nvme, pci = export(probed().nvme)
    assert isinstance(nvme, NvmeCtrlV2)
    target = Rig.make()
    with pytest.raises(ImportFailed, match="cqs: ids 1, 0; queues are listed by id"):
        target.nvme.import_([attrs.evolve(nvme, cqs=nvme.cqs[::-1]), pci])


def test_doorbell_buffers_are_refused_by_a_controller_that_has_none() -> None:
    rig = probed()
    target = Rig.make(doorbell_buffers=False)
    with pytest.raises(ImportFailed, match="dbbuf_shadow: 0x15000; this controller has no doorbell buffers"):
        target.nvme.import_(export(rig.nvme))


# Any history, moved or not

Action = tuple[str, int, int]
#: More buffers than commands can be outstanding.
SLOTS, SLOT_BYTES = 12, 4096


@attrs.define
class Guest:
    """Does one action after the other, remembers what the controller answered and what reads should give."""

    rig: Rig
    answers: list[object] = attrs.field(factory=list)
    content: bytearray = attrs.field(factory=lambda: bytearray(512 * BLOCK))
    reads: dict[int, tuple[int, bytes]] = attrs.field(factory=dict)
    submitted: int = 0

    def act(self, action: Action) -> None:
        name, block, count = action
        match name:
            case "write" | "zeroes" | "read" | "flush":
                command_id = self.submit(name, block, count)
                self.submitted += command_id is not None
                self.answers.append(command_id)
            case "mask":
                self.rig.nvme.pci.mask_vector(1)
            case "unmask":
                self.rig.nvme.pci.unmask_vector(1)
            case "poll":
                self.rig.nvme.poll()
            case "interrupt":
                self.answers.append(self.rig.interrupts.vcpus[0].take_interrupt())
            case "collect":
                self.collect(self.rig.driver.completions())

    def submit(self, name: str, block: int, count: int) -> int | None:
        driver, length, first = self.rig.driver, count * BLOCK, block * BLOCK
        slot = driver.data.start + SLOT_BYTES * (self.submitted % SLOTS) + 4 * (block % 3)
        data = bytes(length)
        match name:
            case "flush":
                return driver.submit_flush()
            case "read":
                command_id = driver.submit_read(block, count, slot)
                if command_id is not None:
                    self.reads[command_id] = slot, bytes(self.content[first : first + length])
                return command_id
            case "write":
                data = (self.submitted + 1).to_bytes(4, "little") * (length // 4)
                self.rig.memory.write(slot, data)
                command_id = driver.submit_write(block, count, slot)
            case _:
                command_id = driver.submit_write_zeroes(block, count)
        if command_id is not None:
            self.content[first : first + length] = data
        return command_id

    def collect(self, completions: list[Completion]) -> None:
        for completion in completions:
            assert completion.status is OK
            if completion.command_id in self.reads:
                gpa, expected = self.reads.pop(completion.command_id)
                assert self.rig.memory.read(gpa, len(expected)) == expected
        self.answers.append(completions)

    def finish(self) -> None:
        self.collect(self.rig.drain())
        self.rig.nvme.quiesce()
        assert self.rig.disk.medium == self.rig.disk.data == self.content


NAMES = [
    "write",
    "write",
    "read",
    "read",
    "zeroes",
    "flush",
    "poll",
    "collect",
    "collect",
    "mask",
    "unmask",
    "interrupt",
]
ACTIONS = st.tuples(st.sampled_from(NAMES), st.integers(0, 20), st.integers(1, 7))


@given(
    actions=st.lists(ACTIONS, max_size=60),
    moves=st.sets(st.integers(0, 59), max_size=6),
    has_write_cache=st.booleans(),
    vector=st.sampled_from([None, 0x40]),
    doorbell_buffers=st.booleans(),
    entries=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    turn=st.integers(1, 3),
)
def test_a_history_with_moves_is_the_history_without(
    actions: list[Action],
    moves: set[int],
    has_write_cache: bool,
    vector: int | None,
    doorbell_buffers: bool,
    entries: tuple[int, int],
    turn: int,
) -> None:
    sq_entries, cq_entries = entries
    probe = {
        "vector": vector,
        "sq_entries": sq_entries,
        "cq_entries": cq_entries,
        "doorbell_buffers": doorbell_buffers,
    }
    staying, moving = (Guest(probed(probe=probe, has_write_cache=has_write_cache)) for _ in range(2))
    for guest in (staying, moving):
        guest.rig.nvme.commands_per_turn = turn
    for index, action in enumerate(actions):
        if index in moves:
            moving.rig = moved(moving.rig)
        for guest in (staying, moving):
            guest.act(action)
    for guest in (staying, moving):
        guest.finish()
    assert moving.answers == staying.answers
    assert export(moving.rig.nvme) == export(staying.rig.nvme)
    assert bytes(moving.rig.memory.view) == bytes(staying.rig.memory.view)
    assert moving.rig.interrupts.vcpus[0].pending() == staying.rig.interrupts.vcpus[0].pending()
    assert moving.rig.pin == staying.rig.pin


# Any guest, well-behaved or not

PAGES = st.sampled_from(
    [0, 0x1_1000, 0x1_2000, 0x1_5000, 0x1_6000, 0x2_0000, 0x7_F000, 0x7_FFFC, 0x8_0000, 2**64 - 4096]
)
NUMBERS = st.one_of(st.integers(0, 17), st.sampled_from([0x3F, 64, 0xFFFF, 0xFFFF_FFFF]))
WORDS = st.builds(lambda high, low: high << 16 | low & 0xFFFF, st.integers(0, 17), NUMBERS)
COMMANDS = st.builds(
    Command,
    opcode=st.sampled_from([*range(0x0E), 0x7C, 0xFF]),
    command_id=st.integers(0, 0xFFFF),
    flags=st.sampled_from([0, 0, 0, 1]),
    namespace=st.sampled_from([0, 1, 1, 2, 0xFFFF_FFFF]),
    prp1=PAGES,
    prp2=PAGES,
    cdw10=WORDS,
    cdw11=WORDS,
    cdw12=st.sampled_from([0, 7, 31, 0xFFFF, 1 << 30]),
)
ACCESSES = st.one_of(
    st.tuples(st.just("command"), st.sampled_from([0x1_1000, 0x1_3000]), COMMANDS),
    st.tuples(st.just("register"), st.sampled_from([0, 0x0C, 0x14, 0x1C, 0x24, 0x28, 0x2C, 0x30]), WORDS | PAGES),
    st.tuples(st.just("enable"), st.just(0x14), st.sampled_from([0, 1, 0x46_0001, 0x46_4001, 0x46_0081])),
    st.tuples(st.just("register"), st.integers(0, 35).map(lambda n: DOORBELLS + 4 * n), NUMBERS),
    st.tuples(st.just("poll"), st.none(), st.none()),
)


@given(st.lists(ACCESSES, max_size=40), st.booleans())
def test_whatever_a_guest_does_the_controller_raises_nothing_and_its_state_can_be_taken_over(
    accesses: list[tuple[str, Any, Any]], starts_probed: bool
) -> None:
    rig = probed() if starts_probed else Rig.make()
    rig.nvme.pci.configure(REGISTERS)
    for name, where, what in accesses:
        match name:
            case "command":
                queue = 0 if where == 0x1_1000 else 1
                tail = next((sq.tail for sq in rig.state.sqs if sq.id == queue), 0) % 16
                rig.memory.write(where + COMMAND_BYTES * tail, what.pack())
                rig.memory.write(0x1_5000 + 8 * queue, (tail + 1).to_bytes(4, "little"))
                rig.set_register(DOORBELLS + 8 * queue, tail + 1)
            case "poll":
                rig.nvme.poll()
            case _:
                rig.set_register(where, what, 8 if what > 0xFFFF_FFFF else 4)
    target = moved(rig)
    assert export(target.nvme) == export(rig.nvme)
    assert target.pin == rig.pin
    for machine in (rig, target):
        machine.nvme.poll()
    assert export(target.nvme) == export(rig.nvme)
