"""What is wrong with a lesson, in sentences; nothing, if all is well.

- `of_source`: parts that every lesson has, exercises with a check and a mistake each;
- `of_files`: the notebooks are those that the source makes;
- `of_handed_out`: runs to its end, and every check says in its own words what is missing;
- `of_solved`: runs to its end, every check passes and no mistake does, with the committed outputs.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from itertools import zip_longest

import nbformat
from nbformat import NotebookNode

from minitf.course.execute import FAILURES, in_words, printed, run
from minitf.course.lessons import CourseError, Lesson
from minitf.course.notebooks import Exercise, Form, exercises, notebook
from minitf.registry import index
from minitf.testing.exercise import BECAUSE, NOT_YET, SOLVED

CELLS = range(30, 51)
EXERCISES = 4
PICTURES = 2
# Where they must stand: in the first cell, and anywhere.
FIRST = ("What you will do", "What you will learn", "What you need")
LATER = ("What the papers say, what we measured", "## On your own", "## Where to go next")
# Characters: shorter messages say too little.
SHORTEST = 20

VERDICT = re.compile(rf"^[{NOT_YET}{SOLVED}] .*", re.MULTILINE | re.DOTALL)
ERROR_TYPE = re.compile(r"\w*(Error|Exception|Interrupt)\b")
NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d*)?(e[-+]?\d+)?|inf\b|nan\b)", re.IGNORECASE)
PLACE = re.compile(r"/(home|root|tmp|work|Users)/|\bat 0x[0-9a-f]+")


def of_source(lesson: Lesson) -> list[str]:
    """What the source lacks."""
    nb = notebook(lesson, "handed out")
    if not nb.cells:
        return ["it has no cells"]
    found = []
    first, text = nb.cells[0].source, "\n".join(cell.source for cell in nb.cells)
    if len(nb.cells) not in CELLS:
        found.append(f"it has {len(nb.cells)} cells; a lesson has {CELLS[0]} to {CELLS[-1]}")
    found += [f"the first cell lacks {part!r}" for part in FIRST if part not in first]
    found += [f"it lacks {part!r}" for part in LATER if part not in text]
    if not re.match(r"# \w+ \w+", first):
        found.append("the title needs a verb and an object: '# Build attention'")
    if text.count('mt.use("reference")') != 1:
        found.append('it must call mt.use("reference") once')
    code = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    for name in lesson.variants:
        if name not in index():
            found.append(f"the catalogue has no {name!r}, which the first cell says is taught")
        elif name not in code:
            found.append(f"the first cell says that {name!r} is taught, but no code uses it")
    every = exercises(lesson)
    if len(every) < EXERCISES:
        found.append(f"it needs at least {EXERCISES} exercises, not {[one.name for one in every]}")
    for one in every:
        if not one.mistakes:
            found.append(f"{one.name}: no mistake shows that its check can fail")
        found += [
            f"{one.name}: a mistake must begin with a comment" for m in one.mistakes if not m.startswith("#")
        ]
    return found


def of_files(lesson: Lesson) -> list[str]:
    """Where the notebooks differ from what the source makes, outputs aside."""
    found = []
    forms: list[tuple[Form, bool]] = [("handed out", False), ("solved", True)]
    for form, has_run in forms:
        path = lesson.solved if has_run else lesson.handed_out
        if not path.exists():
            found.append(f"there is no notebook for the form {form!r}")
            continue
        want = notebook(lesson, form)
        try:
            have = nbformat.read(path, nbformat.NO_CONVERT)
        except Exception as error:
            found.append(f"{form}: the notebook cannot be read: {error}")
            continue
        if have.metadata != want.metadata:
            found.append(f"{form}: the metadata differs")
        if len(have.cells) != len(want.cells):
            found.append(f"{form}: {len(have.cells)} cells where the source makes {len(want.cells)}")
        for i, (a, b) in enumerate(zip(have.cells, want.cells)):
            changed = [key for key in ("cell_type", "id", "metadata", "source") if a.get(key) != b[key]]
            if changed:
                found.append(f"{form}, cell {i}: {', '.join(changed)} differ: {b.source[:60]!r}")
            elif a.cell_type == "code" and (a.execution_count is not None) != has_run:
                found.append(f"{form}, cell {i}: {'not ' * has_run}run: {b.source[:60]!r}")
    return found


def of_handed_out(lesson: Lesson) -> list[str]:
    """Run it as students get it: no check may pass, and each must say in its own words what is missing."""
    try:
        nb = run(notebook(lesson, "handed out"))
    except FAILURES as error:
        return [f"as handed out, a cell raised: {in_words(error)}"]
    every, said, found = exercises(lesson), verdicts(nb), []
    for one in every:
        words = said.get(one.name, "")
        if not words.startswith(NOT_YET):
            found.append(f"{one.name}: the empty answer is said to be {words!r}")
        else:
            found += [f"{one.name}, left empty: {problem}" for problem in poor(words)]
    if len(set(said.values())) < len(every):
        found.append(f"exercises share a message, or one says nothing: {said}")
    return found


def of_solved(lesson: Lesson) -> list[str]:
    """Run it with its solutions, then every check again, with the solution and with each mistake."""
    nb = notebook(lesson, "solved")
    every, size = exercises(lesson), len(nb.cells)
    trials = [(one, mistake) for one in every for mistake in ["", *one.mistakes]]
    for one, mistake in trials:
        code = "\n\n".join([*one.solution, mistake])
        nb.cells += [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell(one.check)]
    try:
        nb = run(nb)
    except FAILURES as error:
        return [f"solved, a cell raised: {in_words(error)}"]
    lesson_cells, after = nb.cells[:size], nb.cells[size:]
    nb.cells = lesson_cells
    said = verdicts(nb)
    found = [
        f"{one.name}: the solution does not pass: {said.get(one.name)!r}"
        for one in every
        if not said.get(one.name, "").startswith(SOLVED)
    ]
    for (one, mistake), cell in zip(trials, after[1::2], strict=True):
        found += of_trial(one, mistake, verdict(cell))
    return found + of_outputs(nb) + of_difference(lesson, nb)


def of_trial(one: Exercise, mistake: str, words: str) -> list[str]:
    """What is wrong with a check's words at the end of the lesson, about the solution or about a mistake."""
    if not mistake:
        late = f"{one.name}: solved, but not at the end (does a later cell reuse a name?): {words!r}"
        return [] if words.startswith(SOLVED) else [late]
    what = mistake.splitlines()[0].strip("# ")
    if not words.startswith(NOT_YET):
        return [f"{one.name}: the check accepts a mistake: {what!r}"]
    return [f"{one.name}, {what!r}: {problem}" for problem in poor(words)]


def poor(words: str) -> list[str]:
    """Why a message of a check does not help."""
    message = words.split(BECAUSE, 1)[-1].strip()
    if ERROR_TYPE.match(message):
        return [f"a sentence must say what is wrong, not {message!r}"]
    return [f"the message says too little: {message!r}"] if len(message) < SHORTEST else []


def of_outputs(nb: NotebookNode) -> list[str]:
    """What a reader of the outputs would stumble over."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    found = []
    if any(o.output_type == "stream" and o.name != "stdout" for o in outputs):
        found.append("something was written to stderr")
    # Cells of imports and definitions say nothing.
    silent = [cell.source[:60] for cell in code if not cell.outputs]
    if len(silent) > len(code) // 2:
        found.append(f"most cells should show something; these do not: {silent}")
    texts = "\n".join(str(o.get("data", {}).get("text/plain", o.get("text", ""))) for o in outputs)
    if place := PLACE.search(texts):
        found.append(f"an output has a path or an address: {place[0]!r}")
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    if len(pictures) < PICTURES:
        found.append(f"{len(pictures)} pictures; people would rather look than read")
    found += [f"picture {i}: {words}" for i, png in enumerate(pictures) for words in of_picture(png)]
    return found


def of_picture(png: str) -> list[str]:
    """Why a picture (base64) shows nothing."""
    from matplotlib import image

    pixels = image.imread(io.BytesIO(base64.b64decode(png)))
    if min(pixels.shape[:2]) < 100:
        return [f"too small: {pixels.shape[1]} x {pixels.shape[0]}"]
    return [] if pixels[..., :3].std() >= 0.01 else ["empty"]


def of_difference(lesson: Lesson, nb: NotebookNode) -> list[str]:
    """Where the committed outputs are not those of this run. Numbers may differ, as between machines."""
    if not lesson.solved.exists():
        return ["there is no solved notebook"]
    have = nbformat.read(lesson.solved, nbformat.NO_CONVERT)
    pairs = zip_longest(map(shape_of_outputs, have.cells), map(shape_of_outputs, nb.cells))
    return [f"cell {i} shows {b}, the committed notebook {a}" for i, (a, b) in enumerate(pairs) if a != b]


def shape_of_outputs(cell: NotebookNode) -> list[object]:
    """The outputs of a cell with every number replaced, and of pictures only that they are there."""
    return [
        masked(o.text)
        if o.output_type == "stream"
        else {kind: True if kind.startswith("image/") else masked(str(text)) for kind, text in o.data.items()}
        for o in cell.get("outputs", ())
        if o.output_type != "error"
    ]


def masked(text: str) -> str:
    """Text with # for every number, and without the spaces that numbers move."""
    return re.sub(r"[\s:|-]+", " ", NUMBER.sub("#", text))


def verdict(cell: NotebookNode) -> str:
    """What a check printed, from its mark on."""
    found = VERDICT.search(printed(cell))
    return found[0] if found else ""


def verdicts(nb: NotebookNode) -> dict[str, str]:
    """What the check of each exercise printed."""
    return {
        cell.metadata.nbgrader.grade_id.removeprefix("check_"): verdict(cell)
        for cell in nb.cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    }


# What can be inspected, quickest first; the first two run nothing.
QUICK = ("source", "files")
STAGES: dict[str, Callable[[Lesson], list[str]]] = {
    "source": of_source,
    "files": of_files,
    "handed out": of_handed_out,
    "solved": of_solved,
}


def problems(lesson: Lesson, stage: str) -> list[str]:
    """What one stage finds, with a source that cannot be read as one problem."""
    try:
        return STAGES[stage](lesson)
    except CourseError as error:
        return [str(error)]
