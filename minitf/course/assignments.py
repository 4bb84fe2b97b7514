"""A course for nbgrader: every lesson an assignment, to be released, collected, graded and given back."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import nbformat

from minitf.course.build import write
from minitf.course.execute import KERNEL, TIMEOUT
from minitf.course.lessons import CourseError, Lesson
from minitf.course.notebooks import STUB, notebook

CONFIG = f'''"""nbgrader's settings for this course."""

import os
import sys
from pathlib import Path

c = get_config()
c.CourseDirectory.course_id = "minitf"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
# What students find in the place of a solution.
c.ClearSolutions.code_stub = {{"python": "{STUB}"}}
# Seconds for one cell.
c.ExecutePreprocessor.timeout = {TIMEOUT}
# A check that fails raises, so that nbgrader sees it. For students it only says what differs.
os.environ["MINITF_STRICT"] = "1"
# Lessons are written for one thread and for pictures in the notebook.
os.environ.update({KERNEL!r})
# nbgrader calls programs that are installed beside this Python, whose folder need not be on the path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
'''

README = """# A course with minitf

Each folder in `source/` is an assignment for nbgrader: a lesson with its solutions and hidden tests.
Every exercise is worth one point. Change what you like; the text of a lesson is yours to edit.
Run the commands in this folder:

    nbgrader generate_assignment {first}
    nbgrader autograde {first}
    nbgrader generate_feedback {first}

The first writes `release/{first}/`, the notebook for students, without solutions and hidden tests.
Put what a student hands in into `submitted/STUDENT/{first}/{first}.ipynb` (or let nbgrader
collect it). The second runs it in your environment and counts the points, the third writes a page for
each student into `feedback/`. Then:

    nbgrader export

writes all grades as a table. ("nbgrader: command not found" means that the environment is not active: call
the one in the `bin` folder of the Python that has minitf.) Feedback shows students the hidden tests too.

The code of students runs in the same process as the checks, with your rights. Grading finds mistakes, not
cheating: look at what is handed in, and run it in a container if you do not know who wrote it.

The lessons:

{table}
"""


def init(folder: Path, lessons: Iterable[Lesson]) -> list[Path]:
    """Lay out a course in `folder`, which is made; the paths of its assignments.

    Raises:
        CourseError: the folder has something in it, or a lesson is not right; nothing was written.
        OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise CourseError(f"{folder} is a file: name a folder that does not exist yet")
    if folder.exists() and any(folder.iterdir()):
        raise CourseError(f"{folder} is not empty: name a folder that does not exist yet")
    made, rows = {}, []
    for lesson in lessons:
        # What nbgrader will hand out must be right, too.
        notebook(lesson, "handed out")
        made[folder / "source" / lesson.name / f"{lesson.name}.ipynb"] = notebook(lesson, "nbgrader")
        rows.append(f"- `{lesson.name}`: {lesson.title}")
    for path, nb in made.items():
        write(nb, path)
    written = list(made)
    folder.joinpath("nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    text = README.format(first=written[0].stem, table="\n".join(rows))
    folder.joinpath("README.md").write_text(text, encoding="utf-8")
    return written


def nbgrader(folder: Path, *arguments: str) -> str:
    """Run nbgrader on a course; what it wrote.

    Raises:
        CourseError: it failed, with its own words.
    """
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise CourseError(f"nbgrader {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def of_release(lessons: Iterable[Lesson]) -> dict[str, list[str]]:
    """By lesson: where nbgrader's release differs from the notebook that is handed out.

    Raises:
        CourseError: nbgrader refuses the course.
    """
    lessons = list(lessons)
    with tempfile.TemporaryDirectory(prefix="minitf-course-") as temporary:
        folder = Path(temporary)
        init(folder, lessons)
        nbgrader(folder, "generate_assignment", "--assignment=*")
        found = {}
        for lesson in lessons:
            path = folder / "release" / lesson.name / f"{lesson.name}.ipynb"
            have, want = nbformat.read(path, 4).cells, notebook(lesson, "handed out").cells
            found[lesson.name] = [
                f"released, cell {i} differs from what is handed out"
                for i, (a, b) in enumerate(zip_longest(have, want))
                if a is None or b is None or a.source != b.source
            ]
        return found
