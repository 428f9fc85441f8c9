"""The real-time clock, read through its ports."""

from collections.abc import Callable
from datetime import UTC, datetime

import attrs
import pytest

from sim_vmm.clock import GuestClock, ManualClock
from sim_vmm.devices.errors import ImportFailed
from sim_vmm.devices.rtc import (
    BINARY,
    CENTURY,
    DAY,
    HOUR,
    HOURS_24,
    MINUTE,
    MONTH,
    PERIODIC_FLAG,
    PORT_DATA,
    PORT_INDEX,
    SECOND,
    STATUS_A,
    STATUS_B,
    STATUS_C,
    STATUS_D,
    STOPPED,
    WEEKDAY,
    YEAR,
    Rtc,
)
from sim_vmm.payloads import BhyveRtcV2

S = 10**9
#: A Monday, one second before the end of a month of a leap year.
BORN = datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)
BORN_NS = int(BORN.timestamp()) * S


@attrs.define
class Host:
    """A host's clocks, the guest's on it, and the device."""

    clocks: ManualClock
    guest: GuestClock
    rtc: Rtc

    def read(self, index: int) -> int:
        self.rtc.port_write(PORT_INDEX, 1, index)
        return self.rtc.port_read(PORT_DATA, 1)

    def write(self, index: int, value: int) -> None:
        self.rtc.port_write(PORT_INDEX, 1, index)
        self.rtc.port_write(PORT_DATA, 1, value)

    def export(self) -> BhyveRtcV2:
        (payload,) = self.rtc.export([BhyveRtcV2.SCHEMA])
        assert isinstance(payload, BhyveRtcV2)
        return payload


def host(monotonic: int = 100 * S, wall: int = BORN_NS, born: int = BORN_NS) -> Host:
    clocks = ManualClock(monotonic=monotonic, wall=wall)
    guest = GuestClock(clocks)
    return Host(clocks, guest, Rtc(guest, born))


CALENDAR = (CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOUR, MINUTE, SECOND)


def test_a_new_machine_has_the_hosts_wall_time_in_bcd() -> None:
    here = host()
    assert [here.read(index) for index in CALENDAR] == [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x59]
    assert here.read(STATUS_B) == HOURS_24
    assert here.read(STATUS_D) == 0x80


def test_the_calendar_goes_on_over_the_end_of_a_month() -> None:
    here = host()
    here.clocks.advance(S - 1)
    assert here.read(SECOND) == 0x59
    here.clocks.advance(1)
    assert [here.read(index) for index in CALENDAR] == [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]


def test_fractions_of_a_second_are_not_lost_by_looking_often() -> None:
    here = host()
    for _ in range(30):
        here.clocks.advance(S // 3)
        here.read(SECOND)
    assert here.rtc.now() == datetime(2024, 3, 1, 0, 0, 8, tzinfo=UTC)  # 30 thirds, rounded down each, are 9.99 s


def test_a_guest_may_set_the_clock_in_binary() -> None:
    here = host()
    here.write(STATUS_B, STOPPED | HOURS_24 | BINARY)
    for index, value in ((CENTURY, 19), (YEAR, 99), (MONTH, 12), (DAY, 31), (HOUR, 23), (MINUTE, 59), (SECOND, 58)):
        here.write(index, value)
    here.clocks.advance(60 * S)
    assert here.read(SECOND) == 58, "a stopped clock stands"
    here.write(STATUS_B, HOURS_24 | BINARY)
    here.clocks.advance(2 * S)
    assert [here.read(index) for index in CALENDAR] == [20, 0, 1, 1, 7, 0, 0, 0]


def test_a_date_that_is_none_stands_as_the_guest_left_it() -> None:
    here = host()
    here.write(MONTH, 0x13)
    here.clocks.advance(100 * S)
    assert here.read(MONTH) == 0x13
    assert here.read(SECOND) == 0x59


def test_the_periodic_flag_comes_at_its_rate_and_goes_when_read() -> None:
    here = host()
    here.write(STATUS_A, 0x26)  # 1,024 Hz
    here.clocks.advance(900_000)
    assert here.read(STATUS_C) == 0
    here.clocks.advance(100_000)
    assert here.read(STATUS_C) == PERIODIC_FLAG
    assert here.read(STATUS_C) == 0
    here.clocks.advance(S)
    assert here.read(STATUS_C) == PERIODIC_FLAG


def test_memory_keeps_what_is_written_and_status_registers_that_are_read_only_do_not() -> None:
    here = host()
    here.write(0x7F, 0xA5)
    assert here.read(0x7F) == 0xA5
    assert here.read(0xFF) == 0xA5, "the highest bit of an index masks interrupts"
    here.write(STATUS_D, 0)
    assert here.read(STATUS_D) == 0x80
    assert here.rtc.port_read(PORT_INDEX, 1) == STATUS_D


def moved(here: Host, there: Host) -> None:
    there.guest.import_(here.guest.export())
    there.rtc.import_([here.export()])


def test_the_clock_goes_on_over_a_migration_by_the_time_that_it_took() -> None:
    here, there = host(), host(monotonic=5 * S, wall=BORN_NS + 3 * S, born=0)
    here.clocks.advance(S)
    here.write(STATUS_A, 0x26)
    here.rtc.port_write(PORT_INDEX, 1, MINUTE)
    moved(here, there)  # the target's wall clock is two seconds ahead
    assert there.rtc.now() == datetime(2024, 3, 1, 0, 0, 2, tzinfo=UTC)
    assert there.rtc.port_read(PORT_DATA, 1) == 0, "the index that was selected is"
    assert there.read(STATUS_C) == PERIODIC_FLAG


def test_a_clock_stands_still_over_a_migration_that_took_negative_time() -> None:
    here, there = host(), host(monotonic=5 * S, wall=BORN_NS - 3600 * S, born=0)
    moved(here, there)
    assert there.rtc.now() == BORN
    there.clocks.advance(S)
    assert there.rtc.now() == datetime(2024, 3, 1, tzinfo=UTC)


def test_what_travels_is_relative_to_the_guests_boot() -> None:
    here = host(monotonic=10**15)
    here.clocks.advance(90 * S + 5)
    here.read(SECOND)
    assert here.export().base_clock == 90 * S
    there = host(monotonic=7)
    moved(here, there)
    assert there.export() == here.export()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rtc: attrs.evolve(rtc, cmos=bytes(127)), "cmos: 127 bytes; there are 128"),
        (lambda rtc: attrs.evolve(rtc, addr=0x80), "addr: 0x80; the highest is 0x7f"),
    ],
)
def test_values_that_it_cannot_have_are_refused(change: Callable[[BhyveRtcV2], BhyveRtcV2], problem: str) -> None:
    here = host()
    with pytest.raises(ImportFailed, match=problem):
        here.rtc.import_([change(here.export())])


@pytest.mark.parametrize("base_clock", [-(2**63), 2**63 - 1])
def test_a_base_from_the_end_of_time_breaks_nothing(base_clock: int) -> None:
    here = host()
    here.rtc.import_([attrs.evolve(here.export(), base_clock=base_clock)])
    assert here.rtc.now().year in (2024, 2316)
