"""Reads pages of the site from their files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

# Elements that load what they name, and the attribute that names it.
LOADS = {
    "img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "object": "data", "link": "href", "image": "href", "use": "href",
}  # fmt: skip
# Tags, roles and classes that change what text inside of them is.
MARKS = {"h1", "main", "linenos", "headerlink", "script", "style", "pre", "code", "math"}
EMPTY = {"img", "link", "meta", "br", "hr", "input", "source", "embed", "wbr", "col"}


@dataclass
class Page:
    """What one page holds. text: that of its main part, as one line, without numbers of lines."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    # Text of the main part, of code in it, and of what stands before and in its section "source-code".
    text: str = ""
    prose: str = ""
    before: str = ""
    source: str = ""
    title: str = ""
    equations: int = 0


class Reader(HTMLParser):
    """Reads a page. What is open is a stack of tags, each with what is true inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.open: list[tuple[str, frozenset[str]]] = [("", frozenset())]
        self.parts: dict[str, list[str]] = {key: [] for key in ("text", "prose", "before", "source", "title")}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        page = self.page
        page.ids |= {values[key] for key in ("id", "name") if key in values}
        # "next", "search" and such name pages; other <link>s are loaded with the page.
        named = tag == "link" and values.get("rel") in ("next", "prev", "index", "search", "author", "help")
        if (tag == "a" or named) and "href" in values:
            page.links.append(values["href"])
        elif tag in LOADS and LOADS[tag] in values:
            page.loaded.append(values[LOADS[tag]])
        page.loaded += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style", ""))
        page.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        if tag == "img":
            page.images.append((values.get("src", ""), values.get("alt", "")))
        page.equations += tag == "math"
        if tag not in EMPTY:
            marks = {tag, values.get("role", ""), *values.get("class", "").split()} & MARKS
            marks |= {"source-code"} if values.get("id") == "source-code" else set()
            self.open.append((tag, self.open[-1][1] | marks))

    def handle_endtag(self, tag: str) -> None:
        # An element such as <col/> ends without having been opened.
        if any(tag == name for name, _ in self.open):
            while self.open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        marks = self.open[-1][1]
        if "h1" in marks:
            self.parts["title"].append(data)
        if "main" in marks and not marks & {"linenos", "headerlink", "script", "style"}:
            self.parts["text"].append(data)
            self.parts["source" if "source-code" in marks else "before"].append(data)
            if not marks & {"pre", "code", "math"}:
                self.parts["prose"].append(data)

    def finish(self) -> Page:
        for key, parts in self.parts.items():
            setattr(self.page, key, "".join(parts))
        return self.page


@cache
def read(path: Path) -> Page:
    """A page of the site."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.finish()


def every_page(site: Path) -> dict[Path, Page]:
    """All pages by their file."""
    return {path: read(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def squeezed(text: str) -> str:
    """The text without white space and without the marks of code."""
    return re.sub(r"[\s`]+", "", text)


def outside(url: str) -> bool:
    """Whether a browser would leave the site for it."""
    parts = urlsplit(url)
    return bool(parts.netloc or parts.scheme not in ("", "data"))
