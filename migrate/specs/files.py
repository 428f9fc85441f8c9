"""Spec files as people write them: JSON as the control API takes it, with no version inside.

The newest published version that parses the file is taken, unless told which.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from migrate.specs import BY_NUMBER, SAME_SHAPE, VERSIONS, SpecVersion
from migrate.specs.reading import ParseError, ignored, parse_json
from sim_vmm.spec import Spec, SpecError


@attrs.frozen(str=False)
class SpecFileError(Exception):
    """A spec file is unreadable or invalid.  `problems` has one entry for each version that was tried."""

    file: str
    api_version: int | None
    problems: tuple[tuple[int | None, ParseError | SpecError], ...]

    def __str__(self) -> str:
        return f"{self.file}: " + "; ".join(message for message in self.messages())

    def messages(self) -> list[str]:
        """Each problem once, with the versions that have it."""
        versions: dict[str, list[int]] = {}
        for version, error in self.problems:
            versions.setdefault(str(error), []).extend([] if version is None else [version])
        if len(versions) == 1:
            return list(versions)
        return [f"as version {', '.join(map(str, numbers))}: {text}" for text, numbers in versions.items()]


@attrs.frozen(kw_only=True)
class SpecFile:
    """A valid spec file: `version` is the one it was read as; `notes` are the things in it that were ignored."""

    file: str
    version: SpecVersion
    spec: Spec
    notes: tuple[str, ...]

    def canonical(self) -> dict[str, Any]:
        return self.version.encode(self.spec)


def known_version(number: int) -> SpecVersion | None:
    """The spec version of an API version; 4 and 5 have the shape of 3."""
    return BY_NUMBER.get(SAME_SHAPE.get(number, number))


def read_spec_file(path: Path, api_version: int | None = None) -> SpecFile:
    """Read and check one file.

    Raises:
        SpecFileError: it cannot be read, no version parses it, or a rule of the builder is broken.
    """
    try:
        plain = parse_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
        problem = ParseError(error="Unreadable", component=None, field=None, message=f"cannot be read: {reason}")
        raise SpecFileError(str(path), api_version, ((None, problem),)) from None
    except ParseError as problem:
        raise SpecFileError(str(path), api_version, ((None, problem),)) from None
    return read_spec_document(plain, str(path), api_version)


def read_spec_document(plain: Any, file: str, api_version: int | None = None) -> SpecFile:
    """Check what has been read already; `file` is what it is called in errors.

    Raises:
        SpecFileError: no version parses it, or a rule of the builder is broken.
    """
    chosen = None if api_version is None else known_version(api_version)
    problems: list[tuple[int | None, ParseError | SpecError]] = []
    for version in VERSIONS if chosen is None else (chosen,):
        try:
            document = version.read(plain)
        except ParseError as problem:
            problems.append((version.number, problem))
            continue
        try:
            spec = version.build(document)
        except SpecError as problem:
            raise SpecFileError(file, version.number, ((version.number, problem),)) from None
        return SpecFile(file=file, version=version, spec=spec, notes=tuple(_notes(plain, version)))
    raise SpecFileError(file, api_version, tuple(problems))


def _notes(plain: Mapping[str, Any], version: SpecVersion) -> list[str]:
    known = frozenset(field.name for field in attrs.fields(version.document))
    return list(ignored(plain, known))
