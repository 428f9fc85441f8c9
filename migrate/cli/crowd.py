"""`migrate crowd`: very many machines between two hosts."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, Protocol

import attrs
import trio
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from migrate.cli.access import throw_away
from migrate.cli.host import boot_request
from migrate.cli.options import (
    Bandwidth,
    DowntimeLimit,
    From,
    Guest,
    Releases,
    Retries,
    Seed,
    Stall,
    StreamCount,
    To,
    arguments_of,
    at_least_0,
    streams_of,
)
from migrate.cli.output import complain, mebibytes, print_json, print_line, print_table, printable
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.units import parse_rate
from migrate.daemon.address import BadInput
from migrate.daemon.birth import born
from migrate.daemon.exit_codes import ExitCode
from migrate.daemon.host.client import Denied, HostGone
from migrate.daemon.host.host import MIGRATIONS_MAX
from migrate.daemon.host.pair import CrowdOptions, CrowdResult, run_crowd
from migrate.daemon.host.run import room_for
from migrate.daemon.pair import DaemonDied
from migrate.daemon.run import leaf_of
from migrate.engine.policy import OnStall
from migrate.rehearsal.crowd import CrowdAudit, audit_crowd, crowd_document
from migrate.releases import NEWEST, all_releases, release_named
from migrate.specs.digest import spec_digest
from sim_vmm.guest import LedgerGuest

Document = dict[str, Any]

FAILURES_SHOWN: Final = 10
OFFER_S: Final = 3600.0
"""Here both hosts are asked by one who does not forget."""
TOLD_EVERY_S: Final = 5.0
"""Where there is no terminal."""
DOWNTIME_LIMIT_MS: Final = 30_000.0
"""In a crowd every guest waits for the others: what is rehearsed is not how long."""


def crowd(
    spec: Path,
    /,
    *,
    machines: Annotated[int, Parameter(help="How many machines.")] = 100,
    at_once: Annotated[
        int | None, Parameter(help="Migrations in progress at once; the others wait for their turn.")
    ] = None,
    from_: From = NEWEST,
    to: To = NEWEST,
    guest: Guest = "stamp",
    memory_mb: Annotated[int, Parameter(name="--memory-mb", help="Guest RAM of each, in MiB.")] = 8,
    downtime_limit_ms: DowntimeLimit = DOWNTIME_LIMIT_MS,
    on_stall: Stall = OnStall.REFUSE,
    bandwidth: Bandwidth = None,
    streams: StreamCount = 1,
    retries: Retries = 2,
    seed: Seed = 0,
    state: Annotated[
        bool, Parameter(negative="--no-state", help="Keep journals and disks, as hosts do that survive a kill.")
    ] = True,
    tls: Annotated[bool, Parameter(negative="", help="Mutual TLS, with certificates made for this run.")] = False,
    releases: Releases = None,
    api_version: ApiVersion = None,
    json: Json = False,
) -> int:
    """Start two hosts as processes on loopback, boot machines on one, migrate all to the other, and audit each.

    Parameters
    ----------
    spec
        The spec of all the machines.
    """
    if machines < 1 or (at_once is not None and at_once < 1):
        raise BadInput("--machines and --at-once are 1 or more")
    if guest.partition(":")[0] == LedgerGuest.name:
        raise BadInput("a ledger is read from the artefacts of one machine: migrate rehearse does; use --guest stamp")
    at_once = min(machines, MIGRATIONS_MAX) if at_once is None else at_once
    room_for(machines, at_once * (streams_of(streams) - 1))
    known = all_releases(releases)
    release_named(from_, known), release_named(to, known), parse_rate(bandwidth)
    boot = boot_request(
        spec, name=None, count=machines, guest=guest, memory_mb=memory_mb, seed=seed, api_version=api_version
    )
    expected = spec_digest(born(read(spec, api_version).spec, memory_mb)).hex()
    with TemporaryDirectory(prefix="migrate-crowd-") as temporary:
        directory = Path(temporary)
        secured: dict[str, list[str]] = throw_away(directory / "certificates") if tls else {}
        common = arguments_of(
            {"--releases": releases, "--machines-max": machines, "--migrations-max": at_once, "--offer-s": OFFER_S}
        )
        if state:
            common += ["--storage", str(directory / "disks")]
        limits = {"--downtime-limit-ms": downtime_limit_ms, "--on-stall": on_stall.value, "--bandwidth": bandwidth}
        options = CrowdOptions(
            boot=boot,
            arguments={
                side: [
                    *common,
                    *arguments_of({"--release": release, "--streams": streams, **limits}),
                    *(["--state-dir", str(directory / side)] if state else []),
                    *("--audited", *secured.get(side, ())),
                ]
                for side, release in (("source", from_), ("target", to))
            },
            retries=at_least_0("--retries", retries),
        )
        result = _run(options, directory, machines, quiet=json)
    if isinstance(result, ExitCode):
        return result
    audited = audit_crowd(result, expected)
    document = crowd_document(result, audited, at_once)
    if json:
        print_json(document)
    else:
        print_crowd(document, f"{spec}, {from_} to {to}")
    return _exit_code(document, audited)


def _exit_code(document: Document, audited: CrowdAudit) -> ExitCode:
    if audited.violations:
        return ExitCode.AUDIT_VIOLATED
    return ExitCode.NOT_DONE if document["failures"] else ExitCode.DONE


def _run(options: CrowdOptions, directory: Path, machines: int, *, quiet: bool) -> CrowdResult | ExitCode:
    try:
        with progress_of(machines, quiet=quiet) as tally:
            return trio.run(run_crowd, options, directory, tally.note, tally.heed)
    except* DaemonDied as group:
        death = leaf_of(group)
        assert isinstance(death, DaemonDied)
        complain(death.last_words.removeprefix("migrate: "))
        code = ExitCode.BAD_INPUT if death.exit_code == ExitCode.BAD_INPUT else ExitCode.AUDIT_VIOLATED
    except* (Denied, HostGone) as group:
        complain(str(leaf_of(group)))
        code = ExitCode.NOT_DONE
    except* KeyboardInterrupt:
        complain("interrupted; both hosts have ended")
        code = ExitCode.INTERRUPTED
    return code


@attrs.define
class Tally:
    """How far it has come; `tell` shows it."""

    machines: int
    tell: "Tell"
    booted: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    began: float = 0.0

    def heed(self, status: Document) -> None:
        """How the source is."""
        self.running = status["in_progress"]["out"]
        if self.running and not self.began:
            self.began = time.monotonic()
        if not self.began:
            self.booted = status["machines"]
        self.tell(self)

    def note(self, sent: Document) -> None:
        """Of one machine."""
        self.began = self.began or time.monotonic()
        self.done += sent["outcome"] == "migrated"
        self.failed += sent["outcome"] != "migrated"

    def in_words(self) -> str:
        """At most 80 columns of them."""
        if not self.began:
            return f"{self.booted:,} of {self.machines:,} booted"
        over = self.done + self.failed
        rate = over / max(time.monotonic() - self.began, 1e-9)
        left = f", {(self.machines - over) / rate:.0f} s to go" if over else ""
        return f"{self.done:,} done, {self.failed:,} failed, {self.running:,} in progress, {rate:.1f}/s{left}"


class Tell(Protocol):
    def __call__(self, tally: Tally, /) -> None: ...


@contextmanager
def progress_of(machines: int, *, quiet: bool) -> Iterator[Tally]:
    """A bar on a terminal, a line now and then elsewhere; on standard error."""
    if quiet or not sys.stderr.isatty():
        yield Tally(machines, _ignore if quiet else _lines())
        return
    console = Console(stderr=True, highlight=False, emoji=False)
    columns = (BarColumn(20), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=2 * machines)

        def show(tally: Tally) -> None:
            progress.update(task, completed=tally.booted + tally.done + tally.failed, description=tally.in_words())

        yield Tally(machines, show)


def _ignore(_: Tally) -> None:
    """Nobody looks."""


def _lines() -> Tell:
    said = ""
    quiet_until = 0.0

    def write(tally: Tally) -> None:
        nonlocal said, quiet_until
        words, now = tally.in_words(), time.monotonic()
        if words != said and now >= quiet_until:
            said, quiet_until = words, now + TOLD_EVERY_S
            print(printable(words), file=sys.stderr, flush=True)

    return write


def print_crowd(document: Document, title: str) -> None:
    """A summary that fits a screen."""
    count, outcomes, away = document["machines"], document["outcomes"], document["blackout_ms"]
    print_line()
    told = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(outcomes.items()))
    print_line(f"{title}: {count:,} machines, {document['at_once']:,} at once: {told}", style="bold")
    print_line()
    rows: list[tuple[str, str, str]] = []
    for what, key, show in (
        ("resident memory", "rss_bytes", mebibytes),
        ("open files", "open_files", _number),
        ("tasks", "tasks", _number),
        ("machines", "machines", _number),
    ):
        for side in ("source", "target"):
            rows.append((f"{what}, {side}", *(show(at[key]) for at in document["hosts"][side])))  # type: ignore[arg-type]
    print_table(("host", "empty ", "booted ", "migrated "), rows)
    print_line()
    facts = [
        ("booted in", f"{document['boot_s']:.1f} s"),
        ("migrated in", f"{document['migrate_s']:.1f} s, {document['per_second']:.1f} machines a second"),
    ]
    if away is not None:
        facts.append(
            (
                "guests away",
                f"{away['median']:.0f} ms (median), {away['p99']:.0f} ms (99 %), {away['max']:.0f} ms (most)",
            )
        )
    checks, violations = document["audit"]["checks"], document["audit"]["violations"]
    facts.append(("audit", f"{len(checks)} checks, {len(violations) or 'none'} violated: {', '.join(checks)}"))
    for label, text in facts:
        print_line(f"{label:12}  {text}", under=14)
    for violation in violations[:FAILURES_SHOWN]:
        line = f"VIOLATED  {violation['machine']}: {violation['check']}: {violation['message']}"
        print_line(line, under=10, style="bold")
    for failure in document["failures"][:FAILURES_SHOWN]:
        print_line(f"{failure['machine']}: {failure['outcome']}: {failure['error']['message']}", under=2)
    for what, many in (("violations", violations), ("failures", document["failures"])):
        if len(many) > FAILURES_SHOWN:
            print_line(f"and {len(many) - FAILURES_SHOWN} more {what}")


def _number(count: float) -> str:
    return f"{count:,}"
