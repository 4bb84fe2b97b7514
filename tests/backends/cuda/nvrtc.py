"""CUDA's compiler without a card: NVRTC from the wheel of the dev extra, through its C interface, or nvcc."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# The wheel's names since CUDA 13, and before.
WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")


@cache
def library() -> Any:
    """NVRTC, or None where the wheel is not installed."""
    for wheel in WHEELS:
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libnvrtc.so"):
                return ctypes.CDLL(str(file.locate()))
    return None


def nvrtc(code: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """Machine code (empty where it does not compile) and what the compiler says."""
    lib, program = library(), ctypes.c_void_p()
    lib.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None)
    told = [o.encode() for o in options]
    failed = lib.nvrtcCompileProgram(program, len(told), (ctypes.c_char_p * len(told))(*told))
    log = fetched(program, "ProgramLog")
    made = b"" if failed else fetched(program, "CUBIN")
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return made, log.rstrip(b"\0").decode()


def fetched(program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, text)
    return text.raw


def nvcc(code: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """The same by nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        text, made = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        text.write_text(code)
        run = subprocess.run(
            ["nvcc", *options, "-cubin", str(text), "-o", str(made)], capture_output=True, text=True
        )
        return (b"" if run.returncode else made.read_bytes()), run.stdout + run.stderr


def compilers() -> dict[str, Any]:
    """Those that are here, by name."""
    found = {}
    if library() is not None:
        found["nvrtc"] = nvrtc
    if shutil.which("nvcc"):
        found["nvcc"] = nvcc
    return found
