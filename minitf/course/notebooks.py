"""The notebooks of a lesson: one source, three forms.

- handed out: exercises empty, hidden tests removed, not run;
- solved: with the solutions, to be run;
- for nbgrader: solutions and hidden tests between their markers, for `nbgrader generate_assignment`.

All carry nbgrader's metadata: a cell with a solution is an answer, the cell with its check gives one point.
"""

from __future__ import annotations

import ast
import hashlib
import re
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import jupytext
import nbformat
from nbformat import NotebookNode

from minitf.course.lessons import CourseError, Lesson

Form = Literal["handed out", "solved", "nbgrader"]

# What stands in the place of a solution.
STUB = "...  # your turn"


def between(word: str) -> re.Pattern[str]:
    """Indentation and text of the lines between two markers, the markers included."""
    return re.compile(rf"^([ \t]*)# BEGIN {word}\n(.*?)^[ \t]*# END {word}\n", re.MULTILINE | re.DOTALL)


SOLUTION, HIDDEN = between("SOLUTION"), between("HIDDEN TESTS")
MARKER = re.compile(r"# (BEGIN|END) (SOLUTION|HIDDEN TESTS)")
CHECK = re.compile(r'^@exercise\("(\w+)"\)$', re.MULTILINE)
DECORATOR = re.compile(r"^@exercise\(", re.MULTILINE)
MISTAKE = "mistake"


@dataclass
class Exercise:
    """An exercise: code as text.

    Attributes:
        name: also that of what is to be written.
        solution: cells that answer it, one after the other.
        check: the cell that says whether they do.
        mistakes: cells with plausible wrong answers; each starts with a comment that names the error.
    """

    name: str
    solution: list[str] = field(default_factory=list)
    check: str = ""
    mistakes: list[str] = field(default_factory=list)


def read(lesson: Lesson) -> list[NotebookNode]:
    """The cells of a source as they stand there, mistakes included; the caller may change them."""
    return deepcopy(parsed(lesson.text))


@cache
def parsed(text: str) -> list[NotebookNode]:
    """The cells of a text, taken apart once: every form and every inspection asks for them."""
    return jupytext.reads(text, fmt="py:percent").cells


def is_mistake(cell: NotebookNode) -> bool:
    """Whether a cell holds a wrong answer, which is for tests only."""
    return MISTAKE in cell.metadata.get("tags", ())


def exercises(lesson: Lesson) -> list[Exercise]:
    """The exercises of a lesson in order, in the solved form.

    Raises:
        CourseError: a marker without its partner, a solution or a check without the other, a name twice.
    """
    found: list[Exercise] = []
    open_one = Exercise("")
    for cell in read(lesson):
        if cell.cell_type != "code":
            continue
        if MARKER.search(in_form(cell.source, "solved")):
            raise CourseError(f"{lesson.name}: BEGIN and END must come in pairs:\n{cell.source}")
        name = check_of(lesson, cell)
        if is_mistake(cell):
            open_one.mistakes.append(cell.source)
        elif SOLUTION.search(cell.source + "\n"):
            if name:
                raise CourseError(f"{lesson.name}: {name}: the check needs a cell of its own")
            open_one.solution.append(in_form(cell.source, "solved"))
        elif name:
            if not open_one.solution:
                raise CourseError(f"{lesson.name}: {name}: no solution stands before the check")
            if name in (one.name for one in found):
                raise CourseError(f"{lesson.name}: two exercises are called {name}")
            open_one.name, open_one.check = name, in_form(cell.source, "solved")
            found.append(open_one)
            open_one = Exercise("")
    if open_one.solution or open_one.mistakes:
        raise CourseError(f"{lesson.name}: after the last check there is a solution or a mistake without one")
    return found


def check_of(lesson: Lesson, cell: NotebookNode) -> str | None:
    """The name of the exercise that a cell checks, if it checks one.

    Raises:
        CourseError: it checks several, or the name is not a literal one.
    """
    names = CHECK.findall(cell.source)
    if len(names) != len(DECORATOR.findall(cell.source)):
        raise CourseError(
            f'{lesson.name}: write @exercise("name") with letters, digits and _:\n{cell.source}'
        )
    if len(names) > 1:
        raise CourseError(f"{lesson.name}: {' and '.join(names)}: each check needs a cell of its own")
    return names[0] if names else None


def in_form(code: str, form: Form) -> str:
    """The text of a code cell in one of the forms."""
    text = code + "\n"
    if form == "handed out":
        text = HIDDEN.sub("", SOLUTION.sub(rf"\1{STUB}\n", text))
    elif form == "solved":
        text = HIDDEN.sub(r"\2", SOLUTION.sub(r"\2", text))
    return text.removesuffix("\n")


def notebook(lesson: Lesson, form: Form) -> NotebookNode:
    """The notebook of a lesson in one of the forms, not run.

    Raises:
        CourseError: a marker without its partner, a cell that is not Python, an exercise that lacks a part.
    """
    nb = nbformat.v4.new_notebook()
    nb.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3 (ipykernel)", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
    )
    names = iter(e for one in exercises(lesson) for e in [one.name] * len(one.solution))
    given: dict[str, int] = {}
    for cell in read(lesson):
        if is_mistake(cell):
            continue
        nb.cells.append(cell)
        # An id that stays as long as the cell does, and is the same in every form.
        cell.id = once(hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8], given)
        if cell.cell_type != "code":
            continue
        name = check_of(lesson, cell)
        if SOLUTION.search(cell.source + "\n"):
            cell.metadata.nbgrader = graded(once(next(names), given), points=None)
        elif name:
            cell.metadata.nbgrader = graded(f"check_{name}", points=1)
        text = in_form(cell.source, form)
        try:
            ast.parse(text)
        except SyntaxError as error:
            raise CourseError(f"{lesson.name}: {form}, a cell is not Python ({error}):\n{text}") from error
        cell.source = text
    return nb


def once(name: str, given: dict[str, int]) -> str:
    """The name, with a number where it was given before."""
    given[name] = given.get(name, 0) + 1
    return name if given[name] == 1 else f"{name}-{given[name]}"


def graded(name: str, points: int | None) -> NotebookNode:
    """nbgrader's metadata (version 3) of an answer, or of a check that is worth points."""
    worth = {} if points is None else {"points": points}
    return NotebookNode(
        grade=points is not None,
        grade_id=name,
        locked=points is not None,
        schema_version=3,
        solution=points is None,
        task=False,
        **worth,
    )
