"""The command line: `minitf COMMAND`.

This file is the table of commands. Each lives in a file of its name in `minitf/commands` and is imported when
it is called, so that `minitf --help` and `minitf list` answer at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from typing import IO, Any

import click

from minitf import MinitfError, __version__

# In the order of `minitf --help`.
COMMANDS = {
    "demo": "Train a small language model on Moby-Dick and look inside it.",
    "train": "Train a model on a text or a task.",
    "sample": "Let a trained model write.",
    "list": "List the variants in the catalogue.",
    "show": "Show one variant: card, equation, identities, source code.",
    "plot": "Draw a variant: which tokens it mixes, and what it costs as N grows.",
    "check": "Check a variant of the catalogue, or one of your own.",
    "lessons": "Open the lessons in JupyterLab.",
    "course": "Teach with the lessons: release, grade and check them.",
    "bench": "Measure speed on this machine.",
    "info": "Show versions, threads, backends and what is installed.",
    "doctor": "Find what is missing or wrong, and the command that mends it.",
}


class Failure(click.ClickException):
    """What a user can cause and mend: one sentence in red, exit code 1."""

    exit_code = 1

    def __init__(self, message: str, color: bool | None):
        super().__init__(message)
        self.color = color

    def show(self, file: IO[Any] | None = None) -> None:
        click.secho(f"Error: {self.format_message()}", fg="red", err=True, color=self.color)


class Commands(click.Group):
    """A group that imports a command when it is asked for, and tells failures in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"minitf.commands.{name}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MinitfError, ValueError, OSError, MemoryError) as error:
            # `minitf list | head` closes the pipe early: click knows what to do.
            if ctx.params.get("debug") or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            raise Failure(in_words(error), ctx.color) from error


def in_words(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, MemoryError):
        return (
            f"not enough memory for this size: {error}" if str(error) else "not enough memory for this size"
        )
    if isinstance(error, OSError) and error.filename and not isinstance(error, MinitfError):
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="minitf")
@click.option("--debug", is_flag=True, help="Show the whole traceback when something fails.")
@click.pass_context
def main(ctx: click.Context, debug: bool) -> None:
    """Transformers that a person can read from top to bottom.

    \b
    Examples:
      minitf demo                          train on Moby-Dick, about three minutes
      minitf list '*ffn*'                  find variants
      minitf show softmax_attention        read one
      minitf train --help                  every option of a command
    """
    # click hides colours from pipes by itself; NO_COLOR also asks for that on a terminal.
    if os.environ.get("NO_COLOR"):
        ctx.color = False


if __name__ == "__main__":
    sys.exit(main())
