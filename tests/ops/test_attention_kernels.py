"""The Numba kernels of softmax attention beyond equality: memory, memory layouts, refusals."""

from __future__ import annotations

import importlib
import tracemalloc
from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.ops import kernels

numba_backend = pytest.importorskip("minitf_numba")
if numba_backend.unavailable():
    pytest.skip(numba_backend.unavailable(), allow_module_level=True)

NONE: dict[str, Any] = dict.fromkeys(list(kernels.DEFINITIONS["softmax_attention"][1].parameters)[3:])


def run(n: int, **options: Any) -> tuple[Any, Any]:
    kernel = numba_backend.KERNELS["softmax_attention"]
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, n, 16), dtype=np.float32)
    o, residuals = kernel.forward(q, k, v, *{**NONE, **options}.values())
    return o, kernel.vjp(residuals, np.ones_like(o))


@pytest.mark.parametrize(
    "options",
    [{}, {"mask": "keys"}, {"window": 100}, {"slopes": np.ones(2, np.float32)}, {"bias": "keys"}],
    ids=["causal", "mask", "window", "slopes", "bias"],
)
def test_memory_grows_linearly(options: Any) -> None:
    """What NumPy allocates in forward and backward doubles with N, and so is far from N^2."""

    def peak(n: int) -> int:
        given = dict(options, causal=True)
        if given.get("mask") == "keys":
            given["mask"] = np.broadcast_to(np.arange(n) % 5 > 0, (1, 2, n, n))
        if given.get("bias") == "keys":
            given["bias"] = np.zeros((2, 1, n), np.float32)
        tracemalloc.start()
        run(n, **given)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    run(64, causal=True)
    small, large = peak(1024), peak(2048)
    assert large <= 2.2 * small, f"{small} bytes at N=1024, {large} at 2048"
    # One head's scores alone would be 16 MB.
    assert large <= 8e6, f"{large} bytes at N=2048"


def test_what_split_heads_gives_comes_back_in_its_layout() -> None:
    """So that merge_heads and the backward of split_heads do not copy."""
    kernel = numba_backend.KERNELS["softmax_attention"]
    x = np.random.default_rng(0).standard_normal((3, 2, 40, 4, 8), dtype=np.float32).transpose(0, 1, 3, 2, 4)
    o, residuals = kernel.forward(*x, *NONE.values())
    for a in (o, *kernel.vjp(residuals, o)[:3]):
        assert a.shape == (2, 4, 40, 8) and a.transpose(0, 2, 1, 3).flags.c_contiguous


@pytest.mark.parametrize("rows", [64, 128, 256])
@pytest.mark.parametrize(
    "options", [{"causal": True}, {"causal": True, "window": 100}], ids=["causal", "window"]
)
def test_tiles_of_every_height(rows: int, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, tokens and cores choose the height; each is right, at its edge and in its strips."""
    for module in ("attention", "attention_backward"):
        there = importlib.import_module(f"minitf_numba.{module}")
        monkeypatch.setattr(there, "height", lambda heads, n: min(rows, n))
    for n in (65, 129, 257, 300):
        o, grads = run(n, **options)
        x = np.random.default_rng(0).standard_normal((3, 1, 2, n, 16), dtype=np.float32).astype(np.float64)
        q, k, v = (mt.tensor(a, requires_grad=True) for a in x)
        with mt.use("reference"):
            plain = ops.softmax_attention(q, k, v, **options)
            plain.sum().backward()
        for ours, right in zip((o, *grads), (plain, q.grad, k.grad, v.grad), strict=False):
            assert right is not None
            error = np.max(np.abs(ours - right.numpy()))
            assert error <= 1e-5, f"{rows} rows, {n} tokens: {error}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": np.ones((1, 2, 3, 4), np.float16)}, "float16"),
        ({"mask": np.ones((3, 3))}, "mask is not a boolean"),
        ({"mask": np.ones((2, 3), bool)}, r"mask \(2, 3\) does not fit scores \(1, 2, 3, 3\)"),
        ({"bias": np.ones((3, 3), np.float16)}, "bias is not"),
        ({"scale": np.ones(())}, "scale is not a Python number"),
        ({"window": 2.5}, "window=2.5 is not an integer"),
        ({"softcap": -1.0}, "softcap=-1.0 is not"),
        ({"slopes": np.ones(3)}, "slopes is not a NumPy array of 2 floats"),
        ({"cu_seqlens": np.array([0, 2])}, "cu_seqlens is not"),
        ({"k": np.ones((1, 2, 0, 4), np.float32)}, "none of them empty"),
    ],
)
def test_refusals(change: Any, words: str) -> None:
    x = np.ones((1, 2, 3, 4), np.float32)
    args = {"q": x, "k": x, "v": x, **NONE, **change}
    why = numba_backend.KERNELS["softmax_attention"].supports(*args.values())
    assert why is not None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(why)


def test_no_values_are_lost_to_a_hidden_infinity() -> None:
    """A bias of -inf hides, and very large scores stay finite, forward and backward."""
    x = np.random.default_rng(0).standard_normal((1, 2, 130, 4)) * 1e4
    bias = np.where(np.tri(130, dtype=bool), 0.0, -np.inf)
    if "numba" not in kernels.backends():
        pytest.skip("the numba backend is not installed")
    with mt.use("numba"):
        q = mt.tensor(x, requires_grad=True)
        o = ops.softmax_attention(q, x, x, bias=bias)
        o.sum().backward()
    assert q.grad is not None and np.all(np.isfinite(o.numpy())) and np.all(np.isfinite(q.grad.numpy()))
