"""A stand-in for CuPy: arrays in NumPy's memory, kernels compiled by g++ and run by `emulated.h`.

    with installed(): ...      `import cupy` gives this module

It is as strict as CuPy where that finds mistakes: its arrays do not mix with NumPy's, and do not turn into
NumPy arrays unless asked with `get`. `empty` gives NaN. Each array that a kernel gets is a copy between two
guards of NaN: writing past an end is found out, and reading past it gives NaN.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from .signatures import defined, kernels, wrong

HEADER = Path(__file__).with_name("emulated.h")
GUARD = 256
# Limits of every card from sm_75 on: threads of a block, blocks along y and z, bytes of shared memory.
THREADS, BLOCKS, SHARED, MOST_SHARED = 1024, 65535, 48 * 1024, 227 * 1024


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """What `cupy.ndarray` is to NumPy's: the same names, another memory."""

    __slots__ = ("a",)

    def __init__(self, a: Any):
        self.a = a

    def get(self) -> Any:
        return self.a.copy()

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.a.ctypes.data)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("a CuPy array does not turn into a NumPy array by itself; use get()")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return called(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return called(function, args, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # __array_interface__ and the like would let NumPy in by the back door.
            raise AttributeError(name)
        value = getattr(self.a, name)
        if callable(value):
            return lambda *args, **options: called(value, args, options)
        return wrapped(value)

    def __getitem__(self, key: Any) -> Any:
        return wrapped(self.a[indices(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.a[indices(key)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self.a)

    def __iter__(self) -> Iterator[Any]:
        return (wrapped(row) for row in self.a)

    def __float__(self) -> float:
        return float(self.a)

    def __int__(self) -> int:
        return int(self.a)

    def __bool__(self) -> bool:
        return bool(self.a)

    def __repr__(self) -> str:
        return f"cupy.{self.a!r}"


ndarray.__module__ = "cupy"


def wrapped(value: Any) -> Any:
    """Arrays and NumPy's scalars (CuPy has none) become arrays of the stand-in."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, tuple | list):
        parts = [wrapped(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def unwrapped(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.a
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type numpy.ndarray: NumPy's arrays do not mix with CuPy's")
    if isinstance(value, tuple | list):
        return type(value)(unwrapped(v) for v in value)
    return value


def indices(key: Any) -> Any:
    """An index may be made of NumPy arrays too, as CuPy allows."""
    if isinstance(key, tuple):
        return tuple(indices(k) for k in key)
    return key.a if isinstance(key, ndarray) else key


def called(function: Any, args: Any, options: dict[str, Any]) -> Any:
    refuse(function, args, options)
    out = options.get("out")
    found = function(*unwrapped(tuple(args)), **{k: unwrapped(v) for k, v in options.items()})
    return (out[0] if isinstance(out, tuple) else out) if out is not None else wrapped(found)


def refuse(function: Any, args: Any, options: dict[str, Any]) -> None:
    """What NumPy can do and CuPy 13 to 15 cannot, of the things that were tried."""
    name, ufunc = getattr(function, "__name__", ""), getattr(function, "__self__", None)
    if "initial" in options:
        raise TypeError(f"{name}() got an unexpected keyword argument 'initial'")
    if function is np.where and not isinstance(args[0], ndarray):
        raise AttributeError(f"{type(args[0]).__name__!r} object has no attribute 'astype'")
    able = {"accumulate": (np.add, np.multiply), "reduceat": (np.add,)}
    if isinstance(ufunc, np.ufunc) and ufunc not in able.get(name, (ufunc,)):
        raise NotImplementedError(f"`cupy_{ufunc.__name__}.{name}` is not supported yet")


class RawModule:
    """Kernels compiled by g++, instead of NVRTC."""

    def __init__(self, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc"):
        self.defines = defined(options)
        self.kernels = kernels(code)
        self.library = compiled(code, tuple(o for o in options if o.startswith("-D")))

    def get_function(self, name: str) -> Function:
        return Function(self, name)


class Function:
    def __init__(self, module: RawModule, name: str):
        self.name, self.parameters, self.defines = name, module.kernels[name], module.defines
        self.start = getattr(module.library, f"emulated_start_{name}")
        self.start.restype = ctypes.c_char_p
        self.max_dynamic_shared_size_bytes = SHARED

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        threads = int(np.prod(block))
        assert min(*grid, *block) > 0, f"{self.name}: an empty launch, {grid} blocks of {block}"
        assert threads <= THREADS and threads % 32 == 0, f"{self.name}: {threads} threads are not whole warps"
        assert max(grid[1:]) <= BLOCKS, f"{self.name}: too many blocks, {grid}"
        assert shared_mem <= min(self.max_dynamic_shared_size_bytes, MOST_SHARED), (
            f"{self.name}: {shared_mem} bytes of shared memory were not asked for"
        )
        problem = wrong(self.parameters, args, self.defines, ndarray)
        assert not problem, f"{self.name}: {problem}"
        with guarded([a.a for a in args if isinstance(a, ndarray)], self.name) as addresses:
            pointers = iter(addresses)
            held = [np.uint64(next(pointers)) if isinstance(a, ndarray) else a for a in args]
            cells = [np.array([value]) for value in held]
            list_of = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
            sizes = (ctypes.c_uint * 6)(*grid, *block)
            backwards = int(os.environ.get("MINITF_EMULATOR_REVERSE", "0"))
            failed = self.start(sizes, ctypes.c_size_t(shared_mem), list_of, backwards)
        assert not failed, f"{self.name}: {failed.decode()}"


@contextmanager
def guarded(arrays: list[Any], name: str) -> Iterator[list[int]]:
    """Addresses of copies between guards; what was written is copied back. Overlapping arrays stay so."""
    bounds = [np.lib.array_utils.byte_bounds(a) if a.size else (a.ctypes.data, a.ctypes.data) for a in arrays]
    spans: list[tuple[int, int]] = []
    for low, high in sorted(bounds):
        if spans and low < spans[-1][1]:
            low, high = spans[-1][0], max(high, spans.pop()[1])
        spans.append((low, high))
    copies = {}
    for low, high in spans:
        copy = np.full(2 * GUARD + high - low + 128, 0xFF, np.uint8)
        shift = -copy.ctypes.data % 128
        ctypes.memmove(copy.ctypes.data + shift + GUARD, low, high - low)
        copies[low, high] = copy, shift + GUARD
    found = []
    for low, _ in bounds:
        span = next(s for s in reversed(spans) if s[0] <= low <= s[1] and (low < s[1] or s[0] == s[1] == low))
        copy, start = copies[span]
        found.append(copy.ctypes.data + start + low - span[0])
    yield found
    for (low, high), (copy, start) in copies.items():
        size = high - low
        assert (copy[:start] == 0xFF).all(), f"{name}: wrote before the start of an array"
        assert (copy[start + size :] == 0xFF).all(), f"{name}: wrote past the end of an array"
        ctypes.memmove(low, copy.ctypes.data + start, size)


@cache
def compiled(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The shared library, from the temporary folder if it is there already."""
    folder = Path(tempfile.gettempdir()) / f"minitf-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    text = code + "".join(f"\nEMULATED_KERNEL({name})" for name in kernels(code)) + "\n"
    key = hashlib.sha256("\0".join([text, HEADER.read_text(), *options]).encode()).hexdigest()[:32]
    path = folder / f"{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "kernel.so"
            (Path(work) / "kernel.cpp").write_text(text)
            told = ["-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-ipa-reference", "-w"]
            run = subprocess.run(
                ["g++", *told, "-U_FORTIFY_SOURCE", *options, "-include", str(HEADER)]
                + [str(Path(work) / "kernel.cpp"), "-o", str(made)],
                capture_output=True,
                text=True,
            )
            assert run.returncode == 0, f"g++ does not compile the kernel:\n{run.stderr[:4000]}"
            os.replace(made, path)
    return ctypes.CDLL(str(path))


def asarray(a: Any, dtype: Any = None) -> ndarray:
    """Copies what is not an array of the stand-in yet."""
    a = a.a if isinstance(a, ndarray) else np.array(a)
    return ndarray(np.asarray(a, dtype))


def array(a: Any, dtype: Any = None, **options: Any) -> ndarray:
    return ndarray(np.array(a.a if isinstance(a, ndarray) else a, dtype, **options))


def empty(shape: Any, dtype: Any = float, **options: Any) -> ndarray:
    a = np.zeros(shape, dtype, **options)
    a.reshape(-1).view(np.uint8)[:] = 0xFF
    return ndarray(a)


def empty_like(a: ndarray, dtype: Any = None, **options: Any) -> ndarray:
    return empty(a.shape, a.dtype if dtype is None else dtype)


class Ufunc:
    """An elementwise function, with `add.at` and its like."""

    def __init__(self, behind: np.ufunc):
        self.behind = behind

    def __call__(self, *args: Any, **options: Any) -> Any:
        return called(self.behind, args, options)

    def at(self, a: ndarray, key: Any, value: Any) -> None:
        self.behind.at(unwrapped(a), indices(key), unwrapped(value))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: called(getattr(self.behind, name), args, options)


class Library(ModuleType):
    """`cupy`, or a part of it such as `cupy.linalg`: what is not defined here is NumPy's, on its arrays."""

    def __init__(self, name: str, behind: Any):
        super().__init__(name)
        self.behind = behind

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.behind, name)
        if isinstance(value, ModuleType):
            return Library(f"cupy.{name}", value)
        if isinstance(value, type) or not callable(value):
            return value
        if isinstance(value, np.ufunc):
            return Ufunc(value)
        return lambda *args, **options: called(value, args, options)


def library(compute_capability: str = "90") -> Library:
    """A new module that says it is CuPy with one card."""
    found = Library("cupy", np)
    for part in (ndarray, RawModule, asarray, array, empty, empty_like):
        setattr(found, part.__name__, part)
    found.asnumpy = lambda a: a.get() if isinstance(a, ndarray) else np.asarray(a)  # type: ignore[attr-defined]
    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    device = SimpleNamespace(id=0, compute_capability=compute_capability)
    found.cuda = SimpleNamespace(runtime=runtime, Device=lambda: device)  # type: ignore[attr-defined]
    return found


@contextmanager
def installed(compute_capability: str = "90") -> Iterator[Library]:
    """While it lasts, `import cupy` gives the stand-in, and minitf knows the backend "cupy"."""
    import minitf_cupy
    from minitf_cupy import module

    from minitf.ops import kernels as registry

    before, known = sys.modules.get("cupy"), "cupy" in registry.backends()
    caches = (minitf_cupy.unavailable, module.function)
    sys.modules["cupy"] = found = library(compute_capability)
    try:
        for kept in caches:
            kept.cache_clear()
        registry.register_backend("cupy", minitf_cupy)
        yield found
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
        for kept in caches:
            kept.cache_clear()
        registry.register_backend("cupy", minitf_cupy)
        if not known:
            registry.unregister_backend("cupy")


def missing() -> str | None:
    """None, or why kernels cannot be emulated here."""
    if shutil.which("g++") is None:
        return "not run: no g++ to emulate kernels with"
    if not sys.platform.startswith("linux"):
        return "not run: the emulation is written for Linux"
    return None
