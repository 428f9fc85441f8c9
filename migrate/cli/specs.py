"""`migrate spec …`: what a spec file says, and in which versions it can travel."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from migrate.cli.output import complain, print_json, print_line, print_table
from migrate.daemon.address import BadInput
from migrate.daemon.exit_codes import ExitCode
from migrate.reasons import Reason
from migrate.specs import BY_NUMBER, SAME_SHAPE
from migrate.specs.files import SpecFile, SpecFileError, known_version, read_spec_file
from migrate.specs.offer import Variant, Withheld, offer

app = App(name="spec", help="Check, show and convert instance specs.")

ApiVersion = Annotated[int | None, Parameter(help="Read the file as this API version, not as the newest that fits.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]


@app.command
def validate(*specs: Path, api_version: ApiVersion = None, json: Json = False) -> int:
    """Parse spec files and check every rule of the builder.

    Parameters
    ----------
    specs
        Spec files: JSON as the control API takes it.
    """
    if not specs:
        raise BadInput("SPEC is missing; see migrate spec validate --help")
    results = [_validated(file, checked_api_version(api_version)) for file in specs]
    if json:
        print_json(results)
    else:
        for result in results:
            _print_validated(result)
    return ExitCode.DONE if all(result["valid"] for result in results) else ExitCode.BAD_INPUT


def _validated(file: Path, api_version: int | None) -> dict[str, Any]:
    try:
        spec_file = read_spec_file(file, api_version)
    except SpecFileError as error:
        problems = [
            {
                "layer": problem.layer,
                "error": problem.error,
                "component": problem.component,
                "message": f"as version {version}: {problem}" if len(error.problems) > 1 else str(problem),
            }
            for version, problem in error.problems
        ]
        return {"file": str(file), "api_version": error.api_version, "valid": False, "errors": problems}
    _tell_notes(spec_file)
    return {
        "file": str(file),
        "api_version": api_version or spec_file.version.number,
        "valid": True,
        "errors": [],
    }


def _print_validated(result: dict[str, Any]) -> None:
    version = "no version" if result["api_version"] is None else f"version {result['api_version']}"
    verdict = f"valid, {version}" if result["valid"] else f"invalid as {version}"
    print_line(f"{result['file']}: {verdict}", under=2)
    for error in result["errors"]:
        print_line(f"  {error['error']}: {error['message']}", under=4)


@app.command
def show(spec: Path, /, *, api_version: ApiVersion = None, json: Json = False) -> int:
    """Print a spec in its canonical form: keys in order, UUIDs in one spelling, defaults as the version writes them."""
    del json  # the document is JSON either way
    print_json(read(spec, api_version).canonical())
    return ExitCode.DONE


@app.command
def convert(spec: Path, /, *, to: int, api_version: ApiVersion = None, json: Json = False) -> int:
    """Convert a spec to another version, without losing anything or not at all.

    Parameters
    ----------
    to
        The spec version wanted: 1, 2, 3 or 6.
    """
    version = known_version(to)
    if version is None:
        raise BadInput(f"there is no spec version {to}; there are {', '.join(map(str, sorted(BY_NUMBER)))}")
    machine = read(spec, api_version).spec
    (entry,) = offer(machine, [version])
    if isinstance(entry, Variant):
        print_json(version.encode(machine))
        return ExitCode.DONE
    refuse(entry.reasons, json, f"{spec} cannot be expressed in version {to}")
    return ExitCode.NOT_DONE


@app.command(name="offer")
def offer_command(spec: Path, /, *, api_version: ApiVersion = None, json: Json = False) -> int:
    """Show what a source would offer of a spec, newest version first, and what it would withhold and why."""
    entries = [_offered(entry) for entry in offer(read(spec, api_version).spec)]
    if json:
        print_json(entries)
    else:
        print_table(
            ("version ", "bytes ", "offered", "why not"),
            [
                (entry["version"], entry["bytes"] or "", "yes" if entry["lossless"] else "no", entry["reason"] or "")
                for entry in entries
            ],
        )
    return ExitCode.DONE


def _offered(entry: Variant | Withheld) -> dict[str, Any]:
    if isinstance(entry, Variant):
        return {"version": entry.version, "bytes": len(entry.document), "lossless": True, "reason": None}
    reason = "; ".join(reason.message for reason in entry.reasons)
    return {"version": entry.version, "bytes": None, "lossless": False, "reason": reason}


def read(file: Path, api_version: int | None = None) -> SpecFile:
    """A valid spec file; what it says in vain is said on standard error."""
    spec_file = read_spec_file(file, checked_api_version(api_version))
    _tell_notes(spec_file)
    return spec_file


def _tell_notes(spec_file: SpecFile) -> None:
    for note in spec_file.notes:
        complain(f"{spec_file.file}: note: {note}")


def checked_api_version(number: int | None) -> int | None:
    """Raises BadInput if there is no such API version."""
    if number is not None and known_version(number) is None:
        known = sorted({*BY_NUMBER, *SAME_SHAPE})
        raise BadInput(f"there is no API version {number}; there are {', '.join(map(str, known))}")
    return number


def refuse(reasons: tuple[Reason, ...], as_json: bool, summary: str) -> None:
    """Say why not: a document for programs, one line a reason for people."""
    if as_json:
        print_json({"reasons": [reason.as_json() for reason in reasons]})
        return
    complain(f"{summary}:")
    for reason in reasons:
        complain(f"  {reason.message}")
