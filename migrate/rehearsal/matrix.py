"""Which builds a machine can move between: every release to every release, or along a path.

A cell of the matrix is born on its source's release, for that is where machines of that fleet come from.  Along a path
the machine is born on the first release and carried on with the state that it has, its guest running on at each stop:
what goes up may not come down again, and pairs do not show that.  A path ends where a step is refused.

A cell is what `migrate check` says, and that is what the engines say (`migrate.engine.dry_run`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from migrate.engine.dry_run import Trial, Verdict, trial
from migrate.releases import Release
from sim_vmm.guest import GuestProgram
from sim_vmm.spec import Spec


@attrs.frozen(kw_only=True)
class Cell:
    """One step of a machine, from the build `source` to the build `target`.  `spec` is a name for it."""

    spec: str
    source: str
    target: str
    verdict: Verdict

    @property
    def is_ok(self) -> bool:
        return not self.verdict.reasons

    def as_json(self) -> dict[str, Any]:
        verdict = self.verdict.as_json()
        return {
            "spec": self.spec,
            "from": self.source,
            "to": self.target,
            **{key: verdict[key] for key in ("verdict", "spec_version", "reasons")},
        }


def obstacles(cells: Sequence[Cell], machine: str) -> dict[tuple[str, str, str], list[str]]:
    """What bars the ways of `machine`: component, field and need of each reason once, with the ways that it bars."""
    bars: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        for reason in cell.verdict.reasons if cell.spec == machine else ():
            ways = bars.setdefault((reason.component, reason.field, reason.need), [])
            way = f"{cell.source}→{cell.target}"
            if way not in ways:
                ways.append(way)
    return bars


def every_pair(name: str, spec: Spec, releases: Sequence[Release], guest: GuestProgram) -> Iterator[Cell]:
    """From every release to every one, itself included."""
    for source in releases:
        with trial(spec, source, guest) as tried:
            for target in releases:
                verdict = tried if isinstance(tried, Verdict) else tried.judged(target)
                yield Cell(spec=name, source=source.name, target=target.name, verdict=verdict)


def along(name: str, spec: Spec, path: Sequence[Release], guest: GuestProgram) -> Iterator[Cell]:
    """Step by step along `path`, of two releases at least, up to the first step that is refused."""
    with trial(spec, path[0], guest) as tried:
        if isinstance(tried, Verdict):
            yield Cell(spec=name, source=path[0].name, target=path[1].name, verdict=tried)
            return
        yield from _onwards(name, tried, path[1:])


def _onwards(name: str, here: Trial, path: Sequence[Release]) -> Iterator[Cell]:
    if not path:
        return
    target, *rest = path
    cell = Cell(spec=name, source=here.release.name, target=target.name, verdict=here.judged(target))
    yield cell
    if cell.is_ok:
        with here.carried(target) as there:
            yield from _onwards(name, there, rest)
