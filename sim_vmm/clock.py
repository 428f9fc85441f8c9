"""The guest's clocks: its TSC and the instant of its boot, kept against the host's monotonic clock.

The guest's TSC counts `guest_freq` a second and wraps at 64 bits; its uptime is the host's monotonic time since
`boot_hrtime`.  Both go on over a migration as wall-clock time does (protocol-phases §6): the new host adds the time in
flight, the difference of the two hosts' wall clocks.  Where those disagree so much that time would run backwards,
no time has passed, and the caller is told.

A machine that moved to a host which booted later than the machine has a negative `boot_hrtime`.  Import computes
everything before it changes anything.
"""

import time
from typing import Final, Protocol

import attrs

from sim_vmm.integers import I64, U64, U64_MAX

NS_PER_S: Final = 1_000_000_000
I64_MIN: Final = -(2**63)
I64_MAX: Final = 2**63 - 1
#: What an emulated host gives a machine at birth, in Hz.
DEFAULT_GUEST_FREQ: Final = 2_000_000_000


class HostClock(Protocol):
    """The two clocks of a host."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since the host booted; never goes back."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC, as far as the host knows."""


class SystemClock:
    """The clocks of the host that we run on."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()


@attrs.define
class ManualClock:
    """Clocks that stand still until they are told: for tests and simulation.  Nanoseconds."""

    monotonic: int = 0
    wall: int = 0

    def monotonic_ns(self) -> int:
        return self.monotonic

    def wall_ns(self) -> int:
        return self.wall

    def advance(self, ns: int) -> None:
        self.monotonic += ns
        self.wall += ns


class TimeDataError(Exception):
    """Time data from which the guest's clocks cannot be continued."""


@attrs.frozen(kw_only=True)
class TimeData:
    """A guest's clocks and its host's, taken together (protocol-phases §6).

    `guest_freq` in Hz; `guest_tsc` in TSC ticks; `hrtime` and `boot_hrtime` in ns of the host's monotonic clock;
    `hres_sec` and `hres_ns` are the host's wall clock, seconds and the nanoseconds of the second.
    """

    guest_freq: U64
    guest_tsc: U64
    hrtime: I64
    hres_sec: U64
    hres_ns: U64
    boot_hrtime: I64


@attrs.frozen
class TimeInFlight:
    """What an import made of the wall clocks: the time added to the guest's, in ns, and a warning if it is a guess."""

    ns: int
    warning: str | None


class GuestClock:
    """A guest's clocks on the host with clocks `host_clock`; at birth uptime and TSC are zero."""

    def __init__(self, host_clock: HostClock, guest_freq: int = DEFAULT_GUEST_FREQ) -> None:
        self._host = host_clock
        self._guest_freq = guest_freq
        self._boot_hrtime = self._read_hrtime = host_clock.monotonic_ns()
        self._read_tsc = 0

    def uptime_ns(self) -> int:
        """Nanoseconds since the guest booted, wherever it has been since."""
        return self._host.monotonic_ns() - self._boot_hrtime

    def tsc(self) -> int:
        return self._tsc_at(self._host.monotonic_ns())

    def export(self) -> TimeData:
        hrtime, wall = self._host.monotonic_ns(), self._host.wall_ns()
        return TimeData(
            guest_freq=self._guest_freq,
            guest_tsc=self._tsc_at(hrtime),
            hrtime=hrtime,
            hres_sec=wall // NS_PER_S,
            hres_ns=wall % NS_PER_S,
            boot_hrtime=self._boot_hrtime,
        )

    def import_(self, data: TimeData) -> TimeInFlight:
        """Go on from another host's `data` as protocol-phases §6 computes; say how long the guest was in flight.

        Raises:
            TimeDataError: a step overflows or the data contradicts itself; nothing has changed.
        """
        now, wall = self._host.monotonic_ns(), self._host.wall_ns()
        if now < 0:
            raise TimeDataError(f"this host's monotonic clock reads {now} ns; it must not be negative")
        if data.hres_ns >= NS_PER_S:
            raise TimeDataError(f"hres_ns is {data.hres_ns}; the nanoseconds of a second are 0-{NS_PER_S - 1}")
        difference = wall - (data.hres_sec * NS_PER_S + data.hres_ns)
        delta = _in_i64("the time in flight", max(difference, 0))
        uptime = _in_i64("hrtime - boot_hrtime", data.hrtime - data.boot_hrtime)
        if uptime < 0:
            raise TimeDataError(f"hrtime {data.hrtime} lies before boot_hrtime {data.boot_hrtime}: a negative uptime")
        boot_hrtime = _in_i64("the new boot_hrtime", now - _in_i64("the new uptime", uptime + delta))
        ticks = delta * data.guest_freq // NS_PER_S
        if ticks > U64_MAX:
            raise TimeDataError(f"{delta} ns at {data.guest_freq} Hz are {ticks} TSC ticks, more than 64 bits hold")

        self._guest_freq = data.guest_freq
        self._boot_hrtime = boot_hrtime
        self._read_hrtime = now
        self._read_tsc = (data.guest_tsc + ticks) & U64_MAX
        if difference >= 0:
            return TimeInFlight(delta, None)
        return TimeInFlight(
            0, f"the peer's wall clock is {-difference} ns ahead of ours; taking no time as passed (#357)"
        )

    def _tsc_at(self, hrtime: int) -> int:
        elapsed = hrtime - self._read_hrtime
        return (self._read_tsc + elapsed * self._guest_freq // NS_PER_S) & U64_MAX


def _in_i64(what: str, ns: int) -> int:
    if not I64_MIN <= ns <= I64_MAX:
        raise TimeDataError(f"{what} is {ns} ns, outside the signed 64 bits that hold {I64_MIN} to {I64_MAX}")
    return ns
