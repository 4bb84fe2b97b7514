"""`minitf train`: train a language model on a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from . import demo
from .output import print_json, say

# The options that describe the model and the training, each with its type, default and help. Without options,
# `train` does what the demo does.
MODEL_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "dim": (int, demo.MODEL["dim"], "Width of the model."),
    "depth": (int, demo.MODEL["depth"], "Number of blocks."),
    "heads": (int, demo.MODEL["heads"], "Attention heads."),
    "kv_heads": (int, None, "Heads of keys and values.  [default: as many as heads]"),
    "context": (int, demo.MODEL["context"], "Longest sequence that it sees."),
    "attention": (str, "softmax", "Token mixer, by its name in the catalogue."),
    "ffn": (str, "swiglu", "Channel mixer."),
    "norm": (str, "rmsnorm", "Norm."),
    "position": (str, "rope", "Position scheme."),
    "block": (str, "pre", "Layout of the blocks."),
    "dropout": (float, 0.0, "Rate of dropout."),
}
TRAINING_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "steps": (int, demo.TRAINING["steps"], "Updates of the parameters."),
    "seed": (int, 0, "Of the model, the batches and dropout."),
    "batch": (int, demo.TRAINING["batch"], "Sequences in one pass."),
    "accumulate": (int, 1, "Passes in one step."),
    "lr": (float, demo.TRAINING["lr"], "Highest learning rate."),
    "warmup": (int, None, "Steps until it is reached.  [default: a tenth of the run, at most 100]"),
    "weight_decay": (float, 0.1, "Weight decay of the matrices."),
    "clip": (float, 1.0, "Largest norm of the gradient."),
    "eval_every": (int, 100, "Steps between validations."),
    "save_every": (int, 200, "Steps between checkpoints."),
}


def numbers_and_names(options: dict[str, tuple[Any, Any, str]]) -> Callable[[Any], Any]:
    """A decorator that adds one option for each row of a table, in its order."""

    def decorate(command: Any) -> Any:
        for name, (kind, default, text) in reversed(options.items()):
            flags = [f"--{name.replace('_', '-')}", *(["--variant"] if name == "attention" else []), name]
            command = click.option(
                *flags, type=kind, default=default, show_default=default is not None, help=text
            )(command)
        return command

    return decorate


@click.command("train")
@click.option("--task", default="moby", show_default=True, help="Data that ships with minitf.")
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
    help="One token for each character, or each byte.",
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
    """Train a language model on a text, and keep the run in a folder.

    Ctrl-C saves and stops; --resume goes on as if it had never stopped. On resuming, only --steps
    and --save-every may change.

    \b
    Examples:
      minitf train --out runs/moby --steps 2000
      minitf train --out runs/mine --text notes.txt --tokenizer byte --context 128
      minitf train --out runs/wide --dim 256 --heads 8 --ffn gelu --norm layernorm
      minitf train --out runs/moby --resume
    """
    from minitf.train import TrainingError

    from .progress import watching
    from .training import Run, computing, holds_run, last_loss, losses, saved_settings, shown

    def given(name: str) -> bool:
        return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if resume and force:
        raise click.UsageError("--resume goes on with a run and --force throws it away: give one of them")
    if text is not None and given("task"):
        raise click.UsageError("--task and --text both name the text to learn from: give one of them")
    settings = settings_of(task, text, tokenizer, backend, threads, numbers)
    if resume:
        settings = changed(saved_settings(out), settings, given)
        # Killed before its first checkpoint: there is nothing to go on from, but it is known how it began.
        resume = (out / "checkpoint.safetensors").exists()
    elif not force and holds_run(out):
        raise TrainingError(
            f"{out} already holds a run: --resume goes on with it, --force loses it and starts anew; "
            "or choose another --out"
        )
    with computing(settings.backend, settings.threads):
        run = Run(settings)
        with watching(as_json) as on_event:
            history = run.fit(out, resume, force, on_event)
    sample = f"minitf sample {shown(out)} --tokens 300"
    again = f"minitf train --resume --out {shown(out)}"
    if as_json:
        done = {"event": "done", "step": history.step, "steps": run.training.steps, "out": str(out)}
        print_json(done | {"next": again if history.stopped else sample}, indent=None)
    elif history.stopped:
        say(f"Stopped at step {history.step} of {run.training.steps}; it is saved. Go on with:", fg="yellow")
        say(f"  {again}")
    else:
        found = f"training loss {losses(last_loss(history))}, validation {losses(history.val_loss)}"
        say(f"Finished step {history.step} after {history.seconds:.1f} s: {found}.", fg="green")
        say(f"In {out}: the model, its tokenizer, the checkpoint, log.csv. Let it write, or train it longer:")
        say(f"  {sample}")
        say(f"  {again} --steps {2 * history.step}")


def settings_of(
    task: str, text: Path | None, tokenizer: str, backend: str, threads: int | None, numbers: dict[str, Any]
) -> Any:
    """The options as `Settings`. Raises click.BadParameter for an unknown task."""
    from .training import TASKS, Settings, default_threads

    if task not in TASKS:
        raise click.BadParameter(
            f"{task!r} is none of: {', '.join(TASKS)}; --text FILE takes any text", param_hint="--task"
        )
    return Settings(
        task="" if text else task,
        text=str(text.resolve()) if text else "",
        tokenizer=tokenizer,
        backend=backend,
        threads=threads or default_threads(),
        model={name: numbers[name] for name in MODEL_OPTIONS},
        training={name: numbers[name] for name in TRAINING_OPTIONS},
    )


def changed(saved: Any, now: Any, given: Callable[[str], bool]) -> Any:
    """The settings of a run, with what was given on the command line in place of what was saved."""
    values = asdict(now)
    names = [name for name in ("tokenizer", "backend", "threads") if given(name)]
    if given("task") or given("text"):
        names += ["task", "text"]
    return replace(
        saved,
        **{name: values[name] for name in names},
        model=saved.model | {k: v for k, v in now.model.items() if given(k)},
        training=saved.training | {k: v for k, v in now.training.items() if given(k)},
    )
