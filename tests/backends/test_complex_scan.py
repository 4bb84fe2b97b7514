"""The diagonal scan of complex numbers: the generated tests differentiate real arrays only."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.engine import Tensor
from minitf.ops import kernels


@pytest.fixture(scope="module", autouse=True)
def numba_backend():
    import minitf_numba

    known = "numba" in kernels.backends()
    kernels.register_backend("numba", minitf_numba)
    yield
    if not known:
        kernels.unregister_backend("numba")


def computed(mode, dtype, arrays, cotangent):
    """h, and the gradients of a, b and the state."""
    leaves = [Tensor(x.astype(dtype), requires_grad=True) for x in arrays]
    with mt.use(mode):
        h = ops.diagonal_scan(*leaves)
        h.backward(cotangent.astype(dtype))
    return [h.data, *(leaf.grad.data for leaf in leaves)]


@pytest.mark.parametrize("of_a", [(2, 17, 5), (1, 17, 5), (2, 1, 5), (1, 1, 5), (1, 1, 1)])
@pytest.mark.parametrize("stateful", [False, True])
def test_complex_numbers(of_a, stateful):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.uniform(-1.0, 1.0, shape) + 1j * rng.uniform(-1.0, 1.0, shape)

    arrays = [draw(*of_a) * 0.7, draw(2, 17, 5)] + ([draw(2, 5)] if stateful else [])
    cotangent = draw(2, 17, 5)
    exact = computed("reference", "complex128", arrays, cotangent)
    for dtype in ("complex64", "complex128"):
        eps = float(np.finfo(dtype).eps)
        fast = computed("numba", dtype, arrays, cotangent)
        for name, value, right in zip(("h", "a", "b", "state"), fast, exact, strict=False):
            error = np.max(np.abs(value - right)) / max(1.0, np.max(np.abs(right)))
            assert value.dtype == dtype and value.shape == right.shape, f"{name}: {value.dtype} {value.shape}"
            assert error <= 32 * eps, f"{dtype}: {name} is off by {error / eps:.0f} roundings"


def test_real_and_complex_do_not_mix_in_the_kernel():
    import minitf_numba

    a, b = np.ones((1, 3, 2)), np.ones((1, 3, 2), dtype="complex128")
    why = minitf_numba.KERNELS["diagonal_scan"].supports(a, b, None)
    assert why and "one type" in why, "a real a with a complex b is refused in words"
