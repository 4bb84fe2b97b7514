"""The arguments of attention as its kernels take them, and why they may not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from minitf.ops.attention import segments

from .module import refusal, summed_in

# Type of sums -> WIDTH -> ROWS, COLUMNS, SIDE of attention.cu.
TILES = {
    "float32": {32: (64, 64, 32), 64: (64, 32, 32), 128: (32, 32, 16)},
    "float64": {64: (32, 16, 16), 80: (32, 16, 16)},
}
# Positions and windows stay below this, so that their sums fit 32 bits.
FAR = 2**29


class Problem(NamedTuple):
    """The arguments, with contiguous arrays and defaults filled in."""

    q: Any
    k: Any
    v: Any
    # Nq, Nk, causal, window, starts, ends
    visible: tuple[Any, ...]
    scale: float
    softcap: float
    slopes: Any
    bias: Any
    mask: Any

    @property
    def width(self) -> int:
        return max(self.q.shape[-1], self.v.shape[-1])

    @property
    def pairs(self) -> tuple[int, ...]:
        return (*self.q.shape[:3], self.k.shape[2])

    @property
    def on_tensor_cores(self) -> bool:
        import cupy

        plain = self.bias is None and self.mask is None and self.slopes is None and not self.softcap
        return plain and self.q.dtype.itemsize == 2 and int(cupy.cuda.Device().compute_capability) >= 80

    def told(self) -> tuple[Any, ...]:
        """The first arguments of the kernels of attention.cu and attention_decode.cu."""
        q, k, v = self.q, self.k, self.v
        sizes = (q.shape[1], k.shape[1], q.shape[3], v.shape[3])
        scores = (self.scale, self.softcap, self.slopes, self.bias, *self.strides(self.bias))
        return (q, k, v, *sizes, *self.visible, *scores, self.mask, *self.strides(self.mask))

    def strides(self, a: Any) -> tuple[int, ...]:
        """In elements, along batch, head, query and key; 0 where `a` is repeated."""
        import cupy

        if a is None:
            return (0, 0, 0, 0)
        wide = cupy.broadcast_to(a, self.pairs)
        first = (1,) * (4 - a.ndim) + a.shape
        return tuple(s // a.itemsize if n > 1 else 0 for s, n in zip(wide.strides, first, strict=True))


def prepared(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    causal: bool,
    scale: float | None,
    bias: Any,
    window: int | None,
    softcap: float | None,
    slopes: Any,
    cu_seqlens: Any,
) -> Problem:
    import cupy

    n, m = q.shape[2], k.shape[2]
    starts = ends = None
    if cu_seqlens is not None:
        mine = segments(cu_seqlens, n, m)
        cuts = cupy.asarray(cu_seqlens).astype("int32")
        starts, ends = cuts[cupy.asarray(mine - 1)], cuts[cupy.asarray(mine)]
    q, k, v, slopes, bias, mask = (
        None if a is None else cupy.ascontiguousarray(a) for a in (q, k, v, slopes, bias, mask)
    )
    near = FAR if window is None else min(int(window), FAR)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    visible = (n, m, bool(causal), near, starts, ends)
    return Problem(q, k, v, visible, factor, float(softcap or 0), slopes, bias, mask)


def reasons(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    causal: bool,
    scale: float | None,
    bias: Any,
    window: int | None,
    softcap: float | None,
    slopes: Any,
    cu_seqlens: Any,
) -> str | None:
    """None, or why the kernels cannot take these arguments."""
    for name, part in (("q", q), ("k", k), ("v", v)):
        if why := refusal(name, part, ("float16", "bfloat16", "float32", "float64")):
            return why
        if part.ndim != 4 or part.dtype != q.dtype:
            return f"{name} must have 4 axes and the type of q"
    (b, h, n, d), (kv_heads, m) = q.shape, k.shape[1:3]
    if k.shape != (b, kv_heads, m, d) or v.shape[:3] != k.shape[:3] or not kv_heads or h % kv_heads:
        return f"q {q.shape}, k {k.shape} and v {v.shape} do not fit each other"
    widest = max(TILES[summed_in(q.dtype)])
    if not 0 < min(d, v.shape[-1]) <= max(d, v.shape[-1]) <= widest:
        return f"heads are {d} and {v.shape[-1]} wide; the kernel takes 1 to {widest} in {q.dtype}"
    if max(n, m) >= FAR:
        return f"more than {FAR} queries or keys"
    for name, part, dtype in (("mask", mask, "bool"), ("bias", bias, str(q.dtype))):
        if part is not None and (why := refusal(name, part, (dtype,)) or unfit(name, part, (b, h, n, m))):
            return why
    if slopes is not None and (why := refusal("slopes", slopes, (str(q.dtype),))):
        return why
    if slopes is not None and slopes.shape != (h,):
        return f"slopes must be ({h},)"
    if (window is not None and window < 1) or (softcap is not None and not softcap > 0):
        return "window must be at least 1, and softcap above 0"
    if cu_seqlens is not None and n != m:
        return "cu_seqlens needs as many queries as keys"
    return None


def unfit(name: str, part: Any, pairs: tuple[int, ...]) -> str | None:
    """None, or that `part` does not broadcast to the pairs."""
    sizes = zip(part.shape[::-1], pairs[::-1], strict=False)
    fits = part.ndim <= 4 and all(size in (1, most) for size, most in sizes)
    return None if fits else f"{name} {part.shape} does not broadcast to {pairs}"
