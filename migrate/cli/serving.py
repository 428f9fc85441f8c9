"""`migrate serve`: a host, with many machines."""

from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import trio
from cyclopts import Parameter

from migrate.cli.access import ANYBODY_ON_LOOPBACK, AccessOptions, address_of
from migrate.cli.options import (
    DEFAULT_PRECOPY,
    Attached,
    Audited,
    Bandwidth,
    DieAt,
    Events,
    MemoryMax,
    Pace,
    PrecopyOptions,
    ReclaimAfter,
    Releases,
    StateDir,
    StreamCount,
    TellMessages,
    Wire,
    at_least_0,
    checked_pace,
    event_log,
    streams_of,
)
from migrate.cli.output import print_json, print_line, printable
from migrate.cli.progress import Event, Watch
from migrate.cli.specs import Json
from migrate.cli.units import parse_rate
from migrate.daemon.address import BadInput
from migrate.daemon.guests import MEMORY_MB_MAX
from migrate.daemon.host.host import MIGRATIONS_MAX, OFFER_S, HostSettings
from migrate.daemon.host.run import HostOptions, run_host
from migrate.daemon.run import Places
from migrate.daemon.source import RECLAIM_AFTER_S
from migrate.engine.source import SourceSettings
from migrate.releases import NEWEST, all_releases, release_named

SAID: Final = {
    "serving": "a host at {address}, controlled by migrate host ... --control {control}",
    "queued": "{machine} waits for a slot {direction}, as number {place}",
    "not running": "{machine} does not run: {message}",
    "turned away": "somebody was turned away: {error}",
    "interrupt": "{message}",
    "ending": "ending ({how}), with {in_progress} migrations in progress",
    "ended": "ended: {left} machines are left, {in_doubt} of them in doubt",
    "alarm": "ALARM: {message}",
    "in doubt": "machine {hosted}: {message}",
    "fenced off": "machine {hosted}: {message}",
}


def serve(
    *,
    control: Annotated[Path, Parameter(help="Where the host's control socket is to be, for migrate host.")],
    listen: str | None = None,
    state_dir: StateDir = None,
    storage: Annotated[
        Path | None, Parameter(help="Directory of the machines' disks, one below for each; the same for all hosts.")
    ] = None,
    release: Annotated[str, Parameter(help="Release that this host's build is.")] = NEWEST,
    releases: Releases = None,
    machines_max: Annotated[
        int | None, Parameter(help="Machines that may be here; as many as open files allow, 1024 at most, if not said.")
    ] = None,
    migrations_max: Annotated[
        int, Parameter(help="Migrations out at once, and as many in; others wait for their turn.")
    ] = MIGRATIONS_MAX,
    memory_max_mb: MemoryMax = MEMORY_MB_MAX,
    memory_total_mb: Annotated[int, Parameter(help="Guest RAM of all machines together, in MiB.")] = MEMORY_MB_MAX,
    bandwidth: Bandwidth = None,
    streams: StreamCount = 1,
    precopy: PrecopyOptions = DEFAULT_PRECOPY,
    offer_s: Annotated[float, Parameter(name="--offer-s", help="How long an offer waits for its target.")] = OFFER_S,
    reclaim_after_s: ReclaimAfter = RECLAIM_AFTER_S,
    wire: Wire = None,
    who: AccessOptions = ANYBODY_ON_LOOPBACK,
    events: Events = None,
    attached: Attached = False,
    audited: Audited = False,
    tell_messages: TellMessages = False,
    die_at: DieAt = None,
    pace: Pace = 1.0,
    json: Json = False,
) -> int:
    """Be a host: have many machines, take many in and give many away, as migrate host says.

    SIGTERM and Ctrl-C complete what is in progress; again undoes what can be undone; a third time ends it at once.

    Parameters
    ----------
    listen
        HOST:PORT for migrations; port 0 takes any.  By default 127.0.0.1:4600, or as before with the same --state-dir.
    bandwidth
        Cap for the guest RAM of all migrations together, in bytes a second: 100M, 1.5G.
    """
    access = who.access()
    named = release_named(release, all_releases(releases))
    for option, number in (("--machines-max", machines_max), ("--migrations-max", migrations_max)):
        if number is not None and number < 1:
            raise BadInput(f"{option} {number}: expected 1 or more")
    settings = HostSettings(
        release=named,
        as_source=SourceSettings(
            node="",
            machine_name="",
            release=named,
            policy=precopy.policy(),
        ),
        places=Places(storage=storage, wire=wire, state=state_dir),
        bandwidth=parse_rate(bandwidth),
        migrations_max=migrations_max,
        memory_max_mb=at_least_0("--memory-max-mb", memory_max_mb),
        memory_total_mb=at_least_0("--memory-total-mb", memory_total_mb),
        offer_s=at_least_0("--offer-s", offer_s),
        reclaim_after_s=at_least_0("--reclaim-after-s", reclaim_after_s),
        deadlines=who.deadlines().scaled(checked_pace(pace)),
        access=access,
        pace=pace,
        streams=streams_of(streams),
        audited=audited,
    )
    options = HostOptions(
        settings=settings,
        control=control,
        listen=address_of(listen, access),
        machines_max=machines_max,
        attached=attached,
        die_at=die_at,
    )
    with event_log("host", events, json, host_lines) as log:
        log.tells_messages = tell_messages
        if die_at is None:
            log.unheard = frozenset({"point"})  # many a machine, and nobody is to die
        code, report = trio.run(run_host, options, log)
    if json:
        print_json(report)
    elif events != "-":
        print_left(report)
    return code


def describe(event: Event) -> str | None:
    """One line about an event of a host, or None if it says nothing to people: there may be very many machines."""
    name = event["event"]
    if name == "attempt ended":
        why = "" if event["error"] is None else f" in phase {event['phase']!r}: {event['error']['message']}"
        return f"machine {event['hosted']}: {event['outcome']} as {event['side']}{why}"
    said = SAID.get(name)
    return None if said is None else said.format(**{"machine": "a machine", "hosted": "?", **event})


def host_lines(stream: TextIO) -> Watch:
    def write(event: Event) -> None:
        line = describe(event)
        if line is not None:
            print(printable(f"host: {line}"), file=stream, flush=True)

    return write


LEFT_SHOWN: Final = 20


def print_left(report: dict[str, Any]) -> None:
    """What a host that has ended leaves to its next start."""
    moved, left = report["moved"], report["left"]
    print_line(f"{moved['out']} machines went, {moved['in']} came, {moved['failed']} migrations did not take place")
    for machine in left[:LEFT_SHOWN]:
        doubt = ", in doubt" if machine["in_doubt"] else ""
        print_line(f"  left: {machine['machine'] or machine['vm_id']}  {machine['record']}{doubt}", under=8)
    if len(left) > LEFT_SHOWN:
        print_line(f"  and {len(left) - LEFT_SHOWN} more")
