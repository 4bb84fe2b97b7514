"""The lessons as pages: their executed notebooks with a box of links, and words for every picture."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minitf.course import Lesson

HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
# Marks of Markdown and of mathematics that would only disturb a reader of plain words.
MARKS = re.compile(r"[*`$#]|\\[a-zA-Z]+|[{}]|\]\([^)]*\)|\[")


def page_of(lesson: Lesson, box: str) -> NotebookNode:
    """The executed notebook of a lesson as a page. box: Markdown that follows the first cell."""
    nb = nbformat.read(lesson.solved, as_version=4)
    describe_pictures(nb)
    cell = nbformat.v4.new_markdown_cell(box)
    # The same on every build, so that nothing seems to have changed.
    cell.id = "site-links"
    nb.cells.insert(1, cell)
    return nb


def describe_pictures(nb: NotebookNode) -> None:
    """Give every cell that draws a text for those who do not see it, unless it has one."""
    heading = text = ""
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            headings = HEADING.findall(cell.source)
            heading = plain(headings[-1]) if headings else heading
            text = plain(HEADING.split(cell.source)[-1])
        elif any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            options = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
            options.setdefault("alt", f"Picture: {heading}. {sentence(text)}".strip())


def plain(markdown: str) -> str:
    """Markdown as words in one line."""
    return " ".join(MARKS.sub("", markdown).split())


def sentence(text: str, most: int = 200) -> str:
    """The first sentence, or as many words of it as fit."""
    first = re.split(r"(?<=[.!?]) ", text, maxsplit=1)[0]
    return first if len(first) <= most else f"{first[:most].rsplit(' ', 1)[0]} ..."


def handed_out(lesson: Lesson, folder: Path) -> None:
    """Put the notebook for students into `folder`, from where the page links to it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / lesson.handed_out.name
    if not target.exists() or target.read_bytes() != lesson.handed_out.read_bytes():
        shutil.copyfile(lesson.handed_out, target)
