"""nbgrader takes the course as it is: released, then a right, a wrong and an empty submission are graded."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import nbformat
import pytest

from minitf.course import lessons
from minitf.course.assignments import init, nbgrader, of_release
from minitf.course.build import write
from minitf.course.notebooks import exercises, notebook

# The quickest lesson.
NUMBER = "01"


@pytest.mark.slow
def test_right_wrong_and_empty(tmp_path: Path) -> None:
    (lesson,) = lessons([NUMBER])
    name, every = lesson.name, {one.name: one for one in exercises(lesson)}
    course = tmp_path / "course"
    init(course, [lesson])
    nbgrader(course, "generate_assignment", name)
    released = course / "release" / name / f"{name}.ipynb"
    assert "END HIDDEN" not in released.read_text() and "END SOLUTION" not in released.read_text()
    for student in ("right", "wrong", "empty"):
        nb = nbformat.read(released, 4)
        for cell, solved in zip(nb.cells, notebook(lesson, "solved").cells, strict=True):
            about = cell.metadata.get("nbgrader", {})
            if about.get("solution") and student != "empty":
                cell.source = solved.source
                if student == "wrong":
                    cell.source += "\n\n" + every[about.grade_id].mistakes[0]
        write(nb, course / "submitted" / student / name / f"{name}.ipynb")
    nbgrader(course, "autograde", name)
    nbgrader(course, "generate_feedback", name)
    nbgrader(course, "export")
    with course.joinpath("grades.csv").open() as file:
        scores = {
            row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)
        }
    points = len(every)
    assert scores == {"right": (points, points), "wrong": (0, points), "empty": (0, points)}, scores
    for student in scores:
        page = course.joinpath("feedback", student, name, f"{name}.html").read_text()
        assert ("ExerciseError" in page) == (student != "right"), (
            f"{student}: feedback must say what is wrong"
        )
        text = re.sub(r"<[^>]+>", "", page)
        told = "ExerciseError: tanh_rule: tanh_rule gave nothing" in text
        assert told == (student == "empty"), f"{student}: feedback must use the words of the check"


@pytest.mark.slow
def test_what_nbgrader_releases_is_what_we_hand_out() -> None:
    found = of_release(lessons())
    assert list(found) == [lesson.name for lesson in lessons()]
    assert not any(found.values()), found
