"""Words and tables for people, documents for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PLAIN_WIDTH: Final = 80
"""Columns where standard output is no terminal."""


def complain(message: str) -> None:
    """One line on standard error."""
    print(f"migrate: {message}", file=sys.stderr)


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def console() -> Console:
    """Standard output: a terminal's width and colours, or 80 columns and none."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, emoji=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Columns whose name ends in a space are numbers, and stand at the right."""
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console().print(table)


def escape(text: str) -> str:
    """Square brackets in data are no markup."""
    return text.replace("[", r"\[")


def mebibytes(size: float) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
