"""`migrate ledger`: the downtime ledger of a migration whose daemons each told their own part, maybe on two hosts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from migrate.cli.output import print_json, print_line
from migrate.cli.specs import Json
from migrate.cli.summary import print_ledger
from migrate.daemon.address import BadInput
from migrate.daemon.exit_codes import ExitCode
from migrate.rehearsal.clocks import Offset, exchanges_in
from migrate.rehearsal.downtime import WentOn, ledger_of

Event = dict[str, Any]
SIDES: Final = ("source", "target")
NEEDED: Final = {"outcome", "started_ns", "steps", "precopy"}
"""Of what a side tells of an attempt."""


def ledger(*events: Path, json: Json = False) -> int:
    """Lay what both sides timed of a migration on one axis, from what --events of each daemon left.

    Clocks of two hosts are laid together by the messages that went between them.

    Parameters
    ----------
    events
        The file of the source and that of the target, or the one of a rehearsal; of several migrations, the last.
    """
    told = [event for path in events for event in events_in(path)]
    if not events:
        raise BadInput("which migration? Give the files that --events of the source and of the target have left")
    source, target = (last_migrated(told, side, events) for side in SIDES)
    try:
        Offset.between(exchanges_in(source), exchanges_in(target))
    except ValueError as error:
        raise BadInput(
            f"{named(events)}: source and target tell of two different migrations ({error}); give the files of one"
        ) from error
    resumed = next((event for event in reversed(told) if event["event"] == "guest resumed"), None)
    laid = ledger_of(source, target, WentOn.of(resumed))
    if json:
        print_json(laid)
    else:
        print_ledger(laid, source["precopy"])
        if laid["clock"] is None:
            print_line("an older build told this: that both clocks are one is taken for granted")
    return ExitCode.DONE


def events_in(path: Path) -> Iterator[Event]:
    """Raises BadInput for a file that cannot be read, or is none of events; a last line may be torn."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: no file that --events left: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return
        try:
            event = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: no JSON, so no event of a daemon: {error}") from error
        if not isinstance(event, dict) or not {"event", "side", "at_ns"} <= event.keys():
            raise BadInput(f"{path}, line {number}: no event of a daemon; give what --events of a daemon left")
        yield event


def last_migrated(told: list[Event], side: str, paths: tuple[Path, ...]) -> Event:
    """Raises BadInput if `side` told of no migration that came to its end."""
    ended = [event for event in told if event["event"] == "attempt ended" and event["side"] == side]
    if any(not event.keys() >= NEEDED for event in ended):
        raise BadInput(f"{named(paths)}: the {side} tells less of an attempt than daemons do; give what --events left")
    found = next((event for event in reversed(ended) if event["outcome"] == "migrated" and event["steps"]), None)
    if found is None:
        what = f"{len(ended)} attempts, none of which migrated a machine" if ended else "no attempt"
        raise BadInput(f"{named(paths)}: the {side} tells of {what}; give the events of a {side} that migrated one")
    return found


def named(paths: tuple[Path, ...]) -> str:
    return " and ".join(map(str, paths))
