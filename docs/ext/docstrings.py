"""Plain docstrings as blocks, and blocks as Markdown or reStructuredText.

Docstrings of minitf are written for the terminal: prose, indented equations that stand as they are, sections
such as "Args:". To Sphinx (and to napoleon, which reads the sections) `|x|`, `x_i` and `*` in them would be
markup. So the text is taken apart here, and everything in it is escaped.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Sections of entries "name: words", and those that are text.
ENTRIES = ("Args", "Attributes", "Raises")
SECTIONS = (*ENTRIES, "Returns", "Yields")
# What begins a paragraph of its own, without an empty line before it.
LABEL = re.compile(r"(Cost|Parameters|Source|Differs from [^:]{1,40}|Numerics): ?(.*)")
ENTRY = re.compile(r"(\S[^:]*): ?(.*)", re.DOTALL)
INLINE = re.compile(r"`([^`]+)`|arXiv:(\d{4}\.\d{4,5})")
ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Text:
    """A paragraph in one line. label: the word that it begins with, such as "Cost", or ""."""

    words: str
    label: str = ""


@dataclass(frozen=True)
class Code:
    """Indented lines, without the indentation that they share."""

    text: str


@dataclass(frozen=True)
class Section:
    """ "Args:" and the like. entries: (name, words); the name is "" in a section that is text."""

    name: str
    entries: tuple[tuple[str, str], ...]


Block = Text | Code | Section


def blocks(doc: str) -> list[Block]:
    """Take a docstring apart. Every word of it is in one of the blocks."""
    lines = inspect.cleandoc(doc).splitlines()
    found: list[Block] = []
    prose: list[str] = []

    def end_paragraph() -> None:
        if prose:
            label = LABEL.fullmatch(" ".join(prose))
            found.append(Text(label[2], label[1]) if label else Text(" ".join(prose)))
            prose.clear()

    i = 0
    while i < len(lines):
        line = lines[i]
        inside = indented(lines, i + 1)
        if line.rstrip(":") in SECTIONS and line.endswith(":") and inside:
            end_paragraph()
            found.append(section(line[:-1], inside))
            i += 1 + len(inside)
        elif line.startswith(" "):
            end_paragraph()
            inside = indented(lines, i)
            found.append(Code(textwrap.dedent("\n".join(inside)).strip("\n")))
            i += len(inside)
        else:
            if not line.strip() or LABEL.match(line):
                end_paragraph()
            if line.strip():
                prose.append(line.strip())
            i += 1
    end_paragraph()
    return found


def indented(lines: list[str], start: int) -> list[str]:
    """The lines from `start` that are indented, with empty ones between them."""
    end = start
    for i in range(start, len(lines)):
        if lines[i].strip() and not lines[i].startswith(" "):
            break
        if lines[i].strip():
            end = i + 1
    return lines[start:end]


def section(name: str, lines: list[str]) -> Section:
    """The entries of a section: one begins at each line that is indented least."""
    text = textwrap.dedent("\n".join(lines))
    if name not in ENTRIES:
        return Section(name, (("", joined(text)),))
    parts = re.split(r"\n(?=\S)", text)
    pairs = [(m[1], joined(m[2])) if (m := ENTRY.fullmatch(p)) else ("", joined(p)) for p in parts]
    return Section(name, tuple(pairs))


def joined(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())


def escaped(text: str) -> str:
    """The text with a backslash before every mark: Markdown and reStructuredText both drop it again."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def inline(text: str, code: Callable[[str], str], link: Callable[[str, str], str]) -> str:
    """Prose as markup, in which only `code` and arXiv numbers mean something."""
    found, end = [], 0
    for m in INLINE.finditer(text):
        found += [escaped(text[end : m.start()]), code(m[1]) if m[1] else link(m[0], ARXIV + m[2])]
        end = m.end()
    return "".join([*found, escaped(text[end:])])


def md(text: str) -> str:
    """Prose as Markdown."""
    return inline(text, lambda code: f"`{code}`", lambda words, url: f"[{words}]({url})")


def rst(text: str) -> str:
    """Prose as reStructuredText. Marks must stand alone there, which escaped spaces make sure of."""
    return inline(text, lambda code: rf"\ ``{code}``\ ", lambda words, url: rf"\ `{words} <{url}>`__\ ")


def language(code: str) -> str:
    """What to colour indented lines as: Python if they are, else nothing; most are equations."""
    try:
        ast.parse(code)
    except SyntaxError:
        return "text"
    return "python" if re.search(r"\bmt\.|\bimport\b|\w\(", code) else "text"


def fence(text: str) -> str:
    """A fence of backticks that is longer than any in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def to_markdown(parts: Iterable[Block]) -> str:
    """Blocks as Markdown."""
    out = []
    for part in parts:
        if isinstance(part, Text):
            out.append(f"**{md(part.label)}:** {md(part.words)}" if part.label else md(part.words))
        elif isinstance(part, Code):
            marks = fence(part.text)
            out.append(f"{marks}{language(part.text)}\n{part.text}\n{marks}")
        else:
            rows = (f"- `{name}`: {md(words)}" if name else f"- {md(words)}" for name, words in part.entries)
            out.append("\n".join([f"**{part.name}:**\n", *rows]))
    return "\n\n".join(out)


def to_rst(parts: Iterable[Block]) -> str:
    """Blocks as reStructuredText."""
    out = []
    for part in parts:
        if isinstance(part, Text):
            out.append(f"**{rst(part.label)}:** {rst(part.words)}" if part.label else rst(part.words))
        elif isinstance(part, Code):
            head = f".. code-block:: {language(part.text)}\n\n"
            out.append(head + textwrap.indent(part.text, "   "))
        else:
            rows = (
                f"- ``{name}``: {rst(words)}" if name else f"- {rst(words)}" for name, words in part.entries
            )
            out.append("\n".join([f"**{part.name}:**\n", *rows]))
    return "\n\n".join(out)
