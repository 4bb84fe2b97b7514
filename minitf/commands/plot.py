"""`minitf plot NAME`: a picture of what a variant does to its tokens, and of what that costs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .output import print_json

# Words that people write for Python's own.
WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None}
# Options of variants that the picture sets itself, and how to change them.
SET = {"dim": "--dim", "heads": "--heads", "seed": "--seed", "grid": "--tokens", "dtype": ""}


@click.command("plot")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it. Default: NAME.png, here.")
@click.option(
    "--tokens", type=click.IntRange(1, 512), help="N of the pattern. Default: 32, or 64 on a grid of tokens."
)
@click.option(
    "--longest", type=click.IntRange(32), default=512, show_default=True, help="Largest N of the costs."
)
@click.option("--dim", type=click.IntRange(1), default=32, show_default=True, help="Width D of the layer.")
@click.option("--heads", type=click.IntRange(1), help="Number of heads. Default: the variant's own.")
@click.option(
    "--option", "pairs", multiple=True, metavar="KEY=VALUE", help="An option of the variant; may be repeated."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the weights and of the input."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Write the numbers as JSON; the picture only if --out is given."
)
def command(
    name: str, out: Path | None, tokens: int | None, longest: int, dim: int, heads: int | None,
    pairs: tuple[str, ...], seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Draw the variant NAME, a name or alias of the catalogue, with random weights.

    \b
    Token mixers and blocks: how strongly each output token depends on each input token (the exact
    Jacobian), and the attention weights of every head where there are any. On a grid, also what a few
    tokens see. Channel mixers and norms: the Jacobian of one token. All of these: floating-point
    operations and peak memory of a forward pass against N, counted, not timed.
    Position schemes: their bias, rotation or table, and how it falls with distance.
    Windows and blocks that would reach over the whole picture are made smaller, and the headline says so;
    --option sets them.

    \b
    Examples:
      minitf plot softmax_attention
      minitf plot softmax_attention --tokens 16 --option causal=false --option position=rope
      minitf plot gla --dim 64 --heads 2 --out pictures/gla.png
      minitf plot swiglu --json
    """
    options = dict(parsed(pair) for pair in pairs)
    with progress_bar(name) as progress:
        # After the bar has begun: importing matplotlib takes a while.
        from minitf import viz

        lengths = [n for n in (2**i for i in range(4, 31)) if n <= longest]
        try:
            study = viz.study(
                name, tokens=tokens, dim=dim, heads=heads, seed=seed, lengths=lengths, options=options,
                progress=progress,
            )  # fmt: skip
        except TypeError as error:
            # A value of --option may be anything, and a variant may stumble over it.
            if not options:
                raise
            raise ValueError(f"{name} does not work with {' '.join(pairs)}: {error}") from error
        file = out or (None if as_json else Path(f"{name}.png"))
        if file is not None:
            viz.variant_picture(study, save=file)
    if as_json:
        print_json({**study.to_dict(), "file": None if file is None else str(file)}, indent=None)
    else:
        click.echo(file)


def parsed(pair: str) -> tuple[str, Any]:
    """KEY=VALUE as a name and a Python value; what is no literal is a word."""
    key, equals, text = pair.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key.isidentifier():
        raise click.BadParameter(f"{pair!r} is not KEY=VALUE, such as causal=false", param_hint="--option")
    if key in SET:
        instead = f"use {SET[key]}" if SET[key] else "the picture sets it"
        raise click.BadParameter(f"{key} is not for --option: {instead}", param_hint="--option")
    if text.lower() in WORDS:
        return key, WORDS[text.lower()]
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text


@contextmanager
def progress_bar(words: str) -> Iterator[Callable[[float], Any] | None]:
    """A bar on standard error while the block runs, if a person watches; it takes shares from 0 to 1."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=1.0)
        yield lambda share: bar.update(task, completed=share)
