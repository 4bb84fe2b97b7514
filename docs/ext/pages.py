"""Writes the pages that come from the code. Hand-written pages, those in docs/, are put beside them.

`make site` gives Sphinx a folder under build/ as its source, and docs/ for the configuration only: so nothing
that was generated lies between files of the repository. A file is touched only when its text has changed, and
Sphinx reads again what was touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sphinx.application import Sphinx
from sphinx.errors import ConfigError
from sphinx.util import logging
from sphinx.util.display import status_iterator

from minitf import bench
from minitf.course import Lesson, lessons

from . import gather, notebooks, patterns
from .bars import draw_bars
from .docstrings import ARXIV, blocks, escaped, fence, md, rst, to_markdown, to_rst
from .packages import Package, packages

logger = logging.getLogger(__name__)
DOCS = Path(__file__).parents[1]
# The grids of cards, in words.
GRIDS = {
    "1d": "a sequence of tokens, (B, N, D)",
    "2d": "an image, (B, rows, columns, D)",
    "nd": "any number of axes, (B, ..., D)",
    "any": "token by token, (..., D)",
}


class Writer:
    """Writes pages into one folder, and knows which are there now."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: set[Path] = set()
        self.templates = Environment(
            loader=FileSystemLoader(DOCS / "templates"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self.templates.filters |= {
            "md": md, "rst": rst, "escaped": escaped, "to_markdown": to_markdown, "to_rst": to_rst,
            "fence": fence, "key": gather.key_of,
        }  # fmt: skip
        self.templates.globals |= {"ARXIV": ARXIV, "GRIDS": GRIDS}

    def write(self, name: str, text: str | bytes) -> None:
        """Write a file, unless it has this text already."""
        path, data = self.folder / name, text.encode() if isinstance(text, str) else text
        self.written.add(path)
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def render(self, name: str, template: str, **facts: Any) -> None:
        """Write a page from its template."""
        self.write(name, self.templates.get_template(f"{template}.jinja").render(facts))

    def remove_others(self) -> None:
        """Remove the pages of earlier builds that this one did not write."""
        for path in self.folder.rglob("*"):
            if path.suffix in (".md", ".rst", ".ipynb") and path not in self.written:
                path.unlink()


def write_pages(app: Sphinx) -> None:
    """Everything that Sphinx will read, written into its source folder."""
    folder = Path(app.srcdir)
    if folder.resolve() == DOCS.resolve():
        raise ConfigError(
            "the source folder must not be docs/, into which pages would be written: see `make site`"
        )
    writer = Writer(folder)
    for path in sorted(DOCS.glob("*")):
        if path.suffix in (".md", ".png"):
            writer.write(path.name, path.read_bytes())
    variants = gather.variants()
    with_page = [lesson.name for lesson in write_lessons(writer, variants)]
    write_variants(writer, variants, with_page, app.verbosity)
    writer.render("catalogue.md", "catalogue.md", kinds=gather.by_kind(variants), variants=variants)
    writer.render(
        "papers.md", "papers.md", papers=gather.papers(variants), count=len(variants), with_page=with_page
    )
    write_api(writer, packages())
    write_benchmarks(writer)
    writer.remove_others()


def write_lessons(writer: Writer, variants: Sequence[gather.Variant]) -> list[Lesson]:
    """A page for each lesson, and their list; the lessons that have a page."""
    names = {name: v.name for v in variants for name in (v.name, *v.card.aliases)}
    course = []
    for lesson in lessons():
        if missing := [path for path in (lesson.solved, lesson.handed_out) if not path.exists()]:
            words = " and ".join(f"{path.parent.name}/{path.name}" for path in missing)
            logger.warning(
                "lesson %s has no page: %s must be made first, see lessons/README.md", lesson.name, words
            )
            continue
        course.append(lesson)
        notebooks.handed_out(lesson, writer.folder / "lessons" / "handed_out")
        writer.written.add(writer.folder / "lessons" / "handed_out" / lesson.handed_out.name)
        links = {name: names[name] for name in lesson.variants if name in names}
        box = writer.templates.get_template("lesson_box.md.jinja").render(lesson=lesson, links=links)
        writer.write(f"lessons/{lesson.name}.ipynb", nbformat.writes(notebooks.page_of(lesson, box)) + "\n")
    writer.render("lessons/index.md", "lessons.md", lessons=course, names=names)
    return course


def write_variants(
    writer: Writer, variants: Sequence[gather.Variant], with_page: Sequence[str], verbosity: int
) -> None:
    """A page with its picture for each variant."""
    folder = writer.folder / "variants" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for variant in progress(variants, "drawing patterns... ", verbosity):
        pattern = patterns.pattern(variant, folder)
        taught = [lesson for lesson in variant.lessons if lesson.name in with_page]
        writer.render(
            f"variants/{variant.name}.md",
            "variant.md",
            v=variant,
            card=variant.card,
            pattern=pattern,
            taught=taught,
        )


def progress(variants: Iterable[gather.Variant], words: str, verbosity: int) -> Iterable[gather.Variant]:
    """The variants, with a line of progress."""
    every = list(variants)
    return status_iterator(every, words, "brown", len(every), verbosity, lambda variant: variant.name)


def write_api(writer: Writer, every: Sequence[Package]) -> None:
    """A page for each package, and their list."""
    pages = {package.name for package in every}
    for package in every:
        writer.render(f"api/{package.name}.rst", "package.rst", package=package, pages=pages)
    writer.render("api/index.md", "api.md", packages=every)


def write_benchmarks(writer: Writer) -> None:
    """The page about speed, from the file that `minitf bench --json` wrote."""
    report = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault(row["benchmark"], []).append(row)
    about = {function.__name__: blocks(function.__doc__ or "") for function in bench.BENCHMARKS}
    for name, rows in groups.items():
        draw_bars(rows, writer.folder / "benchmarks" / f"{name}.png")
    writer.render("benchmarks.md", "benchmarks.md", report=report, groups=groups, about=about)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
