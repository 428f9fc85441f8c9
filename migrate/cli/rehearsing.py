"""`migrate rehearse`."""

from collections.abc import Callable
from json import dumps as json_of
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Self
from uuid import uuid4

import attrs
import trio
from cyclopts import Parameter

from migrate.cli.access import throw_away
from migrate.cli.options import (
    DEFAULT_PRECOPY,
    Bandwidth,
    From,
    Guest,
    MemoryMb,
    PrecopyOptions,
    RamDir,
    Releases,
    Replace,
    Retries,
    Seed,
    StateDir,
    StorageDirectory,
    StreamCount,
    To,
    Wire,
    arguments_of,
    at_least_0,
    guest_named,
    read_replacements_file,
    streams_of,
    usable_ram_dir,
)
from migrate.cli.output import complain, print_json
from migrate.cli.progress import Event, Watch, live_progress
from migrate.cli.reporting import Report, Trace, leave, leave_migration, rehearsal_facts, require_writable
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.summary import print_summary
from migrate.cli.units import parse_rate
from migrate.cli.zygote import forking
from migrate.daemon.address import BadInput
from migrate.daemon.birth import born
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.pair import DaemonDied, PairOptions
from migrate.daemon.run import leaf_of
from migrate.daemon.state import JournalDamaged, StateDirectory, StateError
from migrate.daemon.supervisor import NotStarted
from migrate.daemon.wire import WireError
from migrate.engine.handoff import Holding
from migrate.faults.plan import Plan, PlanError
from migrate.faults.toml import read_plan_file
from migrate.rehearsal.injection import require_possible
from migrate.rehearsal.leftovers import Leftovers
from migrate.rehearsal.real import RealWorld
from migrate.rehearsal.rehearse import RehearsalOptions, judge_faulty_rehearsal, run_rehearsal
from migrate.rehearsal.result import RehearsalResult
from migrate.releases import NEWEST, all_releases, release_named
from migrate.reports.told import timeline_of
from sim_vmm.guest import LedgerGuest


def rehearse(
    spec: Path,
    /,
    *,
    from_: From = NEWEST,
    to: To = NEWEST,
    guest: Guest = "ledger",
    memory_mb: MemoryMb = None,
    precopy: PrecopyOptions = DEFAULT_PRECOPY,
    bandwidth: Bandwidth = None,
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
    precopy.policy()
    parse_rate(bandwidth)
    machine = born(read(spec, api_version).spec, memory_mb)
    common = arguments_of({"--releases": releases, "--ram-dir": usable_ram_dir(ram_dir, state_dir)})
    of_birth = arguments_of({"--guest": guest, "--memory-mb": memory_mb, "--seed": seed, "--api-version": api_version})
    as_source = arguments_of({"--from": from_, "--bandwidth": bandwidth}) + precopy.arguments()
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
