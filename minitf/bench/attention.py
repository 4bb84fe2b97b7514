"""Softmax attention beside torch's scaled_dot_product_attention, and one token over a long cache."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor, no_grad
from minitf.ops.kernels import use

from .measure import PAUSE, Row, agree, compared, importable

# (B, H, N, d)
SHAPES = [(4, 6, 1024, 64), (1, 6, 4096, 64)]
# Cache of `decode`: (B, H, N, d)
CACHE = (1, 8, 32768, 64)
# Tokens of one measurement of `decode`.
TOKENS = 8


def attention(repetitions: int = 15, shapes: list[tuple[int, int, int, int]] | None = None) -> list[Row]:
    """Milliseconds for causal softmax attention, forward and backward, float32."""
    rows = []
    for shape in shapes or SHAPES:
        arrays = np.random.default_rng(0).standard_normal((4, *shape)).astype("float32")
        runs = {"minitf": minitf_attention(arrays)}
        if importable("torch"):
            runs["torch"] = torch_attention(arrays)
        case = "B={} H={} N={} d={}".format(*shape)
        # float32 sums over N terms.
        agree(f"attention {case}", {name: run() for name, run in runs.items()}, 1e-4)
        rows += compared("attention", case, runs, repetitions, "ms", 1e3, PAUSE)
    return rows


def minitf_attention(arrays: Any) -> Any:
    def run() -> list[Any]:
        q, k, v = leaves = [Tensor(a, requires_grad=True) for a in arrays[:3]]
        with use("auto"):
            o = ops.softmax_attention(q, k, v, causal=True)
            o.backward(arrays[3])
        return [o.numpy(), *(leaf.grad.numpy() for leaf in leaves if leaf.grad is not None)]

    return run


def torch_attention(arrays: Any) -> Any:
    torch = importlib.import_module("torch")
    sdpa = importlib.import_module("torch.nn.functional").scaled_dot_product_attention
    q, k, v, g = (torch.from_numpy(a) for a in arrays)

    def run() -> list[Any]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        o = sdpa(*leaves, is_causal=True)
        o.backward(g)
        return [o.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]

    return run


def decode(repetitions: int = 15, cache: tuple[int, int, int, int] = CACHE) -> list[Row]:
    """GB/s while one query attends to a cache of 32k tokens in float32, beside reading the cache once.

    `memory` adds up the same numbers on all cores, each core at four places at once: what the machine's
    memory gives. One place at once, or eight, gave less. A measurement is of several tokens in a row: one
    takes some milliseconds, and for so long the system may leave both threads on one core after a rest.
    """
    batch, heads, n, d = cache
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, *cache), dtype="float32")
    q = rng.standard_normal((batch, heads, 1, d), dtype="float32")

    def minitf() -> list[Any]:
        return [ops.softmax_attention(Tensor(q), Tensor(k), Tensor(v)).numpy()]

    runs: dict[str, Any] = {"minitf": minitf}
    if importable("torch"):
        torch = importlib.import_module("torch")
        sdpa = importlib.import_module("torch.nn.functional").scaled_dot_product_attention
        tensors = [torch.from_numpy(a) for a in (q, k, v)]
        runs["torch"] = lambda: [sdpa(*tensors).numpy()]
    # Entered once, as by a program that makes many tokens.
    with use("auto"), no_grad():
        agree("decode", {name: run() for name, run in runs.items()}, 1e-5)
        if importable("numba"):
            runs["memory"] = reader(k, v)
        turns: dict[str, Any] = {name: partial(repeated, run) for name, run in runs.items()}
        found = compared("decode", f"one token over {n}", turns, repetitions, "ms", 1e3 / TOKENS, PAUSE)
    gigabytes = (k.nbytes + v.nbytes) / 1e9
    # Speeds, so that more is better: the quartiles change places.
    return [
        replace(
            row,
            unit="GB/s",
            median=gigabytes / row.median * 1e3,
            low=gigabytes / row.high * 1e3,
            high=gigabytes / row.low * 1e3,
            ratio=1 / row.ratio,
        )
        for row in found
    ]


def repeated(run: Callable[[], Any]) -> None:
    for _ in range(TOKENS):
        run()


def reader(*arrays: Any) -> Any:
    """A function that adds up the arrays on all cores."""
    numba = importlib.import_module("numba")

    @numba.njit(fastmath=True)
    def total(a: Any, b: Any, c: Any, d: Any) -> Any:
        s = t = u = v = np.float32(0.0)
        for i in range(len(a)):
            s += a[i]
            t += b[i]
            u += c[i]
            v += d[i]
        return s + t + u + v

    @numba.njit(parallel=True)
    def totals(a: Any, sums: Any) -> None:
        # A quarter of a part; what does not divide is left out.
        n = len(a) // (4 * len(sums))
        for p in numba.prange(len(sums)):
            x = a[4 * n * p :]
            sums[p] = total(x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n : 4 * n])

    flat, sums = [a.reshape(-1) for a in arrays], np.empty(16, "float32")

    def run() -> None:
        for a in flat:
            totals(a, sums)

    return run
