"""`migrate explore` and `migrate replay`: very many simulated migrations with faults, and one of them again."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import attrs
import trio
from cyclopts import Parameter

from migrate.cli.options import StreamCount, streams_of
from migrate.cli.output import complain, print_json, print_line, print_table
from migrate.cli.rehearsing import plan_at, plan_for_real
from migrate.cli.reporting import Report, Trace, leave, leave_migration, require_writable
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.zygote import forking
from migrate.daemon.address import BadInput
from migrate.daemon.birth import born
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.run import leaf_of
from migrate.daemon.supervisor import NotStarted
from migrate.faults.campaign import Campaign, CampaignError, Found, Kind, Order, Submits, carry_on, workers
from migrate.faults.cluster import ClusterError, ClusterLost, cluster
from migrate.faults.explore import Experiment, Tried
from migrate.faults.plan import Plan
from migrate.faults.toml import write_plan
from migrate.rehearsal.real import RealTried, RealWorld
from migrate.reports.page import TIMELINES_MAX, Shown, campaign_page
from migrate.reports.recording import record
from migrate.simulation.machines import Foundry, LightMachines, RealMachines
from sim_vmm.spec import Spec

TOLD_EVERY_S: Final = 2.0
MEMORY_MB: Final = 1
"""Simulated machines have as much RAM as their guest uses, so that there can be thousands of them."""

Fenced = Annotated[
    bool,
    Parameter(name="--fence", negative="", help="The machine's disks are on shared storage, behind a fence."),
]
RealMachine = Annotated[
    bool, Parameter(name="--real-machine", negative="", help="Emulate every device of the spec: slower.")
]


def explore(
    spec: Path,
    /,
    *,
    faults: Annotated[int, Parameter(help="How many faults at once, 1 or 2: every schedule of so many is tried.")] = 1,
    random: Annotated[int, Parameter(help="Instead, so many random plans of up to five faults.")] = 0,
    seed: Annotated[
        int,
        Parameter(
            help="Seed of the first random plan; the others follow. With --streams, of the order of delivery, too."
        ),
    ] = 0,
    workers_: Annotated[
        int | None, Parameter(name="--workers", help="Processes; by default one for each core.")
    ] = None,
    executor: Annotated[
        str | None, Parameter(help="Spread the work over a dask.distributed cluster: dask://HOST:PORT.")
    ] = None,
    campaign: Annotated[
        Path | None, Parameter(help="Note here what has been done, and go on from there next time.")
    ] = None,
    out: Annotated[Path, Parameter(help="Directory for a plan file of each violation.")] = Path("violations"),
    fence: Fenced = False,
    streams: StreamCount = 1,
    report: Report = None,
    real_machine: RealMachine = False,
    api_version: ApiVersion = None,
    json: Json = False,
) -> int:
    """Try every fault everywhere, in simulation, and audit what comes of it.

    The engines, the rule book, the codec and the machine's memory are the real ones; time, network and disks are not.
    `--faults 2` tries all pairs.  Each violation is made as small as possible and left as a plan that `migrate replay`
    runs again.

    Parameters
    ----------
    spec
        The machine's spec.
    """
    order = _order(faults, random, seed, fence, streams_of(streams))
    _check_workers(workers_, executor)
    experiment = Experiment(
        spec=simulated(read(spec, api_version).spec),
        foundry=foundry(real_machine),
        fenced=fence,
        streams=streams,
        seed=order.seed if order.kind is not Kind.RANDOM else 0,
    )
    require_writable(report=report)
    work = _campaign(campaign, order, keep_tally=report is not None)
    done_before, begun = work.schedules, time.monotonic()
    try:
        with _executor(workers_, executor, experiment) as (pool, ahead):
            carry_on(work, experiment, pool, ahead=ahead, after_chunk=_teller(campaign, begun))
    except ClusterError as error:
        raise BadInput(f"--executor: {error}") from error
    except ClusterLost as error:
        complain(
            f"{error}" + ("" if campaign is None else f"; what has been done is in {campaign}, to be gone on with")
        )
        return ExitCode.NOT_DONE
    elapsed_s = max(time.monotonic() - begun, 1e-9)
    left = _leave_plans(work.violations, out, spec, order)
    document = {
        "schedules": work.schedules,
        "runs": work.runs,
        "checked": work.checked,
        "per_second": round((work.schedules - done_before) / elapsed_s, 1),
        "outcomes": dict(sorted(work.outcomes.items())),
        "violations": [{"plan": str(path), "check": found.check, "message": found.message} for found, path in left],
    }
    if report is not None:
        leave(report, _page(work, experiment, left, spec, order))
    if json:
        print_json(document)
    else:
        _print(document)
    return ExitCode.AUDIT_VIOLATED if work.violations else ExitCode.DONE


def _check_workers(count: int | None, executor: str | None) -> None:
    if count is not None and executor is not None:
        raise BadInput("--workers is for this machine, --executor for a cluster, which has workers of its own; say one")
    if count is not None and count < 1:
        raise BadInput(f"--workers is {count}; there must be at least one")


@contextmanager
def _executor(count: int | None, address: str | None, experiment: Experiment) -> Iterator[tuple[Submits, int]]:
    """Whoever tries the chunks, and how many do at a time."""
    if address is not None:
        with cluster(address, experiment) as reached:
            yield reached
        return
    processes = count or os.cpu_count() or 1
    with workers(experiment, processes) as pool:
        yield pool, processes


def _campaign(path: Path | None, order: Order, *, keep_tally: bool) -> Campaign:
    try:
        work = Campaign(order=order) if path is None else Campaign.load(path, order)
    except CampaignError as error:
        raise BadInput(str(error)) from error
    try:
        if keep_tally:
            work.keep_tally()
    except CampaignError as error:
        raise BadInput(f"{path} was begun without --report, and {error}; give another file") from error
    return work


def _page(work: Campaign, experiment: Experiment, left: list[tuple[Found, Path]], spec: Path, order: Order) -> str:
    assert work.tally is not None, "it has been kept from the first schedule on"
    violations = [
        Shown(
            check=found.check,
            message=found.message,
            plan=write_plan(found.plan),
            file=str(path),
            timeline=record(experiment, found.plan).timeline if number < TIMELINES_MAX else None,
        )
        for number, (found, path) in enumerate(left)
    ]
    what = {
        Kind.SINGLES: "every single fault",
        Kind.PAIRS: "all pairs",
        Kind.RANDOM: f"random plans from {order.seed} on",
    }
    lead = f"{what[order.kind]}: {work.schedules:,} schedules, {len(violations) or 'none'} violated"
    outcomes = [(name, f"{count:,}") for name, count in sorted(work.outcomes.items())]
    undisturbed = record(experiment, Plan(faults=())).timeline
    return campaign_page(f"explore {spec}", lead, work.tally, outcomes, violations, undisturbed)


def _order(faults: int, random: int, seed: int, fence: bool, streams: int) -> Order:
    """Of plans that are not drawn, the seed says something only if there are orders of delivery to choose from."""
    if random < 0:
        raise BadInput(f"--random is {random}; it must be 0 or more")
    if random:
        return Order(kind=Kind.RANDOM, seed=seed, random=random, fenced=fence, streams=streams)
    if faults not in (1, 2):
        raise BadInput(f"--faults is {faults}; it must be 1 or 2, or say --random for more at once")
    kind = Kind.SINGLES if faults == 1 else Kind.PAIRS
    return Order(kind=kind, seed=seed if streams > 1 else 0, fenced=fence, streams=streams)


def simulated(spec: Spec) -> Spec:
    return attrs.evolve(spec, board=attrs.evolve(spec.board, memory_mb=MEMORY_MB))


def foundry(real_machine: bool) -> Foundry:
    return RealMachines() if real_machine else LightMachines()


def _teller(path: Path | None, begun: float) -> Callable[[Campaign, int], None]:
    """Saves the campaign, and says now and then how far it is."""
    told = begun
    first_chunk = first_schedules = -1

    def after_chunk(campaign: Campaign, total: int) -> None:
        nonlocal told, first_chunk, first_schedules
        if first_chunk < 0:
            first_chunk, first_schedules = campaign.chunks_done - 1, campaign.schedules
        now = time.monotonic()
        is_last = campaign.chunks_done == total
        if not is_last and now - told < TOLD_EVERY_S:
            return
        told = now
        if path is not None:
            campaign.save(path)
        elapsed_s = now - begun
        left_s = (total - campaign.chunks_done) * elapsed_s / (campaign.chunks_done - first_chunk)
        rate = (campaign.schedules - first_schedules) / elapsed_s
        print(
            f"{campaign.chunks_done:,} of {total:,} parts, {campaign.schedules:,} schedules, {rate:,.0f} a second, "
            f"{len(campaign.violations)} violations; {left_s:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return after_chunk


def _leave_plans(violations: list[Found], out: Path, spec: Path, order: Order) -> list[tuple[Found, Path]]:
    left = []
    for number, found in enumerate(violations, 1):
        path = out / f"violation-{number:04}.toml"
        try:
            out.mkdir(parents=True, exist_ok=True)
            plan = attrs.evolve(found.plan, spec=str(spec.resolve()), fence=order.fenced, streams=order.streams)
            path.write_text(write_plan(plan))
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error
        left.append((found, path))
    return left


def _print(document: dict[str, Any]) -> None:
    print_line(f"{document['schedules']:,} schedules, {document['per_second']:,.0f} a second")
    print_line(
        f"{document['runs']:,} were run, the others are known to come to the same; {document['checked']:,} of all were "
        "held against a run of their own"
    )
    print_table(("outcome", "schedules "), [(name, f"{count:,}") for name, count in document["outcomes"].items()])
    print_line(f"{len(document['violations'])} violations")
    for violation in document["violations"]:
        print_line(f"{violation['check']}: {violation['message']}", under=4)
        print_line(f"    migrate replay {violation['plan']}")


def replay(
    plan: Path,
    /,
    *,
    spec: Annotated[Path | None, Parameter(help="The machine's spec, if the plan names none or another.")] = None,
    fence: Fenced = False,
    streams: StreamCount = 1,
    real: Annotated[
        bool, Parameter(name="--real", negative="", help="On two real daemons on loopback, and not in simulation.")
    ] = False,
    pace: Annotated[
        float, Parameter(help="With --real: how many real seconds one of the plan's, and of all deadlines, takes.")
    ] = 1.0,
    report: Report = None,
    trace: Trace = None,
    real_machine: RealMachine = False,
    api_version: ApiVersion = None,
    json: Json = False,
) -> int:
    """Run one plan of faults again, in simulation or on real daemons, and show everything that happens.

    Parameters
    ----------
    plan
        TOML file: what goes wrong, and when.
    """
    streams_of(streams)
    read_it = plan_at(plan, streams)
    file = spec or (Path(read_it.spec) if read_it.spec else None)
    if file is None:
        raise BadInput(f"{plan} names no spec; say --spec FILE")
    if real:
        if report is not None or trace is not None:
            raise BadInput("--report and --trace of real daemons are those of migrate rehearse --faults")
        return replay_real(plan, file, fence=fence, streams=streams, pace=pace, version=api_version, json=json)
    require_writable(report=report, trace=trace)
    experiment = Experiment(
        spec=simulated(read(file, api_version).spec),
        foundry=foundry(real_machine),
        fenced=fence or read_it.fence,
        streams=read_it.streams,
    )
    tried = experiment.run(read_it)
    facts = [
        ("faults", f"{tried.fired} of {len(read_it.faults)} struck"),
        ("spec", str(file)),
        ("seed", str(read_it.seed)),
    ]
    leave_migration(report, trace, f"replay {plan}", lambda: record(experiment, read_it).timeline, facts)
    _tell(tried, experiment.trace(read_it), fired=tried.fired, json=json)
    return ExitCode.AUDIT_VIOLATED if tried.violations else ExitCode.DONE


def replay_real(
    plan_file: Path, spec_file: Path, *, fence: bool, streams: int, pace: float, version: int | None, json: bool
) -> int:
    """The plan on two processes, which are judged by what they tell and leave."""
    if not pace > 0:
        raise BadInput(f"--pace {pace:g}: expected more than 0")
    plan = plan_for_real(plan_file, streams)
    world = RealWorld(
        spec=born(read(spec_file, version).spec, None),
        spec_file=spec_file,
        source=("--guest", "ledger", *(() if version is None else ("--api-version", str(version)))),
        fences=fence or plan.fence,
        pace=pace,
    )
    tried: RealTried | None = None
    complaint = ""
    with TemporaryDirectory(prefix="migrate-") as directory, forking() as launching:
        try:
            played = trio.run(world.play, plan, Path(directory), launching)
            tried = played.judged()
        except* NotStarted as group:
            complaint = str(leaf_of(group)).removeprefix("migrate: ")
    if tried is None:
        raise BadInput(complaint)
    began_ns = tried.timeline[0][0]
    lines = [f"{(at_ns - began_ns) / 1e6:10.1f} ms {who:6} {what}" for at_ns, who, what in tried.timeline]
    _tell(tried, lines, fired=len(tried.fired), json=json)
    return ExitCode.AUDIT_VIOLATED if tried.violations else ExitCode.DONE


def _tell(tried: Tried | RealTried, lines: Sequence[str], *, fired: int, json: bool) -> None:
    violations = [attrs.asdict(violation) for violation in tried.violations]
    if json:
        print_json(
            {
                "owner": tried.owner,
                "outcome": tried.outcome,
                "published": list(tried.published),
                "faults_fired": fired,
                "violations": violations,
                "trace": list(lines),
            }
        )
        return
    for line in lines:
        print_line(line, under=16)
    print_line(f"{tried.outcome}; {fired} of {len(tried.plan.faults)} faults struck")
    for violation in violations:
        print_line(f"{violation['check']}: {violation['message']}", under=4)
