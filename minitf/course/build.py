"""Writes the notebooks of a lesson from its source."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minitf.course.execute import run
from minitf.course.lessons import Lesson
from minitf.course.notebooks import notebook


def build(lesson: Lesson) -> None:
    """Write both notebooks of a lesson: as handed out, and solved with its outputs.

    Raises:
        CourseError: the source is not right.
        nbclient.exceptions.CellExecutionError: a cell raised, or an exercise is not solved. Nothing is
            written then.
    """
    solved = run(notebook(lesson, "solved"), strict=True)
    write(notebook(lesson, "handed out"), lesson.handed_out)
    write(solved, lesson.solved)


def write(nb: NotebookNode, path: Path) -> None:
    """Write a notebook, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
