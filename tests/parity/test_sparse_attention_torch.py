"""Listed blocks and windows against torch's attention under a mask and with a bias: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from minitf import ops
from minitf.engine import tensor

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)


def compare(ours: Callable[..., Any], theirs: Callable[..., Any], arrays: list[np.ndarray]) -> None:
    left = [tensor(a, requires_grad=True) for a in arrays]
    right = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*left), theirs(*right)
    g = RNG.standard_normal(y.shape)
    y.backward(g)
    z.backward(torch.tensor(g))
    pairs = [(y.numpy(), z.detach()), *((a.grad.numpy(), b.grad) for a, b in zip(left, right, strict=True))]
    for i, (a, b) in enumerate(pairs):
        error = np.max(np.abs(a - b.numpy()))
        assert error <= 1e-12, f"{'the output' if i == 0 else f'gradient {i - 1}'} is off by {error:.2g}"


@pytest.mark.parametrize("causal", [False, True])
def test_listed_blocks(causal: bool) -> None:
    q, k, v = (RNG.standard_normal((2, h, n, 4)) for h, n in ((4, 22), (2, 22), (2, 22)))
    seen = RNG.random((2, 4, 6, 6)) < 0.4
    # A row that sees nothing is NaN there.
    seen[..., 0] = True
    mask = seen.repeat(4, axis=2).repeat(4, axis=3)[:, :, :22, :22] & (np.tri(22, dtype=bool) | (not causal))
    lists = ops.csr_of(seen)
    compare(
        lambda q, k, v: ops.block_sparse_attention(q, k, v, *lists, 4, 4, causal=causal),
        lambda q, k, v: attend(q, k, v, attn_mask=torch.tensor(mask), enable_gqa=True),
        [q, k, v],
    )


def test_windows() -> None:
    def cut(x: Any) -> Any:
        return x.reshape(2, 3, 2, 4, 3, 4, 5).permute(0, 2, 4, 1, 3, 5, 6).reshape(12, 3, 16, 5)

    def theirs(q: Any, k: Any, v: Any, bias: Any) -> Any:
        o = attend(cut(q), cut(k), cut(v), attn_mask=bias)
        return o.reshape(2, 2, 3, 3, 4, 4, 5).permute(0, 3, 1, 4, 2, 5, 6).reshape(2, 3, 8, 12, 5)

    arrays = [*(RNG.standard_normal((2, 3, 8, 12, 5)) for _ in range(3)), RNG.standard_normal((3, 16, 16))]
    compare(lambda q, k, v, bias: ops.window_attention(q, k, v, 4, bias), theirs, arrays)
