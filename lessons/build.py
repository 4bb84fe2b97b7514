"""Makes the notebooks from their sources: exercises empty, run from top to bottom, outputs kept.

    python lessons/build.py               every lesson
    python lessons/build.py 01_autograd   one lesson
    python lessons/build.py --check       write nothing; exit 1 if a notebook's cells differ from its source

A source is a Python file in jupytext's percent format. Solutions of exercises stand in it between the comment
lines "BEGIN SOLUTION" and "END SOLUTION"; the notebook has `...  # your turn` in their place.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

SOLUTION = re.compile(r"^([ \t]*)# BEGIN SOLUTION\n(.*?)^[ \t]*# END SOLUTION\n", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"# (BEGIN|END) SOLUTION")

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


def sources(folder: Path = HERE) -> list[Path]:
    """The sources of all lessons, in order."""
    return sorted((folder / "src").glob("[0-9][0-9]_*.py"))


def notebook(source: Path, *, solved: bool = False) -> NotebookNode:
    """The notebook of a source, not run: as handed out, or with the solutions of its exercises.

    Raises:
        ValueError: a marker without its partner, or a cell that is not Python.
    """
    nb = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    nb.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3 (ipykernel)", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
    )
    # 4.5 is the version in which cells have ids.
    nb.nbformat, nb.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in nb.cells:
        # An id that stays as long as the cell does, and is the same in both forms.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type != "code":
            continue
        text = SOLUTION.sub(r"\2" if solved else r"\1...  # your turn\n", cell.source + "\n")
        if MARKER.search(text):
            raise ValueError(f"{source}: BEGIN SOLUTION and END SOLUTION must come in pairs:\n{text}")
        cell.source = text.rstrip("\n")
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            form = "the solved form" if solved else "the form handed out"
            raise ValueError(f"{source}: {form} has a cell that is not Python ({error}):\n{text}") from error
    return nb


def run(nb: NotebookNode, *, strict: bool = False, timeout: int = 120) -> NotebookNode:
    """Run a notebook from top to bottom in a fresh kernel and an empty folder; return it with its outputs.

    Warnings are errors and the network is out of reach. What differs from run to run without meaning anything
    (times, the splitting of printed text) is removed from the outputs.

    Args:
        nb: left as it is.
        strict: exercises that are not solved raise.
        timeout: for each cell, in seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    nb = nbformat.from_dict(nb)
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder, "ipython", "profile_default", "startup")
        startup.mkdir(parents=True)
        startup.joinpath("lesson.py").write_text(STARTUP, encoding="utf-8")
        work = Path(folder, "work")
        work.mkdir()
        paths = [str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "IPYTHONDIR": str(startup.parents[1]),
            # This checkout, wherever the command was started.
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # The test suite asks for a backend without pictures.
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "MINITF_STRICT": "1" if strict else "",
            # One thread: sums in the same order on every run.
            **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        # No folders to search: the kernel of this Python, not one that was installed under the same name.
        specs = KernelSpecManager(kernel_dirs=[])
        client = NotebookClient(
            nb,
            km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
            timeout=timeout,
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


def differences(source: Path) -> list[str]:
    """What in the notebook of `source` is not as the source says, outputs aside; empty when nothing is."""
    path = source.parents[1] / f"{source.stem}.ipynb"
    if not path.exists():
        return [f"{path.name} does not exist"]
    with path.open(encoding="utf-8") as file:
        committed = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    expected = notebook(source)
    found = []
    if len(committed.cells) != len(expected.cells):
        found.append(f"{path.name} has {len(committed.cells)} cells, its source makes {len(expected.cells)}")
    if committed.metadata != expected.metadata:
        found.append(f"{path.name}: the metadata differs")
    for i, (have, want) in enumerate(zip(committed.cells, expected.cells)):
        changed = [key for key in ("cell_type", "id", "metadata", "source") if have.get(key) != want[key]]
        if changed:
            found.append(f"{path.name}, cell {i}: {', '.join(changed)} differ: {want.source[:60]!r}")
        elif have.cell_type == "code" and have.execution_count is None:
            found.append(f"{path.name}, cell {i}: not run: {want.source[:60]!r}")
    return found


def main(arguments: Sequence[str] | None = None, folder: Path = HERE) -> int:
    """Build or check the lessons in `folder`; the exit code."""
    parser = argparse.ArgumentParser(description="Make the notebooks from lessons/src.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01_autograd; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a notebook differs")
    options = parser.parse_args(arguments)
    known = {source.stem: source for source in sources(folder)}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no lesson is called {', '.join(unknown)}; there are: {', '.join(known)}")
    failed = False
    for name in options.names or known:
        if options.check:
            found = differences(known[name])
            failed = failed or bool(found)
            print("\n".join(found) or f"{name}: as its source says")
        else:
            nb = run(notebook(known[name]))
            folder.joinpath(f"{name}.ipynb").write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
            print(f"{name}: {len(nb.cells)} cells")
    if failed:
        print("Run lessons/build.py to make them again.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
