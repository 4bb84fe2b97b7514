"""Linear attention, gated linear attention and the delta rule, beside chunked forms in torch."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Tensor
from minitf.ops.kernels import use

from .measure import PAUSE, Row, agree, compared, importable

# (B, H, N, d), and the chunk of torch's forms.
SHAPE, CHUNK = (4, 6, 1024, 64), 64
# Numbers of tokens of `growth`, at B = 1 and H = 2.
LENGTHS = (1024, 4096, 16384, 32768)


def inputs(kind: str, shape: tuple[int, int, int, int]) -> list[Any]:
    """q, k, v, then g (gated) or beta (delta), then the cotangent of the output; float32."""
    rng = np.random.default_rng(0)
    q, k, v, extra, cotangent = rng.standard_normal((5, *shape))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    if kind == "delta rule":
        arrays = [q, k, v, 1 / (1 + np.exp(-extra[..., :1])), cotangent]
    elif kind == "gated":
        arrays = [q, k, v, -np.logaddexp(0.0, -extra) / 16, cotangent]
    else:
        arrays = [q, k, v, cotangent]
    return [a.astype("float32") for a in arrays]


def minitf_scan(kind: str, arrays: list[Any]) -> Callable[[], list[Any]]:
    def run() -> list[Any]:
        leaves: Any = [Tensor(a, requires_grad=True) for a in arrays[:-1]]
        with use("auto"):
            if kind == "delta rule":
                o = ops.delta_rule(*leaves)[0]
            else:
                q, k, v, *rest = leaves
                g = rest[0] if rest else Tensor(np.zeros_like(arrays[0][..., :1]))
                o = ops.gated_scan(q, k, v, g)[0]
            o.backward(arrays[-1])
        return [o.numpy(), *(leaf.grad.numpy() for leaf in leaves if leaf.grad is not None)]

    return run


def torch_scan(kind: str, arrays: list[Any], compiled: bool) -> Callable[[], list[Any]]:
    """Chunks of C tokens: products within a chunk, and a loop over the chunks that carries the state."""
    torch = importlib.import_module("torch")
    tensors = [torch.from_numpy(a) for a in arrays]

    def chunks(x: Any) -> Any:
        return x.unflatten(2, (-1, CHUNK))

    def carried(decay: Any, write: Any) -> Any:
        # S before each chunk: (B, H, M, d, d)
        state, before = torch.zeros_like(write[:, :, 0]), []
        for m in range(write.shape[2]):
            before.append(state)
            state = (state if decay is None else decay[:, :, m] * state) + write[:, :, m]
        return torch.stack(before, 2)

    def linear(q: Any, k: Any, v: Any) -> Any:
        q, k, v = map(chunks, (q, k, v))
        o = (q @ k.mT).tril() @ v + q @ carried(None, k.mT @ v)
        return o.flatten(2, 3)

    def gated(q: Any, k: Any, v: Any, g: Any) -> Any:
        q, k, v, g = map(chunks, (q, k, v, g))
        total = g.cumsum(-2)
        last = total[..., -1:, :]
        q = q * total.exp()
        o = (q @ (k * (-total).exp()).mT).tril() @ v
        o = o + q @ carried(last.exp().mT, (k * (last - total).exp()).mT @ v)
        return o.flatten(2, 3)

    def delta(q: Any, k: Any, v: Any, beta: Any) -> Any:
        q, k, v, beta = map(chunks, (q, k, v, beta))
        a = (beta * (k @ k.mT)).tril(-1)
        eye = torch.eye(CHUNK)
        t = torch.linalg.solve_triangular(eye + a, beta.mT * eye, upper=False, unitriangular=True)
        u, w, p = t @ v, t @ k, (q @ k.mT).tril()
        state, rows = torch.zeros_like(k[:, :, 0].mT @ v[:, :, 0]), []
        for m in range(q.shape[2]):
            written = u[:, :, m] - w[:, :, m] @ state
            rows.append(p[:, :, m] @ written + q[:, :, m] @ state)
            state = state + k[:, :, m].mT @ written
        return torch.stack(rows, 2).flatten(2, 3)

    form: Any = {"linear": linear, "gated": gated, "delta rule": delta}[kind]
    forward = torch.compile(form) if compiled else form

    def run() -> list[Any]:
        leaves = [t.detach().requires_grad_() for t in tensors[:-1]]
        o = forward(*leaves)
        o.backward(tensors[-1])
        return [o.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]

    return run


def recurrences(repetitions: int = 15, shape: tuple[int, int, int, int] = SHAPE) -> list[Row]:
    """Milliseconds for a causal linear recurrence, forward and backward, float32.

    torch runs the chunked forms (64 tokens), eager and compiled. Its gated form divides by exp(G), which is
    fast and overflows under strong decay; minitf's never does.
    """
    rows = []
    for kind in ("linear", "gated", "delta rule"):
        arrays = inputs(kind, shape)
        runs = {"minitf": minitf_scan(kind, arrays)}
        if importable("torch"):
            runs["torch"] = torch_scan(kind, arrays, compiled=False)
            runs["torch.compile"] = torch_scan(kind, arrays, compiled=True)
        found = {}
        for name, run in list(runs.items()):
            try:
                found[name] = run()
            except Exception as error:
                # A compiler that cannot build here: the others are still compared.
                if name != "torch.compile":
                    raise
                print(f"{kind}: {name} cannot run here ({type(error).__name__}) and is left out")
                del runs[name]
        case = "{} B={} H={} N={} d={}".format(kind, *shape)
        agree(case, found, 2e-4)
        rows += compared("recurrences", case, runs, repetitions, "ms", 1e3, PAUSE)
    return rows


def growth(repetitions: int = 15, lengths: tuple[int, ...] = LENGTHS) -> list[Row]:
    """The power of N with which forward and backward grow, from 1k to 32k tokens, by least squares."""
    rows = []
    for kind in ("linear", "gated", "delta rule"):
        times = []
        for n in lengths:
            run = minitf_scan(kind, inputs(kind, (1, 2, n, 64)))
            run()
            took = []
            for _ in range(max(1, min(5, repetitions))):
                start = time.perf_counter()
                run()
                took.append(time.perf_counter() - start)
            times.append(float(np.median(took)))
        power = float(np.polyfit(np.log(lengths), np.log(times), 1)[0])
        case = f"{kind}, N from {lengths[0]} to {lengths[-1]}"
        rows.append(Row("growth", case, "minitf", "power of N", power, power, power))
    return rows
