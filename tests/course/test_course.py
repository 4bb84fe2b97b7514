"""The machinery of the lessons, on a small lesson of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError

BUILD = Path(__file__).parents[2] / "lessons" / "build.py"
spec = importlib.util.spec_from_file_location("lessons_build", BUILD)
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

LESSON = '''# %% [markdown]
# # Double a number

# %%
import matplotlib.pyplot as plt

from minitf.testing import exercise

print("one")
print("two")
plt.plot([1, 2])
plt.show()


# %%
def double(x):
    """Twice x."""
    # BEGIN SOLUTION
    y = x + x
    return y
    # END SOLUTION


@exercise("double")
def check():
    assert double(2) is not None, "double(2) gave nothing: return 2 x"
    assert double(2) == 4, f"double(2) is 4, not {double(2)}"
'''


@pytest.fixture
def lesson(tmp_path: Path) -> Path:
    source = tmp_path / "src" / "00_double.py"
    source.parent.mkdir()
    source.write_text(LESSON, encoding="utf-8")
    return source


def printed(nb) -> str:
    outputs = [o for cell in nb.cells if cell.cell_type == "code" for o in cell.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream")


def test_build_then_check(lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lesson.parents[1]
    assert build.main(["--check"], folder) == 1, "--check must fail where there is no notebook"
    assert build.main([], folder) == 0
    first = folder.joinpath("00_double.ipynb").read_bytes()
    assert b"# your turn" in first and b"y = x + x" not in first, "the notebook must not hold the solution"
    assert b"image/png" in first, "the notebook must hold the picture"
    assert "not yet. double(2) gave nothing" in first.decode(), "the empty exercise must say what is missing"
    assert build.main(["--check"], folder) == 0, "--check must pass just after building"
    assert build.main(["00_double"], folder) == 0
    assert folder.joinpath("00_double.ipynb").read_bytes() == first, "building again must change nothing"
    lesson.write_text(LESSON.replace("Double a", "Double any"), encoding="utf-8")
    capsys.readouterr()
    assert build.main(["--check"], folder) == 1, "--check must fail after the source has changed"
    assert "cell 0: id, source differ" in capsys.readouterr().out


def test_solved_form(lesson: Path) -> None:
    solved = build.notebook(lesson, solved=True)
    assert solved.cells[2].source.count("y = x + x") == 1 and "SOLUTION" not in solved.cells[2].source
    assert "✓ double: solved" in printed(build.run(solved, strict=True))
    ids = [[cell.id for cell in build.notebook(lesson, solved=s).cells] for s in (False, True)]
    assert ids[0] == ids[1], "both forms must have the same cell ids"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("import warnings; warnings.warn('old')", "UserWarning: old"),
        ("import numpy as np; np.log(np.zeros(1))", "divide by zero"),
        ("import urllib.request; urllib.request.urlopen('http://localhost')", "must not use the network"),
        ("@exercise('never')\ndef check():\n    assert False, 'no answer yet'", "no answer yet"),
    ],
    ids=["warning", "NumPy warning", "network", "unsolved"],
)
def test_what_must_raise(lesson: Path, line: str, error: str) -> None:
    lesson.write_text(f"{LESSON}\n# %%\n{line}\n", encoding="utf-8")
    with pytest.raises(CellExecutionError) as raised:
        build.run(build.notebook(lesson, solved=True), strict=True)
    assert error in f"{raised.value.ename}: {raised.value.evalue}", f"another error: {raised.value}"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("    # END SOLUTION\n", "", "must come in pairs"),
        ("    # BEGIN SOLUTION\n", "", "must come in pairs"),
        ("    # BEGIN SOLUTION", "        # BEGIN SOLUTION", "handed out has a cell that is not Python"),
    ],
)
def test_wrong_sources(lesson: Path, old: str, new: str, error: str) -> None:
    lesson.write_text(LESSON.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=error):
        build.notebook(lesson)


def test_unknown_name(lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build.main(["07_none"], lesson.parents[1])
    assert stop.value.code == 2 and "there are: 00_double" in capsys.readouterr().err
