"""Options that several commands have, and what is made of them."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, TextIO, TypeVar

import attrs
from cyclopts import Parameter

from migrate.cli.progress import Watch, event_lines
from migrate.daemon.address import BadInput
from migrate.daemon.events import EventLog, json_lines
from migrate.engine.policy import DEFAULT_DOWNTIME_LIMIT_MS, OnStall, PrecopyPolicy
from migrate.protocol.messages import STREAMS_MAX
from migrate.specs.reading import ParseError
from migrate.specs.replacements import Replacements, read_replacements
from sim_vmm.guest import GuestProgram, make_guest

Releases = Annotated[
    Path | None, Parameter(name="--releases", help="TOML file with further releases, as releases.toml.")
]
Guest = Annotated[
    str, Parameter(name="--guest", help="What the guest does: idle, stamp, ledger, features[:legacy], dirty:RATE,SET.")
]
From = Annotated[str, Parameter(name="--from", help="Release that the source's build is.")]
To = Annotated[str, Parameter(name="--to", help="Release that the target's build is.")]
MemoryMb = Annotated[int | None, Parameter(help="Guest RAM in MiB, in place of the spec's.")]
MemoryMax = Annotated[int, Parameter(name="--memory-max-mb", help="Refuse a machine with more guest RAM, in MiB.")]
DowntimeLimit = Annotated[float, Parameter(name="--downtime-limit-ms", help="How long the guest may be away, in ms.")]
Bandwidth = Annotated[str | None, Parameter(help="Cap for guest RAM, in bytes a second: 100M, 1.5G.")]
Stall = Annotated[OnStall, Parameter(help="What to do with a guest that dirties memory faster than it is copied.")]
RoundsMax = Annotated[
    int | None,
    Parameter(name="--rounds-max", help="How many RAM rounds there may be while the guest runs; 30 unless postponed."),
]
PrecopyTimeMax = Annotated[
    float | None,
    Parameter(name="--precopy-time-max-s", help="How long the guest's RAM may be copied while it runs, in s."),
]
Replace = Annotated[Path | None, Parameter(help="JSON file of components that the target puts in place of its own.")]
Retries = Annotated[int, Parameter(help="How often the target tries again after a failure.")]
Events = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, help="Write events as JSON lines to this file; - is standard output."),
]
StreamCount = Annotated[
    int, Parameter(name="--streams", help=f"Connections for guest RAM, 1 to {STREAMS_MAX}; the target opens them.")
]
Seed = Annotated[int, Parameter(help="Seed of everything random, 0 or more: the contents of guest RAM.")]
Wire = Annotated[Path | None, Parameter(help="Where `migrate wire` has a network for the machine's NICs.")]
StorageDirectory = Annotated[
    Path | None, Parameter(name="--storage", help="Directory of the machine's disks, the same for both daemons.")
]
StateDir = Annotated[
    Path | None, Parameter(name="--state-dir", help="Directory of what must survive this daemon; start again from it.")
]
RamDir = Annotated[
    Path | None,
    Parameter(
        name="--ram-dir",
        help="Guest RAM that survives a daemon lies below this directory, not in --state-dir; /dev/shm is memory.",
    ),
]
ReclaimAfter = Annotated[
    float,
    Parameter(name="--reclaim-after-s", help="How long to wait for a lost target before asking the storage's fence."),
]
DieAt = Annotated[str | None, Parameter(name="--die-at", help="Be killed where this point is passed.", show=False)]
HaltAt = Annotated[str | None, Parameter(name="--halt-at", help="Be stopped where this point is passed.", show=False)]
FailpointsAt = Annotated[
    Path | None, Parameter(name="--failpoints", help="Ask at this socket at every point whether to go on.", show=False)
]
Pace = Annotated[float, Parameter(help="How long a second of all deadlines and pauses is.", show=False)]
Unfenced = Annotated[bool, Parameter(negative="", help="Do without the storage's fence.", show=False)]
Artefacts = Annotated[Path | None, Parameter(help="Leave RAM, console and blobs here at the end.", show=False)]
Attached = Annotated[bool, Parameter(negative="", help="End when standard input ends.", show=False)]
TellMessages = Annotated[
    bool, Parameter(name="--tell-messages", negative="", help="Make every message an event.", show=False)
]
Audited = Annotated[bool, Parameter(negative="", help="Tell digests of the machine for an audit.", show=False)]


def arguments_of(options: Mapping[str, object]) -> list[str]:
    return [text for name, value in options.items() if value is not None for text in (name, str(value))]


def checked_pace(pace: float) -> float:
    if not pace > 0:
        raise BadInput(f"--pace {pace:g}: expected more than 0")
    return pace


def guest_named(text: str) -> GuestProgram:
    """Raises BadInput for an unknown program."""
    try:
        return make_guest(text)
    except ValueError as error:
        raise BadInput(str(error)) from error


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class PrecopyOptions:
    """The limits of pre-copy, of whoever may be a source."""

    downtime_limit_ms: DowntimeLimit = DEFAULT_DOWNTIME_LIMIT_MS
    on_stall: Stall = OnStall.REFUSE
    rounds_max: RoundsMax = None
    precopy_time_max_s: PrecopyTimeMax = None

    def policy(self) -> PrecopyPolicy:
        """Raises BadInput: a limit that nothing can keep."""
        above_0 = {"--downtime-limit-ms": self.downtime_limit_ms, "--precopy-time-max-s": self.precopy_time_max_s}
        for option, number in above_0.items():
            if number is not None and not number > 0:  # NaN is no number
                raise BadInput(f"{option} {number:g}: expected more than 0")
        if self.rounds_max is not None and self.rounds_max < 1:
            raise BadInput(f"--rounds-max {self.rounds_max}: expected 1 or more")
        return PrecopyPolicy(
            downtime_limit_ms=self.downtime_limit_ms,
            on_stall=self.on_stall,
            rounds_max=self.rounds_max,
            time_max_s=math.inf if self.precopy_time_max_s is None else self.precopy_time_max_s,
        )

    def arguments(self) -> list[str]:
        """The same for a daemon that is started."""
        return arguments_of(
            {
                "--downtime-limit-ms": self.downtime_limit_ms,
                "--on-stall": self.on_stall.value,
                "--rounds-max": self.rounds_max,
                "--precopy-time-max-s": self.precopy_time_max_s,
            }
        )


DEFAULT_PRECOPY: Final = PrecopyOptions()


N = TypeVar("N", int, float)


def at_least_0(option: str, number: N) -> N:
    if not number >= 0:  # NaN is no number
        raise BadInput(f"{option} {number:g}: expected 0 or more")
    return number


def read_replacements_file(path: Path | None) -> Replacements:
    """Raises BadInput or ParseError naming the file."""
    if path is None:
        return {}
    try:
        return read_replacements(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except ParseError as error:
        raise BadInput(f"{path}: {error}") from error


@contextmanager
def event_log(
    side: str, events: str | None, quiet: bool, lines: Callable[[TextIO], Watch] = event_lines
) -> Iterator[EventLog]:
    """Events for people on standard error, in `lines`, and as JSON lines where `events` says."""
    log = EventLog(side)
    if events == "-" and quiet:
        raise BadInput("--json and --events - both want standard output; write the events to a file")
    if events == "-":
        log.listeners.append(json_lines(sys.stdout))
        yield log
        return
    if not quiet:
        log.listeners.append(lines(sys.stderr))
    if events is None:
        yield log
        return
    try:
        stream = Path(events).open("w")  # noqa: SIM115  # closed below
    except OSError as error:
        raise BadInput(f"{events}: cannot be written: {error.strerror or error}") from error
    with stream:
        log.listeners.append(json_lines(stream))
        yield log


def usable_ram_dir(ram: Path | None, state: Path | None) -> Path | None:
    """Raises BadInput if files of guest RAM cannot be there."""
    if ram is not None and state is None:
        raise BadInput("--ram-dir is for guest RAM that survives its daemon; give --state-dir, too")
    if ram is not None and not ram.is_dir():
        raise BadInput(f"--ram-dir {ram} is no directory; /dev/shm is in memory on most hosts")
    return ram


def streams_of(count: int) -> int:
    if not 1 <= count <= STREAMS_MAX:
        raise BadInput(f"--streams is {count}; it must be 1 to {STREAMS_MAX}")
    return count
