"""What an operation costs beside its arithmetic: chains of operations on small arrays."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import record, tensor
from minitf.ops import kernels

from .measure import Row, agree, compared, importable

# Steps of a chain on 8x8 float64 arrays: y is the running value, w a parameter, k a constant, lib has `tanh`.
# (operations in a step, step)
Step = Callable[[Any, Any, Any, Any], Any]
CHAINS: dict[str, tuple[int, Step]] = {
    "y * 0.9 + 0.1": (2, lambda y, w, k, lib: y * 0.9 + 0.1),
    "y * k + k": (2, lambda y, w, k, lib: y * k + k),
    "y * w + w": (2, lambda y, w, k, lib: y * w + w),
    "tanh(y) * w - w": (3, lambda y, w, k, lib: lib.tanh(y) * w - w),
    "y @ w": (1, lambda y, w, k, lib: y @ w),
}


def engine_overhead(repetitions: int = 15, length: int = 1000) -> list[Row]:
    """Microseconds for each operation, forward plus backward, of chains of `length` steps on 8x8 arrays.

    Includes NumPy's own time. minitf, and HIPS autograd and torch where they can be imported.
    """
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((2, 8, 8))
    # Orthogonal, so that long products neither vanish nor explode; entries below 1 do the same elementwise.
    w = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    k = np.clip(k, -0.9, 0.9)
    runners = {"minitf": minitf_chain, "autograd": autograd_chain, "torch": torch_chain}
    runners = {name: make for name, make in runners.items() if name == "minitf" or importable(name)}
    rows = []
    for case, (operations, step) in CHAINS.items():
        runs = {name: make(step, length, x, w, k) for name, make in runners.items()}
        agree(f"gradients of {case}", {name: run() for name, run in runs.items()}, 1e-9)
        rows += compared("engine_overhead", case, runs, repetitions, "us/op", 1e6 / (length * operations))
    return rows


def minitf_chain(step: Step, length: int, x: Any, w: Any, k: Any) -> Callable[[], Any]:
    k, start = tensor(k), np.ones_like(x)

    def run() -> Any:
        leaves = y, p = tensor(x, requires_grad=True), tensor(w, requires_grad=True)
        for _ in range(length):
            y = step(y, p, k, ops)
        y.backward(start)
        return [leaf.grad.data if leaf.grad is not None else None for leaf in leaves]

    return run


def torch_chain(step: Step, length: int, x: Any, w: Any, k: Any) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    k, start = torch.tensor(k), torch.ones(x.shape, dtype=torch.float64)

    def run() -> Any:
        leaves = y, p = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
        for _ in range(length):
            y = step(y, p, k, torch)
        y.backward(start)
        return [leaf.grad.numpy() if leaf.grad is not None else None for leaf in leaves]

    return run


def autograd_chain(step: Step, length: int, x: Any, w: Any, k: Any) -> Callable[[], Any]:
    autograd, anp = importlib.import_module("autograd"), importlib.import_module("autograd.numpy")

    def chain(leaves: Any) -> Any:
        y, p = leaves
        for _ in range(length):
            y = step(y, p, k, anp)
        return y

    def run() -> Any:
        pull, _ = autograd.make_vjp(chain)((x, w))
        return pull(np.ones_like(x))

    return run


def dispatch(repetitions: int = 15, length: int = 2000) -> list[Row]:
    """Microseconds to choose a kernel: an operation through `@kernelized`, and the kernel's recorded call.

    Both run the same kernel, which returns its argument, on an 8x8 array; choosing costs the difference of
    the two rows.
    """
    kernel = kernels.Kernel(lambda x: (x, None), lambda residuals, g: (g,), lambda x: None)
    definition = kernels.kernelized("bench_identity")(lambda x: x)
    operation = kernels.operation_of("bench_identity", "bench", kernel)
    x = tensor(np.ones((8, 8)))
    module = SimpleNamespace(KERNELS={"bench_identity": kernel}, unavailable=lambda: None)
    kernels.register_backend("bench", module)

    def chosen() -> None:
        for _ in range(length):
            definition(x)

    def recorded() -> None:
        for _ in range(length):
            record(operation, (x,), {"kept": []})

    try:
        with kernels.use("bench"):
            runs = {"minitf": chosen, "without choosing": recorded}
            return compared("dispatch", "one operation", runs, repetitions, "us/op", 1e6 / length)
    finally:
        kernels.unregister_backend("bench")
        kernels.DEFINITIONS.pop("bench_identity")
