"""The guest's clocks, at home and after a migration."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_vmm.clock import GuestClock, ManualClock, TimeData, TimeDataError

S = 10**9
I64_MAX = 2**63 - 1
U64_MAX = 2**64 - 1

#: A guest that booted 40 s ago on a host up for 100 s, exported at wall-clock time 1000.5 s.
DATA = TimeData(guest_freq=2 * S, guest_tsc=80 * S, hrtime=100 * S, hres_sec=1000, hres_ns=S // 2, boot_hrtime=60 * S)


def test_uptime_and_tsc_follow_the_host_clock() -> None:
    host = ManualClock(monotonic=5 * S)
    clock = GuestClock(host, guest_freq=3 * S)
    assert (clock.uptime_ns(), clock.tsc()) == (0, 0)
    host.advance(7)
    assert (clock.uptime_ns(), clock.tsc()) == (7, 21)


def test_the_tsc_rounds_down() -> None:
    host = ManualClock()
    clock = GuestClock(host, guest_freq=S // 2)
    host.advance(3)
    assert clock.tsc() == 1


def test_an_export_holds_the_clocks_of_host_and_guest() -> None:
    host = ManualClock(monotonic=60 * S, wall=960 * S + S // 2)
    clock = GuestClock(host, guest_freq=2 * S)
    host.advance(40 * S)
    assert clock.export() == DATA


def test_the_guest_goes_on_by_wall_clock_time() -> None:
    host = ManualClock(monotonic=7000 * S, wall=1002 * S)
    clock = GuestClock(host)
    result = clock.import_(DATA)
    assert (result.ns, result.warning) == (3 * S // 2, None)
    assert clock.uptime_ns() == 41 * S + S // 2
    assert clock.export() == TimeData(
        guest_freq=2 * S,
        guest_tsc=83 * S,
        hrtime=7000 * S,
        hres_sec=1002,
        hres_ns=0,
        boot_hrtime=7000 * S - 41 * S - S // 2,
    )


def test_a_peer_whose_clock_is_ahead_costs_no_time_and_warns() -> None:
    clock = GuestClock(ManualClock(monotonic=7000 * S, wall=1000 * S))
    result = clock.import_(DATA)
    assert result.ns == 0
    assert result.warning is not None
    assert "500000000 ns ahead of ours" in result.warning
    assert clock.uptime_ns() == 40 * S


def test_a_guest_older_than_its_host_booted_before_it() -> None:
    clock = GuestClock(ManualClock(monotonic=S, wall=1000 * S + S // 2))
    clock.import_(DATA)
    assert clock.export().boot_hrtime == -39 * S


def test_the_tsc_wraps_at_64_bits() -> None:
    clock = GuestClock(ManualClock(monotonic=S, wall=1001 * S + S // 2))
    clock.import_(attrs.evolve(DATA, guest_tsc=U64_MAX))
    assert clock.tsc() == 2 * S - 1


REFUSED = [
    ("a negative uptime", {"hrtime": 59 * S}, "negative uptime"),
    ("an uptime beyond 64 bits", {"hrtime": I64_MAX, "boot_hrtime": -1}, "hrtime - boot_hrtime"),
    ("an uptime that overflows in flight", {"hrtime": I64_MAX, "boot_hrtime": 0, "hres_sec": 0}, "the new uptime"),
    ("a second of two thousand million ns", {"hres_ns": 2 * S}, "nanoseconds of a second"),
]


@pytest.mark.parametrize(("changes", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_time_data_that_cannot_be_continued_is_refused(changes: dict[str, int], message: str) -> None:
    clock = GuestClock(ManualClock(monotonic=S, wall=1002 * S))
    before = clock.export()
    with pytest.raises(TimeDataError, match=message):
        clock.import_(attrs.evolve(DATA, **changes))
    assert clock.export() == before


@pytest.mark.parametrize(
    ("host", "changes", "message"),
    [
        (ManualClock(monotonic=-1, wall=1002 * S), {}, "must not be negative"),
        (ManualClock(monotonic=0, wall=2**64 + 1000 * S), {}, "the time in flight"),
        (ManualClock(monotonic=0, wall=1010 * S), {"guest_freq": U64_MAX}, "TSC ticks, more than 64 bits"),
    ],
)
def test_a_host_clock_that_overflows_is_refused(host: ManualClock, changes: dict[str, int], message: str) -> None:
    clock = GuestClock(host)
    with pytest.raises(TimeDataError, match=message):
        clock.import_(attrs.evolve(DATA, **changes))


@given(
    freq=st.integers(1, 10 * S),
    age_ns=st.integers(0, 10**18),
    flight_ns=st.integers(0, 10**15),
    after_ns=st.integers(0, 10**15),
    target_monotonic=st.integers(0, 10**18),
)
def test_with_synchronised_clocks_a_migration_is_invisible(
    freq: int, age_ns: int, flight_ns: int, after_ns: int, target_monotonic: int
) -> None:
    source = ManualClock(monotonic=12345, wall=10**18)
    clock = GuestClock(source, guest_freq=freq)
    source.advance(age_ns)
    data = clock.export()
    target = ManualClock(monotonic=target_monotonic, wall=source.wall + flight_ns)
    moved = GuestClock(target)
    moved.import_(data)
    source.advance(flight_ns + after_ns)
    target.advance(after_ns)
    assert moved.uptime_ns() == clock.uptime_ns()
    assert 0 <= (clock.tsc() - moved.tsc()) & U64_MAX <= 2  # two more roundings down
