"""Every lesson: the notebook is that of the source, both forms run, exercises explain, pictures are there."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest
from matplotlib import image

BUILD = Path(__file__).parents[2] / "lessons" / "build.py"
spec = importlib.util.spec_from_file_location("lessons_build", BUILD)
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

SOURCES = build.sources()
every_lesson = pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])


def exercises(source: Path) -> list[str]:
    """The names of the exercises, in order."""
    return re.findall(r'^@exercise\("(\w+)"\)$', source.read_text(encoding="utf-8"), re.MULTILINE)


def outputs(nb) -> list:
    return [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(nb) -> str:
    return "".join(output.text for output in outputs(nb) if output.output_type == "stream")


def verdicts(nb, mark: str) -> list[list[str]]:
    """(name, what was said) of each exercise that printed `mark`."""
    return [line[2:].split(": ", 1) for line in printed(nb).splitlines() if line.startswith(mark)]


def test_every_notebook_has_a_source() -> None:
    notebooks = sorted(path.stem for path in BUILD.parent.glob("*.ipynb"))
    assert notebooks == [source.stem for source in SOURCES], "run lessons/build.py"


@every_lesson
def test_notebook_is_what_the_source_says(source: Path) -> None:
    assert build.differences(source) == [], f"run lessons/build.py {source.stem}"


@every_lesson
def test_as_handed_out(source: Path) -> None:
    nb = build.run(build.notebook(source))
    assert not verdicts(nb, "✓"), "an exercise is solved before anyone has tried"
    said = verdicts(nb, "✗")
    assert [name for name, _ in said] == exercises(source), "every exercise must report, in order"
    messages = [message.removeprefix("not yet. ") for _, message in said]
    assert len(set(messages)) == len(messages), f"exercises share a message: {messages}"
    for (name, _), message in zip(said, messages, strict=True):
        assert len(message) >= 20, f"{name}: the message says too little: {message!r}"
        raised = re.match(r"\w*(Error|Exception|Interrupt)\b", message)
        assert not raised, f"{name}: an empty answer must get a sentence, not {message!r}"


@every_lesson
def test_solved(source: Path) -> None:
    nb = build.run(build.notebook(source, solved=True), strict=True)
    assert [name for name, _ in verdicts(nb, "✓")] == exercises(source), "every exercise must be solved"


@every_lesson
def test_shape_of_the_notebook(source: Path) -> None:
    nb = nbformat.read(BUILD.parent / f"{source.stem}.ipynb", as_version=4)
    assert 30 <= len(nb.cells) <= 45, f"{len(nb.cells)} cells; a lesson has 30 to 45"
    names = exercises(source)
    assert len(set(names)) == len(names) >= 3, f"at least three exercises with different names, not {names}"
    first, text = nb.cells[0].source, "\n".join(cell.source for cell in nb.cells)
    for part in ("# ", "What you will do", "What you will learn", "What you need"):
        assert part in first, f"the first cell lacks {part!r}"
    for part in ("On your own", "Where to go next"):
        assert part in text, f"the lesson lacks {part!r}"
    assert text.count('mt.use("reference")') == 1, 'a lesson calls mt.use("reference") once'


@every_lesson
def test_outputs_of_the_notebook(source: Path) -> None:
    nb = nbformat.read(BUILD.parent / f"{source.stem}.ipynb", as_version=4)
    kinds = {output.output_type for output in outputs(nb)}
    assert "error" not in kinds, "a cell raised"
    assert all(o.name == "stdout" for o in outputs(nb) if o.output_type == "stream"), "something on stderr"
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    silent = [cell.source[:60] for cell in code if not cell.outputs]
    # Cells of imports and definitions say nothing.
    assert len(silent) <= len(code) // 2, f"most cells should show something; these do not: {silent}"
    texts = "\n".join(str(o.get("data", {}).get("text/plain", o.get("text", ""))) for o in outputs(nb))
    assert not re.search(r"/(home|root|tmp|work|Users)/|\bat 0x[0-9a-f]+", texts), (
        "a path or address in an output"
    )
    pictures = [o.data["image/png"] for o in outputs(nb) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2, f"{len(pictures)} pictures; people would rather look than read"
    for i, png in enumerate(pictures):
        pixels = image.imread(io.BytesIO(base64.b64decode(png)))
        assert min(pixels.shape[:2]) >= 100, f"picture {i} is too small: {pixels.shape}"
        assert pixels[..., :3].std() >= 0.01, f"picture {i} is empty"
