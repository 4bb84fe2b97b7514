"""How long a program waits: for the import, and for the first kernels, from disk and compiled anew."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec

from .measure import BenchError, Row, compared

PLAIN = "import numpy"
IMPORT = "import minitf"
KERNEL = """
import numpy as np, minitf as mt
with mt.use("{mode}"):
    mt.ops.rms_norm(np.ones((8, 32), "float32"), np.ones(32, "float32"))
"""
# One training step of a small GPT like those of `training`: every kernel of its path, float32.
STEP = """
import numpy as np, minitf as mt
config = mt.models.Config(vocab=9, context=16, dim=32, depth=1, heads=2, attention="softmax", ffn="gelu",
                          norm="layernorm", position="learned", block="pre")
model = mt.models.LanguageModel(config, seed=0)
optimizer = mt.train.AdamW(model.parameters())
ids = np.zeros((2, 16), dtype=int)
with mt.use("{mode}"):
    model.loss(ids, ids).backward()
    optimizer.step()
"""


def startup(repetitions: int = 15) -> list[Row]:
    """Seconds of new Python processes: imports, a first kernel, a first training step; kernels are on disk.

    The last case compiles every kernel of the training path anew, once.
    """
    few = max(1, min(5, repetitions))
    runs = {"minitf": lambda: python(IMPORT), "numpy alone": lambda: python(PLAIN)}
    rows = compared("startup", "import", runs, few, "s", 1.0)
    if find_spec("numba") is None:
        return rows
    for case, code in (("import and first kernel", KERNEL), ("import and first step", STEP)):
        kernels, plain = (partial(python, code.format(mode=mode)) for mode in ("numba", "reference"))
        rows += compared("startup", case, {"minitf": kernels, "minitf, plain": plain}, few, "s", 1.0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        python(STEP.format(mode="numba"), {"NUMBA_CACHE_DIR": folder})
        took = time.perf_counter() - start
    return [*rows, Row("startup", "import, compile everything, first step", "minitf", "s", took, took, took)]


def python(code: str, more: dict[str, str] | None = None) -> None:
    """Run `code` in a new Python process.

    Raises:
        BenchError: it failed.
    """
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, **(more or {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"a new Python process failed: {done.stderr.strip().splitlines()[-1]}")
