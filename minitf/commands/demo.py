"""`minitf demo`: train on Moby-Dick, and look at what came of it."""

from __future__ import annotations

import json
import math
from itertools import count
from pathlib import Path
from typing import Any

import click

from .output import heading, say

# What is trained. Chosen so that two cores reach a validation loss below 2 nats within three minutes.
MODEL: dict[str, Any] = {"dim": 128, "depth": 4, "heads": 4, "context": 64}
TRAINING: dict[str, Any] = {"batch": 16, "lr": 3e-3, "steps": 800}
PROMPTS = ("Call me Ishmael", "The white whale ")
SENTENCE = "Call me Ishmael. Some years"
TITLE = "Moby-Dick, character by character"


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Where everything is written.",
)
@click.option("--steps", type=int, default=TRAINING["steps"], show_default=True, help="Length of training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the model, batches and samples.")
@click.option(
    "--backend", default="auto", show_default=True, help="Who computes: auto, reference, numba, ..."
)
@click.option("--threads", type=click.IntRange(min=1), help="BLAS threads.  [default: all cores but one]")
@click.option("--force", is_flag=True, help="Replace a run that is there, instead of keeping it.")
def command(out: Path, steps: int, seed: int, backend: str, threads: int | None, force: bool) -> None:
    """Train a small language model on Moby-Dick, about two minutes on two cores.

    It writes before and after, and leaves in the folder: the model and its checkpoint, the loss curve
    (loss.png), what each attention head looks at (attention.png), and the figures (report.json). A run
    that is already there is kept: its folder gets a number.

    \b
    Examples:
      minitf demo
      minitf demo --out runs/quick --steps 300
      minitf demo --force
    """
    from minitf.machine import machine_line
    from minitf.train import holds_run

    from .progress import watching
    from .training import Run, Settings, computing, default_threads, losses, shown

    if not force and holds_run(out):
        say(f"The run that was in {out} is now in {set_aside(out)}.")
    # Fifteen validations: a curve that one can read, at little cost.
    training = {**TRAINING, "steps": steps, "seed": seed, "eval_every": max(1, steps // 15)}
    threads = threads or default_threads()
    with computing(backend, threads):
        run = Run(Settings("moby", "", "char", backend, threads, MODEL, training))
        say(TITLE, bold=True)
        learn, test = len(run.data.train_ids), len(run.data.validation_ids)
        say(f"{learn:,} characters to learn from, {test:,} to be tested on, {run.tokenizer.vocab} kinds.")
        say(machine_line())
        heading("Before training it writes")
        before = run.write(PROMPTS[0], 120)
        say(before)
        heading("Training")
        # What an earlier demo left would not fit this one.
        for name in ("loss.png", "attention.png", "report.json"):
            (out / name).unlink(missing_ok=True)
        with watching(as_json=False) as on_event:
            history = run.fit(out, resume=False, overwrite=force, on_event=on_event)
        if history.stopped:
            say(f"\nStopped at step {history.step} of {steps}; it is saved. Go on with:", fg="yellow")
            say(f"  minitf train --resume --out {shown(out)}")
            return
        heading(f"After {steps:,} steps it writes")
        after = [run.write(prompt, 300) for prompt in PROMPTS]
        say(f"\n{'-' * 20}\n".join(after))
        draw(run, history, out)
    report = figures(run, history) | {"sample_before": before, "samples_after": after}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    heading("Result")
    speed = f"{history.seconds:.0f} s, {report['tokens_per_s']:,.0f} tokens/s"
    say(f"Validation loss per character: {losses(history.val_loss)}. {speed}.", fg="green")
    say(f"Look at {out / 'loss.png'} (how it learned) and {out / 'attention.png'} (what its heads look at).")
    say(f"Let it write:     minitf sample {shown(out)} --prompt 'Call me' --tokens 500")
    say(f"Train it longer:  minitf train --resume --out {shown(out)} --steps {2 * steps}")


def set_aside(out: Path) -> Path:
    """Rename a folder to its name with the first free number: runs/demo becomes runs/demo-1."""
    aside = next(path for n in count(1) if not (path := out.with_name(f"{out.name}-{n}")).exists())
    return out.rename(aside)


def draw(run: Any, history: Any, out: Path) -> None:
    """Write loss.png and attention.png."""
    from minitf import viz

    viz.loss_curve(history.rows, title=TITLE, save=out / "loss.png")
    maps = run.model.attention_maps(run.tokenizer.encode(SENTENCE)[None])
    viz.attention_map([layer[0] for layer in maps], SENTENCE, save=out / "attention.png")


def figures(run: Any, history: Any) -> dict[str, Any]:
    """What the run is, how well it did and how fast it was, for report.json."""
    from minitf.machine import machine_line

    from .training import last_loss

    nats = {
        "training_loss": last_loss(history),
        "validation_loss": history.val_loss,
        "best_validation_loss": history.best_val_loss,
    }
    tokens = history.step * run.training.batch * run.training.accumulate * run.config.context
    return {
        "machine": machine_line(),
        "model": run.config.to_dict(),
        "training": run.training.to_dict(),
        "parameters": run.model.count_parameters(),
        "seconds": round(history.seconds, 2),
        "tokens_per_s": round(tokens / history.seconds, 1),
        **{name: loss and {"nats": loss, "bits": loss / math.log(2)} for name, loss in nats.items()},
    }
