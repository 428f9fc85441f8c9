"""`migrate source`, `migrate target` and `migrate rehearse`."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final, Self, TypeVar

import attrs
import trio
from cyclopts import Parameter

from migrate.cli.checking import Guest, Releases, guest_named
from migrate.cli.output import complain, print_json
from migrate.cli.progress import event_lines, live_progress
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.summary import print_summary
from migrate.cli.units import parse_rate
from migrate.daemon.events import EventLog, json_lines
from migrate.daemon.pair import DaemonDied, PairOptions
from migrate.daemon.run import (
    Address,
    BadInput,
    ExitCode,
    SourceOptions,
    TargetOptions,
    run_source_daemon,
    run_target_daemon,
)
from migrate.daemon.wire import WireError
from migrate.engine.policy import DEFAULT_DOWNTIME_LIMIT_MS, OnStall, PrecopyPolicy
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.protocol.messages import NAME_MAX
from migrate.rehearsal.leftovers import Leftovers
from migrate.rehearsal.rehearse import RehearsalOptions, run_rehearsal
from migrate.rehearsal.result import RehearsalResult
from migrate.releases import NEWEST, all_releases, release_named
from migrate.specs.reading import ParseError
from migrate.specs.replacements import Replacements, read_replacements
from sim_vmm.guest import LedgerGuest, StampGuest
from sim_vmm.spec import Spec, build_spec, host_cpuid

DEFAULT_LISTEN: Final = "127.0.0.1:4600"
MEMORY_MB_MAX: Final = 1 << 22
"""4 TiB: more guest RAM than this emulation can keep track of in reason."""

From = Annotated[str, Parameter(name="--from", help="Release that the source's build is.")]
To = Annotated[str, Parameter(name="--to", help="Release that the target's build is.")]
MemoryMb = Annotated[int | None, Parameter(help="Guest RAM in MiB, in place of the spec's.")]
DowntimeLimit = Annotated[float, Parameter(name="--downtime-limit-ms", help="How long the guest may be away, in ms.")]
Bandwidth = Annotated[str | None, Parameter(help="Cap for guest RAM, in bytes a second: 100M, 1.5G.")]
Stall = Annotated[OnStall, Parameter(help="What to do with a guest that dirties memory faster than it is copied.")]
Replace = Annotated[Path | None, Parameter(help="JSON file of components that the target puts in place of its own.")]
Retries = Annotated[int, Parameter(help="How often the target tries again after a failure.")]
Events = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, help="Write events as JSON lines to this file; - is standard output."),
]
Seed = Annotated[int, Parameter(help="Seed of everything random, 0 or more: the contents of guest RAM.")]
Insecure = Annotated[bool, Parameter(negative="", help="Allow an address off loopback, in the clear.")]
Wire = Annotated[Path | None, Parameter(help="Where `migrate wire` has a network for the machine's NICs.")]
StorageDirectory = Annotated[
    Path | None, Parameter(name="--storage", help="Directory of the machine's disks, the same for both daemons.")
]
Artefacts = Annotated[Path | None, Parameter(help="Leave RAM, console and blobs here at the end.", show=False)]
Attached = Annotated[bool, Parameter(negative="", help="End when standard input ends.", show=False)]
Audited = Annotated[bool, Parameter(negative="", help="Tell digests of the machine for an audit.", show=False)]


def source(
    spec: Path,
    /,
    *,
    listen: str = DEFAULT_LISTEN,
    from_: From = NEWEST,
    guest: Guest = "stamp",
    memory_mb: MemoryMb = None,
    downtime_limit_ms: DowntimeLimit = DEFAULT_DOWNTIME_LIMIT_MS,
    bandwidth: Bandwidth = None,
    on_stall: Stall = OnStall.REFUSE,
    seed: Seed = 0,
    releases: Releases = None,
    api_version: ApiVersion = None,
    events: Events = None,
    insecure: Insecure = False,
    storage: StorageDirectory = None,
    wire: Wire = None,
    artefacts: Artefacts = None,
    attached: Attached = False,
    audited: Audited = False,
    json: Json = False,
) -> int:
    """Run a machine, ready to be migrated away by whoever connects.

    Parameters
    ----------
    spec
        The machine's spec.
    listen
        HOST:PORT to listen on; port 0 takes any.
    """
    address = Address.parse(listen)
    address.require_loopback(insecure)
    policy = policy_of(downtime_limit_ms, on_stall)
    settings = SourceSettings(
        node=platform.node()[:NAME_MAX],
        machine_name=spec.stem[:NAME_MAX],
        release=release_named(from_, all_releases(releases)),
        policy=policy,
        bandwidth=parse_rate(bandwidth),
    )
    program = guest_named(guest)
    if isinstance(program, StampGuest | LedgerGuest):
        program = attrs.evolve(program, seed=at_least_0("--seed", seed))
    options = SourceOptions(
        spec=born(read(spec, api_version).spec, memory_mb),
        listen=address,
        settings=settings,
        program=program,
        storage=storage,
        wire=wire,
        artefacts=artefacts,
        attached=attached,
        audited=audited,
    )
    with event_log("source", events, json) as log:
        code, report = trio.run(run_source_daemon, options, log)
    if json:
        print_json(report)
    return code


def target(
    source: str,
    /,
    *,
    to: To = NEWEST,
    replace: Replace = None,
    retries: Retries = 0,
    listen: str | None = None,
    downtime_limit_ms: DowntimeLimit = DEFAULT_DOWNTIME_LIMIT_MS,
    bandwidth: Bandwidth = None,
    on_stall: Stall = OnStall.REFUSE,
    releases: Releases = None,
    events: Events = None,
    insecure: Insecure = False,
    storage: StorageDirectory = None,
    wire: Wire = None,
    artefacts: Artefacts = None,
    attached: Attached = False,
    audited: Audited = False,
    json: Json = False,
) -> int:
    """Migrate a machine in from a source, then run it.

    Parameters
    ----------
    source
        HOST:PORT of the source.
    listen
        HOST:PORT to be a source at in turn, once the machine is here; the options for sources are for then.
    """
    addresses = [Address.parse(text) for text in (source, listen) if text is not None]
    for address in addresses:
        address.require_loopback(insecure)
    release = release_named(to, all_releases(releases))
    as_source = SourceSettings(
        node=platform.node()[:NAME_MAX],
        machine_name="",
        release=release,
        policy=policy_of(downtime_limit_ms, on_stall),
        bandwidth=parse_rate(bandwidth),
    )
    options = TargetOptions(
        source=addresses[0],
        settings=TargetSettings(
            node=platform.node()[:NAME_MAX], release=release, replacements=read_replacements_file(replace)
        ),
        retries=at_least_0("--retries", retries),
        listen=addresses[1] if listen is not None else None,
        as_source=as_source if listen is not None else None,
        storage=storage,
        wire=wire,
        artefacts=artefacts,
        attached=attached,
        audited=audited,
    )
    with event_log("target", events, json) as log:
        code, report = trio.run(run_target_daemon, options, log)
    if json:
        print_json(report)
    return code


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
    replace: Replace = None,
    retries: Retries = 0,
    seed: Seed = 0,
    storage: StorageDirectory = None,
    wire: Wire = None,
    after_s: float = 0.3,
    releases: Releases = None,
    api_version: ApiVersion = None,
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
    policy_of(downtime_limit_ms, on_stall)
    parse_rate(bandwidth)
    machine = born(read(spec, api_version).spec, memory_mb)
    common = _arguments({"--releases": releases})
    limits = {"--downtime-limit-ms": downtime_limit_ms, "--bandwidth": bandwidth, "--on-stall": on_stall.value}
    source_arguments = _arguments(
        {
            "--listen": "127.0.0.1:0",
            "--from": from_,
            "--guest": guest,
            "--memory-mb": memory_mb,
            "--seed": seed,
            "--api-version": api_version,
            **limits,
        }
    )
    target_arguments = _arguments({"--to": to, "--replace": replace, "--retries": at_least_0("--retries", retries)})
    result: RehearsalResult | None = None
    code = ExitCode.DONE
    with TemporaryDirectory(prefix="migrate-") as directory:
        places = Places.below(Path(directory), storage, wire)
        options = RehearsalOptions(
            spec=machine,
            replacements=read_replacements_file(replace),
            seed=at_least_0("--seed", seed),
            leftovers=places.leftovers,
            pair=PairOptions(
                source_arguments=(str(spec), *source_arguments, *common, *places.arguments(guest), "--audited"),
                target_arguments=(*target_arguments, *common, *places.arguments(guest), "--audited"),
                after_s=at_least_0("--after-s", after_s),
                wire=places.wire if places.leftovers.wire is not None else None,
                wire_record=places.leftovers.wire,
            ),
        )
        try:
            with live_progress(quiet=json) as watch:
                result = trio.run(run_rehearsal, options, watch)
        except* DaemonDied as group:
            code = _tell_death(group)
        except* WireError as group:
            complain(str(group.exceptions[0]))
            code = ExitCode.BAD_INPUT
        except* KeyboardInterrupt:
            complain("interrupted; both daemons have ended")
            code = ExitCode.INTERRUPTED
    if result is None:
        return code
    if json:
        print_json(result.document)
    else:
        print_summary(result, f"{spec}, {from_} to {to}")
    if result.violations:
        return ExitCode.AUDIT_VIOLATED
    return ExitCode.DONE if result.outcome == "migrated" else ExitCode.NOT_DONE


def _tell_death(group: BaseExceptionGroup[DaemonDied]) -> ExitCode:
    """A daemon that could not do what was asked has said so in a line of its own; any other death is a bug."""
    death: BaseException = group
    while isinstance(death, BaseExceptionGroup):
        death = death.exceptions[0]
    assert isinstance(death, DaemonDied)
    if death.exit_code == ExitCode.BAD_INPUT:
        complain(death.last_words.removeprefix("migrate: "))
        return ExitCode.BAD_INPUT
    complain(str(death))
    return ExitCode.AUDIT_VIOLATED


@attrs.frozen
class Places:
    """Where a rehearsal keeps the machine's disks, its network, and what is left of it."""

    leftovers: Leftovers
    wire: Path

    @classmethod
    def below(cls, directory: Path, storage: Path | None, wire: Path | None) -> Self:
        """Below `directory`, unless the person has a place; a wire that somebody else carries is not recorded by us."""
        leftovers = Leftovers(
            left=directory / "left",
            storage=directory / "storage" if storage is None else storage,
            wire=directory / "wire.jsonl" if wire is None else None,
        )
        return cls(leftovers, directory / "wire" if wire is None else wire)

    def arguments(self, guest: str) -> list[str]:
        """What both daemons are told.  Of a guest that keeps no ledger nobody would read what is left."""
        left = self.leftovers.left if guest == LedgerGuest.name else None
        return _arguments({"--storage": self.leftovers.storage, "--wire": self.wire, "--artefacts": left})


def _arguments(options: dict[str, object]) -> list[str]:
    return [text for name, value in options.items() if value is not None for text in (name, str(value))]


def born(spec: Spec, memory_mb: int | None) -> Spec:
    """The spec of a machine that is born on this host: its CPUID is explicit from now on (instance-specs §5)."""
    board = spec.board if memory_mb is None else attrs.evolve(spec.board, memory_mb=memory_mb)
    if not 1 <= board.memory_mb <= MEMORY_MB_MAX:
        raise BadInput(f"{board.memory_mb} MiB of guest RAM: expected 1 to {MEMORY_MB_MAX}")
    return build_spec(board, spec.components, spec.smbios, host_cpuid=host_cpuid)


def policy_of(downtime_limit_ms: float, on_stall: OnStall) -> PrecopyPolicy:
    if not downtime_limit_ms > 0:
        raise BadInput(f"--downtime-limit-ms {downtime_limit_ms:g}: expected more than 0")
    return PrecopyPolicy(downtime_limit_ms=downtime_limit_ms, on_stall=on_stall)


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
def event_log(side: str, events: str | None, quiet: bool) -> Iterator[EventLog]:
    """Events for people on standard error, and as JSON lines where `events` says."""
    log = EventLog(side)
    if events == "-" and quiet:
        raise BadInput("--json and --events - both want standard output; write the events to a file")
    if events == "-":
        log.listeners.append(json_lines(sys.stdout))
        yield log
        return
    if not quiet:
        log.listeners.append(event_lines(sys.stderr))
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
