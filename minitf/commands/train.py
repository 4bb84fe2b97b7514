"""`minitf train`: train a model of named parts on a text or on one of the tasks that ship with minitf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from . import tasks
from .output import print_json, say

# The options that describe the model and the training, each with its type and help. Defaults are the task's.
MODEL_OPTIONS: dict[str, tuple[Any, str]] = {
    "dim": (int, "Width of the model."),
    "depth": (int, "Number of blocks."),
    "heads": (int, "Attention heads."),
    "kv_heads": (int, "Heads of keys and values.  [default: as many as heads]"),
    "context": (int, "Longest sequence that it sees; only for texts and co2."),
    "attention": (str, "Token mixer, by its name in the catalogue.  [default: softmax]"),
    "ffn": (str, "Channel mixer.  [default: swiglu]"),
    "norm": (str, "Norm.  [default: rmsnorm]"),
    "position": (str, "Position scheme; learned is the default of mixers that take no rope."),
    "block": (str, "Layout of the blocks."),
    "dropout": (float, "Rate of dropout."),
}
TRAINING_OPTIONS: dict[str, tuple[Any, str]] = {
    "steps": (int, "Updates of the parameters."),
    "seed": (int, "Of the model, the batches and dropout.  [default: 0]"),
    "batch": (int, "Rows in one pass: sequences, images, windows."),
    "accumulate": (int, "Passes in one step.  [default: 1]"),
    "lr": (float, "Highest learning rate."),
    "warmup": (int, "Steps until it is reached.  [default: a tenth of the run, at most 100]"),
    "weight_decay": (float, "Weight decay of the matrices.  [default: 0.1]"),
    "clip": (float, "Largest norm of the gradient.  [default: 1]"),
    "eval_every": (int, "Steps between validations.  [default: 100]"),
    "save_every": (int, "Steps between checkpoints.  [default: 200]"),
}


def numbers_and_names(options: dict[str, tuple[Any, str]]) -> Callable[[Any], Any]:
    """A decorator that adds one option for each row of a table, in its order."""

    def decorate(command: Any) -> Any:
        for name, (kind, text) in reversed(options.items()):
            flags = [f"--{name.replace('_', '-')}", *(["--variant"] if name == "attention" else []), name]
            command = click.option(*flags, type=kind, help=text)(command)
        return command

    return decorate


EPILOG = "\b\nDefaults of each task:\n" + "".join(f"  {line}\n" for line in tasks.table().splitlines())


@click.command("train", epilog=EPILOG)
@click.option(
    "--task",
    default="moby",
    show_default=True,
    help=f"Data that ships with minitf: {', '.join(tasks.TASKS)}.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="A UTF-8 text file to learn from, instead of --task.",
)
@click.option(
    "--tokenizer",
    type=click.Choice(["char", "byte"]),
    default="char",
    show_default=True,
    help="One token for each character, or each byte; only for texts.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder of the run."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, with its settings.")
@click.option("--force", is_flag=True, help="Start anew even if --out holds a run, which is lost.")
@numbers_and_names(TRAINING_OPTIONS)
@numbers_and_names(MODEL_OPTIONS)
@click.option(
    "--backend", default="auto", show_default=True, help="Who computes: auto, reference, or a backend's name."
)
@click.option("--threads", type=click.IntRange(min=1), help="BLAS threads.  [default: all cores but one]")
@click.option("--json", "as_json", is_flag=True, help="Write events as JSON, one on each line.")
@click.pass_context
def command(
    ctx: click.Context, task: str, text: Path | None, tokenizer: str, out: Path, resume: bool, force: bool,
    backend: str, threads: int | None, as_json: bool, **numbers: Any,
) -> None:  # fmt: skip
    """Train a model on a text or a task, and keep the run in a folder.

    Every token mixer and FFN of the catalogue can stand in the model, where that makes sense.
    Ctrl-C saves and stops; --resume goes on as if it had never stopped. On resuming, only --steps
    and --save-every may change.

    \b
    Examples:
      minitf train --out runs/moby --steps 2000
      minitf train --out runs/mine --text notes.txt --tokenizer byte --context 128
      minitf train --out runs/wide --dim 256 --heads 8 --ffn gelu --norm layernorm
      minitf train --out runs/digits --task digits --attention mqa
      minitf train --out runs/moby --resume
    """
    from minitf.train import TrainingError, holds_run

    from .progress import watching
    from .training import Run, computing, saved_settings, shown

    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if resume and force:
        raise click.UsageError("--resume goes on with a run and --force throws it away: give one of them")
    if text is not None and given("task"):
        raise click.UsageError("--task and --text both name the text to learn from: give one of them")
    if task not in tasks.TASKS:
        raise click.BadParameter(
            f"{task!r} is none of: {', '.join(tasks.TASKS)}; --text FILE takes any text", param_hint="--task"
        )
    numbers = {name: value for name, value in numbers.items() if value is not None}
    if resume:
        names = [name for name in ("task", "text", "tokenizer", "backend", "threads") if given(name)]
        asked = {name: ctx.params[name] for name in names}
        settings = changed(saved_settings(out), asked, numbers)
        # Killed before its first checkpoint: there is nothing to go on from, but it is known how it began.
        resume = (out / "checkpoint.safetensors").exists()
    else:
        settings = settings_of(task, text, tokenizer, backend, threads, numbers)
    if settings.task not in ("", "moby") and given("tokenizer"):
        raise click.UsageError(f"--tokenizer is for texts, and the task {settings.task} has none")
    if "context" in numbers and settings.task and "context" not in tasks.TASKS[settings.task].model:
        raise click.UsageError(f"--context cannot be chosen: the task {settings.task} has one length")
    if not resume and not force and holds_run(out):
        raise TrainingError(
            f"{out} already holds a run: --resume goes on with it, --force loses it and starts anew; "
            "or choose another --out"
        )
    with computing(settings.backend, settings.threads):
        run = Run(settings)
        with watching(as_json) as on_event:
            history = run.fit(out, resume, force, on_event)
        result = None if history.stopped else run.result(history)
    again = f"minitf train --resume --out {shown(out)}"
    longer = f"{again} --steps {2 * history.step}"
    sample = None if run.tokenizer is None else f"minitf sample {shown(out)} --tokens 300"
    if as_json:
        done = {"event": "done", "step": history.step, "steps": run.training.steps, "out": str(out)}
        if result is not None:
            done["result"] = result.numbers
        print_json(done | {"next": again if history.stopped else sample or longer}, indent=None)
    elif result is None:
        say(f"Stopped at step {history.step} of {run.training.steps}; it is saved. Go on with:", fg="yellow")
        say(f"  {again}")
    else:
        say(f"Finished step {history.step} after {history.seconds:.1f} s: {result.words}.", fg="green")
        kept = "the model, the checkpoint, log.csv"
        if sample is None:
            say(f"In {out}: {kept}. Train it longer:")
        else:
            say(f"In {out}: {kept}, the tokenizer. Let it write, or train it longer:")
            say(f"  {sample}")
        say(f"  {longer}")


def settings_of(
    task: str, text: Path | None, tokenizer: str, backend: str, threads: int | None, numbers: dict[str, Any]
) -> Any:
    """What was given, and the task's defaults for the rest, as `Settings`."""
    from .training import Settings, default_threads, fitting_position

    model, training = tasks.defaults(task)
    model |= {name: value for name, value in numbers.items() if name in MODEL_OPTIONS}
    training |= {name: value for name, value in numbers.items() if name in TRAINING_OPTIONS}
    check_whole_layer(model["block"], numbers)
    if "position" not in numbers:
        model["position"] = fitting_position(model["attention"], model["block"], model["position"])
    return Settings(
        task="" if text else task,
        text=str(text.resolve()) if text else "",
        tokenizer=tokenizer,
        backend=backend,
        threads=threads or default_threads(),
        model=model,
        training=training,
    )


def check_whole_layer(block: str, numbers: dict[str, Any]) -> None:
    """Refuse parts that were asked for and would play no part.

    Raises:
        UsageError: the block is a whole layer by itself. UnknownVariantError: no such block.
    """
    from minitf.models.backbone import accepts
    from minitf.models.config import PARTS
    from minitf.registry import resolve

    resolve(block, PARTS["block"])
    ignored = [name for name in ("attention", "ffn", "kv_heads") if name in numbers]
    if ignored and not (accepts(block, "mixer") or accepts(block, "ffn")):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise click.UsageError(f"--block {block} is a whole layer by itself: leave out {flags}")


def changed(saved: Any, asked: dict[str, Any], numbers: dict[str, Any]) -> Any:
    """The settings of a run, with what was given on the command line in place of what was saved.

    Raises:
        TrainingError: another task was asked for.
    """
    from minitf.train import TrainingError

    text = asked.pop("text", None)
    task = "" if text else asked.get("task", saved.task)
    if task != saved.task:
        words = [f"the task {name}" if name else "a text" for name in (saved.task, task)]
        raise TrainingError(f"the run learns {words[0]}, and {words[1]} was asked for: leave it out to go on")
    return replace(
        saved,
        **asked,
        text=str(text.resolve()) if text else saved.text,
        model=saved.model | {k: v for k, v in numbers.items() if k in MODEL_OPTIONS},
        training=saved.training | {k: v for k, v in numbers.items() if k in TRAINING_OPTIONS},
    )
