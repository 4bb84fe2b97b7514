"""Which lessons there are, and what their sources say about them."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minitf.engine import MinitfError

# In a checkout the lessons stand beside the package; an installed package has only their sources.
CHECKOUT = Path(__file__).parents[2] / "lessons"
INSTALLED = Path(sysconfig.get_path("data"), "share", "minitf", "lessons")

TITLE = re.compile(r"^# # (.+)$", re.MULTILINE)
VARIANTS = re.compile(r"^# \*\*Variants\.\*\*(.*?)^(?:#\s*$|[^#])", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"[0-9][0-9]_[a-z0-9]+(_[a-z0-9]+)+")


class CourseError(MinitfError, ValueError):
    """A lesson or a course that cannot be used, and what to do about it."""


@dataclass(frozen=True)
class Lesson:
    """One lesson.

    Attributes:
        source: its Python file, in jupytext's percent format; the notebooks come from it.
    """

    source: Path

    @property
    def name(self) -> str:
        """Number, verb and object, such as "02_build_attention"."""
        return self.source.stem

    @property
    def handed_out(self) -> Path:
        """The notebook for students: exercises empty, not run."""
        return self.source.parents[1] / f"{self.name}.ipynb"

    @property
    def solved(self) -> Path:
        """The notebook with solutions and outputs."""
        return self.source.parents[1] / "solved" / f"{self.name}.ipynb"

    @cached_property
    def text(self) -> str:
        """The source as it was when it was first read."""
        return self.source.read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """The heading of the first cell: what you will do.

        Raises:
            CourseError: there is none.
        """
        found = TITLE.search(self.text)
        if not found:
            raise CourseError(f"{self.name}: the first cell needs a title, '# # Verb an object'")
        return found[1]

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the catalogue that it says it teaches."""
        found = VARIANTS.search(self.text)
        return tuple(re.findall(r"`(\w+)`", found[1])) if found else ()


def folder_of_lessons() -> Path:
    """Where the lessons of minitf are.

    Raises:
        CourseError: neither in a checkout nor with the installed package.
    """
    for folder in (CHECKOUT, INSTALLED):
        if (folder / "src").is_dir():
            return folder
    raise CourseError(f"the lessons are neither in {CHECKOUT} nor in {INSTALLED}: install minitf again")


def lessons(names: Iterable[str] = (), folder: Path | None = None) -> list[Lesson]:
    """The lessons in order: all, or those with these names or numbers ("06" or "6" is enough).

    Args:
        names: of lessons.
        folder: another folder with sources in `src/NN_verb_object.py`; those of minitf if left out.

    Raises:
        CourseError: a name that none has, a folder without lessons, or a file whose name does not fit.
    """
    folder = folder or folder_of_lessons()
    paths = sorted((folder / "src").glob("*.py"))
    if not paths:
        raise CourseError(f"{folder} has no lessons: write one as {folder / 'src' / '00_verb_object.py'}")
    if odd := [path.name for path in paths if not NAME.fullmatch(path.stem)]:
        raise CourseError(f"lessons are called NN_verb_object.py; rename {', '.join(odd)}")
    every = {path.stem: Lesson(path) for path in paths}
    chosen = []
    for name in names:
        found = [lesson for known, lesson in every.items() if name.zfill(2) in (known, known[:2])]
        if not found:
            raise CourseError(f"no lesson is called {name!r}; there are: {', '.join(every)}")
        chosen += [lesson for lesson in found if lesson not in chosen]
    return chosen or list(every.values())
