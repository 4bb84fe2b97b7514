"""The gated scan and the delta rule: launchers of matrix_scan.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal, summed_in


def reasons(q: Any, k: Any, v: Any, beta: Any, g: Any, state: Any, chunk: Any) -> str | None:
    """None, or why the kernel cannot take these arguments. beta None: the gated scan."""
    if why := refusal("q", q):
        return why
    for name, part in (("k", k), ("v", v), ("beta", beta), ("g", g), ("state", state)):
        if not (part is None and name in ("beta", "g", "state")) and (
            why := refusal(name, part, (str(q.dtype),))
        ):
            return why
    if (
        q.ndim != 4
        or v.ndim != 4
        or not q.size
        or not v.size
        or k.shape != q.shape
        or v.shape[:3] != q.shape[:3]
    ):
        return f"q {q.shape}, k {k.shape} and v {v.shape} must be (B, H, N, dk), the same, and (B, H, N, dv)"
    one = (*q.shape[:3], 1)
    if (beta is not None and beta.shape != one) or (g is not None and g.shape not in (q.shape, one)):
        return "beta must be (B, H, N, 1) and g (B, H, N, 1) or (B, H, N, dk)"
    if state is not None and state.shape != (*q.shape[:2], q.shape[3], v.shape[3]):
        return f"the state {state.shape} must be {(*q.shape[:2], q.shape[3], v.shape[3])}"
    most = 128 if q.dtype == "float64" else 256
    if q.shape[3] > most or v.shape[3] > 2**20:
        return f"keys of width {q.shape[3]}: the kernel takes up to {most}"
    return None if chunk >= 1 else "chunk is below 1"


def shape_of_block(dtype: Any, dk: int, delta: bool) -> tuple[int, dict[str, Any]]:
    """Bytes of shared memory, and the names that matrix_scan.cu is compiled with."""
    rows, size = 1 << (blocks(dk, 8) - 1).bit_length(), 8 if dtype == "float64" else 4
    chunk = 16 if rows * size <= 64 else 8
    numbers = 3 * chunk * 8 * rows + 2 * chunk * 32 + chunk + 2 * 8 * 32
    return numbers * size, {"DELTA": int(delta), "ROWS": rows, "CHUNK": chunk}


def run(q: Any, k: Any, v: Any, beta: Any, g: Any, state: Any) -> tuple[Any, Any]:
    import cupy

    given = [None if x is None else cupy.ascontiguousarray(x) for x in (q, k, v, g, beta, state)]
    (batch, heads, tokens, dk), dv = q.shape, v.shape[3]
    shared, names = shape_of_block(q.dtype, dk, beta is not None)
    grid = (batch * heads, blocks(dv, 32))
    o, last = cupy.empty_like(given[2]), cupy.empty((batch, heads, dk, dv), q.dtype)
    kept = cupy.empty((batch * heads, blocks(tokens, names["CHUNK"]), dk, dv), summed_in(q.dtype))
    sizes = (tokens, dk, dv, g is not None and g.shape[3] == dk)
    args = (*given, o, last, kept, *sizes)
    launch("matrix_scan", "matrix_scan", q.dtype, grid, 256, *args, shared=shared, **names)
    return (o, last), (given, kept, grid, sizes, shared, names)


def back(residuals: Any, gs: Any) -> dict[str, Any]:
    """Every gradient by name, None for what was not given."""
    import cupy

    (q, k, v, g, beta, state), kept, grid, sizes, shared, names = residuals
    up, up_last = (None if part is None else cupy.ascontiguousarray(part) for part in gs)
    dq, dk, dg = (cupy.empty((grid[1], *q.shape), kept.dtype) for _ in range(3))
    dbeta, dv = cupy.empty((grid[1], *q.shape[:3], 1), kept.dtype), cupy.empty_like(v)
    dstate = None if state is None else cupy.empty_like(state)
    args = (up, up_last, q, k, v, g, beta, kept, dq, dk, dg, dbeta, dv, dstate, *sizes)
    launch("matrix_scan", "matrix_scan_backward", q.dtype, grid, 256, *args, shared=shared, **names)
    found = {"q": dq, "k": dk, "beta": None if beta is None else dbeta, "g": None if g is None else dg}
    found = {name: None if x is None else x.sum(axis=0) for name, x in found.items()}
    if g is not None and g.shape != q.shape:
        found["g"] = found["g"].sum(axis=-1, keepdims=True)
    return {
        **{name: None if x is None else x.astype(q.dtype) for name, x in found.items()},
        "v": dv,
        "state": dstate,
    }


def gated_back(residuals: Any, gs: Any) -> tuple[Any, ...]:
    found = back(residuals, gs)
    return *(found[name] for name in ("q", "k", "v", "g", "state")), None


def delta_back(residuals: Any, gs: Any) -> tuple[Any, ...]:
    found = back(residuals, gs)
    return *(found[name] for name in ("q", "k", "v", "beta", "g", "state")), None


KERNELS = {
    "gated_scan": Kernel(
        forward=lambda q, k, v, g, state, chunk: run(q, k, v, None, g, state),
        vjp=gated_back,
        supports=lambda q, k, v, g, state, chunk: (
            "g is None" if g is None else reasons(q, k, v, None, g, state, chunk)
        ),
    ),
    "delta_rule": Kernel(
        forward=lambda q, k, v, beta, g, state, chunk: run(q, k, v, beta, g, state),
        vjp=delta_back,
        supports=lambda q, k, v, beta, g, state, chunk: (
            "beta is None" if beta is None else reasons(q, k, v, beta, g, state, chunk)
        ),
    ),
}
