"""The real-time clock of a PC, behind ports 0x70 and 0x71, with its 128 bytes of CMOS memory (device-payloads §6).

The guest writes an index to the first port and reads or writes the byte there through the second.  The first ten bytes
are a calendar, bytes 0xA to 0xD control and status (Motorola MC146818A); the rest is memory.

The calendar stands in CMOS as it was at `base_clock` and is carried forward when the guest looks: whole seconds that
have passed since are added to both.  `base_clock` and `last_period` count from the guest's boot, so that they hold
under another host's clock as soon as the guest's own has been set (protocol-phases §6): the guest sees its wall clock
go on over a migration by the time that it took.

Derived: nothing.  What the guest reads is computed from the registers and the guest's clock each time.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

from sim_vmm.clock import NS_PER_S, GuestClock
from sim_vmm.devices.base import Arrived, Device, refusal
from sim_vmm.payloads import BhyveRtcV2, Payload, Schema

#: The real-time clock is a function of the south bridge, whose key upstream exports it under.
KEY: Final = "pci-piix3-lpc"

PORT_INDEX: Final = 0x70
PORT_DATA: Final = 0x71
#: Bit 7 of the index masks non-maskable interrupts, and selects nothing.
INDEX_MASK: Final = 0x7F
CMOS_BYTES: Final = 128

SECOND, MINUTE, HOUR, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
STATUS_A, STATUS_B, STATUS_C, STATUS_D = 0xA, 0xB, 0xC, 0xD
CENTURY: Final = 0x32

#: Status A: the divider of a 32,768 Hz crystal, and no periodic flag.
DIVIDER_32768_HZ: Final = 0x20
RATE_MASK: Final = 0x0F
CRYSTAL_HZ: Final = 32768
#: Status B.
STOPPED: Final = 1 << 7
BINARY: Final = 1 << 2
HOURS_24: Final = 1 << 1
#: Status C, which reading clears.
PERIODIC_FLAG: Final = 1 << 6
#: Status D.
VALID: Final = 1 << 7
READ_ONLY: Final = (STATUS_C, STATUS_D)


class Rtc(Device):
    """A clock that starts at the wall time `born_ns` (ns since 1970-01-01 UTC) and goes on with `clock`."""

    kind: ClassVar[str] = "rtc"
    EXPORTS: ClassVar[tuple[tuple[Schema, ...], ...]] = ((BhyveRtcV2.SCHEMA,),)
    ports = (range(PORT_INDEX, PORT_DATA + 1),)

    def __init__(self, clock: GuestClock, born_ns: int) -> None:
        super().__init__(KEY)
        self._clock = clock
        self._addr = 0
        self._cmos = bytearray(CMOS_BYTES)
        self._cmos[STATUS_A] = DIVIDER_32768_HZ
        self._cmos[STATUS_B] = HOURS_24
        self._cmos[STATUS_D] = VALID
        self._base_clock = self._last_period = 0
        self._set_calendar(datetime.fromtimestamp(born_ns // NS_PER_S, UTC))

    def port_read(self, port: int, size: int) -> int:
        if port == PORT_INDEX:
            return self._addr
        self._go_on()
        if self._addr != STATUS_C:
            return self._cmos[self._addr]
        flags, self._cmos[STATUS_C] = self._cmos[STATUS_C], 0
        return flags

    def port_write(self, port: int, size: int, value: int) -> None:
        if port == PORT_INDEX:
            self._addr = value & INDEX_MASK
            return
        self._go_on()
        if self._addr == STATUS_B and self._cmos[STATUS_B] & STOPPED and not value & STOPPED:
            self._base_clock = self._clock.uptime_ns()  # set going again: the calendar is as it stands, from now on
        if self._addr == STATUS_A:
            self._last_period = self._clock.uptime_ns()
        if self._addr not in READ_ONLY:
            self._cmos[self._addr] = value & 0xFF

    def now(self) -> datetime:
        """The calendar as the guest reads it, whole seconds."""
        self._go_on()
        return self._calendar() or datetime.fromtimestamp(0, UTC)

    def _go_on(self) -> None:
        """Bring calendar and flags up to this moment."""
        uptime = self._clock.uptime_ns()
        seconds = (uptime - self._base_clock) // NS_PER_S
        calendar = self._calendar()
        if seconds > 0 and calendar is not None and not self._cmos[STATUS_B] & STOPPED:
            with suppress(OverflowError):  # a calendar at its end stands
                self._set_calendar(calendar + timedelta(seconds=seconds))
                self._base_clock += seconds * NS_PER_S
        rate = self._cmos[STATUS_A] & RATE_MASK
        if rate:
            period = NS_PER_S * (1 << (rate - 1)) // CRYSTAL_HZ
            passed = (uptime - self._last_period) // period
            if passed > 0:
                self._cmos[STATUS_C] |= PERIODIC_FLAG
                self._last_period += passed * period

    def _calendar(self) -> datetime | None:
        """What the calendar's bytes say; None if that is no date: such a clock stands, as the guest has left it."""
        decode = int if self._cmos[STATUS_B] & BINARY else _from_bcd
        century, year, month, day, hour, minute, second = (
            decode(self._cmos[index]) for index in (CENTURY, YEAR, MONTH, DAY, HOUR, MINUTE, SECOND)
        )
        try:
            return datetime(century * 100 + year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None

    def _set_calendar(self, moment: datetime) -> None:
        encode: Callable[[int], int] = int if self._cmos[STATUS_B] & BINARY else _to_bcd
        century, year = divmod(moment.year, 100)
        for index, value in (
            (SECOND, moment.second),
            (MINUTE, moment.minute),
            (HOUR, moment.hour),
            (WEEKDAY, moment.isoweekday() % 7 + 1),  # Sunday is 1
            (DAY, moment.day),
            (MONTH, moment.month),
            (YEAR, year),
            (CENTURY, century),
        ):
            self._cmos[index] = encode(value)

    def _payloads(self) -> tuple[Payload, ...]:
        return (
            BhyveRtcV2(
                base_clock=self._base_clock, last_period=self._last_period, cmos=bytes(self._cmos), addr=self._addr
            ),
        )

    def _take(self, arrived: Arrived) -> None:
        rtc = arrived.of(BhyveRtcV2)
        refuse = refusal(self.key, rtc.SCHEMA)
        if len(rtc.cmos) != CMOS_BYTES:
            raise refuse("cmos", f"{len(rtc.cmos)} bytes; there are {CMOS_BYTES}")
        if rtc.addr > INDEX_MASK:
            raise refuse("addr", f"{rtc.addr:#x}; the highest is {INDEX_MASK:#x}")
        self._base_clock, self._last_period = rtc.base_clock, rtc.last_period
        self._cmos, self._addr = bytearray(rtc.cmos), rtc.addr


def _to_bcd(value: int) -> int:
    tens, ones = divmod(value, 10)
    return tens << 4 | ones


def _from_bcd(value: int) -> int:
    return (value >> 4) * 10 + (value & 0xF)
