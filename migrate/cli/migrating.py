"""`migrate source`, `migrate target` and `migrate rehearse`."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from json import dumps as json_of
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Self, TextIO, TypeVar
from uuid import UUID, uuid4

import attrs
import trio
from cyclopts import Parameter

from migrate.cli.access import ANYBODY_ON_LOOPBACK, AccessOptions, MigrationId, address_of, throw_away
from migrate.cli.checking import Guest, Releases, guest_named
from migrate.cli.output import complain, print_json
from migrate.cli.progress import Event, Watch, event_lines, live_progress
from migrate.cli.reporting import Report, Trace, leave, leave_migration, rehearsal_facts, require_writable
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.summary import print_summary
from migrate.cli.units import parse_rate
from migrate.cli.zygote import forking
from migrate.daemon.address import BadInput
from migrate.daemon.birth import born
from migrate.daemon.events import EventLog, json_lines
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.guests import MEMORY_MB_MAX
from migrate.daemon.node import new_node_name
from migrate.daemon.pair import DaemonDied, PairOptions
from migrate.daemon.run import (
    Birthplace,
    Places,
    SourceOptions,
    TargetOptions,
    leaf_of,
    run_source_daemon,
    run_target_daemon,
)
from migrate.daemon.source import RECLAIM_AFTER_S
from migrate.daemon.state import JournalDamaged, StateDirectory, StateError
from migrate.daemon.supervisor import NotStarted
from migrate.daemon.wire import WireError
from migrate.engine.handoff import Holding
from migrate.engine.policy import DEFAULT_DOWNTIME_LIMIT_MS, OnStall, PrecopyPolicy
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.faults.plan import Plan, PlanError
from migrate.faults.toml import read_plan_file
from migrate.protocol.messages import NAME_MAX, STREAMS_MAX
from migrate.rehearsal.injection import require_possible
from migrate.rehearsal.leftovers import Leftovers
from migrate.rehearsal.real import RealWorld
from migrate.rehearsal.rehearse import RehearsalOptions, judge_faulty_rehearsal, run_rehearsal
from migrate.rehearsal.result import RehearsalResult
from migrate.releases import NEWEST, all_releases, release_named
from migrate.reports.told import timeline_of
from migrate.specs.reading import ParseError
from migrate.specs.replacements import Replacements, read_replacements
from sim_vmm.guest import LedgerGuest, StampGuest

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


def source(
    spec: Path | None = None,
    /,
    *,
    listen: str | None = None,
    from_: From = NEWEST,
    guest: Guest = "stamp",
    memory_mb: MemoryMb = None,
    downtime_limit_ms: DowntimeLimit = DEFAULT_DOWNTIME_LIMIT_MS,
    bandwidth: Bandwidth = None,
    on_stall: Stall = OnStall.REFUSE,
    rounds_max: RoundsMax = None,
    precopy_time_max_s: PrecopyTimeMax = None,
    seed: Seed = 0,
    releases: Releases = None,
    api_version: ApiVersion = None,
    events: Events = None,
    who: AccessOptions = ANYBODY_ON_LOOPBACK,
    migration_id: MigrationId = None,
    state_dir: StateDir = None,
    ram_dir: RamDir = None,
    storage: StorageDirectory = None,
    take_storage: Annotated[
        bool, Parameter(negative="", help="Take the disks from whoever used them last: nothing may run there.")
    ] = False,
    reclaim_after_s: ReclaimAfter = RECLAIM_AFTER_S,
    wire: Wire = None,
    artefacts: Artefacts = None,
    attached: Attached = False,
    audited: Audited = False,
    tell_messages: TellMessages = False,
    die_at: DieAt = None,
    halt_at: HaltAt = None,
    failpoints: FailpointsAt = None,
    pace: Pace = 1.0,
    unfenced: Unfenced = False,
    json: Json = False,
) -> int:
    """Run a machine, ready to be migrated away by whoever connects.

    Parameters
    ----------
    spec
        The machine's spec; it may be left out where --state-dir has a machine.
    listen
        HOST:PORT to listen on; port 0 takes any.  By default 127.0.0.1:4600, or as before with the same --state-dir.
    """
    if spec is None and state_dir is None:
        raise BadInput("SPEC is missing, and there is no --state-dir to find a machine in; see migrate source --help")
    access = who.access()
    address = address_of(listen, access)
    settings = SourceSettings(
        node=new_node_name(),
        machine_name="",
        release=release_named(from_, all_releases(releases)),
        policy=policy_of(downtime_limit_ms, on_stall, rounds_max, precopy_time_max_s),
        bandwidth=parse_rate(bandwidth),
    )
    program = guest_named(guest)
    if isinstance(program, StampGuest | LedgerGuest):
        program = attrs.evolve(program, seed=at_least_0("--seed", seed))
    birth = None
    if spec is not None:
        birth = Birthplace(
            spec=born(read(spec, api_version).spec, memory_mb),
            name=spec.stem[:NAME_MAX],
            program=program,
            take_storage=take_storage,
        )
    options = SourceOptions(
        birth=birth,
        listen=address,
        settings=settings,
        migration=migration_id,
        places=Places(
            storage=storage,
            wire=wire,
            artefacts=artefacts,
            state=state_dir,
            ram=usable_ram_dir(ram_dir, state_dir),
            fenced=not unfenced,
        ),
        reclaim_after_s=at_least_0("--reclaim-after-s", reclaim_after_s),
        attached=attached,
        audited=audited,
        die_at=die_at,
        halt_at=halt_at,
        failpoints=failpoints,
        deadlines=who.deadlines().scaled(checked_pace(pace)),
        access=access,
    )
    with event_log("source", events, json) as log:
        log.tells_messages = tell_messages
        code, report = trio.run(run_source_daemon, options, log)
    if json:
        print_json(report)
    return code


def target(
    source: str | None = None,
    /,
    *,
    to: To = NEWEST,
    replace: Replace = None,
    retries: Retries = 0,
    streams: StreamCount = 1,
    memory_max_mb: MemoryMax = MEMORY_MB_MAX,
    listen: str | None = None,
    downtime_limit_ms: DowntimeLimit = DEFAULT_DOWNTIME_LIMIT_MS,
    bandwidth: Bandwidth = None,
    on_stall: Stall = OnStall.REFUSE,
    rounds_max: RoundsMax = None,
    precopy_time_max_s: PrecopyTimeMax = None,
    releases: Releases = None,
    events: Events = None,
    who: AccessOptions = ANYBODY_ON_LOOPBACK,
    migration_id: MigrationId = None,
    onward_id: Annotated[UUID | None, Parameter(help="The --migration-id of the migration away.")] = None,
    state_dir: StateDir = None,
    ram_dir: RamDir = None,
    storage: StorageDirectory = None,
    reclaim_after_s: ReclaimAfter = RECLAIM_AFTER_S,
    wire: Wire = None,
    artefacts: Artefacts = None,
    attached: Attached = False,
    audited: Audited = False,
    tell_messages: TellMessages = False,
    die_at: DieAt = None,
    halt_at: HaltAt = None,
    failpoints: FailpointsAt = None,
    pace: Pace = 1.0,
    unfenced: Unfenced = False,
    json: Json = False,
) -> int:
    """Migrate a machine in from a source, then run it.

    Parameters
    ----------
    source
        HOST:PORT of the source; it may be left out where --state-dir remembers one.
    listen
        HOST:PORT to be a source at in turn, once the machine is here; the options for sources are for then.
    """
    if source is None and state_dir is None:
        raise BadInput("SOURCE is missing, and there is no --state-dir that remembers one; see migrate target --help")
    if (onward_id is not None and listen is None) or (migration_id and listen and onward_id is None):
        raise BadInput("a migration away with --listen has an id of its own, --onward-id, and is the only one that has")
    access = who.access()
    from_address, own_address = (address_of(text, access) for text in (source, listen))
    release = release_named(to, all_releases(releases))
    node = new_node_name()
    as_source = SourceSettings(
        node=node,
        machine_name="",
        release=release,
        policy=policy_of(downtime_limit_ms, on_stall, rounds_max, precopy_time_max_s),
        bandwidth=parse_rate(bandwidth),
    )
    options = TargetOptions(
        source=from_address,
        settings=TargetSettings(
            node=node, release=release, migration=migration_id, replacements=read_replacements_file(replace)
        ),
        retries=at_least_0("--retries", retries),
        streams=streams_of(streams),
        listen=own_address,
        as_source=as_source if listen is not None else None,
        onward=onward_id,
        places=Places(
            storage=storage,
            wire=wire,
            artefacts=artefacts,
            state=state_dir,
            ram=usable_ram_dir(ram_dir, state_dir),
            fenced=not unfenced,
            memory_mb_max=int(at_least_0("--memory-max-mb", memory_max_mb)),
        ),
        reclaim_after_s=at_least_0("--reclaim-after-s", reclaim_after_s),
        attached=attached,
        audited=audited,
        die_at=die_at,
        halt_at=halt_at,
        failpoints=failpoints,
        pace=pace,
        deadlines=who.deadlines().scaled(checked_pace(pace)),
        access=access,
    )
    with event_log("target", events, json) as log:
        log.tells_messages = tell_messages
        code, report = trio.run(run_target_daemon, options, log)
    if json:
        print_json(report)
    return code


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


def rehearse(
    spec: Path,
    /,
    *,
    from_: From = NEWEST,
    to: To = NEWEST,
    guest: Guest = "ledger",
    memory_mb: MemoryMb = None,
    downtime_limit_ms: DowntimeLimit = DEFAULT_DOWNTIME_LIMIT_MS,
    bandwidth: Bandwidth = None,
    on_stall: Stall = OnStall.REFUSE,
    rounds_max: RoundsMax = None,
    precopy_time_max_s: PrecopyTimeMax = None,
    replace: Replace = None,
    faults: Annotated[
        Path | None, Parameter(help="TOML file of what is to go wrong meanwhile, as for migrate replay --real.")
    ] = None,
    retries: Retries = 0,
    streams: StreamCount = 1,
    seed: Seed = 0,
    state_dir: StateDir = None,
    ram_dir: RamDir = None,
    storage: StorageDirectory = None,
    wire: Wire = None,
    after_s: float = 0.3,
    tls: Annotated[bool, Parameter(negative="", help="Mutual TLS, with certificates made for this run.")] = False,
    releases: Releases = None,
    api_version: ApiVersion = None,
    report: Report = None,
    trace: Trace = None,
    events: Annotated[Path | None, Parameter(help="Write the events of both daemons here, as JSON lines.")] = None,
    json: Json = False,
) -> int:
    """Start a source and a target as processes on loopback, migrate, audit, and tear down.

    Parameters
    ----------
    spec
        The machine's spec.
    after_s
        How long the guest runs on where it ended up before everything is torn down, in seconds.
    """
    known = all_releases(releases)
    release_named(from_, known), release_named(to, known), guest_named(guest)
    policy_of(downtime_limit_ms, on_stall, rounds_max, precopy_time_max_s)
    parse_rate(bandwidth)
    machine = born(read(spec, api_version).spec, memory_mb)
    common = arguments_of({"--releases": releases, "--ram-dir": usable_ram_dir(ram_dir, state_dir)})
    limits = {
        "--downtime-limit-ms": downtime_limit_ms,
        "--bandwidth": bandwidth,
        "--on-stall": on_stall.value,
        "--rounds-max": rounds_max,
        "--precopy-time-max-s": precopy_time_max_s,
    }
    of_birth = arguments_of({"--guest": guest, "--memory-mb": memory_mb, "--seed": seed, "--api-version": api_version})
    as_source = arguments_of({"--from": from_, **limits})
    streams_of(streams)
    plan = None if faults is None else plan_for_real(faults, streams, wire, tls=tls)
    streams = streams if plan is None else plan.streams
    tries = {"--retries": at_least_0("--retries", retries), "--streams": streams}
    target_arguments = arguments_of({"--to": to, "--replace": replace, **tries})
    if state_dir is not None:
        require_unused(state_dir)
    require_writable(report=report, trace=trace, events=events)
    watched = () if report is trace is events is None else ("--tell-messages",)
    told: list[Event] = []
    result: RehearsalResult | None = None
    code = ExitCode.DONE
    with TemporaryDirectory(prefix="migrate-") as directory, forking() as launching:
        places = RehearsalPlaces.below(Path(directory), storage, wire, state_dir)
        secured: dict[str, list[str]] = throw_away(Path(directory) / "certificates") if tls else {}

        migration = ["--migration-id", str(uuid4())]

        def arguments(side: str) -> list[str]:
            return [*migration, *common, *places.arguments(guest, side), *secured.get(side, ())]

        options = RehearsalOptions(
            spec=machine,
            replacements=read_replacements_file(replace),
            seed=at_least_0("--seed", seed),
            leftovers=places.leftovers,
            pair=PairOptions(
                source_arguments=(
                    *(str(spec), "--listen", "127.0.0.1:0", *of_birth, *as_source),
                    *(*arguments("source"), *watched),
                ),
                target_arguments=(*target_arguments, *arguments("target"), *watched),
                after_s=at_least_0("--after-s", after_s),
                wire=places.wire if places.leftovers.wire is not None else None,
                wire_record=places.leftovers.wire,
            ),
        )
        try:
            with live_progress(quiet=json) as watch:
                if plan is None:
                    result = trio.run(run_rehearsal, options, noting(told, watch), launching)
                else:
                    world = RealWorld(
                        spec=machine,
                        spec_file=spec,
                        source=tuple(of_birth),
                        as_source=tuple(as_source),
                        target=tuple(target_arguments),
                        both=tuple(common),
                        fences=True,
                        states=state_dir,
                        storage=places.leftovers.storage,
                        asks_again=False,
                        after_s=after_s,
                        watch=noting(told, watch),
                    )
                    played = trio.run(world.play, plan, Path(directory), launching)
                    result = judge_faulty_rehearsal(options, played)
        except* DaemonDied as group:
            code = _tell_death(group)
        except* NotStarted as group:
            complain(str(leaf_of(group)).removeprefix("migrate: "))
            code = ExitCode.BAD_INPUT
        except* WireError as group:
            complain(str(group.exceptions[0]))
            code = ExitCode.BAD_INPUT
        except* KeyboardInterrupt:
            complain("interrupted; both daemons have ended")
            code = ExitCode.INTERRUPTED
    if events is not None:
        leave(events, "".join(f"{json_of(event)}\n" for event in told))
    if result is None:
        return code
    document, title = result.document, f"{spec}, {from_} to {to}"
    facts = rehearsal_facts(document)
    leave_migration(report, trace, title, lambda: timeline_of(document, told), facts)
    if json:
        print_json(result.document)
    else:
        print_summary(result, title)
    if result.violations:
        return ExitCode.AUDIT_VIOLATED
    return ExitCode.DONE if result.outcome == "migrated" else ExitCode.NOT_DONE


def plan_for_real(file: Path, streams: int, wire: Path | None = None, *, tls: bool = False) -> Plan:
    """For so many connections, or as many as it says itself.

    Raises:
        BadInput: there is no such plan, or it cannot be carried out on real daemons.
    """
    if wire is not None:
        raise BadInput("--faults brings a network of its own, as daemons come and go; leave --wire out")
    if tls:
        raise BadInput(
            "--faults strikes at messages, which nobody between the daemons can read with --tls; leave one out"
        )
    return plan_at(file, streams, require_possible)


def plan_at(file: Path, streams: int, require: Callable[[Plan], None] = lambda plan: None) -> Plan:
    """As `plan_for_real`, for whatever world; `require` raises PlanError for what it cannot do."""
    try:
        plan = read_plan_file(file).over(streams)
        require(plan)
    except PlanError as error:
        text = str(error)
        raise BadInput(text if text.startswith(str(file)) else f"{file}: {text}") from error
    return plan


def noting(events: list[Event], watch: Watch) -> Watch:
    """`watch`, with every event kept in `events`."""

    def note(event: Event) -> None:
        events.append(event)
        watch(event)

    return note


def require_unused(state: Path) -> None:
    """Raises BadInput if a daemon of an earlier rehearsal left a machine below `state`: it would be started again."""
    for side in ("source", "target"):
        try:
            machines = StateDirectory.look(state / side).machines()
        except JournalDamaged as error:
            raise BadInput(str(error)) from error
        except StateError:
            continue  # nothing is there
        left = [machine for machine in machines if machine.record.holding is not Holding.NOT_OWNER or machine.debts]
        if left:
            raise BadInput(
                f"{state / side} holds {left[0].record} of a machine from before: a rehearsal wants a directory "
                f"without one; see migrate status --state-dir {state / side}"
            )


def _tell_death(group: BaseExceptionGroup[DaemonDied]) -> ExitCode:
    """A daemon that could not do what was asked has said so in a line of its own; any other death is a bug."""
    death = leaf_of(group)
    assert isinstance(death, DaemonDied)
    if death.exit_code == ExitCode.BAD_INPUT:
        complain(death.last_words.removeprefix("migrate: "))
        return ExitCode.BAD_INPUT
    complain(str(death))
    return ExitCode.AUDIT_VIOLATED


@attrs.frozen
class RehearsalPlaces:
    """Where a rehearsal keeps the machine's disks, its network, what its daemons remember, and what is left of it."""

    leftovers: Leftovers
    wire: Path
    state: Path | None

    @classmethod
    def below(cls, directory: Path, storage: Path | None, wire: Path | None, state: Path | None) -> Self:
        """Below `directory`, unless the person has a place; a wire that somebody else carries is not recorded by us."""
        leftovers = Leftovers(
            left=directory / "left",
            storage=directory / "storage" if storage is None else storage,
            wire=directory / "wire.jsonl" if wire is None else None,
        )
        return cls(leftovers, directory / "wire" if wire is None else wire, state)

    def arguments(self, guest: str, side: str) -> list[str]:
        """What a daemon is told.  Of a guest that keeps no ledger nobody would read what is left."""
        left = self.leftovers.left if guest == LedgerGuest.name else None
        state = None if self.state is None else self.state / side
        options = {"--storage": self.leftovers.storage, "--wire": self.wire, "--artefacts": left, "--state-dir": state}
        return [*arguments_of(options), "--audited"]


def arguments_of(options: Mapping[str, object]) -> list[str]:
    return [text for name, value in options.items() if value is not None for text in (name, str(value))]


def checked_pace(pace: float) -> float:
    if not pace > 0:
        raise BadInput(f"--pace {pace:g}: expected more than 0")
    return pace


def policy_of(
    downtime_limit_ms: float, on_stall: OnStall, rounds_max: int | None, precopy_time_max_s: float | None
) -> PrecopyPolicy:
    above_0 = {"--downtime-limit-ms": downtime_limit_ms, "--precopy-time-max-s": precopy_time_max_s}
    for option, number in above_0.items():
        if number is not None and not number > 0:  # NaN is no number
            raise BadInput(f"{option} {number:g}: expected more than 0")
    if rounds_max is not None and rounds_max < 1:
        raise BadInput(f"--rounds-max {rounds_max}: expected 1 or more")
    return PrecopyPolicy(
        downtime_limit_ms=downtime_limit_ms,
        on_stall=on_stall,
        rounds_max=rounds_max,
        time_max_s=math.inf if precopy_time_max_s is None else precopy_time_max_s,
    )


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
