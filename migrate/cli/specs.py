"""`migrate spec …`: what a spec file says, and in which versions it can travel."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from migrate.cli.output import complain, print_json, print_table
from migrate.daemon.run import BadInput, ExitCode
from migrate.reasons import Reason
from migrate.specs import BY_NUMBER, SAME_SHAPE
from migrate.specs.files import SpecFile, SpecFileError, known_version, read_spec_file
from migrate.specs.offer import Variant, Withheld, offer

app = App(name="spec", help="Check, show and convert instance specs.")

ApiVersion = Annotated[int | None, Parameter(help="Read the file as this API version, not as the newest that fits.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]


@app.command
def validate(*files: Path, api_version: ApiVersion = None, json: Json = False) -> int:
    """Parse spec files and check every rule of the builder.

    Parameters
    ----------
    files
        Spec files: JSON as the control API takes it.
    """
    if not files:
        raise BadInput("no spec file given: migrate spec validate SPEC…")
    results = [_validated(file, checked_api_version(api_version)) for file in files]
    if json:
        print_json(results)
    else:
        print_table(
            ("file", "version ", "verdict", "what is wrong"),
            [
                (
                    result["file"],
                    result["api_version"] or "?",
                    "valid" if result["valid"] else "invalid",
                    "\n".join(f"{error['error']}: {error['message']}" for error in result["errors"])
                    or "\n".join(f"note: {note}" for note in result["notes"]),
                )
                for result in results
            ],
        )
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
        return {"file": str(file), "api_version": error.api_version, "valid": False, "errors": problems, "notes": []}
    version = api_version or spec_file.version.number
    return {"file": str(file), "api_version": version, "valid": True, "errors": [], "notes": list(spec_file.notes)}


@app.command
def show(file: Path, *, api_version: ApiVersion = None, json: Json = False) -> int:
    """Print a spec in its canonical form: keys in order, UUIDs in one spelling, defaults as the version writes them."""
    del json  # the document is JSON either way
    print_json(read(file, api_version).canonical())
    return ExitCode.DONE


@app.command
def convert(file: Path, *, to: int, api_version: ApiVersion = None, json: Json = False) -> int:
    """Convert a spec to another version, without losing anything or not at all.

    Parameters
    ----------
    to
        The spec version wanted: 1, 2, 3 or 6.
    """
    version = known_version(to)
    if version is None:
        raise BadInput(f"there is no spec version {to}; there are {', '.join(map(str, sorted(BY_NUMBER)))}")
    spec = read(file, api_version).spec
    (entry,) = offer(spec, [version])
    if isinstance(entry, Variant):
        print_json(version.encode(spec))
        return ExitCode.DONE
    refuse(entry.reasons, json, f"{file} cannot be expressed in version {to}")
    return ExitCode.NOT_DONE


@app.command(name="offer")
def offer_command(file: Path, *, api_version: ApiVersion = None, json: Json = False) -> int:
    """Show what a source would offer of a spec, newest version first, and what it would withhold and why."""
    entries = [_offered(entry) for entry in offer(read(file, api_version).spec)]
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
    for note in spec_file.notes:
        complain(f"{file}: note: {note}")
    return spec_file


def checked_api_version(number: int | None) -> int | None:
    """Raises BadInput if there is no such API version."""
    if number is not None and known_version(number) is None:
        known = sorted({*BY_NUMBER, *SAME_SHAPE})
        raise BadInput(f"there is no API version {number}; there are {', '.join(map(str, known))}")
    return number


def refuse(reasons: tuple[Reason, ...], as_json: bool, summary: str) -> None:
    """Say why not: a document for programs, one line a reason for people."""
    if as_json:
        print(json.dumps({"reasons": [reason.as_json() for reason in reasons]}, indent=2))
        return
    complain(f"{summary}:")
    for reason in reasons:
        complain(f"  {reason.message}")
