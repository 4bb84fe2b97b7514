"""Every lesson: what its source has, its notebooks, and both forms run, with every planted mistake."""

from __future__ import annotations

import pytest

from minitf.course import lessons
from minitf.course.inspect import QUICK, STAGES
from minitf.course.lessons import Lesson

LESSONS = lessons()


@pytest.mark.parametrize("lesson", LESSONS, ids=[lesson.name for lesson in LESSONS])
@pytest.mark.parametrize(
    "stage", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STAGES]
)
def test_lesson(lesson: Lesson, stage: str) -> None:
    found = STAGES[stage](lesson)
    assert not found, "\n".join([*found, f"`minitf course build {lesson.name}` makes its notebooks again"])


def test_every_notebook_has_a_source() -> None:
    folder = LESSONS[0].handed_out.parent
    for where in (folder, folder / "solved"):
        names = sorted(path.stem for path in where.glob("*.ipynb"))
        assert names == [lesson.name for lesson in LESSONS], f"{where}: run `minitf course build`"
