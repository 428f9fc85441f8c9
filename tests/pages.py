"""Reads a page as a browser would, for tests: its elements, its words, and whatever it would fetch."""

from html.parser import HTMLParser

import attrs

VOID = frozenset({"br", "meta", "col", "link", "img", "input", "hr"})
FETCHING = frozenset({"src", "srcset", "data", "action", "poster", "background", "ping", "formaction", "xlink:href"})
STRUCTURE = (
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "h1",
    "h2",
    "h3",
    "p",
    "section",
    "div",
)
LISTS = (
    "dl",
    "dt",
    "dd",
    "ul",
    "li",
    "details",
    "summary",
    "figure",
    "figcaption",
    "span",
    "strong",
    "i",
    "pre",
    "code",
)
TABLES = ("table", "caption", "thead", "tbody", "tr", "th", "td")
PICTURES = ("svg", "g", "rect", "line", "path", "polygon", "circle", "text", "tspan", "symbol", "use")
TAGS = frozenset((*STRUCTURE, *LISTS, *TABLES, *PICTURES))
"""Everything that our pages are made of."""


@attrs.define
class Element:
    tag: str
    attributes: dict[str, str]
    words: str = ""  # of itself and of everything inside
    inside: tuple[str, ...] = ()


class Page(HTMLParser):
    """Raises AssertionError while it reads, if elements are not closed in order or are none of ours."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, f"<{tag}> is none of our elements"
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs}, inside=tuple(e.tag for e in self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.words += data

    def all(self, tag: str, class_: str = "") -> list[Element]:
        return [
            element
            for element in self.elements
            if element.tag == tag and class_ in ("", *element.attributes.get("class", "").split())
        ]

    def one(self, tag: str, class_: str = "") -> Element:
        (element,) = self.all(tag, class_)
        return element

    def fetches(self) -> list[str]:
        """What a browser would get from elsewhere, or run."""
        found = []
        for element in self.elements:
            for name, value in element.attributes.items():
                if name in FETCHING or name.startswith("on") or (name == "href" and not value.startswith("#")):
                    found.append(f"{element.tag} {name}={value}")
                if name == "style" or ("url(" in value and name != "title"):
                    found.append(f"{element.tag} {name}={value}")
        style = self.one("style").words
        return found + [word for word in ("url(", "@import", "http:", "https:", "//") if word in style]
