"""`migrate source` and `migrate target`."""

from pathlib import Path
from typing import Annotated
from uuid import UUID

import attrs
import trio
from cyclopts import Parameter

from migrate.cli.access import ANYBODY_ON_LOOPBACK, AccessOptions, MigrationId, address_of
from migrate.cli.options import (
    DEFAULT_PRECOPY,
    Artefacts,
    Attached,
    Audited,
    Bandwidth,
    DieAt,
    Events,
    FailpointsAt,
    From,
    Guest,
    HaltAt,
    MemoryMax,
    MemoryMb,
    Pace,
    PrecopyOptions,
    RamDir,
    ReclaimAfter,
    Releases,
    Replace,
    Retries,
    Seed,
    StateDir,
    StorageDirectory,
    StreamCount,
    TellMessages,
    To,
    Unfenced,
    Wire,
    at_least_0,
    checked_pace,
    event_log,
    guest_named,
    read_replacements_file,
    streams_of,
    usable_ram_dir,
)
from migrate.cli.output import print_json
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.units import parse_rate
from migrate.daemon.address import BadInput
from migrate.daemon.birth import born
from migrate.daemon.guests import MEMORY_MB_MAX
from migrate.daemon.node import new_node_name
from migrate.daemon.run import (
    Birthplace,
    Places,
    SourceOptions,
    TargetOptions,
    run_source_daemon,
    run_target_daemon,
)
from migrate.daemon.source import RECLAIM_AFTER_S
from migrate.engine.source import SourceSettings
from migrate.engine.target import TargetSettings
from migrate.protocol.messages import NAME_MAX
from migrate.releases import NEWEST, all_releases, release_named
from sim_vmm.guest import LedgerGuest, StampGuest


def source(
    spec: Path | None = None,
    /,
    *,
    listen: str | None = None,
    from_: From = NEWEST,
    guest: Guest = "stamp",
    memory_mb: MemoryMb = None,
    precopy: PrecopyOptions = DEFAULT_PRECOPY,
    bandwidth: Bandwidth = None,
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
        policy=precopy.policy(),
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
    precopy: PrecopyOptions = DEFAULT_PRECOPY,
    bandwidth: Bandwidth = None,
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
        policy=precopy.policy(),
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
