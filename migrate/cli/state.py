"""`migrate status` and `migrate resolve`: what a state directory says, and settling what is in doubt."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import trio
from cyclopts import Parameter

from migrate.cli.access import ANYBODY_ON_LOOPBACK, AccessOptions, address_of
from migrate.cli.options import Releases, StorageDirectory, To, at_least_0
from migrate.cli.output import print_json, print_line, print_table
from migrate.cli.progress import event_lines
from migrate.cli.specs import Json
from migrate.daemon.address import BadInput
from migrate.daemon.events import EventLog
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.host.places import MACHINES
from migrate.daemon.resolve import Force, Resolution, ResolveOptions
from migrate.daemon.resolve import resolve as settle
from migrate.daemon.situation import machine_json
from migrate.daemon.state import StateDirectory, StateError
from migrate.releases import NEWEST, all_releases, release_named

HISTORY_SHOWN = 5
StateDirectoryPath = Annotated[Path, Parameter(name="--state-dir", help="The state directory of a daemon.")]


def status(*, state_dir: StateDirectoryPath, json: Json = False) -> int:
    """Show what a daemon's state directory says, whether or not a daemon has it.

    Exit code 1 says that something is in doubt.
    """
    try:
        state = StateDirectory.look(state_dir)
    except StateError as error:
        raise BadInput(str(error)) from error
    machines = [machine_json(state, machine) for machine in state.machines()]
    for directory in sorted((state_dir / MACHINES).glob("*")):  # of a host, which has one for each
        machines += _machines_in(directory)
    if json:
        print_json({"state_dir": str(state_dir), "node": state.node, "daemon_pid": state.held_by, "machines": machines})
    else:
        held = "no daemon has it" if state.held_by is None else f"held by the daemon with pid {state.held_by}"
        print_line(f"{state_dir}: node {state.node}, {held}", style="bold", under=2)
        for machine in machines:
            _print_machine(machine)
        if not machines:
            print_line("no machine has ever been here")
    return ExitCode.DONE if all(machine["settled"] for machine in machines) else ExitCode.NOT_DONE


def _machines_in(directory: Path) -> list[dict[str, Any]]:
    """Raises BadInput: what is there cannot be believed."""
    try:
        state = StateDirectory.look(directory)
    except StateError as error:
        raise BadInput(str(error)) from error
    return [machine_json(state, machine) for machine in state.machines()]


def _print_machine(machine: dict[str, Any]) -> None:
    record = machine["record"]
    print_line()
    print_line(f"{machine['machine']}  {record['holding']}({record['generation']})", style="bold")
    facts = f"born on {machine['born_on']}, here in release {machine['release']}"
    print_line(f"  machine  {machine['vm_id']}, {facts}; guest {machine['guest']}", under=11)
    print_line(f"  known    {machine['known']}", under=11)
    if machine["unknown"]:
        print_line(f"  unknown  {machine['unknown']}", under=11)
    if machine["advice"]:
        print_line(f"  do       {machine['advice']}", under=11)
    history = machine["history"][-HISTORY_SHOWN:]
    if history:
        print_line()
        print_table(
            ("when (UTC)", "side", "outcome", "generation ", "what went wrong"),
            [
                (
                    datetime.fromtimestamp(line["at"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S"),
                    line["side"],
                    line["outcome"],
                    line["generation"],
                    line["error"] or "",
                )
                for line in history
            ],
        )


def resolve(
    *,
    state_dir: StateDirectoryPath,
    storage: StorageDirectory = None,
    source: Annotated[str | None, Parameter(help="HOST:PORT of the source, where it is not as remembered.")] = None,
    wait_s: Annotated[float, Parameter(name="--wait-s", help="How long a source waits for its target.")] = 10.0,
    force_own: Annotated[
        int | None,
        Parameter(name="--force-own", help="Own the machine: this generation's other node is dead for ever."),
    ] = None,
    force_abandon: Annotated[
        int | None, Parameter(name="--force-abandon", help="Give the machine up in this generation.")
    ] = None,
    accept_journal: Annotated[
        bool, Parameter(name="--accept-journal", negative="", help="Believe a journal that is not as last seen.")
    ] = False,
    to: To = NEWEST,
    releases: Releases = None,
    who: AccessOptions = ANYBODY_ON_LOOPBACK,
    json: Json = False,
) -> int:
    """Settle what a dead daemon left in doubt, and say what is known, what is not, and what you may do.

    No machine is started, and no image used up: the daemons do that.  Exit code 1: something is still in doubt.
    """
    if force_own is not None and force_abandon is not None:
        raise BadInput("--force-own and --force-abandon contradict each other: give one")
    force = Force.OWN if force_own is not None else Force.ABANDON if force_abandon is not None else None
    access = who.access()
    options = ResolveOptions(
        state=state_dir,
        release=release_named(to, all_releases(releases)),
        storage=storage,
        source=address_of(source, access),
        wait_s=at_least_0("--wait-s", wait_s),
        force=force,
        generation=(force_own if force_own is not None else force_abandon) or 0,
        accept_journal=accept_journal,
        deadlines=who.deadlines(),
        access=access,
    )
    try:
        StateDirectory.look(state_dir)
    except StateError as error:
        if not accept_journal:
            raise BadInput(str(error)) from error
    log = EventLog("resolve", [] if json else [event_lines(sys.stderr)])
    found = trio.run(settle, options, log)
    if json:
        print_json([_resolution_json(resolution) for resolution in found])
    else:
        for resolution in found:
            _print_resolution(resolution)
        if not found:
            print_line(f"{state_dir}: no machine has ever been here; there is nothing to settle")
    return ExitCode.DONE if all(resolution.is_settled for resolution in found) else ExitCode.NOT_DONE


def _resolution_json(resolution: Resolution) -> dict[str, Any]:
    return {
        "machine": resolution.name,
        "before": resolution.before,
        "after": resolution.after,
        "found": list(resolution.found),
        "settled": resolution.is_settled,
        "known": resolution.situation.known,
        "unknown": resolution.situation.unknown,
        "advice": resolution.situation.advice,
    }


def _print_resolution(resolution: Resolution) -> None:
    change = "" if resolution.before == resolution.after else f" → {resolution.after}"
    verdict = "settled" if resolution.is_settled else "in doubt"
    print_line(f"{resolution.name}  {resolution.before}{change}: {verdict}", style="bold")
    for line in resolution.found:
        print_line(f"  found    {line}", under=11)
    print_line(f"  known    {resolution.situation.known}", under=11)
    if resolution.situation.unknown:
        print_line(f"  unknown  {resolution.situation.unknown}", under=11)
    if resolution.situation.advice:
        print_line(f"  do       {resolution.situation.advice}", under=11)
