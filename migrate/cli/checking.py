"""`migrate releases`, `check` and `matrix`: what builds know, and whether a machine would migrate between them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from migrate.cli.heat_map import print_matrix
from migrate.cli.options import Guest, Releases, guest_named
from migrate.cli.output import print_json, print_line, print_table
from migrate.cli.reporting import Report, leave, require_writable
from migrate.cli.specs import ApiVersion, Json, read
from migrate.cli.summary import print_reasons
from migrate.daemon.address import BadInput
from migrate.daemon.exit_codes import ExitCode
from migrate.engine.dry_run import Verdict, would_migrate
from migrate.rehearsal.matrix import along, every_pair
from migrate.releases import NEWEST, Release, all_releases, release_named
from migrate.reports.page import matrix_page


def releases(*, releases: Releases = None, json: Json = False) -> int:
    """List releases: named sets of what one build of a VMM knows."""
    known = all_releases(releases)
    if json:
        print_json([release.as_json() for release in known.values()])
        return ExitCode.DONE
    kinds = sorted({kind for release in known.values() for kind in release.payloads})
    rows: list[tuple[Any, ...]] = [("spec", *(_versions(release.specs) for release in known.values()))]
    rows += [(kind, *(_versions(release.payloads.get(kind, ())) for release in known.values())) for kind in kinds]
    print_table(("versions of", *known), rows)
    return ExitCode.DONE


def _versions(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def check(
    spec: Path,
    /,
    *,
    from_: Annotated[str, Parameter(name="--from", help="Release of the source.")] = NEWEST,
    to: Annotated[str, Parameter(name="--to", help="Release of the target.")] = NEWEST,
    guest: Guest = "stamp",
    releases: Releases = None,
    api_version: ApiVersion = None,
    json: Json = False,
) -> int:
    """Say whether a machine would migrate from one release to another, without starting a daemon.

    The machine is born on the source's release; its guest boots and runs for a moment in memory, and the state that its
    devices are then in is what is judged.

    Parameters
    ----------
    spec
        The machine's spec.
    """
    known = all_releases(releases)
    source, target = release_named(from_, known), release_named(to, known)
    verdict = would_migrate(read(spec, api_version).spec, source, target, guest_named(guest))
    if json:
        print_json(verdict.as_json())
    else:
        _print_verdict(verdict, spec, source, target)
    return ExitCode.NOT_DONE if verdict.reasons else ExitCode.DONE


def matrix(
    *files: Path,
    path: Annotated[
        str | None, Parameter(help="Releases such as r1,r6,r1: carry the machine along them, born on the first.")
    ] = None,
    guest: Guest = "stamp",
    releases: Releases = None,
    api_version: ApiVersion = None,
    report: Report = None,
    json: Json = False,
) -> int:
    """Say between which releases machines would migrate: every one to every one, or along a path.

    Exit code 1 says that a path is barred; a matrix is done whatever it says.

    Parameters
    ----------
    files
        The machines' specs.
    """
    if not files:
        raise BadInput("no spec file given: migrate matrix SPEC…")
    require_writable(report=report)
    known = all_releases(releases)
    program = guest_named(guest)
    specs = {str(file): read(file, api_version).spec for file in files}
    if path is None:
        names = list(known)
        cells = [cell for file, spec in specs.items() for cell in every_pair(file, spec, [*known.values()], program)]
    else:
        stops = path_of(path, known)
        names = list(dict.fromkeys(stop.name for stop in stops))
        cells = [cell for file, spec in specs.items() for cell in along(file, spec, stops, program)]
    if report is not None:
        fine = sum(cell.is_ok for cell in cells)
        title = "Who can go where" if path is None else f"The way {path}"
        leave(report, matrix_page(title, f"{fine} of {len(cells)} ok, guest {guest}", cells, names, path))
    if json:
        print_json([cell.as_json() for cell in cells])
    else:
        print_matrix(cells, names, path)
    barred = path is not None and not all(cell.is_ok for cell in cells)
    return ExitCode.NOT_DONE if barred else ExitCode.DONE


def path_of(text: str, known: dict[str, Release]) -> Sequence[Release]:
    """The releases of `A,B,A`.  Raises BadInput if they make no path, ReleaseError if one is unknown."""
    stops = [release_named(name.strip(), known) for name in text.split(",")]
    if len(stops) < 2:
        raise BadInput(f"--path {text}: a path has two releases at least, such as r1,r6,r1")
    return stops


def _print_verdict(verdict: Verdict, file: Path, source: Release, target: Release) -> None:
    way = f"{file}, {source.name} to {target.name}"
    if verdict.reasons:
        print_line(f"{way}: refused", style="bold")
        print_reasons(reason.as_json() for reason in verdict.reasons)
        return
    print_line(f"{way}: ok, in spec version {verdict.spec_version}", style="bold")
    for line in verdict.why_not_newer:
        print_line(f"  {line}", under=4)
    print_line()
    rows: list[tuple[Any, ...]] = [
        (device, ", ".join(f"{kind} {version}" for kind, version in payloads.items()))
        for device, payloads in verdict.payloads.items()
    ]
    print_table(("device", "payloads"), rows)
