"""The Numba norms against their plain definitions: values, every gradient, second order, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minitf as mt
from minitf import ops
from minitf.ops import kernels


@pytest.fixture(scope="module", autouse=True)
def numba_backend():
    import minitf_numba

    # Where minitf is installed it is known already; from a plain checkout it is added for these tests.
    known = "numba" in kernels.backends()
    kernels.register_backend("numba", minitf_numba)
    assert minitf_numba.unavailable() is None
    yield
    if not known:
        kernels.unregister_backend("numba")


def run(name, mode, arrays, g):
    """Value and gradients of `name` under `mode`."""
    tensors = [mt.tensor(a, requires_grad=True) for a in arrays]
    with mt.use(mode):
        y = getattr(ops, name)(*tensors)
        y.backward(g)
    return [y.data, *(t.grad.data for t in tensors)]


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    width=st.integers(1, 70),
    view=st.booleans(),
    shift=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 999),
)
def test_equal_to_the_definition(name, dtype, shape, width, view, shift, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*shape, 2 * width)) + shift
    x = x[..., ::2] if view else x[..., :width]
    arrays = [x, *rng.standard_normal((2 if name == "layer_norm" else 1, width))]
    g = rng.standard_normal(x.shape)
    exact = run(name, "reference", arrays, g)
    narrow = [a.astype(dtype) for a in arrays]
    before = [a.copy() for a in narrow]
    plain = run(name, "reference", narrow, g.astype(dtype))
    fast = run(name, "numba", narrow, g.astype(dtype))
    again = run(name, "numba", narrow, g.astype(dtype))
    # A gradient is a difference of terms of this size, which may cancel: rounding is relative to the terms.
    spread = x - x.mean(-1, keepdims=True) if name == "layer_norm" else x
    smallest = np.sqrt(np.min(np.mean(spread**2, axis=-1), initial=1.0) + 1e-6)
    terms = (
        np.max(np.abs(g), initial=1.0)
        * np.max(np.abs(arrays[1]))
        / smallest
        * (1 + np.max(np.abs(x), initial=0.0))
    )
    for i, (e, p, f, a) in enumerate(zip(exact, plain, fast, again, strict=True)):
        scale = np.max(np.abs(e), initial=terms)
        # Earned: twice the plain code's own error in this precision, and a few units in the last place.
        allowed = 2 * np.max(np.abs(p - e), initial=0.0) + 8 * np.finfo(dtype).eps * scale
        error = np.max(np.abs(f - e), initial=0.0)
        assert error <= allowed, (
            f"{name} {dtype} result {i}: kernel off by {error:.2g}, allowed {allowed:.2g}"
        )
        assert np.array_equal(f, a), f"{name} result {i}: two runs differ"
        assert f.dtype == p.dtype
    assert all(np.array_equal(a, b) for a, b in zip(narrow, before, strict=True)), "inputs were modified"


def test_second_order_goes_through_the_definition():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 5)), rng.standard_normal(5)
    with mt.use("numba"):
        mt.check_grad(ops.rms_norm, x, w)
        mt.check_grad(ops.layer_norm, x, w, w + 1.0)


def test_refusals_are_sentences():
    x = np.ones((2, 3), dtype="float16")
    with mt.use("numba"), pytest.raises(mt.BackendError, match="the kernel takes float32 and float64"):
        ops.rms_norm(mt.tensor(x))
    with mt.use("auto"):
        assert ops.rms_norm(mt.tensor(x)).dtype == np.float16, "auto falls back to the definition"
        assert "the kernel of 'numba' runs" in mt.explain("rms_norm", mt.zeros((2, 3)))
        assert "float16" in mt.explain("rms_norm", mt.tensor(x))


def test_a_kernel_leaves_one_recipe():
    x = mt.tensor(np.ones((2, 3)), requires_grad=True)
    with mt.use("numba"):
        y = ops.rms_norm(x)
    assert y.recipe[0].name == "rms_norm"


def test_importing_compiles_nothing():
    import subprocess
    import sys

    code = "import sys, minitf, minitf_numba, minitf_cupy; assert not {'numba', 'cupy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
