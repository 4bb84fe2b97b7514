"""`minitf lessons`: open the lessons in JupyterLab."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util

import click

from minitf import MinitfError
from minitf.course.lessons import CHECKOUT

from .output import PIP, say

# The folder that holds `minitf`, `lessons` and `pyproject.toml` in a checkout.
ROOT = CHECKOUT.parent


@click.command("lessons")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8888,
    show_default=True,
    help="Where the browser finds it.",
)
@click.option("--no-browser", is_flag=True, help="Do not open a browser; print the address.")
def command(port: int, no_browser: bool) -> None:
    """Open JupyterLab on the lessons. Stop it with Ctrl-C.

    \b
    Examples:
      minitf lessons
      minitf lessons --port 9000 --no-browser
    """
    folder = ROOT / "lessons"
    if not folder.is_dir():
        raise MinitfError(
            "the notebooks are in the repository, not in the installed package: clone it and run "
            "`make lessons`, or let `minitf course init DIR` write those for teachers"
        )
    if util.find_spec("jupyterlab") is None:
        raise MinitfError(f"JupyterLab is not installed; install it with: {install_command()}")
    say(f"Opening {folder}; start with 00_tour_minitf.ipynb. Ctrl-C stops it.")
    call = [
        sys.executable,
        "-m",
        "jupyterlab",
        str(folder),
        f"--port={port}",
        *(["--no-browser"] if no_browser else []),
        # Containers run as root, which JupyterLab refuses unless told.
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
    ]
    try:
        code = subprocess.call(call)
    except KeyboardInterrupt:
        code = 0
    if code:
        raise MinitfError(f"JupyterLab ended with exit code {code}; its own messages above say why")


def install_command() -> str:
    """What installs JupyterLab and what the lessons need, for this Python."""
    return (
        f"{PIP} --editable '{ROOT}[lessons]'"
        if (ROOT / "pyproject.toml").exists()
        else f"{PIP} 'minitf[lessons]'"
    )
