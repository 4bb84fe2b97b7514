"""The selective scan: launchers of selective_scan.cu, whose head explains the kernels."""

from __future__ import annotations

from typing import Any

from minitf.ops.kernels import Kernel

from .module import blocks, launch, refusal, summed_in

DTYPES = ("float32", "float64")
THREADS, CHUNK = 128, 16


def supports(u: Any, dt: Any, a: Any, b: Any, c: Any, state: Any, chunk: Any) -> str | None:
    if why := refusal("u", u, DTYPES):
        return why
    for name, part in (("dt", dt), ("a", a), ("b", b), ("c", c), ("state", state)):
        if not (part is None and name == "state") and (why := refusal(name, part, (str(u.dtype),))):
            return why
    if u.ndim != 3 or a.ndim != 2 or not u.size or not a.size:
        return f"u {u.shape} must be (B, N, E) and a {a.shape} (E, n), no axis empty"
    (batch, tokens, width), n = u.shape, a.shape[1]
    if dt.shape != u.shape or len(a) != width or not b.shape == c.shape == (batch, tokens, n):
        return f"dt {dt.shape}, a {a.shape}, b {b.shape} and c {c.shape} do not fit u {u.shape}"
    if state is not None and state.shape != (batch, width, n):
        return f"the state {state.shape} must be {(batch, width, n)}"
    if n > 32:
        return f"{n} states for each channel: the kernel takes up to 32"
    return "chunk is below 1" if not chunk >= 1 else "more than 65535 sequences" if batch > 65535 else None


def forward(u: Any, dt: Any, a: Any, b: Any, c: Any, state: Any, chunk: int) -> tuple[Any, Any]:
    import cupy

    given = [None if x is None else cupy.ascontiguousarray(x) for x in (u, dt, a, b, c, state)]
    (batch, tokens, width), n = u.shape, a.shape[1]
    lanes = 1 << (n - 1).bit_length()
    grid = (blocks(width, THREADS // lanes), batch)
    y, last = cupy.empty_like(given[0]), cupy.empty((batch, width, n), u.dtype)
    kept = cupy.empty((batch, blocks(tokens, CHUNK), width, n), summed_in(u.dtype))
    args = (*given, y, last, kept, tokens, width, n)
    launch("selective_scan", "selective_scan", u.dtype, grid, THREADS, *args, LANES=lanes)
    return (y, last), (given, kept, grid, lanes)


def vjp(residuals: Any, g: Any) -> tuple[Any, ...]:
    import cupy

    (u, dt, a, b, c, state), kept, grid, lanes = residuals
    (batch, tokens, width), n = u.shape, a.shape[1]
    gs = [None if part is None else cupy.ascontiguousarray(part) for part in g]
    du, ddt, dstate = (
        cupy.empty_like(u),
        cupy.empty_like(u),
        None if state is None else cupy.empty_like(state),
    )
    da = cupy.empty((batch, width, n), kept.dtype)
    db, dc = (cupy.empty((grid[0], batch, tokens, n), kept.dtype) for _ in range(2))
    args = (*gs, u, dt, a, b, c, kept, du, ddt, da, db, dc, dstate, tokens, width, n)
    launch("selective_scan", "selective_scan_backward", u.dtype, grid, THREADS, *args, LANES=lanes)
    totals = (x.sum(axis=0).astype(u.dtype) for x in (da, db, dc))
    return du, ddt, *totals, dstate, None


KERNELS = {"selective_scan": Kernel(forward, vjp, supports)}
