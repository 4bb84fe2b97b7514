"""The walk: accumulation, freeing, in-place changes, memory, errors."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import (
    STATE,
    AnomalyError,
    DTypeError,
    GraphError,
    Op,
    ShapeError,
    Tensor,
    Together,
    check_grad,
    detect_anomaly,
    grad,
    no_grad,
    record,
    tensor,
)
from minitf.engine.check import GradientError


def leaf(*values: float) -> Tensor:
    return tensor(np.array(values), requires_grad=True)


def test_gradients_accumulate() -> None:
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    first = x.grad
    (x * 3.0).sum().backward()
    assert x.grad.numpy().tolist() == [5.0, 7.0] and first.numpy().tolist() == [2.0, 4.0]
    y = x * 2.0
    (y * y + y).sum().backward(np.array(1.0))
    assert x.grad.numpy().tolist() == [15.0, 25.0], "a tensor used many times collects every contribution"
    x.backward(np.array([1.0, 1.0]))
    assert x.grad.numpy().tolist() == [16.0, 26.0], "a leaf passes what it is given to itself"


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_two_leaves_never_share_memory(create_graph: bool) -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    given = np.ones(2)
    (x + y).backward(given, create_graph=create_graph)
    gx, gy = grad(lambda a, b: (a + b).sum(), argnums=(0, 1), create_graph=create_graph)(
        x.detach(), y.detach()
    )
    arrays = [given, x.grad.data, y.grad.data, gx.data, gy.data]
    for i, a in enumerate(arrays):
        assert a.flags.writeable, "a gradient must be an array of its own, not a broadcast view"
        for b in arrays[:i]:
            assert not np.shares_memory(a, b), (
                "two gradients share memory: clipping one would change the other"
            )


def test_broadcasting_is_undone() -> None:
    x, b = tensor(np.ones((2, 3, 4)), requires_grad=True), tensor(np.ones((3, 1)), requires_grad=True)
    (x * b * 2.0).sum().backward()
    assert b.grad.shape == (3, 1) and np.all(b.grad.numpy() == 16.0)
    s = leaf()
    s = tensor(2.0, requires_grad=True)
    (x.detach() * s).sum().backward()
    assert s.grad.shape == () and s.grad.item() == 24.0


def test_backward_needs_a_scalar_or_a_fitting_gradient() -> None:
    y = leaf(1.0, 2.0) * 2.0
    with pytest.raises(
        GraphError, match=r"needs a scalar, not shape \(2,\): reduce it first, for example y\.sum"
    ):
        y.backward()
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), the tensor \(2,\)"):
        y.backward(np.ones(3))
    with pytest.raises(DTypeError, match="gradient has dtype float32, the tensor float64"):
        y.backward(tensor(np.ones(2, np.float32)))
    with pytest.raises(GraphError, match="needs no gradient: make an input with"):
        tensor(1.0).backward()
    y.backward([1, 1])


def test_second_backward_through_a_freed_graph() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(GraphError, match=r"already walked and its recipes freed: .*retain_graph=True"):
        y.backward()
    shared = x * x
    one, two = shared.sum(), (shared * 2.0).sum()
    one.backward()
    with pytest.raises(GraphError, match="already walked"):
        two.backward()


def test_retained_graphs_can_be_walked_again() -> None:
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.numpy().tolist() == [4.0, 8.0]
    with pytest.raises(GraphError):
        y.backward()


def change_leaf(x: Tensor, y: Tensor) -> None:
    x.data[0] = 9.0


def change_leaf_by_factor(x: Tensor, y: Tensor) -> None:
    x.data *= 2


def change_intermediate(x: Tensor, y: Tensor) -> None:
    y.data += 1


@pytest.mark.parametrize("change", [change_leaf, change_leaf_by_factor, change_intermediate])
@pytest.mark.parametrize("n", [3, 10**5])
@pytest.mark.parametrize(
    "f", [lambda x: x * x, ops.exp, lambda x: ops.concat([x, x]), lambda x: x.reshape(1, -1) * 2.0]
)
def test_changes_in_place_are_noticed(change: Any, n: int, f: Any) -> None:
    x = tensor(np.linspace(1.0, 2.0, n), requires_grad=True)
    y = f(x)
    z = (y * y).sum()
    change(x, y)
    with pytest.raises(
        GraphError, match=r"an array of shape \(.*\) that the backward pass needs was changed in place"
    ):
        z.backward()


def test_changes_of_constants_and_several_outputs_are_noticed() -> None:
    x, c = leaf(1.0, 2.0), np.array([3.0, 4.0])
    y = (x * c).sum()
    c[1] = 0.0
    with pytest.raises(GraphError, match=r"multiply: .*changed in place"):
        y.backward()
    q, r = ops.qr(tensor(np.eye(2) + 1.0, requires_grad=True))
    z = (q * r).sum()
    q.data[0, 0] = 5.0
    with pytest.raises(GraphError, match="changed in place"):
        z.backward()


def test_changes_that_do_no_harm() -> None:
    x = leaf(1.0, 2.0)
    x.data[0] = 5.0
    y = (x * x).sum()
    y.backward()
    x.data -= 0.1 * x.grad.data
    assert (x * x).sum().requires_grad, "an update between two steps is no error"
    ids = np.array([0, 1])
    table = tensor(np.eye(2), requires_grad=True)
    picked = ops.embedding(ids, table)
    ids[:] = 0
    picked.sum().backward()
    assert table.grad.numpy().tolist() == [[1.0, 1.0], [1.0, 1.0]], (
        "an index is kept as it was when it was used"
    )


def test_no_grad_and_detach() -> None:
    x = leaf(1.0, 2.0)
    with no_grad():
        y = ops.exp(x) + x
        assert STATE.grad is False
    assert not y.requires_grad and y.recipe is None and STATE.grad is True
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert STATE.grad is True
    (x * ops.stop_gradient(x)).sum().backward()
    assert x.grad.numpy().tolist() == [1.0, 2.0]


def test_memory_is_freed_during_the_walk() -> None:
    """When a rule runs, everything that was made after its operation is already gone."""
    gc.disable()
    try:
        alive: list[weakref.ref[Any]] = []
        counts: list[int] = []

        def spy(needed: Any, g: Any, y: Any, x: Any) -> tuple[Any]:
            counts.append(sum(ref() is not None for ref in alive))
            return (g * 1.0,)

        y = tensor(np.ones(1000), requires_grad=True)
        for _ in range(6):
            y = record(Op("spy", lambda x: x + 1.0, Together(spy)), (y,), {})
            alive.append(weakref.ref(y.data))
        total = y.sum()
        del y
        total.backward()
    finally:
        gc.enable()
    assert counts == [6, 5, 4, 3, 2, 1], f"intermediates alive as the walk proceeds: {counts}"
    assert not any(ref() is not None for ref in alive), "an intermediate outlives the walk"


def test_gradients_do_not_pile_up_during_the_walk() -> None:
    """A chain holds two gradients at a time: the one that arrives and the one that a rule is making."""
    alive: list[weakref.ref[Any]] = []
    counts: list[int] = []

    def spy(needed: Any, g: Any, y: Any, x: Any) -> tuple[Any]:
        counts.append(sum(ref() is not None for ref in alive))
        out = g * 1.0
        alive.append(weakref.ref(out))
        return (out,)

    y = tensor(np.ones(1000), requires_grad=True)
    for _ in range(6):
        y = record(Op("spy", lambda x: x + 1.0, Together(spy)), (y,), {})
    y.sum().backward()
    assert max(counts) <= 1, f"gradients alive when the next is made: {counts}"


def test_detect_anomaly_names_the_operation() -> None:
    with detect_anomaly():
        with pytest.raises(AnomalyError, match=r"log made the first NaN, from arguments \(2,\) float64"):
            ops.log(leaf(-1.0, 1.0) * 1.0)
        with pytest.raises(AnomalyError, match="divide made the first infinity"):
            leaf(1.0) / 0.0
        assert np.isinf((leaf(np.inf) * 2.0).numpy()).all(), "an infinity that was given is no anomaly"
        assert ops.softmax(leaf(1.0, 2.0), mask=np.array([True, False])).numpy().tolist() == [1.0, 0.0]
        y = ops.sqrt(leaf(0.0, 1.0)).sum()
        with pytest.raises(
            AnomalyError, match="in the backward pass of sqrt, divide made the first infinity"
        ):
            y.backward()
    assert STATE.watch is None and STATE.walking is None


def test_detect_anomaly_changes_no_gradient() -> None:
    a = np.random.default_rng(0).standard_normal((3, 3))

    def f(x: Tensor) -> Tensor:
        u, s, v = ops.svd(x)
        return (ops.tanh(x @ v) * s).sum() + ops.softmax(x).max()

    plain = grad(f)(a).numpy()
    with detect_anomaly():
        watched = grad(f)(a).numpy()
    assert np.array_equal(plain, watched), "the walk on tensors must equal the walk on arrays, bit for bit"


def test_complex_gradients_point_uphill() -> None:
    """x.grad is dL/dRe + i dL/dIm, torch's convention."""
    z = tensor(np.array([1.0 + 2.0j]), requires_grad=True)
    ops.square(ops.abs(z)).sum().backward()
    assert abs(z.grad.item() - (2.0 + 4.0j)) <= 1e-15, "the gradient of |z|^2 is 2 z"
    z.grad = None
    ops.real(z * z).sum().backward()
    assert z.grad.item() == 2.0 - 4.0j, "the gradient of Re z^2 is 2 conj(z)"
    z.grad = None
    (z * 1j).backward(np.array([1.0 + 0.0j]))
    assert z.grad.item() == -1.0j, "a given gradient follows the same convention"


def test_check_grad_can_fail() -> None:
    wrong = Op("wrong", lambda x: x * x, (lambda g, y, x: g * x * 2.002,))
    second = Op("wrong", lambda x: x * x * x, (lambda g, y, x: 3.0 * g * ops.stop_gradient(x * x),))
    x = np.array([1.0, 2.0])
    with pytest.raises(
        GradientError, match=r"order 1: derivative .* relative error .* shapes \[\(2,\)\], seed=0"
    ):
        check_grad(lambda t: record(wrong, (t,), {}), x)
    with pytest.raises(GradientError, match="order 2"):
        check_grad(lambda t: record(second, (t,), {}), x)
    assert check_grad(lambda t: record(second, (t,), {}), x, order=1) <= 1e-6
    with pytest.raises(GradientError, match="nan"):
        check_grad(lambda t: t * np.nan, x)
    with pytest.raises(TypeError, match="argument 0 is float32"):
        check_grad(ops.exp, x.astype(np.float32))


def test_gradients_that_a_rule_made_are_not_copied():
    """What `Together` gives for a leaf becomes its `.grad`, though the rule was the last to run."""
    made = []

    def rule(needed, g, y, *values):
        fresh = [g * v for v in reversed(values)]
        made.extend(a.ctypes.data for a in fresh)
        return fresh

    product = Op("product", lambda a, b: a * b, Together(rule))
    a, b = (tensor(np.full((4, 4), v), requires_grad=True) for v in (2.0, 3.0))
    record(product, (a, b), {}).sum().backward()
    assert [leaf.grad.data.ctypes.data for leaf in (a, b)] == made
    assert (a.grad.data == 3.0).all() and (b.grad.data == 2.0).all()
