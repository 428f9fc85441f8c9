"""The matrix of who can go where: a small grid a machine, or a row of stops for a path, then what bars the way."""

from collections.abc import Sequence
from typing import Final

from migrate.rehearsal.matrix import Cell, obstacles
from migrate.reports.markup import Markup, joined, table, tag, title

SIDE: Final = 24
LEFT: Final = 74
TOP: Final = 34


def machines_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.spec for cell in cells))


def legend() -> Markup:
    ok = tag("svg", _drawn(True, 1, 1, 14), class_="swatch", viewBox="0 0 16 16")
    refused = tag("svg", _drawn(False, 1, 1, 14), class_="swatch", viewBox="0 0 16 16")
    return tag("ul", tag("li", ok, " would migrate"), tag("li", refused, " is refused"), class_="legend")


def grids(cells: Sequence[Cell], releases: Sequence[str]) -> Markup:
    """For each machine a grid: from the release of the row to that of the column."""
    figures = []
    for machine in machines_of(cells):
        of_machine = {(cell.source, cell.target): cell for cell in cells if cell.spec == machine}
        figures.append(tag("figure", tag("figcaption", machine), _grid(machine, of_machine, releases)))
    return tag("div", *figures, class_="grids")


def _grid(machine: str, cells: dict[tuple[str, str], Cell], releases: Sequence[str]) -> Markup:
    width, height = LEFT + SIDE * len(releases), TOP + SIDE * len(releases)
    parts = [title(f"{machine}: from the release of a row to that of a column")]
    parts.append(tag("text", "from ↓  to →", x=0, y=TOP - 8, class_="axis"))
    for place, name in enumerate(releases):
        middle = SIDE * place + SIDE / 2
        parts.append(tag("text", name, x=LEFT + middle, y=TOP - 22 if len(name) > 3 else TOP - 8, text_anchor="middle"))
        parts.append(tag("text", name, x=LEFT - 8, y=TOP + middle + 4, text_anchor="end"))
    for row, source in enumerate(releases):
        for column, target in enumerate(releases):
            cell = cells.get((source, target))
            if cell is not None:
                drawn = _drawn(cell.is_ok, LEFT + SIDE * column + 2, TOP + SIDE * row + 2, SIDE - 4)
                parts.append(tag("g", title(_said(cell)), drawn))
    return tag("svg", *parts, viewBox=f"0 0 {width} {height}", width=width, height=height, class_="grid", role="img")


def paths(cells: Sequence[Cell], asked: str) -> Markup:
    """Each machine as far as it came along the path."""
    figures = []
    for machine in machines_of(cells):
        steps = [cell for cell in cells if cell.spec == machine]
        barred = "" if steps[-1].is_ok else f"barred; {asked} was asked for"
        figures.append(
            tag("figure", tag("figcaption", machine), _path(machine, steps), tag("p", barred, class_="note"))
        )
    return tag("div", *figures, class_="grids")


def _path(machine: str, steps: Sequence[Cell]) -> Markup:
    across = 84
    parts = [title(f"{machine}: its way from release to release")]
    parts.append(tag("text", steps[0].source, x=4, y=18))
    for place, cell in enumerate(steps):
        x = across * place + 40
        drawn = _drawn(cell.is_ok, x, 4, 18)
        parts.append(tag("g", title(_said(cell)), drawn))
        parts.append(tag("text", f"→ {cell.target}", x=x + 24, y=18))
    width = across * len(steps) + 60
    return tag("svg", *parts, viewBox=f"0 0 {width} 28", width=width, height=28, class_="grid", role="img")


def _drawn(is_ok: bool, x: float, y: float, side: float) -> Markup:
    if is_ok:
        return tag("rect", x=x, y=y, width=side, height=side, rx=2, class_="ok")
    cross = f"M{x + 4} {y + 4}l{side - 8} {side - 8}m0 {8 - side}l{8 - side} {side - 8}"
    square = tag("rect", x=x, y=y, width=side, height=side, rx=2, class_="refused")
    return joined((square, tag("path", d=cross, class_="barred")))


def _said(cell: Cell) -> str:
    way = f"{cell.source} → {cell.target}"
    if cell.is_ok:
        return f"{way}: ok, in spec version {cell.verdict.spec_version}"
    return "\n".join([f"{way}: refused", *(reason.message for reason in cell.verdict.reasons)])


def in_words(cells: Sequence[Cell]) -> Markup:
    """For each machine: where it can go, then everything that is in the way once, with the ways that it bars."""
    parts = []
    for machine in machines_of(cells):
        open_ways = [f"{cell.source}→{cell.target}" for cell in cells if cell.spec == machine and cell.is_ok]
        parts += [tag("h3", machine), tag("p", f"Would migrate: {' '.join(open_ways) or 'nowhere'}")]
        rows = [
            (f"{component}: {field}; needed: {need}", " ".join(ways))
            for (component, field, need), ways in obstacles(cells, machine).items()
        ]
        if rows:
            parts.append(table(("in the way", "bars"), rows, class_="obstacles"))
    return joined(parts)
