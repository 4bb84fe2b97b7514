"""`minitf check NAME`: run the checks on one variant."""

from __future__ import annotations

import os
import tempfile

import click

from minitf.testing import CLAIMS, KINDS, check_variant, from_file

from .output import print_table, say


@click.command("check")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(KINDS)), help="What it is; needed where it has no card.")
@click.option("--claim", "claims", multiple=True, type=click.Choice(CLAIMS), help="What must hold.")
@click.option("--reference", help="What it must equal: a name of the catalogue, or an operation.")
@click.option("--examples", default=100, show_default=True, type=click.IntRange(1), help="Cases per check.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    name: str,
    kind: str | None,
    claims: tuple[str, ...],
    reference: str | None,
    examples: int,
    as_json: bool,
) -> None:
    """Check the variant NAME, and exit with code 1 if a check fails.

    NAME is a name of the catalogue, or FILE.py:NAME for a class, factory or function of your own.

    \b
    Examples:
      minitf check softmax_attention
      minitf check swiglu --examples 20 --json
      minitf check mine.py:MyMixer --kind token_mixer --claim causal
      minitf check mine.py:attend --kind attention_function --reference softmax_attention
    """
    # Otherwise hypothesis leaves a folder of notes wherever the user stands.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))
    path, colon, inner = name.rpartition(":")
    variant = from_file(path, inner) if colon else name
    report = check_variant(
        variant, kind=kind, claims=claims, reference=reference, examples=examples, on_fail=None
    )
    if as_json:
        click.echo(report.to_json())
    else:
        print_table(("check", "status", "seconds", "reason"), report.rows())
        for result in report.failed:
            say(f"\n# {result.check}: {result.reason}", fg="red")
            say(result.snippet)
        say(f"\n{report.summary()}", bold=True)
    ctx.exit(1 if report.failed else 0)
