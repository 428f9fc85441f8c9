"""The ledger: a guest that numbers what it does, and a reader that knows nothing but what is left of it."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from migrate.rehearsal.ledger import (
    Artefacts,
    ConsoleText,
    Entry,
    LedgerAudit,
    NoLedger,
    audit_ledger,
    read_console,
    read_program,
    read_record,
    read_wire,
)
from sim_vmm.console import ConsoleHistory
from sim_vmm.devices import virtio_disk
from sim_vmm.devices.base import Arrived
from sim_vmm.devices.vcpu import Vcpu
from sim_vmm.devices.virtio import VirtioTransport
from sim_vmm.guest import GuestDoesNotFit, LedgerGuest, StampGuest
from sim_vmm.guest.ledger import Phase
from sim_vmm.guest.record import encode_record
from sim_vmm.payloads import PciVirtioV3
from sim_vmm.spec import PciPath, SpecKey
from sim_vmm.spec.components import Component, VirtioDisk
from sim_vmm.storage import FileDisk
from tests.ledgers import BLOCKS, NIC, NVME, VIRTIO, House, ledger_of, phase_of
from tests.machines import COM1

SLOWLY = LedgerGuest(moves_per_step=1, flush_every=3)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


# What the guest does


def test_a_record_goes_everywhere_before_it_is_acknowledged(house: House) -> None:
    machine = house.booted(SLOWLY)
    phases = []
    while ledger_of(machine).acknowledged < 3:
        phases.append(phase_of(machine).name)
        house.run(machine, 1)
    one = ["WRITE", "WRITING", "STAMP", "PRINT", "SEND", "ACKNOWLEDGE"]
    assert phases == [*one, *one, "WRITE", "WRITING", "FLUSH", "FLUSHING", *one[2:]]
    audit = house.audit(machine)
    assert (audit.acknowledged, audit.found, audit.violations) == (3, 3, ())
    assert "ledger 3 at " in machine.console.read(from_start=0).data.decode()
    assert len(house.heard) == 3


@pytest.mark.parametrize(
    ("components", "steps"),
    [
        (VIRTIO, 200),
        (NVME, 200),
        ({**COM1, **NIC}, 40),
        ({key: component for key, component in VIRTIO.items() if key not in NIC}, 40),
        (COM1, 40),
    ],
    ids=["virtio", "nvme", "no disk", "no nic", "console only"],
)
def test_a_ledger_is_whole_on_any_machine(tmp_path: Path, components: Mapping[str, Component], steps: int) -> None:
    house = House(tmp_path, components)
    machine = house.booted()
    house.run(machine, steps)
    machine = house.moved(machine)
    house.run(machine, steps)
    audit = house.audit(machine)
    assert audit.violations == ()
    assert audit.found == audit.acknowledged > steps
    house.close()


def test_the_ring_and_the_disk_go_round(house: House) -> None:
    machine = house.booted()
    house.run(machine, 200)
    state = ledger_of(machine)
    assert state.acknowledged > max(state.ring_pages, state.disk_blocks)
    assert (state.ring_pages, state.disk_blocks, state.block_size) == (64, BLOCKS, 512)
    assert house.audit(machine).is_whole


def test_only_an_interrupt_makes_the_ledger_go_on(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = house.booted(SLOWLY)
    monkeypatch.setattr(Vcpu, "request", lambda *_: None)
    house.run(machine, 20)
    assert phase_of(machine) is Phase.WRITING
    assert ledger_of(machine).acknowledged == 0


def test_a_disk_that_fails_is_written_again_and_told_of(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = house.booted()
    house.run(machine, 10)
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise OSError("no medium")

        broken.setattr(FileDisk, "write", fail)
        house.run(machine, 3)
    house.run(machine, 10)
    audit = house.audit(machine)
    assert audit.found == audit.acknowledged > 10
    assert [re.sub("[0-9]+", "N", problem) for problem in audit.violations] == ["RAM: the disk refused N requests"]


def test_a_second_life_on_the_same_disk_does_not_mistake_the_records_of_the_first(house: House) -> None:
    first = house.booted()
    house.run(first, 30)
    assert house.audit(first).is_whole
    first.close()
    house.heard.clear()
    second = house.booted()
    house.run(second, 5)
    assert (ledger_of(second).run, ledger_of(second).acknowledged < 10) == (2, True)
    audit = house.audit(second)
    assert audit.violations == ()
    assert audit.found == audit.acknowledged == ledger_of(second).acknowledged


def test_a_machine_with_too_little_ram_is_refused(tmp_path: Path) -> None:
    disks = {f"disk-{number}": VIRTIO["disk"] for number in range(12)}
    crowd = {
        f"data-{number}": VirtioDisk(SpecKey.parse(f"disk-{number}"), PciPath(0, 4 + number, 0)) for number in range(12)
    }
    house = House(tmp_path, {**COM1, **crowd, **disks})
    with pytest.raises(GuestDoesNotFit, match="4 MiB of RAM: the drivers of 12 devices need 4 MiB in the first two"):
        house.booted()
    house.close()


# What a migration must carry


@pytest.mark.parametrize("components", [VIRTIO, NVME], ids=["virtio", "nvme"])
@pytest.mark.parametrize("phase", Phase)
def test_a_machine_paused_in_the_middle_of_a_record_goes_on(
    tmp_path: Path, phase: Phase, components: Mapping[str, Component]
) -> None:
    house = House(tmp_path, components)
    machine = house.booted(SLOWLY)
    house.run(machine, 12)
    while phase_of(machine) is not phase:
        house.run(machine, 1)
    assert phase_of(machine) is phase
    before = ledger_of(machine).acknowledged
    machine = house.moved(machine)
    house.run(machine, 30)
    audit = house.audit(machine)
    assert audit.violations == ()
    assert audit.found == audit.acknowledged > before + 2
    house.close()


@pytest.mark.parametrize("is_done_here", [False, True])
def test_a_request_that_no_disk_has_taken_travels_in_its_ring(
    house: House, monkeypatch: pytest.MonkeyPatch, is_done_here: bool
) -> None:
    machine = house.booted(SLOWLY)
    house.run(machine, 12)
    with monkeypatch.context() as busy:
        busy.setattr(virtio_disk, "REQUESTS_AT_ONCE", 0)
        house.run(machine, 20)
        assert phase_of(machine) is Phase.WRITING
        if is_done_here:
            busy.undo()
            machine.poll()
        machine = house.moved(machine)
    house.run(machine, 30)
    assert house.audit(machine).is_whole
    assert ledger_of(machine).acknowledged > 5


def _no_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vcpu, "_derive", lambda _vcpu: None)


def _no_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Vcpu._take

    def forgetful(vcpu: Vcpu, arrived: Arrived) -> None:
        before = dict(vcpu.registers)
        take(vcpu, arrived)
        vcpu.registers = before

    monkeypatch.setattr(Vcpu, "_take", forgetful)


def _rings_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    take = VirtioTransport.take

    def forgetful(transport: VirtioTransport, payload: PciVirtioV3) -> None:
        queues = tuple(attrs.evolve(queue, avail_cur_idx=0, used_idx=0) for queue in payload.queues.queues)
        take(transport, attrs.evolve(payload, queues=attrs.evolve(payload.queues, queues=queues)))

    monkeypatch.setattr(VirtioTransport, "take", forgetful)


def _empty_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConsoleHistory, "import_", lambda *_: None)


@pytest.mark.parametrize(
    "forget",
    [_no_interrupts, _no_registers, _rings_from_zero, _empty_console],
    ids=lambda f: f.__name__,
)
def test_what_a_migration_forgets_shows(
    house: House, monkeypatch: pytest.MonkeyPatch, forget: Callable[[pytest.MonkeyPatch], None]
) -> None:
    machine = house.booted(SLOWLY)
    house.run(machine, 30)
    while phase_of(machine) is not Phase.WRITING:
        house.run(machine, 1)
    before = ledger_of(machine).acknowledged
    forget(monkeypatch)
    machine = house.moved(machine)
    house.run(machine, 30)
    audit = house.audit(machine)
    stands_still = audit.acknowledged < before + 2
    assert stands_still or not audit.is_whole


def test_the_time_away_is_told_by_clock_console_and_wire(house: House) -> None:
    machine = house.booted()
    house.run(machine, 20)
    machine = house.moved(machine, away_ms=250)
    house.run(machine, 20)
    audit = house.audit(machine)
    for told in (audit.away_by_clock_ms, audit.away_by_console_ms, audit.away_by_wire_ms):
        assert told is not None
        assert 250 <= told <= 255


# The reader


def test_the_layout_of_a_record_is_what_the_reader_expects() -> None:
    record = encode_record(0x0102, 0x0304, 5, 512)
    assert record[:36].hex() == ("4c4544474552303102010000000000000403000000000000050000000000000000020000")
    assert record[40:48] == record[504:] == bytes.fromhex("0201000000000000")
    assert read_record(record) == Entry(sequence=0x0102, when_ns=0x0304, run=5)


@pytest.mark.parametrize("at", [0, 8, 16, 24, 33, 36, 40, 300, 511])
def test_a_record_with_a_wrong_byte_is_none(at: int) -> None:
    record = bytearray(encode_record(7, 9, 1, 512))
    record[at] ^= 0x40
    assert read_record(record) is None


def test_half_a_record_is_none() -> None:
    old, new = encode_record(7, 9, 1, 4096), encode_record(71, 99, 1, 4096)
    assert read_record(new[:2048] + old[2048:]) is None
    assert read_record(new[:2048]) is None
    assert read_record(b"") is None


def test_ram_without_a_ledger_is_told_apart(house: House) -> None:
    with pytest.raises(NoLedger, match="not the state of a ledger guest"):
        read_program(house.booted(StampGuest()).memory.view)
    with pytest.raises(NoLedger, match="100 bytes of RAM hold no state page"):
        read_program(bytes(100))


def test_lines_of_a_console_are_records_or_pieces_of_them_or_nothing_to_us() -> None:
    text = b"boot\nledger 1 at 5 ns\nledger 2 atledger 3 at 7 ns\nthe ledger is open\n at 9 ns\nledger 4"
    entries, torn = read_console(text)
    assert entries == [Entry(sequence=1, when_ns=5)]
    assert torn == [b"ledger 2 atledger 3 at 7 ns", b" at 9 ns"]


def test_the_record_of_a_wire_may_have_frames_of_others() -> None:
    lines = [
        '{"at_ns": 5, "source": "a8:40:25:00:00:01", "sequence": 1}\n',
        '{"at_ns": 6, "source": "a8:40:25:00:00:02", "sequence": 1}\n',
        '{"at_ns": 7, "source": "a8:40:25:00:00:01", "sequence": null}\n',
    ]
    assert read_wire(lines, source="a8:40:25:00:00:01") == [Entry(sequence=1, when_ns=5)]
    assert len(read_wire(lines)) == 2


@attrs.define
class Book:
    """Artefacts that a test may damage."""

    ram: bytearray
    disk: bytearray
    console: list[bytes]
    wire: list[Entry]

    @classmethod
    def kept(cls, house: House) -> "Book":
        """Of a ledger of at least 80 records, so that ring and disk have gone round, with one in the middle."""
        machine = house.booted(SLOWLY)
        while ledger_of(machine).acknowledged < 80 or phase_of(machine) is not Phase.STAMP:
            house.run(machine, 1)
        machine.pause()
        disk = next(house.leftovers.storage.iterdir())
        console = machine.console.read(from_start=0, max_bytes=1 << 20).data
        return cls(
            bytearray(machine.memory.view),
            bytearray(disk.read_bytes()),
            console.splitlines(keepends=True),
            read_wire(house.heard),
        )

    def audit(self) -> LedgerAudit:
        text = b"".join(self.console)
        console = ConsoleText(beginning=text, rolling=b"", total_bytes=len(text))
        return audit_ledger(Artefacts(ram=self.ram, disk=self.disk, console=console, wire=self.wire))

    def page(self, sequence: int) -> slice:
        start = (read_program(self.ram).ring_first_page + sequence % 64) * 4096
        return slice(start, start + 512)

    def line(self, sequence: int) -> int:
        return next(n for n, line in enumerate(self.console) if line.startswith(b"ledger %d at" % sequence))


def _block(sequence: int) -> slice:
    return slice(sequence % BLOCKS * 512, (sequence % BLOCKS + 1) * 512)


def _disk_loses_60(book: Book) -> None:
    book.disk[_block(60)] = bytes(512)


def _disk_keeps_what_was_before_70(book: Book) -> None:
    book.disk[_block(70)] = encode_record(6, 6, 1, 512)


def _disk_has_record_61_in_the_place_of_62(book: Book) -> None:
    book.disk[_block(62)] = book.disk[_block(61)]


def _disk_tears_50(book: Book) -> None:
    book.disk[_block(50)] = book.disk[_block(50)][:256] + bytes(256)


def _disk_is_cut(book: Book) -> None:
    del book.disk[-512:]


def _disk_has_a_record_of_the_future(book: Book) -> None:
    book.disk[_block(85)] = encode_record(85, 10**12, 1, 512)


def _ram_loses_40(book: Book) -> None:
    book.ram[book.page(40)] = bytes(512)


def _ram_has_another_time_for_41(book: Book) -> None:
    book.ram[book.page(41)] = encode_record(41, 1, 1, 512)


def _console_loses_30(book: Book) -> None:
    del book.console[book.line(30)]


def _console_has_31_twice(book: Book) -> None:
    book.console.insert(book.line(31), book.console[book.line(31)])


def _console_swaps_32_and_33(book: Book) -> None:
    line = book.line(32)
    book.console[line : line + 2] = reversed(book.console[line : line + 2])


def _console_tears_34(book: Book) -> None:
    book.console[book.line(34)] = b"ledger 3ledger 35 at 4 ns\n"


def _wire_loses_20(book: Book) -> None:
    del book.wire[19]


def _wire_has_21_twice(book: Book) -> None:
    book.wire.insert(21, book.wire[20])


def _wire_has_a_frame_of_the_future(book: Book) -> None:
    book.wire.append(Entry(sequence=82, when_ns=10**12))


DAMAGES = [
    (_disk_loses_60, ["disk: acknowledged records lost: 60"]),
    (_disk_keeps_what_was_before_70, ["disk: acknowledged records lost: 70", "records with different times: 6"]),
    (
        _disk_has_record_61_in_the_place_of_62,
        ["disk: record 61 in the place of others", "disk: ac", "disk: records"],
    ),
    (_disk_tears_50, ["disk: what is in place 50 is no record of this run", "disk: acknowledged records lost: 50"]),
    (_disk_is_cut, ["disk: 32256 bytes; the guest found 64 blocks of 512", "disk: acknowledged records lost: 1, 2, 3"]),
    (_disk_has_a_record_of_the_future, ["disk: acknowledged records lost: 21", "disk: records that the guest has not"]),
    (_ram_loses_40, ["RAM: acknowledged records lost: 40"]),
    (
        _ram_has_another_time_for_41,
        ["RAM: records out of order: 41", "records with different times: 41; the first"],
    ),
    (_console_loses_30, ["console: acknowledged records lost: 30"]),
    (_console_has_31_twice, ["console: records made twice: 31"]),
    (_console_swaps_32_and_33, ["console: records out of order: 32"]),
    (_console_tears_34, ["console: torn: b'ledger 3ledger 35 at 4 ns'", "console: acknowledged records lost: 34"]),
    (_wire_loses_20, ["wire: acknowledged records lost: 20"]),
    (_wire_has_21_twice, ["wire: records made twice: 21"]),
    (_wire_has_a_frame_of_the_future, ["wire: records that the guest has not made: 82"]),
]


@pytest.mark.parametrize(("damage", "objections"), DAMAGES, ids=lambda case: getattr(case, "__name__", ""))
def test_the_reader_objects_to(house: House, damage: Callable[[Book], None], objections: list[str]) -> None:
    book = Book.kept(house)
    assert book.audit().violations == ()
    damage(book)
    audit = book.audit()
    assert not audit.is_whole
    assert len(audit.violations) == len(objections)
    for violation, objection in zip(audit.violations, objections, strict=True):
        assert violation.startswith(objection)
    assert audit.acknowledged == 80
    lost = next((violation for violation in audit.violations if "lost" in violation), None)
    assert audit.found == (80 if lost is None else 0 if damage is _disk_is_cut else 79)


def test_a_console_whose_middle_has_expired_is_read_in_two_pieces() -> None:
    lines = [f"ledger {number} at {number} ns\n".encode() for number in range(1, 41)]
    text = b"".join(lines)
    beginning, rolling = text[:100], text[-100:]
    whole = ConsoleText(beginning=text[:90], rolling=text[90:], total_bytes=len(text))
    holed = ConsoleText(beginning=beginning, rolling=rolling, total_bytes=len(text))
    assert whole.pieces == (text,)
    assert [[entry.sequence for entry in read_console(piece)[0]] for piece in holed.pieces] == [
        [1, 2, 3, 4, 5],
        [36, 37, 38, 39, 40],
    ]
