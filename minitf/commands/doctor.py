"""`minitf doctor`: what is missing or wrong, and the command that mends it."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib import import_module, metadata, util
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from minitf.machine import thread_pools, usable_cores

from .info import backends
from .lessons import ROOT, install_command
from .output import PIP, print_json, say

# The lowest version that works, and the first that nothing was tested with.
BOUNDS = {"python": ((3, 11), (3, 14)), "numpy": ((2, 0), (3, 0)), "numba": ((0, 61), (1, 0))}
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


class Finding(NamedTuple):
    """What a check found.

    result: "ok", "warning" (slower, or missing what not everybody needs), "problem" (minitf cannot work).
    says: a sentence. mend: the command that mends it, or "".
    """

    result: str
    says: str
    mend: str = ""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Write the checks as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check this installation, and show for everything that is wrong the command that mends it.

    The exit code is 1 if there is a problem; warnings alone, and a missing GPU, leave it 0.

    \b
    Examples:
      minitf doctor
      minitf doctor --json
    """
    findings = {name: check() for name, check in CHECKS.items()}
    results = [finding.result for finding in findings.values()]
    problems, warnings = results.count("problem"), results.count("warning")
    if as_json:
        print_json(
            {
                "ok": not problems,
                "checks": [{"name": name, **found._asdict()} for name, found in findings.items()],
            }
        )
    else:
        for name, found in findings.items():
            say(f"{found.result:<8} ", nl=False, fg=COLOURS[found.result])
            say(f"{name}: {found.says}")
            if found.mend:
                say(f"{'':9}mend it with: {found.mend}", bold=True)
        say(f"\n{count(problems, 'problem')}, {count(warnings, 'warning')}.")
    ctx.exit(1 if problems else 0)


def python() -> Finding:
    """Python's version against the bounds."""
    low, high = BOUNDS["python"]
    have = platform.python_version()
    if sys.version_info[:2] < low:
        mend = f"make PYTHON=python{dotted(low)} test"
        return Finding("problem", f"{have} is too old; minitf needs {dotted(low)} or newer", mend)
    if sys.version_info[:2] >= high:
        return Finding("warning", f"{have} is newer than what minitf was tested with")
    return Finding("ok", have)


def numpy() -> Finding:
    """NumPy's version against the bounds."""
    low, high = BOUNDS["numpy"]
    have = np.__version__
    if numbers(have) < low:
        mend = f"{PIP} --upgrade 'numpy>={dotted(low)}'"
        return Finding("problem", f"{have} is too old; minitf needs {dotted(low)} or newer", mend)
    if numbers(have) >= high:
        mend = f"{PIP} 'numpy<{dotted(high)}'"
        return Finding("warning", f"{have} is newer than what minitf was tested with", mend)
    return Finding("ok", have)


def compiler() -> Finding:
    """A C compiler, which packages without a ready-made wheel need."""
    names = [*os.environ.get("CC", "").split()[:1], "cc", "gcc", "clang", "cl"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found:
        return Finding("ok", found)
    mends = {
        "apt-get": "sudo apt-get install build-essential",
        "dnf": "sudo dnf install gcc",
        "apk": "sudo apk add build-base",
        "xcode-select": "xcode-select --install",
    }
    mend = next((mend for tool, mend in mends.items() if shutil.which(tool)), "")
    return Finding("warning", "none found; only packages that must be compiled need one", mend)


def numba() -> Finding:
    """Numba, and the libraries that can run its parallel loops."""
    low, _ = BOUNDS["numba"]
    mend = f"{PIP} --upgrade 'numba>={dotted(low)}'"
    try:
        module = import_module("numba")
    except Exception as error:
        return Finding(
            "warning", f"it does not import ({first_line(error)}), so there are no CPU kernels", mend
        )
    have = module.__version__
    if numbers(have) < low:
        return Finding("warning", f"{have} is too old; the CPU kernels need {dotted(low)} or newer", mend)
    pools = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    layers = [name for name, pool in pools.items() if importable(f"numba.np.ufunc.{pool}")]
    asked = os.environ.get("NUMBA_THREADING_LAYER", "default")
    if asked in pools and asked not in layers:
        says = f"{have}; the threading layer {asked!r} is not available, only {', '.join(layers) or 'none'}"
        return Finding("warning", says, "unset NUMBA_THREADING_LAYER")
    return Finding("ok", f"{have}, threading layers: {', '.join(layers)}")


def kernel_backends() -> Finding:
    """Our two backends are found; whether each can run here, `minitf info` says."""
    found = backends()
    broken = [
        f"{b['name']}: {b['problem']}" for b in found if str(b["problem"]).startswith("failed to import")
    ]
    mend = (
        f"{PIP} --editable {shlex.quote(str(ROOT))}"
        if (ROOT / "pyproject.toml").exists()
        else f"{PIP} minitf"
    )
    if broken:
        return Finding("warning", "; ".join(broken), mend)
    if not found:
        return Finding("warning", "none is registered: minitf itself is not installed, only found", mend)
    return Finding(
        "ok", ", ".join(f"{b['name']} ({'not usable here' if b['problem'] else 'ready'})" for b in found)
    )


def cuda_driver() -> Finding:
    """The NVIDIA driver. A machine without a GPU is fine."""
    version, devices = driver()
    if version is None and shutil.which("nvidia-smi"):
        says = "nvidia-smi is here, but the driver's library is not, so the GPU cannot be used"
        return Finding("warning", says, "nvidia-smi")
    if version is None:
        return Finding("ok", "none, so no NVIDIA GPU is used; everything runs on the CPU")
    if not devices:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ
        mend = "unset CUDA_VISIBLE_DEVICES" if hidden else "nvidia-smi"
        return Finding("warning", f"a driver for CUDA {dotted(version)} that sees no GPU", mend)
    return Finding("ok", f"for CUDA {dotted(version)}, {count(devices, 'GPU')}")


def cuda_toolkit() -> Finding:
    """The CUDA toolkit. A CuPy that was installed with [ctk] brings the part that it needs."""
    home = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))
    return Finding("ok", found or "no nvcc; not needed: CuPy compiles with libraries of its own")


def cupy() -> Finding:
    """CuPy, of a CUDA version that the driver runs, with the libraries that it compiles kernels with."""
    packages = cupy_packages()
    version, devices = driver()
    if version is None or not devices:
        return Finding("ok", f"{', '.join(packages) or 'not installed'}; without a GPU it is not needed")
    install = f"{PIP} 'cupy-cuda{13 if version[0] >= 13 else 12}x[ctk]>=14'"
    if not packages:
        says = f"not installed, so the GPU is not used; the driver is for CUDA {dotted(version)}"
        return Finding("warning", says, install)
    mend = f"{PIP.removesuffix('install')}uninstall --yes {' '.join(packages)} && {install}"
    if len(packages) > 1:
        return Finding(
            "problem", f"{' and '.join(packages)} are both installed and overwrite each other", mend
        )
    major = cuda_major(packages[0])
    if major is not None and major > version[0]:
        says = f"{packages[0]} needs a driver for CUDA {major}; this one is for CUDA {dotted(version)}"
        return Finding("problem", says, mend)
    try:
        module = import_module("cupy")
        # Importing is not enough: the compiler and the headers are loaded when the first kernel runs.
        total = int((module.arange(4) + 1).sum())
    except Exception as error:
        return Finding("problem", f"{packages[0]} does not run: {first_line(error)}", mend)
    if total != 10:
        return Finding("problem", f"{packages[0]} sums 1 + 2 + 3 + 4 to {total}", mend)
    return Finding("ok", f"{packages[0]} {module.__version__} runs on a driver for CUDA {dotted(version)}")


def threads() -> Finding:
    """More threads than cores wait for each other."""
    cores, pools = usable_cores(), thread_pools()
    blas = max((pool["num_threads"] for pool in pools), default=1)
    loops = int(os.environ.get("NUMBA_NUM_THREADS", cores))
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    mend = "export " + " ".join(f"{name}={cores}" for name in variables)
    says = f"{blas} for BLAS and {loops} for Numba on {count(cores, 'usable core')}"
    if blas > cores or loops > cores:
        return Finding("warning", f"{says}: more threads than cores wait for each other", mend)
    if len(pools) > 1:
        return Finding("warning", f"{says}: {len(pools)} BLAS libraries are loaded and compete", mend)
    return Finding("ok", f"{says}; the two take turns")


def matplotlib() -> Finding:
    """Pictures can be drawn. minitf writes files, for which no window is needed."""
    try:
        module = import_module("matplotlib")
        import_module("matplotlib.backends.backend_agg")
    except Exception as error:
        mend = "unset MPLBACKEND" if "MPLBACKEND" in os.environ else f"{PIP} --upgrade matplotlib"
        return Finding("warning", f"it does not import ({first_line(error)}), so there are no pictures", mend)
    backend = os.environ.get("MPLBACKEND", "chosen when a window opens")
    return Finding("ok", f"{module.__version__}, backend: {backend}; pictures in files need none")


def jupyter() -> Finding:
    """JupyterLab, for the lessons."""
    if util.find_spec("jupyterlab"):
        return Finding("ok", metadata.version("jupyterlab"))
    return Finding("warning", "not installed; only the lessons need it", install_command())


def disk() -> Finding:
    """Room for checkpoints in the current folder."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    says = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < 0.05:
        return Finding("problem", f"{says}: too little for a checkpoint", "df -h .")
    return Finding("warning", says, "df -h .") if free < 1 else Finding("ok", says)


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": python,
    "NumPy": numpy,
    "C compiler": compiler,
    "Numba": numba,
    "Backends": kernel_backends,
    "CUDA driver": cuda_driver,
    "CUDA toolkit": cuda_toolkit,
    "CuPy": cupy,
    "Threads": threads,
    "matplotlib": matplotlib,
    "JupyterLab": jupyter,
    "Disk": disk,
}


def driver() -> tuple[tuple[int, int] | None, int]:
    """The CUDA version that the NVIDIA driver runs, and the number of GPUs; (None, 0) without a driver."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None, 0
    version, devices = ctypes.c_int(), ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None, 0
    # 12040 is CUDA 12.4.
    found = (version.value // 1000, version.value % 1000 // 10)
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(devices)) != 0:
        return found, 0
    return found, devices.value


def cupy_packages() -> list[str]:
    """Names of the installed distributions of CuPy."""
    names = {(d.metadata["Name"] or "").lower() for d in metadata.distributions()}
    return sorted(name for name in names if name == "cupy" or name.startswith("cupy-cuda"))


def cuda_major(package: str) -> int | None:
    """12 for cupy-cuda12x; None for a CuPy that was compiled on this machine."""
    digits = package.removeprefix("cupy-cuda").removesuffix("x")
    return int(digits) if digits.isdigit() else None


def importable(name: str) -> bool:
    """Whether a module imports."""
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def numbers(version: str) -> tuple[int, int]:
    """(2, 1) of "2.1.0rc1"."""
    major, minor = version.split(".")[:2]
    return int(major), int("".join(takewhile(str.isdigit, minor)))


def dotted(version: tuple[int, int]) -> str:
    """ "2.1" of (2, 1)."""
    return ".".join(map(str, version))


def count(n: int, what: str) -> str:
    """A number with its noun."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def first_line(error: Exception) -> str:
    """The kind of an error, and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
