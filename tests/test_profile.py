"""Counts that can be worked out by hand, and the memory that a backward pass holds."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import OPS, STATE, AnomalyError, Op, Tensor, checkpoint, detect_anomaly, record, tensor
from minitf.profile import PRICES, PriceError, Profile, profile

RNG = np.random.default_rng(0)


def leaf(*shape: int) -> Tensor:
    return tensor(RNG.standard_normal(shape), requires_grad=True)


def row(p: Profile, name: str) -> Any:
    return next(r for r in p.rows if r.name == name)


def test_every_operation_has_a_price() -> None:
    missing = sorted(set(OPS) - set(PRICES))
    assert not missing, f"operations without a formula in minitf.profile.PRICES: {missing}"
    unknown = sorted(set(PRICES) - set(OPS) - {"checkpoint"})
    assert not unknown, f"prices for operations that do not exist: {unknown}"


def test_an_operation_without_a_price_raises() -> None:
    with pytest.raises(PriceError, match="no price for operation 'mystery'"), profile():
        record(Op("mystery", lambda x: x + 1), (tensor([1.0]),), {})
    assert STATE.watch is None


def test_matmul_forward_and_backward() -> None:
    n, k, m = 3, 5, 7
    a, b, g = leaf(n, k), leaf(k, m), np.ones((n, m))
    with profile() as p:
        y = a @ b
        assert (p.flops, p.bytes) == (2 * n * k * m, 8 * (n * k + k * m + n * m))
        y.backward(g)
    assert row(p, "matmul").calls == 3 and row(p, "matmul").flops == 6 * n * k * m


def test_elementwise_reductions_and_views() -> None:
    x = leaf(4, 6)
    with profile() as p:
        y = ops.exp(x)
        z = y.reshape(6, 4).mT[1:, ::2]
        z.sum()
    assert row(p, "exp").flops == 24 and row(p, "exp").bytes == 2 * 24 * 8
    for name in ("reshape", "matrix_transpose", "getitem"):
        assert (row(p, name).flops, row(p, name).bytes) == (0, 0), f"{name} gives a view: nothing moves"
    assert row(p, "sum").flops == z.size


def test_gathers_read_what_they_return() -> None:
    with profile() as p:
        ops.embedding(np.array([0, 1, 2]), leaf(1000, 8))
    assert p.bytes == 2 * 3 * 8 * 8, "an embedding reads its rows, not its table"


def test_einsum_and_transforms() -> None:
    with profile() as p:
        ops.einsum("bnd,dm->bnm", leaf(2, 3, 4), leaf(4, 5))
        assert p.flops == 2 * 2 * 3 * 4 * 5
        ops.fft(leaf(3, 8))
        assert row(p, "fft").flops == 3 * 5 * 8 * 3
        ops.irfft(ops.rfft(leaf(8, 3), axis=0), 8, 0)
        assert row(p, "rfft").flops == row(p, "irfft").flops == 3 * 2.5 * 8 * 3
        ops.argsort(leaf(2, 8))
        assert row(p, "argsort").flops == 16 * 3
        ops.solve(tensor(np.eye(3)), leaf(3, 2))
        assert row(p, "solve").flops == round(2 / 3 * 27 + 2 * 9 * 2)


def test_attention_and_feed_forward() -> None:
    batch, heads, n, d = 2, 3, 16, 8
    with profile() as p:
        ops.softmax_attention(*(leaf(batch, heads, n, d) for _ in range(3)))
    assert row(p, "matmul").flops == 4 * batch * heads * n * n * d, "q k^T and P v, 2 n n d each"
    assert row(p, "softmax_rows").flops == 5 * batch * heads * n * n
    tokens, dim, hidden = 10, 16, 64
    x, up, down = leaf(tokens, dim), leaf(dim, hidden), leaf(hidden, dim)
    with profile() as p:
        y = ops.relu(x @ up) @ down
        assert row(p, "matmul").flops == 4 * tokens * dim * hidden, "a feed-forward layer costs 4 N D F"
        y.sum().backward()
    assert row(p, "matmul").flops == 12 * tokens * dim * hidden, "and twice that again on the way back"


def test_profiles_nest_and_meet_detect_anomaly() -> None:
    x = leaf(3)
    with profile() as outer:
        x * 2.0
        with detect_anomaly(), profile() as inner:
            (x * 2.0).sum().backward()
            assert inner.flops == 3 + 3 + 3, "multiply, sum, and the multiply of the backward pass"
        assert STATE.watch is not None
        with detect_anomaly(), pytest.raises(AnomalyError, match="log"):
            ops.log(tensor([-1.0]))
    assert STATE.watch is None
    assert outer.flops == inner.flops + 3, "an outer profile sees what an inner one sees"
    with detect_anomaly(), profile() as p:
        x * 2.0
    assert p.flops == 3


def test_results_are_data() -> None:
    with profile() as p:
        (leaf(2, 3) @ leaf(3, 4)).sum()
    data = json.loads(p.to_json())
    assert (
        data["flops"] == p.flops == 48 + 8 and data["bytes"] == p.bytes and data["peak_bytes"] == p.peak_bytes
    )
    assert [r["name"] for r in data["rows"]] == ["matmul", "sum"] and data["rows"][0]["calls"] == 1
    text = str(p)
    assert "matmul" in text and "48" in text and "total" in text and f"{p.peak_bytes:,} bytes" in text


N = 64
SIZE = N * N * 8


def six_layers(x: Tensor, weights: list[Tensor]) -> Tensor:
    for w in weights:
        x = ops.tanh(x @ w)
    return x


def test_memory_is_counted_while_it_lives() -> None:
    x = leaf(N, N)
    with profile() as p:
        y = x * 2.0
        z = y.mT
        assert p.live_bytes == SIZE, "a view takes no memory"
        del y
        assert p.live_bytes == SIZE, "a view keeps its owner alive"
        del z
        assert p.live_bytes == 0 and p.peak_bytes == SIZE


def backward_memory(retain: bool, depth: int = 6) -> tuple[int, int, int, list[int]]:
    """Memory of a chain: at the peak, after the forward pass, at the end, and each time a tanh is undone."""
    weights = [tensor(RNG.standard_normal((N, N)) / 8) for _ in range(depth)]
    x = leaf(N, N)
    live: list[int] = []
    with profile() as p:
        counting = STATE.watch

        def sample(name: str, *rest: Any) -> None:
            counting(name, *rest)
            if STATE.walking == "tanh" and name == "subtract":
                live.append(p.live_bytes)

        STATE.watch = sample
        loss = six_layers(x, weights).sum()
        after_forward = p.live_bytes
        loss.backward(retain_graph=retain)
        return p.peak_bytes, after_forward, p.live_bytes, live


def test_backward_holds_nothing_longer_than_needed() -> None:
    peak, after_forward, end, live = backward_memory(retain=False)
    assert after_forward == 12 * SIZE + 8, "the forward pass keeps two results a layer, and the sum"
    steps = [before - after for before, after in itertools.pairwise(live)]
    assert all(step >= 2 * SIZE for step in steps[1:]), f"each layer undone frees its two results: {live}"
    # The gradient that arrives, and the one that a rule is making.
    assert peak - after_forward <= 2 * SIZE, "the backward pass holds more than one rule needs"
    assert end == SIZE + 8, "in the end only the gradient of x and the loss are left"


def test_retaining_keeps_the_forward_pass_alive() -> None:
    _, after_forward, end, live = backward_memory(retain=True)
    assert end == after_forward + SIZE, "retain_graph keeps every result, and the gradient comes on top"
    assert max(live) - min(live) <= SIZE, f"with retain_graph nothing is freed on the way: {live}"


def test_the_extra_memory_of_a_backward_does_not_grow_with_depth() -> None:
    extra = []
    for depth in (2, 6, 12):
        peak, after_forward, _, _ = backward_memory(False, depth)
        extra.append(peak - after_forward)
    assert len(set(extra)) == 1, f"peak above the forward pass for 2, 6 and 12 layers: {extra}"


def test_checkpoint_saves_memory() -> None:
    weights = [tensor(RNG.standard_normal((N, N)) / 8, requires_grad=True) for _ in range(12)]
    parts = [weights[i : i + 3] for i in range(0, 12, 3)]

    def peak(saved: bool) -> tuple[int, np.ndarray]:
        x = tensor(np.eye(N), requires_grad=True)
        with profile() as p:
            y = x
            for part in parts:
                y = (checkpoint(six_layers) if saved else six_layers)(y, part)
            held = p.live_bytes
            y.sum().backward()
        return held, x.grad.numpy()

    (plain, g), (saved, g_saved) = peak(False), peak(True)
    assert plain == 24 * SIZE and saved == 4 * SIZE, (
        f"results held after the forward pass: {plain} and {saved}"
    )
    assert np.array_equal(g, g_saved)


def test_logarithm_of_one_sample() -> None:
    with profile() as p:
        ops.fft(leaf(1))
    assert p.flops == 0 == math.log2(1)
