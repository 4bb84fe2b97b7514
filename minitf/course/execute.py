"""Runs a notebook as tests do: top to bottom in a fresh kernel, warnings as errors, without a network."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode

import minitf

# Runs in the kernel before the first cell and leaves no name behind.
STARTUP = """
import socket, warnings
def offline(*args, **options):
    raise OSError("a lesson must not use the network")
socket.socket.connect = socket.getaddrinfo = offline
warnings.simplefilter("error")
# The kernel's own, when it starts and when it is told to stop.
warnings.filterwarnings("ignore", module="ipykernel|tornado|asyncio|zmq")
del offline, socket, warnings
"""

# The environment of a lesson: one thread, so that sums are taken in the same order on every run, and pictures
# in the notebook, whatever the test suite asks for.
KERNEL = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}

# Seconds for one cell. Far above what lessons take: other work may share the machine.
TIMEOUT = 300


def run(nb: NotebookNode, *, strict: bool = False) -> NotebookNode:
    """Run a notebook in an empty folder; return it with its outputs.

    What differs from run to run without meaning anything (times of cells, the splitting of printed text) is
    removed from the outputs.

    Args:
        nb: left as it is.
        strict: exercises that are not solved raise.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
        nbclient.exceptions.CellTimeoutError: a cell took longer than `TIMEOUT`.
    """
    nb = nbformat.from_dict(nb)
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder, "ipython", "profile_default", "startup")
        startup.mkdir(parents=True)
        startup.joinpath("lesson.py").write_text(STARTUP, encoding="utf-8")
        work = Path(folder, "work")
        work.mkdir()
        root = Path(minitf.__file__).parents[1]
        paths = [str(root), str(root / "backends"), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "IPYTHONDIR": str(startup.parents[1]),
            # This minitf, wherever the command was started.
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "MINITF_STRICT": "1" if strict else "",
            **KERNEL,
        }
        # No folders to search: the kernel of this Python, not one that was installed under the same name.
        specs = KernelSpecManager(kernel_dirs=[])
        client = NotebookClient(
            nb,
            km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
            timeout=TIMEOUT,
            record_timing=False,
            resources={"metadata": {"path": work}},
            # No notes on the terminal about how the kernel talks to us.
            extra_arguments=["--log-level=40"],
        )
        client.execute(env=env, cleanup_kc=True)
    nb.metadata.language_info = NotebookNode(name="python")
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    return nb


def joined(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The outputs with neighbouring pieces of printed text as one, and without metadata."""
    found: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
        if "metadata" in output:
            output.metadata = NotebookNode()
    return found


# What running a notebook can end in: a cell raised or took too long, or the kernel died.
FAILURES = (CellControlSignal, DeadKernelError)


def in_words(error: Exception) -> str:
    """The error of a cell as text, without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()


def printed(cell: NotebookNode) -> str:
    """What a cell printed."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")
