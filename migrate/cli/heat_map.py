"""The matrix of who can go where, for people: a heat map, then what bars the way.

A machine is a row; for each release that it may come from there is a group of marks, one for each release that it may
go to, in the order of the legend.  On a terminal the marks have colours; the marks alone say the same.
"""

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from migrate.cli.output import console, print_line
from migrate.rehearsal.matrix import Cell, obstacles

OK, REFUSED, NOT_ASKED = "■", "·", " "
STYLES: Final = {OK: "green", REFUSED: "red", NOT_ASKED: ""}

#: Columns of the longest name of a machine that is shown whole.
NAME_MAX: Final = 40


def print_matrix(cells: Sequence[Cell], releases: Sequence[str], path: str | None) -> None:
    """`releases` are those that occur; `path`, if there is one, is what was asked for."""
    if path is None:
        _print_pairs(cells, releases)
    else:
        _print_path(cells, path)
    _print_reasons(cells)


def _print_pairs(cells: Sequence[Cell], releases: Sequence[str]) -> None:
    out = console()
    machines = list(dict.fromkeys(cell.spec for cell in cells))
    width = min(max(map(len, machines)), NAME_MAX)
    marks = {(cell.spec, cell.source, cell.target): OK if cell.is_ok else REFUSED for cell in cells}
    group = max(len(releases), *(len(name) + len("from ") for name in releases))
    out.print(f"each group: to {', '.join(releases)}; {OK} ok, {REFUSED} refused\n", markup=False)
    heads = "  ".join(f"from {name}".ljust(group) for name in releases)
    out.print(f"{'':{width}}  {heads}".rstrip(), markup=False)
    for machine in machines:
        line = Text(_shortened(machine).ljust(width))
        for source in releases:
            line.append("  ")
            for target in releases:
                mark = marks.get((machine, source, target), NOT_ASKED)
                line.append(mark, STYLES[mark])
            line.append(" " * (group - len(releases)))
        line.rstrip()
        out.print(line)
    fine = sum(cell.is_ok for cell in cells)
    out.print(f"\n{fine} of {len(cells)} ok", markup=False)


def _print_path(cells: Sequence[Cell], path: str) -> None:
    """Each machine as far as it came."""
    out = console()
    for machine in dict.fromkeys(cell.spec for cell in cells):
        steps = [cell for cell in cells if cell.spec == machine]
        line = Text(f"{_shortened(machine)}: {steps[0].source}")
        for cell in steps:
            mark = OK if cell.is_ok else REFUSED
            line.append(f" {mark} ", STYLES[mark])
            line.append(cell.target)
        if not steps[-1].is_ok:
            line.append(f"  (barred; {path} was asked for)")
        out.print(line)


def _print_reasons(cells: Sequence[Cell]) -> None:
    """For each machine that is barred somewhere: every reason once, with the steps that it bars."""
    for machine in dict.fromkeys(cell.spec for cell in cells):
        bars = obstacles(cells, machine)
        if bars:
            print_line()
            print_line(machine, style="bold")
            for (component, field, need), ways in bars.items():
                print_line(f"  {component}: {field}; needed: {need}", under=4)
                print_line(f"    bars {' '.join(ways)}", under=4)


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_MAX else f"…{name[1 - NAME_MAX :]}"
