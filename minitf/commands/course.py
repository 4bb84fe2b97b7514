"""`minitf course`: make the lessons' notebooks, check them, and lay out a course for nbgrader."""

from __future__ import annotations

from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import click

from minitf import MinitfError
from minitf.course import Lesson, lessons
from minitf.course.lessons import CHECKOUT

from .lessons import install_command
from .output import on_terminal, print_json, print_table, say

NEEDED = ("jupytext", "nbclient", "nbformat", "ipykernel")

of_lessons = click.argument("names", nargs=-1, metavar="[LESSON]...")
in_folder = click.option(
    "--folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Lessons of your own: a folder with src/NN_verb_object.py.  [default: those of minitf]",
)


@click.group("course")
def command() -> None:
    """Teach with the lessons: release, grade and check them.

    LESSON is a name such as 06_unroll_linear_attention, or its number; all lessons if left out.

    \b
    Examples:
      minitf course list
      minitf course init my_course
      minitf course check 06
      minitf course build --folder my_lessons
    """


def need(*modules: str) -> None:
    """Say what to install if one of the modules is missing."""
    if missing := [name for name in modules if util.find_spec(name) is None]:
        raise MinitfError(f"{', '.join(missing)} is not installed; install it with: {install_command()}")


def each(chosen: list[Lesson], words: str, work: Callable[[Lesson], Any]) -> list[Any]:
    """The results of some work on every lesson, with a progress bar where a person is looking."""
    if not on_terminal():
        return [work(lesson) for lesson in chosen]
    from rich.progress import track

    return [work(lesson) for lesson in track(chosen, description=words)]


@command.command("list")
@of_lessons
@in_folder
@click.option("--json", "as_json", is_flag=True, help="Write one JSON array.")
def show(names: tuple[str, ...], folder: Path | None, as_json: bool) -> None:
    """List the lessons: title, and the variants they teach.

    \b
    Examples:
      minitf course list
      minitf course list 06 07 --json
    """
    chosen = lessons(names, folder)
    if as_json:
        print_json([{"name": x.name, "title": x.title, "variants": x.variants} for x in chosen])
    else:
        rows = [(x.name, x.title, ", ".join(x.variants)) for x in chosen]
        print_table(("lesson", "what you will do", "variants"), rows)


@command.command("init")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@of_lessons
@in_folder
def init(directory: Path, names: tuple[str, ...], folder: Path | None) -> None:
    """Lay out a course for nbgrader in DIR, which must be new or empty.

    Every lesson becomes an assignment with its solutions and hidden tests.

    \b
    Examples:
      minitf course init my_course
      minitf course init my_course 02 06 09
    """
    need(*NEEDED)
    from minitf.course import assignments

    written = assignments.init(directory, lessons(names, folder))
    say(f"{len(written)} assignments in {directory / 'source'}. Then, in {directory}:")
    say(f"  nbgrader generate_assignment {written[0].stem}")
    say(f"README.md in {directory} has the next steps.")
    if util.find_spec("nbgrader") is None:
        say(f"nbgrader is not installed; install it with: {install_command()}", fg="yellow")


@command.command("build")
@of_lessons
@in_folder
def build(names: tuple[str, ...], folder: Path | None) -> None:
    """Make the notebooks from their sources: as handed out, and solved with outputs.

    \b
    Examples:
      minitf course build 06
      minitf course build --folder my_lessons
    """
    need(*NEEDED)
    if folder is None and not CHECKOUT.is_dir():
        raise MinitfError("the notebooks of minitf are made in its repository; name your own with --folder")
    from minitf.course.build import build as build_one
    from minitf.course.execute import FAILURES, in_words

    def work(lesson: Lesson) -> None:
        try:
            build_one(lesson)
        except FAILURES as error:
            # The text shows the cell and where it raised.
            say(in_words(error))
            raise MinitfError(
                f"{lesson.name}: a cell raised, see above; its notebooks are as before"
            ) from error
        say(f"{lesson.name}: {lesson.handed_out.name}, solved/{lesson.solved.name}")

    each(lessons(names, folder), "Running lessons", work)


@command.command("check")
@of_lessons
@in_folder
@click.option("--quick", is_flag=True, help="Compare the notebooks with their sources; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.pass_context
def check(
    ctx: click.Context, names: tuple[str, ...], folder: Path | None, quick: bool, as_json: bool
) -> None:
    """Check the lessons, and exit with code 1 if something is wrong.

    Each lesson is run as students get it (every check must say what is missing) and solved (every check must
    pass, no planted mistake may), with warnings as errors and without a network. The notebooks must be those
    that the sources make, and nbgrader must release the same.

    \b
    Examples:
      minitf course check
      minitf course check 06 --json
      minitf course check --quick
    """
    need(*NEEDED)
    from minitf.course import assignments, inspect

    chosen = lessons(names, folder)
    stages = [name for name in inspect.STAGES if not quick or name in inspect.QUICK]

    def work(lesson: Lesson) -> dict[str, list[str]]:
        return {stage: inspect.problems(lesson, stage) for stage in stages}

    found = dict(zip((x.name for x in chosen), each(chosen, "Checking lessons", work)))
    released = not quick and util.find_spec("nbgrader") is not None
    if released:
        for name, problems in assignments.of_release(chosen).items():
            found[name]["nbgrader"] = problems
    ok = not any(problems for stages_of_one in found.values() for problems in stages_of_one.values())
    if as_json:
        print_json({"ok": ok, "lessons": found})
    else:
        columns = [*stages, "nbgrader"]
        rows = [[name, *(mark(one, column) for column in columns)] for name, one in found.items()]
        print_table(("lesson", *columns), rows)
        for name, one in found.items():
            for stage, problems in one.items():
                for problem in problems:
                    say(f"{name}, {stage}: {problem.removeprefix(f'{name}: ')}", fg="red")
        if any(one.get("files") and not one["source"] for one in found.values()):
            say("Where only a notebook differs from its source, minitf course build makes it again.")
    ctx.exit(0 if ok else 1)


def mark(one: dict[str, list[str]], stage: str) -> str:
    """How a stage of one lesson looks in the table."""
    from minitf.testing.report import MARKS

    if stage not in one:
        return "not run"
    return MARKS["failed" if one[stage] else "passed"]
