"""HTML and SVG by value: whatever is not markup already is escaped, so that no name of a spec can become an element."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

VOID: Final = frozenset({"br", "meta", "col"})
"""HTML elements that have no end."""


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def visible(text: str) -> str:
    """Control characters, lone surrogates and marks that turn the direction of writing are shown, not carried out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def escaped(text: str) -> Markup:
    return text if isinstance(text, Markup) else Markup(escape(visible(text), quote=True))


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element.  `class_` is written `class`, `_` in other names `-`; what is None or False is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped("" if value is True else _number(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{''.join(map(escaped, children))}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Markup:
    return Markup(escaped(between).join(map(escaped, parts)))


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", class_: str | None = None
) -> Markup:
    """Heads that end in a space are above numbers, which stand at the right."""
    kinds = ["number" if head.endswith(" ") else None for head in heads]
    head = tag(
        "tr", *(tag("th", head.strip(), scope="col", class_=kind) for head, kind in zip(heads, kinds, strict=True))
    )
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    described = [tag("caption", caption)] if caption else []
    return tag(
        "div", tag("table", *described, tag("thead", head), tag("tbody", *body), class_=class_), class_="scrolled"
    )


def details(summary: str, *children: str) -> Markup:
    return tag("details", tag("summary", summary), *children)


def section(title: str, *children: str) -> Markup:
    return tag("section", tag("h2", title), *children)


def title(text: str) -> Markup:
    """What is said of an element when a pointer rests on it."""
    return tag("title", text)


def _number(value: object) -> str:
    """Coordinates with as many digits as a screen can show."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
