"""Attention kernels of the CuPy backend, compiled by g++ and emulated: no card is needed, and none is used.

The cases of the registry (tests/backends/cases/attention.py) reach the kernels elsewhere. Here: the kernels
for tensor cores within the roundings that they make, the cache cut into parts, the tile edges, the reasons
against, and the word of the compiler on registers.
"""

from __future__ import annotations

import re
import subprocess
from typing import Any

import numpy as np
import pytest
from minitf_cupy import attention, attention_problem, module

from minitf.ops.attention import visible_pairs

from .cuda import nvrtc
from .cuda.compared import check_on_card
from .emulator import stand_in

emulated = pytest.mark.skipif(stand_in.missing() is not None, reason=str(stand_in.missing()))

# Half the distance of neighbouring numbers, relative to them.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def draw(
    n: int, m: int = 0, b: int = 1, h: int = 2, kv: int = 0, d: int = 64, dv: int = 0, **options: Any
) -> Any:
    rng, m, kv = np.random.default_rng(n + 7 * m), m or n, kv or h
    shapes = {"q": (b, h, n, d), "k": (b, kv, m, d), "v": (b, kv, m, dv or d)}
    return {**{name: rng.standard_normal(shape) for name, shape in shapes.items()}, **options}


# Tiles have 64 or 128 queries and 32 or 64 keys.
TENSOR_CASES = {
    **{f"{n} tokens, causal": draw(n, causal=True, h=1) for n in (1, 15, 16, 17, 63, 64, 65, 100, 129)},
    "all seen": draw(65, h=1),
    "one key less than a tile": draw(63, h=1),
    "width 8": draw(33, d=8, causal=True),
    "width 128": draw(65, d=128, h=1, causal=True),
    "widths 72 and 40": draw(70, d=72, dv=40, h=1),
    "grouped heads, two batches": draw(20, b=2, h=4, kv=2, d=16, causal=True),
    "window": draw(150, h=1, d=16, window=20),
    "causal window": draw(150, h=1, d=16, window=70, causal=True),
    "fewer queries": draw(10, 100, d=16, causal=True),
    "queries that see nothing": draw(100, 10, d=16, causal=True),
    "packed": draw(100, d=16, causal=True, cu_seqlens=np.array([0, 3, 3, 70, 100])),
    "scale": draw(40, d=16, scale=-0.5),
}


def rounded(x: Any, dtype: str) -> Any:
    """To the numbers of `dtype`, ties to even, in float64."""
    if dtype == "float16":
        return x.astype("float16").astype(float)
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(float)


def expected(args: dict[str, Any], g: Any, u: float) -> dict[str, tuple[Any, Any]]:
    """Output and gradients in float64, each with how far roundings of relative size u may move its elements.

    The kernels sum in float32, and round to 16 bits: P and dS, where they enter a product, and every result.
    delta comes from the rounded output: it is off by at most u sum |o g|.
    """
    q, k, v = args["q"], args["k"], args["v"]
    scale = args.get("scale") or q.shape[-1] ** -0.5
    rules = {name: args[name] for name in ("causal", "window", "cu_seqlens") if name in args}
    n, m, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    seen = visible_pairs(n, m, **rules)
    seen = np.ones((n, m), bool) if seen is None else seen
    found = {"o": (np.zeros((*q.shape[:3], v.shape[3])),) * 2, "q": (q * 0,) * 2}
    found |= {"k": (k * 0,) * 2, "v": (v * 0,) * 2}
    found = {name: (value.copy(), off.copy()) for name, (value, off) in found.items()}
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            at, kv = (b, h), (b, h // group)
            s = np.where(seen, scale * q[at] @ k[kv].T, -np.inf)
            top = s.max(axis=1, keepdims=True)
            e = np.exp(s - np.where(np.isfinite(top), top, 0))
            p = e / np.maximum(e.sum(axis=1, keepdims=True), 1e-300)
            o, dp = p @ v[kv], g[at] @ v[kv].T
            ds = p * (dp - (o * g[at]).sum(axis=1, keepdims=True))
            # |change of o|, then of dS.
            off_o = u * (p @ abs(v[kv])) + u * abs(o)
            off_ds = u * abs(ds) + p * (off_o * abs(g[at])).sum(axis=1, keepdims=True)
            for name, where, value, off in (
                ("o", at, o, off_o),
                ("q", at, scale * ds @ k[kv], abs(scale) * off_ds @ abs(k[kv])),
                ("k", kv, scale * ds.T @ q[at], abs(scale) * off_ds.T @ abs(q[at])),
                ("v", kv, p.T @ g[at], u * p.T @ abs(g[at])),
            ):
                found[name][0][where] += value
                found[name][1][where] += off
    # The result's own rounding, 10 % for products of roundings, and float32 with float16's smallest numbers.
    return {name: (y, 1.1 * (off + u * abs(y)) + 3e-6) for name, (y, off) in found.items()}


def within(words: str, got: Any, bounds: tuple[Any, Any]) -> None:
    right, off = bounds
    worst = float((abs(got.astype(float) - right) / off).max(initial=0))
    assert worst <= 1, f"{words}: {worst:.2f} times what its roundings allow"


def run_halves(args: dict[str, Any], g: Any) -> dict[str, Any]:
    """Output and gradients by the launchers, float16."""
    import cupy

    given = [args.get(name) for name in ("q", "k", "v", "mask", "causal", "scale", "bias", "window")]
    given += [args.get(name) for name in ("softcap", "slopes", "cu_seqlens")]
    held = [
        cupy.asarray(a.astype("float16") if a.dtype.kind == "f" else a) if isinstance(a, np.ndarray) else a
        for a in given
    ]
    held[4] = bool(held[4])
    assert attention.reasons(*held) is None
    o, kept = attention.only_output(*held)
    dq, dk, dv = attention.backward(kept, cupy.asarray(g.astype("float16")))[:3]
    assert kept[0].on_tensor_cores
    return {"o": o.get(), "q": dq.get(), "k": dk.get(), "v": dv.get()}


@emulated
@pytest.mark.parametrize("label", TENSOR_CASES)
def test_tensor_cores_within_their_roundings(label):
    args = {
        key: rounded(a, "float16") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for key, a in TENSOR_CASES[label].items()
    }
    shape = (*args["q"].shape[:3], args["v"].shape[-1])
    g = rounded(np.random.default_rng(1).standard_normal(shape), "float16")
    right = expected(args, g, ROUNDING["float16"])
    with stand_in.installed("80"):
        got = run_halves(args, g)
    for name, value in got.items():
        within(f"{label}: {name}", value, right[name])


@emulated
def test_the_order_of_threads_does_not_show(monkeypatch):
    """A race would: every kernel forwards and backwards over blocks and threads, bit for bit."""
    args = {**TENSOR_CASES["65 tokens, causal"]}
    g, found = np.random.default_rng(1).standard_normal(args["q"].shape), []
    for order in "01":
        monkeypatch.setenv("MINITF_EMULATOR_REVERSE", order)
        with stand_in.installed("80"):
            found.append(run_halves(args, g))
    for name, value in found[0].items():
        assert np.array_equal(value, found[1][name]), f"{name} differs with the order"


@emulated
@pytest.mark.parametrize("width", [64, 128])
def test_bfloat16_on_tensor_cores(width):
    """NumPy has no such type: the kernels are started by hand, on its bits."""
    n, u, cupy = 70, ROUNDING["bfloat16"], stand_in.library()
    args = {key: rounded(a, "bfloat16") for key, a in draw(n, h=1, d=width).items()}
    g = rounded(np.random.default_rng(2).standard_normal((1, 1, n, width)), "bfloat16")
    right = expected({**args, "causal": True}, g, u)
    # The output as the kernel rounds it; its log-sum-exp is compared through the gradients.
    defines = {"WIDTH": width, "TALL": 2}
    code = module.source("attention_mma.cu")
    kernels = stand_in.RawModule(code, module.options("bfloat16", defines))

    def start(name, grid, shared, *arrays):
        run = kernels.get_function(name)
        run.parameters = [p._replace(kind="void") if p.pointer else p for p in run.parameters]
        run.max_dynamic_shared_size_bytes = shared
        run((grid,), (128,), tuple(module.passed(a) for a in arrays), shared_mem=shared)

    def bits(a):
        return cupy.asarray((np.asarray(a, np.float32).view(np.uint32) >> 16).astype(np.uint16))

    q, k, v, cot = (bits(a) for a in (args["q"], args["k"], args["v"], g))
    told = (q, k, v, 1, 1, n, n, True, attention_problem.FAR, None, None, width**-0.5)
    o, dq, dk, dv = (cupy.asarray(np.full((1, 1, n, width), 0x7FC0, np.uint16)) for _ in range(4))
    lse, delta = cupy.empty((1, 1, n), "float32"), cupy.empty((1, 1, n), "float32")
    start("attention_mma_forward", module.blocks(n, 128), 2 * width * (128 + 2 * 64), *told, o, lse)
    start("attention_delta", 1, 0, o, cot, None, delta, n, width)
    shared = 2 * width * (2 * 64 + 4 * 64) + 16 * 64
    start("attention_mma_keys", 2, shared, *told, cot, lse, delta, dk, dv)
    start("attention_mma_queries", 2, shared, *told, cot, lse, delta, dq)
    for name, value in (("o", o), ("q", dq), ("k", dk), ("v", dv)):
        within(name, (value.get().astype(np.uint32) << 16).view(np.float32), right[name])


@emulated
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 100])
@pytest.mark.parametrize("d", [8, 64])
def test_tile_edges(n, d):
    """The kernels that run anywhere, in float32."""
    with stand_in.installed("75"):
        check_on_card("softmax_attention", draw(n, d=d, h=1, causal=True), "float32", views=False)


@emulated
@pytest.mark.parametrize("n", [17, 65])
def test_halves_without_tensor_cores(n):
    """float16 on an old card, or with options that the tensor-core kernels lack: sums in float32."""
    rng = np.random.default_rng(n)
    bias = rng.standard_normal((2, n, n))
    for card, options in (
        ("75", {}),
        ("80", {"bias": bias}),
        ("80", {"softcap": 2.0}),
        ("90", {"mask": bias[0] < 1}),
    ):
        with stand_in.installed(card):
            check_on_card(
                "attention_with_logsumexp", draw(n, d=8, causal=True, **options), "float16", views=False
            )


@emulated
@pytest.mark.parametrize("m", [511, 512, 513, 1000])
@pytest.mark.parametrize(("dtype", "d"), [("float32", 8), ("float32", 7), ("float64", 8), ("float16", 8)])
def test_one_query_over_a_cache(m, dtype, d):
    rng = np.random.default_rng(m)
    options = {"window": 300} if m == 513 else {"mask": rng.random((2, 1, 1, m)) < 0.3} if m == 1000 else {}
    with stand_in.installed("75"):
        args = draw(1, m, b=2, h=4, kv=2, d=d, **options)
        check_on_card("attention_with_logsumexp", args, dtype, views=False)


@emulated
def test_a_cache_of_which_nothing_is_seen():
    args = draw(1, 600, d=8, mask=np.zeros((1, 1, 1, 600), bool))
    with stand_in.installed("75") as cupy:
        given = [cupy.asarray(args[name].astype("float32")) for name in "qkv"]
        (o, lse), _ = attention.with_logsumexp(*given, cupy.asarray(args["mask"]), *(None,) * 7)
    assert (o.get() == 0).all() and (lse.get() == -np.inf).all(), "zeros, and the logarithm of no sum"


def reason(**change: Any) -> str | None:
    cupy = stand_in.library()
    names = ("q", "k", "v", "mask", "causal", "scale", "bias", "window", "softcap", "slopes", "cu_seqlens")
    given = {key: cupy.asarray(a.astype("float32")) for key, a in draw(5, d=4, h=4, kv=2).items()}
    given |= {"causal": False, **change}
    return attention.reasons(*(given.get(name) for name in names))


def test_reasons_against():
    zeros = lambda *shape, dtype="float32": stand_in.asarray(np.zeros(shape, dtype))  # noqa: E731
    assert reason() is None
    for words, change in {
        "q is not a CuPy array": {"q": np.zeros((1, 4, 5, 4), "float32")},
        "q is int64": {"q": zeros(1, 4, 5, 4, dtype="int64")},
        "k must have 4 axes and the type of q": {"k": zeros(1, 2, 5, 4, dtype="float64")},
        "do not fit each other": {"v": zeros(1, 2, 6, 4)},
        "wide; the kernel takes 1 to 128": {"v": zeros(1, 2, 5, 129)},
        "mask is float32": {"mask": zeros(5, 5)},
        r"mask \(2, 5\) does not broadcast": {"mask": zeros(2, 5, dtype="bool")},
        "bias is float64": {"bias": zeros(5, 5, dtype="float64")},
        "slopes must be": {"slopes": zeros(3)},
        "slopes is not a CuPy array": {"slopes": np.zeros(4)},
        "window must be at least 1": {"window": 0},
        "softcap above 0": {"softcap": -1.0},
        "as many queries as keys": {"q": zeros(1, 4, 3, 4), "cu_seqlens": np.array([0, 5])},
    }.items():
        why = reason(**change)
        assert why is not None and re.search(words, why), f"{why!r} should say {words!r}"


@pytest.mark.parametrize(("dtype", "width"), [("float16", 64), ("float16", 128), ("bfloat16", 128)])
@pytest.mark.parametrize("chip", ["sm_80", "sm_90"])
def test_no_sum_leaves_the_registers(dtype, width, chip, tmp_path):
    """A spilled accumulator would cost more than the tensor cores gain."""
    if "nvcc" not in nvrtc.compilers():
        pytest.skip("not run: no nvcc")
    (tmp_path / "kernel.cu").write_text(module.source("attention_mma.cu"))
    told = [
        *module.options(dtype, {"WIDTH": width, "TALL": attention.TALL}),
        f"-arch={chip}",
        "-Xptxas",
        "-v",
    ]
    run = subprocess.run(
        ["nvcc", "-cubin", *told, "-o", str(tmp_path / "kernel.cubin"), str(tmp_path / "kernel.cu")],
        capture_output=True,
        text=True,
    )
    found = re.findall(r"properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill", run.stderr)
    assert len(found) == 4, f"three kernels and the preparation: {run.stderr[:2000]}"
    for name, stack, spilled in found:
        assert stack == spilled == "0", f"{name}: {spilled} bytes spilled, {stack} on the stack"
