"""Words and tables for people, documents for programs."""

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH: Final = 80
"""Columns where standard output is no terminal."""


def complain(message: str) -> None:
    """One line on standard error."""
    print(f"migrate: {printable(message)}", file=sys.stderr)


def print_json(document: Any) -> None:
    """In ASCII, so that it comes out the same in every locale, whatever strings a spec holds."""
    print(json.dumps(document, indent=2))


def console() -> Console:
    """Standard output: a terminal's width and colours, or 80 columns and none, whatever the environment says."""
    if sys.stdout.isatty():
        return Console(highlight=False, emoji=False)
    return Console(width=PLAIN_WIDTH, force_terminal=False, color_system=None, highlight=False, emoji=False)


def print_line(text: str = "", *, under: int = 0, style: str = "") -> None:
    """`text`, wrapped at the width of the output; lines after the first stand `under` columns to the right."""
    out = console()
    lines = textwrap.wrap(printable(text), out.width, subsequent_indent=" " * under, break_on_hyphens=False)
    for line in lines or [""]:
        out.print(Text(line, style=style), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns whose name ends in a space are numbers, and stand at the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console().print(table)


def printable(text: str) -> str:
    """Line ends and control characters in data, such as the keys of a spec, move no cursor and start no line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def mebibytes(size: float) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
