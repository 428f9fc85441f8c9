"""`migrate host …`: control of hosts that `migrate serve` runs, for people and for programs."""

from collections.abc import Awaitable, Callable, Sequence
from json import loads
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID, uuid4

import trio
from cyclopts import App, Parameter

from migrate.cli.options import Guest, MemoryMb, Seed, at_least_0, guest_named
from migrate.cli.output import complain, mebibytes, print_json, print_line, print_table
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.units import parse_rate
from migrate.daemon.address import Address, BadInput
from migrate.daemon.birth import born
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.host.client import Denied, HostGone, controlling
from migrate.daemon.host.host import Ending
from migrate.daemon.host.requests import Boot, Cancel, Inspect, Limit, List, Offer, Request, Status, Stop, Take, Wait
from migrate.daemon.host.sending import send_all
from migrate.daemon.run import leaf_of
from migrate.protocol.messages import NAME_MAX

app = App(name="host", help="Control hosts that migrate serve runs: boot machines there, send them, look, stop.")

Document = dict[str, Any]
T = TypeVar("T")

ControlPath = Annotated[Path, Parameter(name="--control", help="The host's control socket, as given to migrate serve.")]
Id = Annotated[
    UUID | None, Parameter(help="The migration's id, which both hosts are given; one is made up if not said.")
]
Retries = Annotated[int, Parameter(help="How many failed attempts it survives.")]

BAD_INPUT: Final = frozenset({"BadInput", "BadRequest"})
"""What a host denies because what was asked makes no sense; all else it denies as things are."""


def carried_out(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`.

    Raises:
        BadInput: a host denies what makes no sense, or is not there.
        Denied, HostGone: it cannot be done as things are.
    """
    caught: BaseException | None = None
    result: list[T] = []

    async def main() -> None:
        result.append(await work())

    try:
        trio.run(main)
    except* (Denied, HostGone, BadInput) as group:
        caught = leaf_of(group)
    if isinstance(caught, Denied) and caught.kind in BAD_INPUT:
        raise BadInput(str(caught))
    if caught is not None:
        raise caught
    return result[0]


def asked(control: Path, *requests: Request) -> list[Document] | int:
    """The answers of a host, or the exit code when it has said why there are none."""

    async def ask() -> list[Document]:
        async with controlling(control) as host:
            return [await host.ask(request) for request in requests]

    try:
        return carried_out(ask)
    except (Denied, HostGone) as error:
        complain(str(error))
        return ExitCode.NOT_DONE


@app.command
def status(*, control: ControlPath, json: Json = False) -> int:
    """Show how many machines and migrations a host has, its limits, and what it takes."""
    found = asked(control, Status())
    if isinstance(found, int):
        return found
    (document,) = found
    if json:
        print_json(document)
        return ExitCode.DONE
    ending = f", ending ({document['ending']})" if document["ending"] else ""
    print_line(f"{document['node']} at {document['address']}, release {document['release']}{ending}", style="bold")
    progress, queued, moved = document["in_progress"], document["queued"], document["moved"]
    for label, text in (
        ("machines", f"{document['machines']} of {document['machines_max']}, {document['running']} run"),
        ("memory", f"{document['memory_mb']:,} MiB of {document['memory_total_mb']:,} given to guests"),
        ("out", f"{progress['out']} of {document['migrations_max']} in progress, {queued['out']} wait"),
        ("in", f"{progress['in']} of {document['migrations_max']} in progress, {queued['in']} wait"),
        ("so far", f"{moved['out']} went, {moved['in']} came, {moved['failed']} did not take place"),
        ("takes", f"{mebibytes(document['rss_bytes'])}, {document['open_files']} files, {document['tasks']} tasks"),
    ):
        print_line(f"  {label:9} {text}", under=12)
    return ExitCode.DONE


@app.command(name="list")
def list_(machine: str | None = None, /, *, control: ControlPath, json: Json = False) -> int:
    """List the machines of a host, or one of them.

    Parameters
    ----------
    machine
        Its name or id.
    """
    found = asked(control, List(machine=machine))
    if isinstance(found, int):
        return found
    machines = found[0]["machines"]
    if json:
        print_json(machines)
        return ExitCode.DONE
    print_table(
        ("machine", "runs", "record", "guest", "MiB ", "migration"),
        [
            (
                one["machine"] or one["vm_id"] or "?",
                "yes" if one["runs"] else "no",
                one["record"] or "",
                one["guest"] or "",
                one["memory_mb"] or "",
                one["problem"] or _doing(one),
            )
            for one in machines
        ],
    )
    return ExitCode.DONE


def _doing(machine: Document) -> str:
    migration = machine["migration"]
    if machine["in_doubt"]:
        return "in doubt"
    if migration is None or migration["stage"] == "over":
        return ""
    phase = f", {machine['phase']}" if machine["phase"] else ""
    return f"{migration['direction']}: {migration['stage']}{phase}"


@app.command
def inspect(machine: str, /, *, control: ControlPath) -> int:
    """Show what RAM and console of a machine tell of its guest's work, as JSON."""
    found = asked(control, Inspect(machine=machine))
    if isinstance(found, int):
        return found
    print_json(found[0])
    return ExitCode.DONE


@app.command
def boot(
    spec: Path,
    /,
    *,
    control: ControlPath,
    name: str | None = None,
    count: int = 1,
    guest: Guest = "stamp",
    memory_mb: MemoryMb = None,
    seed: Seed = 0,
    api_version: ApiVersion = None,
    json: Json = False,
) -> int:
    """Boot machines on a host.

    Parameters
    ----------
    spec
        The machine's spec.
    name
        What the machine is called; by default as its file.  Of several, each has its number behind it.
    count
        How many.
    """
    request = boot_request(
        spec, name=name, count=count, guest=guest, memory_mb=memory_mb, seed=seed, api_version=api_version
    )
    found = asked(control, request)
    if isinstance(found, int):
        return found
    machines = found[0]["machines"]
    if json:
        print_json(machines)
    else:
        for machine in machines:
            print_line(f"{machine['machine']}  {machine['vm_id']}")
    return ExitCode.DONE


def boot_request(
    spec: Path,
    *,
    name: str | None,
    count: int,
    guest: str,
    memory_mb: int | None,
    seed: int,
    api_version: int | None,
) -> Boot:
    """What is wrong with it is found here, before any host is asked.  Raises BadInput, or as `read`."""
    born(read(spec, api_version).spec, memory_mb)
    guest_named(guest)
    if count < 1:
        raise BadInput(f"--count {count}: expected 1 or more")
    return Boot(
        spec=loads(spec.read_bytes()),
        name=name or spec.stem[: NAME_MAX // 2],
        count=count,
        guest=guest,
        memory_mb=memory_mb,
        seed=at_least_0("--seed", seed),
        api_version=api_version,
    )


@app.command
def offer(
    machine: str, /, *, control: ControlPath, migration_id: Id = None, retries: Retries = 0, json: Json = False
) -> int:
    """Let a machine be taken, once, by whoever presents the migration's id; returns when it is its turn.

    Parameters
    ----------
    machine
        Its name or id.
    """
    migration = migration_id or uuid4()
    found = asked(control, Offer(machine=machine, migration=migration, retries=at_least_0("--retries", retries)))
    if isinstance(found, int):
        return found
    document = {"migration": str(migration), **found[0]}
    if json:
        print_json(document)
    elif document["stage"] == "ready":
        print_line(f"{machine} may be taken from {document['address']} as {migration}")
    else:
        _tell_outcome(machine, document)
    return ExitCode.DONE if document["stage"] == "ready" else ExitCode.NOT_DONE


@app.command
def take(source: str, /, migration_id: UUID, *, control: ControlPath, retries: Retries = 0, json: Json = False) -> int:
    """Bring in the machine that another host offers under an id; returns when it runs here, or does not.

    Parameters
    ----------
    source
        HOST:PORT of the other host.
    migration_id
        The id that it was offered under.
    """
    Address.parse(source)
    found = asked(
        control,
        Take(source=source, migration=migration_id, retries=at_least_0("--retries", retries)),
        Wait(migration=migration_id),
    )
    if isinstance(found, int):
        return found
    return _tell_concluded(found[1]["machine"] or "a machine", found[1], json=json)


@app.command
def wait(migration_id: UUID, /, *, control: ControlPath, json: Json = False) -> int:
    """Return when a migration is concluded on a host, with what came of it."""
    found = asked(control, Wait(migration=migration_id))
    if isinstance(found, int):
        return found
    return _tell_concluded(found[0]["machine"] or "a machine", found[0], json=json)


@app.command
def cancel(machine: str, /, *, control: ControlPath, json: Json = False) -> int:
    """End the migration that a machine is in, if it can still be undone.

    Parameters
    ----------
    machine
        Its name or id, or the id of its migration.
    """
    found = asked(control, Cancel(machine=machine))
    if isinstance(found, int):
        return found
    if json:
        print_json(found[0])
    else:
        print_line(f"{machine}: {found[0]['cancelled']}")
    return ExitCode.DONE if found[0]["cancelled"] == "cancelled" else ExitCode.NOT_DONE


@app.command
def limit(
    *, control: ControlPath, migrations_max: int | None = None, bandwidth: str | None = None, json: Json = False
) -> int:
    """Set other limits of a host.

    Parameters
    ----------
    migrations_max
        Migrations out at once, and as many in.
    bandwidth
        Cap for the guest RAM of all migrations together, in bytes a second: 100M, 1.5G; none takes it away.
    """
    rate = None if bandwidth is None else 0 if bandwidth == "none" else round(parse_rate(bandwidth) or 0)
    found = asked(control, Limit(migrations_max=migrations_max, bandwidth=rate))
    if isinstance(found, int):
        return found
    if json:
        print_json(found[0])
    return ExitCode.DONE


@app.command
def send(
    *machines: str,
    control: ControlPath,
    to: Annotated[Path, Parameter(name="--to", help="The control socket of the host that is to have them.")],
    all_: Annotated[bool, Parameter(name="--all", negative="", help="All machines that run there.")] = False,
    retries: Retries = 2,
    json: Json = False,
) -> int:
    """Migrate machines from one host to another; returns when each has moved, or says why not.

    Each is offered there and taken here under an id of its own, as migrate host offer and take do.

    Parameters
    ----------
    machines
        Their names or ids.
    """
    if bool(machines) is all_:
        raise BadInput("say which machines are to be sent, or --all; see migrate host send --help")

    async def work() -> list[Document]:
        async with controlling(control) as source, controlling(to) as target:
            chosen: Sequence[str] = machines
            if all_:
                chosen = [one["vm_id"] for one in (await source.ask(List()))["machines"] if one["runs"]]
            return await send_all(source, target, chosen, at_least_0("--retries", retries))

    try:
        documents = carried_out(work)
    except (Denied, HostGone) as error:
        complain(str(error))
        return ExitCode.NOT_DONE
    if json:
        print_json(documents)
    else:
        for document in documents:
            _tell_outcome(document["machine"] or document["asked"], document)
    return ExitCode.DONE if all(one["outcome"] == "migrated" for one in documents) else ExitCode.NOT_DONE


@app.command
def stop(
    *,
    control: ControlPath,
    drain: Annotated[bool, Parameter(negative="", help="Complete what is in progress first: the default.")] = False,
    abort: Annotated[bool, Parameter(negative="", help="Undo what is in progress where that is possible.")] = False,
    json: Json = False,
) -> int:
    """End a host; its machines stop.  What is changing hands is completed in any case."""
    if drain and abort:
        raise BadInput("--drain and --abort contradict each other: give one")
    found = asked(control, Stop(how=(Ending.ABORT if abort else Ending.DRAIN).value))
    if isinstance(found, int):
        return found
    report = found[0]
    if json:
        print_json(report)
    else:
        print_line(f"ended; {len(report['left'])} machines are left, {report['in_doubt']} of them in doubt")
    return ExitCode.NOT_DONE if report["in_doubt"] else ExitCode.DONE


def _tell_concluded(machine: str, document: Document, *, json: bool) -> int:
    if json:
        print_json(document)
    else:
        _tell_outcome(machine, document)
    return ExitCode.DONE if document["outcome"] == "migrated" else ExitCode.NOT_DONE


def _tell_outcome(machine: str, document: Document) -> None:
    error = document["error"]
    why = "" if error is None else f": {error['message']}"
    away = document.get("blackout_ms")
    how_long = "" if away is None or error is not None else f", its guest was away for {away:.1f} ms"
    print_line(f"{machine}: {document['outcome']}{why}{how_long}", under=2)
