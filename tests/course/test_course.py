"""The machinery of the lessons, on a small lesson of its own: what it makes, and every fault it must find."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbclient.exceptions import CellExecutionError

from minitf.cli import main
from minitf.course import CourseError, Lesson, lessons
from minitf.course.assignments import init
from minitf.course.build import build
from minitf.course.execute import printed, run
from minitf.course.inspect import masked, of_files, of_handed_out, of_solved, of_source
from minitf.course.notebooks import exercises, notebook

# Most of these start a kernel.
pytestmark = pytest.mark.slow

LESSON = '''# %% [markdown]
# # Double a number
#
# **Variants.** `gla`,
# `delta_net`
#
# The text after it says `rope`.

# %%
import matplotlib.pyplot as plt

from minitf.testing import exercise

print("one")
print("two")
plt.plot([1, 2])
plt.show()

# %%
plt.plot([2, 1])
plt.show()


# %%
def double(x):
    """Twice x."""
    # BEGIN SOLUTION
    y = x + x
    return y
    # END SOLUTION


# %% tags=["mistake"]
# Squares, which agrees for 2.
def double(x):
    return x * x


# %%
@exercise("double")
def check_double():
    assert double(2) is not None, "double(2) gave nothing: return 2 x"
    # BEGIN HIDDEN TESTS
    assert double(3) == 6, f"double(3) is 6, not {double(3)}"
    # END HIDDEN TESTS
'''


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    return written(LESSON, tmp_path)


def written(text: str, folder: Path) -> Lesson:
    source = folder / "src" / "00_double_number.py"
    source.parent.mkdir(exist_ok=True)
    source.write_text(text, encoding="utf-8")
    return Lesson(source)


def changed(old: str, new: str, folder: Path) -> Lesson:
    assert old in LESSON
    return written(LESSON.replace(old, new), folder)


def test_what_a_source_says(lesson: Lesson) -> None:
    assert lesson.name == "00_double_number" and lesson.title == "Double a number"
    assert lesson.variants == ("gla", "delta_net"), "the names end with their paragraph"
    (one,) = exercises(lesson)
    assert one.name == "double" and len(one.mistakes) == 1 and "double(3)" in one.check


def test_forms(lesson: Lesson) -> None:
    empty, solved, teacher = (notebook(lesson, form) for form in ("handed out", "solved", "nbgrader"))
    texts = ["\n".join(cell.source for cell in nb.cells) for nb in (empty, solved, teacher)]
    held = [[part in text for part in ("# your turn", "y = x + x", "double(3)", "BEGIN")] for text in texts]
    assert held == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], held
    assert not any("Squares" in text for text in texts), "a mistake must reach no notebook"
    ids = [[cell.id for cell in nb.cells] for nb in (empty, solved, teacher)]
    assert ids[0] == ids[1] == ids[2], "all forms must have the same cell ids"
    grades = [cell.metadata.get("nbgrader", {}) for cell in empty.cells]
    assert [(g.grade_id, g.solution, g.grade, g.get("points")) for g in grades if g] == [
        ("double", True, False, None),
        ("check_double", False, True, 1),
    ]


def test_build_then_inspect(lesson: Lesson) -> None:
    assert len(of_files(lesson)) == 2, "both notebooks are missing"
    build(lesson)
    first = lesson.solved.read_bytes()
    assert first.count(b"image/png") == 2 and b"double: solved" in first
    assert of_files(lesson) == [] and of_handed_out(lesson) == [] and of_solved(lesson) == []
    build(lesson)
    assert lesson.solved.read_bytes() == first, "building again must change nothing"
    handed_out = nbformat.read(lesson.handed_out, 4)
    assert not any(cell.get("outputs") for cell in handed_out.cells), "students get it without outputs"


def test_notebooks_that_differ(lesson: Lesson, tmp_path: Path) -> None:
    build(lesson)
    found = of_files(changed("Twice x", "Two times x", tmp_path))
    assert len(found) == 2 and all("cell 3: id, source differ" in problem for problem in found), found
    (found,) = of_solved(changed('print("two")', 'print("three")', tmp_path))
    assert "cell 1 shows" in found and "three" in found, found
    assert of_solved(changed('print("two")', 'print("tw", "o", sep="")', tmp_path)) == []
    lesson.solved.write_text(lesson.handed_out.read_text())
    assert any("not run" in problem for problem in of_files(lesson)), "outputs must be there"


def test_numbers_may_differ_and_words_not() -> None:
    assert masked("loss  1.25e-07 | 3") == masked("loss 0.5 | -12,000")
    assert masked("better") != masked("worse") and masked("nan") == masked("1")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import warnings; warnings.warn('old')", "UserWarning: old"),
        ("import numpy as np; np.log(np.zeros(1))", "divide by zero"),
        ("import urllib.request; urllib.request.urlopen('http://localhost')", "must not use the network"),
    ],
    ids=["warning", "NumPy warning", "network"],
)
def test_what_must_raise(tmp_path: Path, line: str, error: str) -> None:
    lesson = written(f"{LESSON}\n# %%\n{line}\n", tmp_path)
    with pytest.raises(CellExecutionError) as raised:
        run(notebook(lesson, "solved"), strict=True)
    assert error in f"{raised.value.ename}: {raised.value.evalue}", f"another error: {raised.value}"
    assert any(error in problem for problem in of_handed_out(lesson))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("y = x + x", "y = x + x + 1", "the solution does not pass"),
        ("return x * x", "return 2 * x", "accepts a mistake: 'Squares"),
        ("return x * x", "raise KeyError('x')", "a sentence must say what is wrong, not \"KeyError"),
        ('f"double(3) is 6, not {double(3)}"', '"wrong"', "says too little: 'wrong'"),
        ("plt.plot([2, 1])\nplt.show()", "print(2)", "1 pictures"),
        ("plt.plot([2, 1])", "plt.figure(figsize=(4, 3)); plt.axis('off'); plt.plot()", "picture 1: empty"),
        ("plt.plot([2, 1])", "import sys; print('x', file=sys.stderr)", "written to stderr"),
        ("plt.plot([2, 1])", "plt.plot([2, 1]); print(object())", "an address"),
    ],
)  # fmt: skip
def test_faults_of_the_solved_form(tmp_path: Path, old: str, new: str, problem: str) -> None:
    found = of_solved(changed(old, new, tmp_path))
    assert any(problem in words for words in found), found


def test_a_name_that_a_later_cell_reuses(tmp_path: Path) -> None:
    text = LESSON.replace("double(3) == 6", "double(three) == 6").replace('print("one")', "three = 3")
    found = of_solved(written(f"{text}\n# %%\nthree = 4\n", tmp_path))
    assert any("not at the end" in words for words in found), found


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("assert double(2) is not None", "assert True or double(2)", "the empty answer is said to be '✓"),
        ("double(2) is not None", "double(2) + 1", "left empty: a sentence must say what is wrong"),
        ('"double(2) gave nothing: return 2 x"', '"no"', "left empty: the message says too little"),
    ],
)  # fmt: skip
def test_faults_of_what_is_handed_out(tmp_path: Path, old: str, new: str, problem: str) -> None:
    found = of_handed_out(changed(old, new, tmp_path))
    assert any(problem in words for words in found), found


def test_faults_of_a_source(lesson: Lesson, tmp_path: Path) -> None:
    words = "\n".join(of_source(lesson))
    for part in ("5 cells", "What you need", "On your own", 'mt.use("reference")', "at least 4 exercises"):
        assert part in words, f"{part!r} is missing, but of_source does not say so: {words}"
    assert "'gla' is taught, but no code uses it" in words
    words = "\n".join(of_source(changed("`gla`", "`glu`", tmp_path)))
    assert "the catalogue has no 'glu'" in words
    mistake = LESSON[LESSON.index('# %% tags=["mistake"]') : LESSON.index('# %%\n@exercise("double")')]
    assert "no mistake shows" in "\n".join(of_source(changed(mistake, "", tmp_path)))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("    # END SOLUTION\n", "", "must come in pairs"),
        ("    # BEGIN HIDDEN TESTS\n", "", "must come in pairs"),
        ("    # BEGIN SOLUTION", "        # BEGIN SOLUTION", "handed out, a cell is not Python"),
        ("\n\n# %% tags", "\n# %%\n\n# %% tags", None),
        ('# %%\n@exercise("double")', '@exercise("double")', "after the last check"),
        ('@exercise("double")', '@exercise("double")\n@exercise("triple")', "each check needs a cell"),
        ('@exercise("double")', "@exercise('double')", r'write @exercise\("name"\)'),
        ('@exercise("double")', '@exercise("double it")', r'write @exercise\("name"\)'),
        ("def check_double", "def check_double_too", None),
    ],
)  # fmt: skip
def test_wrong_sources(tmp_path: Path, old: str, new: str, error: str | None) -> None:
    lesson = changed(old, new, tmp_path)
    if error:
        with pytest.raises(CourseError, match=error):
            notebook(lesson, "handed out")
    else:
        notebook(lesson, "nbgrader")


def test_what_a_course_must_not_begin_with(tmp_path: Path) -> None:
    twice = LESSON[LESSON.index("# %%\ndef double") :]
    bad = written(f"{LESSON}\n\n{twice}", tmp_path)
    with pytest.raises(CourseError, match="two exercises are called double"):
        init(tmp_path / "course", [bad])
    only_hidden = LESSON.replace(
        '    assert double(2) is not None, "double(2) gave nothing: return 2 x"\n', ""
    )
    with pytest.raises(CourseError, match="handed out, a cell is not Python"):
        init(tmp_path / "course", [written(only_hidden, tmp_path)])
    assert not (tmp_path / "course").exists(), "nothing may be written when a lesson is wrong"
    assert of_source(written("", tmp_path)) == ["it has no cells"]


def test_a_kernel_that_dies_and_a_notebook_that_is_damaged(lesson: Lesson, tmp_path: Path) -> None:
    (found,) = of_handed_out(written(f"{LESSON}\n# %%\nimport os\nos._exit(1)\n", tmp_path))
    assert "died" in found, found
    lesson.handed_out.write_text("{")
    assert any("cannot be read" in words for words in of_files(lesson))


def test_an_answer_cannot_switch_the_checks_off(tmp_path: Path) -> None:
    away = 'import os\n\nos.environ["MINITF_STRICT"] = ""\n\n\ndef double(x):'
    lesson = changed('def double(x):\n    """Twice', f'{away}\n    """Twice', tmp_path)
    with pytest.raises(CellExecutionError) as raised:
        run(notebook(lesson, "handed out"), strict=True)
    assert "double(2) gave nothing" in str(raised.value)


def test_names_of_lessons(lesson: Lesson, tmp_path: Path) -> None:
    assert lessons(["00", "0"], tmp_path) == lessons(["00_double_number"], tmp_path) == [lesson]
    with pytest.raises(CourseError, match="there are: 00_double_number"):
        lessons(["07"], tmp_path)
    lesson.source.with_name("draft.py").touch()
    with pytest.raises(CourseError, match=r"NN_verb_object.py; rename draft.py"):
        lessons((), tmp_path)
    with pytest.raises(CourseError, match="has no lessons"):
        lessons((), tmp_path / "src")


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["course", *arguments])
    assert result.exit_code == code, (
        f"minitf course {' '.join(arguments)}: {result.exit_code}: {result.output}"
    )
    return result.output


def test_commands(lesson: Lesson, tmp_path: Path) -> None:
    where = ("--folder", str(tmp_path))
    assert json.loads(call("list", "--json", *where))[0]["variants"] == ["gla", "delta_net"]
    assert "is a file" in call("init", str(lesson.source), *where, code=1)
    call("build", "00", *where)
    told = json.loads(call("check", "--quick", "--json", *where, code=1))
    assert told["lessons"]["00_double_number"]["files"] == [] and not told["ok"]
    words = call("check", "--quick", *where, code=1)
    assert "00_double_number, source: the first cell lacks" in words and "not run" in words
    course = tmp_path / "course"
    assert "1 assignments" in call("init", str(course), *where)
    assert sorted(path.name for path in course.iterdir()) == ["README.md", "nbgrader_config.py", "source"]
    assert "is not empty" in call("init", str(course), *where, code=1)
    assert "no lesson is called '77'" in call("init", str(tmp_path / "other"), "77", *where, code=1)
    assert not (tmp_path / "other").exists(), "nothing may be written when a name is wrong"
    lesson.source.write_text(LESSON.replace("y = x + x", "raise KeyError"), encoding="utf-8")
    assert "00_double_number: a cell raised" in call("build", "00", *where, code=1)
    assert "y = x + x" in lesson.solved.read_text(), "a failed build must leave the notebooks"
    assert printed(nbformat.read(lesson.solved, 4).cells[1]) == "one\ntwo\n"
