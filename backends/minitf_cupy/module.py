"""How a launcher runs a kernel: `launch` finds the `.cu` file, compiles it on first use and starts it.

    launch("norms", "norm_forward", x.dtype, blocks, threads, x, weight, y, rows, width)

A file is compiled by NVRTC for the card at hand and for one type of element, and CuPy keeps the machine code
on disk. CuPy is imported at the first launch.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
# Type of an array's elements -> REAL and SUM of common.cuh.
TYPES = {
    "float16": ("float16", "float"),
    "bfloat16": ("bfloat16", "float"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}
# Above this a kernel must ask for its shared memory.
SHARED = 48 * 1024


@cache
def source(name: str) -> str:
    """The text of a `.cu` file, with the files that it includes in place of `#include "..."`."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return re.sub(r'^#include "([\w.]+)"$', lambda found: source(found[1]), text, flags=re.MULTILINE)


def options(dtype: str, defines: dict[str, Any]) -> tuple[str, ...]:
    """What the compiler is told: the type of element, and further `-D`."""
    real, total = TYPES[dtype]
    named = {"REAL": real, "SUM": total, **defines}
    return ("--std=c++17", *(f"-D{key}={value}" for key, value in named.items()))


@lru_cache(maxsize=512)
def function(
    device: int, file: str, kernel: str, dtype: str, defines: tuple[tuple[str, Any], ...], arch: str
) -> Any:
    """The compiled kernel. An `arch` such as "sm_90a" is compiled for past CuPy, which would say sm_90."""
    import cupy

    code, told = source(f"{file}.cu"), options(dtype, dict(defines))
    if arch:
        return cupy.RawModule(path=cubin(code, (*told, f"-arch={arch}"))).get_function(kernel)
    return cupy.RawModule(code=code, options=told, backend="nvrtc").get_function(kernel)


def cubin(code: str, told: tuple[str, ...]) -> str:
    """The path of the machine code, made by NVRTC if it is not there yet."""
    from cupy_backends.cuda.libs import nvrtc  # type: ignore[import-not-found]

    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    key = hashlib.sha256("\0".join([code, *told, str(nvrtc.getVersion())]).encode()).hexdigest()
    path = folder / f"minitf-{key[:32]}.cubin"
    if not path.exists():
        program = nvrtc.createProgram(code, "minitf.cu", (), ())
        try:
            nvrtc.compileProgram(program, told)
            made = nvrtc.getCUBIN(program)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"NVRTC: {error}\n{nvrtc.getProgramLog(program)}") from error
        finally:
            nvrtc.destroyProgram(program)
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name first, so that a second process never loads half a file.
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(made)
        os.replace(file.name, path)
    return str(path)


def launch(
    file: str,
    kernel: str,
    dtype: Any,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    *args: Any,
    shared: int = 0,
    arch: str = "",
    **defines: Any,
) -> None:
    """Start `kernel` of `file`.cu on the current stream.

    Args:
        dtype: type of the elements; it chooses REAL and SUM.
        grid, block: how many blocks, and threads in each. Without blocks nothing happens.
        args: arrays, None (a null pointer), int (int), bool (int), float (double).
        shared: bytes of dynamic shared memory.
        arch: "sm_90a" for instructions of one chip only; default: the card's own.
        defines: further `-D`, for sizes that the compiler should know.
    """
    import cupy

    grid, block = (n if isinstance(n, tuple) else (n,) for n in (grid, block))
    if 0 in grid:
        return
    run = function(cupy.cuda.Device().id, file, kernel, str(dtype), tuple(defines.items()), arch)
    if shared > SHARED and run.max_dynamic_shared_size_bytes < shared:
        run.max_dynamic_shared_size_bytes = shared
    run(grid, block, tuple(passed(a) for a in args), shared_mem=shared)


def passed(a: Any) -> Any:
    """An argument in the width that the kernel declares."""
    if a is None:
        return np.uint64(0)
    if isinstance(a, bool | int):
        return np.int32(a)
    return np.float64(a) if isinstance(a, float) else a


def summed_in(dtype: Any) -> str:
    """The type of SUM, for arrays of sums."""
    return "float64" if dtype == "float64" else "float32"


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def refusal(name: str, a: Any, dtypes: tuple[str, ...] = ("float16", "float32", "float64")) -> str | None:
    """None, or why `a` is no array that kernels take. CuPy's arrays say what they are: it is not imported."""
    if not type(a).__module__.startswith("cupy"):
        return f"{name} is not a CuPy array"
    if str(a.dtype) not in dtypes:
        return f"{name} is {a.dtype}; the kernel takes {', '.join(dtypes)}"
    if a.size > 2**31 - 1:
        return f"{name} has more than 2^31 - 1 elements"
    return None
