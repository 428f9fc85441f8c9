"""Guest programs: they keep all their state in the machine and notice what a migration loses."""

import pytest

from sim_vmm.clock import ManualClock
from sim_vmm.guest import (
    Record,
    Stamp,
    StampGuest,
    SystemLayout,
    audit_records,
    make_guest,
    read_records,
    read_stamp,
)
from sim_vmm.machine import Machine
from sim_vmm.memory import PAGE_SIZE
from sim_vmm.snapshot import nonzero_pages
from tests.machines import make_machine

MS = 10**6


def run(guest: StampGuest, machine: Machine, host: ManualClock, steps: int) -> None:
    for _ in range(steps):
        host.advance(MS)
        guest.step(machine)


def console_of(machine: Machine) -> bytes:
    return machine.console.read(from_start=0, max_bytes=1 << 20).data


def migrate(source: Machine, target: Machine) -> None:
    """What a migration carries, without its protocol: RAM, clock, devices, console."""
    source.pause()
    target.receive()
    source.memory.dirty.begin_round()
    while (pages := source.memory.dirty.take(256)).size:
        target.memory.pages[pages] = source.memory.pages[pages]
        target.memory.mark_dirty(pages)
    target.clock.import_(source.clock.export())
    target.import_devices(source.export_devices())
    target.console.import_(source.console.export())


def test_the_idle_guest_leaves_everything_alone() -> None:
    guest = make_guest("idle")
    with make_machine() as machine:
        before = machine.preflight()
        guest.boot(machine)
        machine.start()
        guest.step(machine)
        assert machine.memory.dirty.count == 0
        assert machine.preflight() == before
        assert read_stamp(machine.memory) is None


def test_an_unknown_program_is_refused_naming_the_known() -> None:
    with pytest.raises(
        ValueError, match="unknown guest program 'doom'; known are dirty, features, idle, ledger, stamp"
    ):
        make_guest("doom")


def test_booting_makes_ram_look_used() -> None:
    with make_machine() as machine:
        StampGuest().boot(machine)
        layout = SystemLayout(machine.memory.page_count)
        assert (layout.filled, layout.zeroed, layout.working_set) == (
            range(688, 944),
            range(944, 960),
            range(960, 1024),
        )
        nonzero = nonzero_pages(machine.memory.pages)
        assert nonzero[688:944].all()
        assert not nonzero[944:].any()
        assert not nonzero[2:256].any()
        assert set(range(688, 960)) <= set(machine.memory.dirty.dirty_pages().tolist())
        assert b"stamp guest: 2 vCPUs, 1024 pages of RAM\n" in console_of(machine)
        assert read_stamp(machine.memory) == Stamp(0, 0)


def test_a_boot_with_the_same_seed_is_the_same_boot() -> None:
    digests = set()
    for seed in (1, 1, 2):
        with make_machine() as machine:
            StampGuest(seed=seed).boot(machine)
            with machine.memory.snapshot() as snapshot:
                digests.add(snapshot.digest())
    assert len(digests) == 2


@pytest.mark.parametrize("page_count", [256, 1024, 1 << 18, 1 << 25])
def test_the_pages_of_the_stamp_guest_fit(page_count: int) -> None:
    layout = SystemLayout(page_count)
    assert 0 < len(layout.working_set) <= 4096
    assert len(layout.filled) == min(page_count // 4, 65536)
    assert 0 < layout.filled.start < layout.filled.stop == layout.zeroed.start
    assert layout.zeroed.stop == layout.working_set.start < layout.working_set.stop == page_count


def test_steps_count_and_print_records() -> None:
    host = ManualClock()
    guest = StampGuest()
    with make_machine(host_clock=host) as machine:
        guest.boot(machine)
        machine.start()
        run(guest, machine, host, 25)
        assert read_stamp(machine.memory) == Stamp(25, 25 * MS)
        assert read_records(console_of(machine)) == (Record(1, 10 * MS), Record(2, 20 * MS))
        assert guest.stale_pages(machine.memory) == []


def test_a_guest_must_not_run_while_its_machine_is_paused() -> None:
    guest = StampGuest()
    with make_machine() as machine:
        guest.boot(machine)
        machine.start()
        machine.pause()
        with pytest.raises(AssertionError, match="while the machine is paused"):
            guest.step(machine)


def test_a_migrated_guest_goes_on_and_finds_nothing_missing() -> None:
    here, there = ManualClock(monotonic=10**12, wall=10**18), ManualClock(monotonic=5, wall=10**18)
    with make_machine(host_clock=here) as source, make_machine(host_clock=there) as target:
        guest = StampGuest()
        guest.boot(source)
        source.start()
        run(guest, source, here, 105)
        there.advance(105 * MS)
        migrate(source, target)
        there.advance(7 * MS)
        target.start()
        moved_guest = StampGuest()
        run(moved_guest, target, there, 100)
        audit = audit_records(console_of(target))
        assert audit.is_clean
        assert audit.largest_gap_ns == 17 * MS
        assert len(read_records(console_of(target))) == 20
        assert moved_guest.stale_pages(target.memory) == []
        assert read_stamp(target.memory) == Stamp(205, 212 * MS)


def test_a_migrated_machine_can_migrate_on_with_all_its_content() -> None:
    hosts = [ManualClock(monotonic=index * 10**9, wall=10**18) for index in range(3)]
    with (
        make_machine(host_clock=hosts[0]) as a,
        make_machine(host_clock=hosts[1]) as b,
        make_machine(host_clock=hosts[2]) as c,
    ):
        guest = StampGuest()
        guest.boot(a)
        a.start()
        run(guest, a, hosts[0], 30)
        migrate(a, b)
        b.start()
        migrate(b, c)
        with a.memory.snapshot() as first, c.memory.snapshot() as last:
            assert first.digest() == last.digest()
        assert c.preflight() == a.preflight()


def test_a_page_that_missed_a_write_is_found() -> None:
    host = ManualClock()
    guest = StampGuest()
    with make_machine(host_clock=host) as machine:
        guest.boot(machine)
        machine.start()
        run(guest, machine, host, 3)
        stale = SystemLayout(machine.memory.page_count).working_set[20]
        machine.memory.write(stale * PAGE_SIZE, bytes(16))
        assert guest.stale_pages(machine.memory) == [stale]
        run(guest, machine, host, 4)
        assert guest.stale_pages(machine.memory) == []


AUDITS = [
    ("nothing", b"", (), (), 0, 0, 0),
    ("clean", b"hello\nrecord 1 at 5 ns\nrecord 2 at 9 ns\nrecord 3 at 20 ns\n", (), (), 0, 0, 11),
    ("lost", b"record 1 at 5 ns\nrecord 4 at 9 ns\n", (2, 3), (), 0, 0, 4),
    ("repeated", b"record 1 at 5 ns\nrecord 1 at 5 ns\nrecord 2 at 6 ns\n", (), (1,), 0, 0, 1),
    ("out of order", b"record 2 at 5 ns\nrecord 1 at 6 ns\n", (), (), 1, 0, 1),
    ("time runs back", b"record 1 at 5 ns\nrecord 2 at 4 ns\n", (), (), 1, 0, 0),
    ("torn", b"record 1 at 5 ns\nrecord 2 atrecord 3 at 9 ns\n", (), (), 0, 1, 0),
    ("unfinished", b"record 1 at 5 ns\nrecord 2 at", (), (), 0, 0, 0),
]


@pytest.mark.parametrize(
    ("console", "lost", "repeated", "out_of_order", "torn", "gap"),
    [case[1:] for case in AUDITS],
    ids=[case[0] for case in AUDITS],
)
def test_an_audit_of_the_console_tells(
    console: bytes, lost: tuple[int, ...], repeated: tuple[int, ...], out_of_order: int, torn: int, gap: int
) -> None:
    audit = audit_records(console)
    assert (audit.lost, audit.repeated) == (lost, repeated)
    assert (len(audit.out_of_order), len(audit.torn)) == (out_of_order, torn)
    assert audit.largest_gap_ns == gap
    assert audit.is_clean == (not (lost or repeated or out_of_order or torn))


def test_the_filled_idle_guest_fills_ram_above_the_first_mib() -> None:
    with make_machine() as machine:
        make_guest("idle:filled").boot(machine)
        nonzero = nonzero_pages(machine.memory.pages)
        first = (1 << 20) // PAGE_SIZE
        assert not nonzero[:first].any()
        assert nonzero[first:].all()
        assert machine.memory.dirty.count == machine.memory.page_count - first
        assert read_stamp(machine.memory) is None
    with pytest.raises(ValueError, match="takes 'filled' or no arguments: 'brim'"):
        make_guest("idle:brim")
