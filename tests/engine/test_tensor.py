"""What a tensor is and how it meets NumPy: attributes, operators, conversions, refusals."""

import operator
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import DeviceError, DTypeError, GraphError, MinitfError, ShapeError, Tensor, grad, tensor
from minitf.engine.arrays import fingerprint
from minitf.engine.errors import PositionError


def test_attributes() -> None:
    a = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    x = tensor(a, requires_grad=True)
    assert (x.shape, x.dtype, x.ndim, x.size, x.device, len(x)) == ((2, 3), np.float32, 2, 6, "cpu", 2)
    assert x.requires_grad and x.grad is None
    assert not np.shares_memory(x.data, a), "tensor() must copy"
    assert x.numpy() is x.data and x.detach().data is x.data and not x.detach().requires_grad
    assert x.to("cpu") is x
    assert tensor(3.5).item() == 3.5 and float(tensor(2)) == 2.0 and int(tensor(2.0)) == 2 and bool(tensor(1))
    assert repr(tensor([1.0, 2.0], requires_grad=True)) == "tensor([1., 2.], requires_grad=True)"
    assert repr(tensor([1.0], requires_grad=True) * 2) == "tensor([2.], requires_grad=True, made by multiply)"
    assert [float(row) for row in tensor([1.0, 2.0])] == [1.0, 2.0]
    assert tensor(x).requires_grad is False and tensor([1, 2], dtype="float32").dtype == np.float32
    assert x in {x} and tensor([1.0]) not in {x}, "tensors are told apart by identity"
    with pytest.raises(TypeError, match="0-d tensor has no length"):
        len(tensor(1.0))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "pow", "floordiv", "mod"])
@pytest.mark.parametrize("other", [2.0, 3, np.array([1.0, 2.0, 3.0]), np.float64(2.0)])
def test_operators_both_ways(name: str, other: Any) -> None:
    op, a = getattr(operator, name), np.array([1.5, 2.5, 0.5])
    x = tensor(a, requires_grad=True)
    for made, expected in ((op(x, other), op(a, other)), (op(other, x), op(other, a)), (op(x, x), op(a, a))):
        assert isinstance(made, Tensor), f"{name} must give a tensor"
        assert np.array_equal(made.numpy(), expected), f"{name} differs from NumPy"
        assert made.requires_grad is (name not in ("floordiv", "mod"))


def test_comparisons_and_matmul_both_ways() -> None:
    a, b = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 3.0], [2.0, 4.0]])
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        op = getattr(operator, name)
        assert np.array_equal(op(tensor(a), b).numpy(), op(a, b))
        assert np.array_equal(op(a, tensor(b)).numpy(), op(a, b))
    x = tensor(b, requires_grad=True)
    y = a @ x
    assert isinstance(y, Tensor) and np.array_equal(y.numpy(), a @ b)
    y.sum().backward()
    assert np.array_equal(x.grad.numpy(), a.T @ np.ones((2, 2)))
    assert np.array_equal((x @ a).numpy(), b @ a) and np.array_equal(abs(-x).numpy(), b)


def test_constants_follow_the_precision_of_the_tensor() -> None:
    x = tensor([1.0, 2.0], dtype="float32", requires_grad=True)
    wide = np.array([1.0, 2.0])
    for y in (
        x * wide,
        wide + x,
        x * 2,
        2.0 / x,
        x * np.float64(3),
        np.float64(3) * x,
        ops.where(wide > 1, x, wide),
    ):
        assert y.dtype == np.float32, f"{y!r} should have stayed float32"
        y.sum().backward()
        assert x.grad.dtype == np.float32
    assert (x * tensor([1, 2])).dtype == np.float32, "integers follow too"


def test_precisions_of_tensors_do_not_mix() -> None:
    x, y = tensor([1.0], dtype="float32"), tensor([1.0])
    for call in (lambda: x + y, lambda: ops.matmul(x, y), lambda: ops.concat([x, y])):
        with pytest.raises(DTypeError, match=r"tensors of float32 and float64 do not mix; convert"):
            call()


def test_shape_errors_name_operation_shapes_and_axes() -> None:
    x, y = tensor(np.ones((2, 3, 4))), tensor(np.ones((2, 5, 1)))
    with pytest.raises(
        ShapeError, match=r"add: shapes \(2, 3, 4\) and \(2, 5, 1\) do not fit: sizes differ on axis -2"
    ):
        x + y
    with pytest.raises(ValueError, match=r"multiply: shapes \(3,\) and \(2, 3, 4\) .* axis -1"):
        np.ones(3) * x
    with pytest.raises(
        ShapeError, match=r"matmul: .*\(2, 3, 4\).*\(2, 5, 1\).* axis -1 of the first has size 4, axis -2"
    ):
        x @ y
    with pytest.raises(ShapeError, match=r"matmul: .* batch sizes differ on axis -3"):
        x @ np.ones((5, 4, 2))
    with pytest.raises(ShapeError, match=r"reshape: shapes \(2, 3, 4\) .*shape \(5,\)"):
        x.reshape(5)
    with pytest.raises(ShapeError, match=r"concat: shapes \(2, 3, 4\) and \(2, 5, 1\)"):
        ops.concat([x, y], axis=0)
    with pytest.raises(PositionError, match=r"x\[index\]: shape \(2, 3, 4\): index 7 is out of bounds"):
        x[7]
    with pytest.raises(IndexError):
        x[0, 0, 0, 0]
    with pytest.raises(ShapeError, match=r"einsum 'ij->i': term 'ij'"):
        ops.einsum("ij->i", x)
    with pytest.raises(ShapeError, match="at least as many rows"):
        ops.qr(tensor(np.ones((2, 3))))
    with pytest.raises(np.linalg.LinAlgError, match="Singular"):
        ops.inv(tensor(np.zeros((2, 2))))
    assert issubclass(ShapeError, MinitfError) and issubclass(DTypeError, TypeError)


def test_only_floats_can_require_a_gradient() -> None:
    with pytest.raises(DTypeError, match=r"tensor of int64 cannot require a gradient.*dtype='float32'"):
        tensor(np.array([1, 2], dtype=np.int64), requires_grad=True)
    with pytest.raises(DTypeError, match="bool"):
        tensor([True], requires_grad=True)
    with pytest.raises(DTypeError, match="not numbers"):
        tensor(["a"])
    x = tensor([1.5, 2.5], requires_grad=True)
    assert not x.astype("int64").requires_grad, "a conversion to integers is a constant to differentiation"
    assert not (x > 2).requires_grad


def test_numpy_functions_refuse_to_cut_the_graph() -> None:
    x = tensor([1.0, 2.0], requires_grad=True)
    for call in (
        np.exp,
        np.sum,
        np.asarray,
        np.linalg.norm,
        lambda t: np.concatenate([t, t]),
        lambda t: np.add(t, 1, out=np.ones(2)),
    ):
        with pytest.raises(TypeError, match=r"cut the graph silently.*mt\.ops"):
            call(x)
    y = x.detach()
    assert (
        np.array_equal(np.exp(y), np.exp([1.0, 2.0]))
        and np.sum(y) == 3.0
        and np.allclose([y, y], [[1, 2], [1, 2]])
    )
    assert np.asarray(y).dtype == float and np.linalg.norm(y) == np.sqrt(5.0)


def test_tensors_are_values() -> None:
    x = tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="cannot be assigned into"):
        x[0] = 3.0
    before = x
    x += 1.0
    assert x is not before and before.data.tolist() == [1.0, 2.0], "x += y makes a new tensor"


def test_keyword_tensors_are_seen() -> None:
    x, w = tensor(np.eye(2), requires_grad=True), tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    ops.matmul(a=x, b=w).sum().backward()
    assert np.array_equal(x.grad.numpy(), [[3.0, 7.0], [3.0, 7.0]])
    assert ops.sum(x=w, axis=0).requires_grad and ops.where(w > 1, a=w, b=0.0).requires_grad


def test_fingerprints() -> None:
    rng = np.random.default_rng(0)
    for a in (
        rng.random(5),
        rng.random((300, 70)),
        rng.random((70, 300)).T,
        rng.random((9, 600))[:, ::2],
        np.broadcast_to(1.0, (50, 50)),
    ):
        before = fingerprint(a)
        assert before == fingerprint(a) and len(before) <= 2048
        b = a.copy()
        b *= 2
        assert fingerprint(b) != before, "scaling an array must change its fingerprint"
    big = np.zeros(10**5)
    before = fingerprint(big)
    big[0] = 1
    assert fingerprint(big) != before, "the first element of a large array is among the samples"


class Elsewhere(np.ndarray):
    """An array that pretends to live on a GPU: it meets no plain array."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if any(type(a) is np.ndarray and a.ndim for a in inputs):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        plain = [a.view(np.ndarray) if isinstance(a, Elsewhere) else a for a in inputs]
        return np.asarray(getattr(ufunc, method)(*plain, **options)).view(Elsewhere)

    def get(self) -> np.ndarray:
        return self.view(np.ndarray)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cupy(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **options: getattr(np, name)(*args, **options).view(Elsewhere)

    monkeypatch.setitem(sys.modules, "cupy", Cupy(ndarray=Elsewhere))


def test_devices_do_not_mix(pretended_gpu: None) -> None:
    x, here = tensor([1.0, 2.0], device="cuda", requires_grad=True), tensor([1.0, 2.0])
    assert x.device == "cuda" and here.device == "cpu" and type(x.data) is Elsewhere
    for call in (lambda: x + here, lambda: here * x, lambda: ops.matmul(x, here)):
        with pytest.raises(
            DeviceError, match=r"tensors on cpu and cuda do not mix; move one of them, with x\.to"
        ):
            call()
    with pytest.raises(DeviceError, match="the gradient is on cpu, the tensor on cuda"):
        (x * 2.0).backward(here)
    y = x * here.numpy() + 1.0
    assert y.device == "cuda", "a plain array follows the tensor to its device"
    y.to("cpu").sum().backward()
    assert x.grad.device == "cuda" and x.grad.numpy().tolist() == [1.0, 2.0]
    assert fingerprint(x.data) is None


def test_unknown_and_missing_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="write 'cpu' or 'cuda'"):
        tensor([1.0]).to("tpu")
    # None in sys.modules makes `import cupy` fail, also where it is installed.
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"cannot move to 'cuda': .*minitf doctor"):
        tensor([1.0]).to("cuda")


def test_gradients_of_plain_inputs() -> None:
    assert grad(lambda x: (x * x).sum())([1.0, 2.0]).numpy().tolist() == [2.0, 4.0]
    assert grad(lambda x: x * x)(3).item() == 6.0
    with pytest.raises(GraphError, match="called with 1 arguments"):
        grad(lambda x: x, argnums=1)(1.0)
