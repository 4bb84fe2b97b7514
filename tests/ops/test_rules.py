"""Every rule of the derivative table against central differences, to second order.

One literal table: operation name -> cases, each a function and the makers of its arguments. A rule without a
case fails `test_every_rule_has_a_case`, and a case that never runs its operation fails `test_gradient`.
"""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minitf import ops
from minitf.engine import STATE, F, Tensor, check_grad, rules, tape, tensor, transforms, vjp
from minitf.engine.rules import RULES

Maker = Callable[[np.random.Generator], np.ndarray]


def r(*shape: int) -> Maker:
    """Standard normal."""
    return lambda rng: np.asarray(rng.standard_normal(shape))


def pos(*shape: int) -> Maker:
    """Between 0.5 and 2."""
    return lambda rng: np.asarray(rng.uniform(0.5, 2.0, shape))


def unit(*shape: int) -> Maker:
    """Between -0.9 and 0.9."""
    return lambda rng: np.asarray(rng.uniform(-0.9, 0.9, shape))


def z(*shape: int) -> Maker:
    """Complex normal."""
    return lambda rng: np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def unary(name: str, make: Callable[..., Maker] = r) -> list[tuple[Any, ...]]:
    op = getattr(ops, name)
    return [(op, make(2, 3)), (op, make()), (op, make(0, 3)), (op, make(2, 1, 3))]


def binary(
    name: str, left: Callable[..., Maker] = r, right: Callable[..., Maker] = r
) -> list[tuple[Any, ...]]:
    op = getattr(ops, name)
    return [
        (op, left(2, 3), right(2, 3)),
        (op, left(2, 3), right(3)),
        (op, left(), right(2, 1)),
        (op, left(2, 1, 3), right(4, 1)),
        (op, left(0, 3), right(1, 1, 3)),
        (lambda a: op(a, 0.7) + op(0.7, a), left(3) if right is r else right(3)),
    ]


def mask(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).random(shape) < 0.5


def well(a: Any) -> Any:
    """Far from singular."""
    return a + 4.0 * np.eye(a.shape[-1])


def definite(a: Any) -> Any:
    return ops.matmul(a, ops.matrix_transpose(a)) + np.eye(a.shape[-1])


def whole_svd(a: Any) -> Any:
    # Products in which the signs of the singular vectors cancel.
    u, s, vh = ops.svd(a)
    left = ops.matmul(u, ops.matrix_transpose(u) * np.arange(1.0, u.shape[-2] + 1))
    return ops.concat([left.reshape((-1,)), s.reshape((-1,)), ops.matmul(u, vh).reshape((-1,))])


BACK = np.array([[2, 0, 2], [1, 1, 0]])
DIFFERENT = np.array([[2, 0], [1, 2]])

CASES: dict[str, list[tuple[Any, ...]]] = {
    "add": binary("add"),
    "subtract": binary("subtract"),
    "multiply": [*binary("multiply"), (lambda a: a * a, r(3)), (ops.multiply, z(2), z(2)),
                 (ops.multiply, z(2), r(3, 2))],
    "divide": [*binary("divide", r, pos), (ops.divide, z(3), z(3))],
    "negative": unary("negative"),
    "pow": [
        *binary("pow", pos, pos),
        (lambda a: a**3, r(2, 3)),
        (lambda a: a**-2.0, pos(2, 3)),
        (lambda a: a**0, r(3)),
        (lambda a: a**1, r(3)),
        (lambda a: a ** np.array([0.0, 1.0, 2.0]), r(2, 3)),
        (lambda a, b: a**b, z(3), r(3)),
    ],
    "reciprocal": unary("reciprocal", pos),
    "square": [*unary("square"), (ops.square, z(3))],
    "sqrt": unary("sqrt", pos),
    "rsqrt": unary("rsqrt", pos),
    "abs": [*unary("abs"), (ops.abs, z(2, 3))],
    "maximum": binary("maximum"),
    "minimum": binary("minimum"),
    "where": [
        (lambda a, b: ops.where(mask(2, 3), a, b), r(2, 3), r(3)),
        (lambda a, b: ops.where(mask(4, 1), a, b), r(), r(1, 3)),
        (lambda a: ops.where(a > 0, a, 0.5), r(5)),
        (lambda a: ops.where(mask(0, 3), 1.0, a), r(0, 3)),
    ],
    "exp": [*unary("exp"), (ops.exp, z(2))],
    "expm1": unary("expm1"),
    "log": [*unary("log", pos), (ops.log, z(2))],
    "log1p": unary("log1p", pos),
    "log2": unary("log2", pos),
    "logaddexp": binary("logaddexp"),
    "sin": unary("sin"),
    "cos": unary("cos"),
    "tan": unary("tan", unit),
    "asin": unary("asin", unit),
    "acos": unary("acos", unit),
    "atan": unary("atan"),
    "atan2": binary("atan2", pos, pos),
    "sinh": unary("sinh"),
    "cosh": unary("cosh"),
    "tanh": [*unary("tanh"), (ops.tanh, z(2))],
    "erf": unary("erf"),
    "sigmoid": unary("sigmoid"),
    "softplus": unary("softplus"),
    "relu": unary("relu"),
    "real": [*unary("real"), (ops.real, z(2, 3))],
    "imag": [(ops.imag, z(2, 3)), (ops.imag, z())],
    "conj": [*unary("conj"), (ops.conj, z(2, 3)), (lambda a: ops.real(a * ops.conj(a)), z(3))],
    "complex": [(ops.complex, r(2, 3), r(3)), (ops.complex, r(), r(0))],
    "sum": [
        (ops.sum, r(2, 3)),
        (ops.sum, r()),
        (lambda x: x.sum(axis=0), r(0, 3)),
        (lambda x: x.sum(axis=(0, -1), keepdims=True), r(2, 3, 4)),
        (lambda x: x.sum(axis=1), z(2, 3)),
    ],
    "mean": [
        (ops.mean, r(2, 3)),
        (ops.mean, r()),
        (lambda x: x.mean(axis=1), r(0, 3)),
        (lambda x: x.mean(axis=(0, -1), keepdims=True), r(2, 3, 4)),
    ],
    "prod": [
        (ops.prod, r(2, 3)),
        (ops.prod, r()),
        (lambda x: ops.prod(x * np.array([1.0, 0.0, 1.0]), axis=1), r(2, 3)),
        (lambda x: ops.prod(x, axis=0, keepdims=True), r(3, 2)),
        (lambda x: ops.prod(x, axis=0), r(0, 2)),
    ],
    "max": [
        (ops.max, r(2, 3)),
        (ops.max, r()),
        (lambda x: x.max(axis=1), r(0, 3)),
        (lambda x: x.max(axis=(0, -1), keepdims=True), r(2, 3, 4)),
    ],
    "min": [(ops.min, r(2, 3)), (ops.min, r()), (lambda x: x.min(axis=-2), r(2, 3, 4))],
    "logsumexp": [
        (lambda x: ops.logsumexp(x, axis=None), r(2, 3)),
        (lambda x: ops.logsumexp(x, axis=(0, 2), keepdims=True), r(2, 3, 4)),
        (ops.logsumexp, r(0, 3)),
        (lambda x: ops.logsumexp(ops.where(np.array([True, False, True]), x, -np.inf)), r(2, 3)),
    ],
    "softmax_rows": [
        (ops.softmax, r(2, 3)),
        (lambda x: ops.softmax(x, axis=0), r(3, 2)),
        (lambda x: ops.softmax(x, mask=np.array([[True, False, True], [False, False, False]])), r(2, 3)),
        (ops.softmax, r(0, 3)),
        (ops.softmax, r(2, 0)),
    ],
    "log_softmax": [(ops.log_softmax, r(2, 3)), (lambda x: ops.log_softmax(x, axis=0), r(3, 2)),
                    (ops.log_softmax, r(0, 3))],
    "cumsum": [(ops.cumsum, r(2, 3)), (lambda x: ops.cumsum(x, axis=0), r(3, 2)), (ops.cumsum, r(2, 0))],
    "cumprod": [
        (ops.cumprod, r(2, 3)),
        (lambda x: ops.cumprod(x, axis=0), r(3, 2)),
        (lambda x: ops.cumprod(x * np.array([1.0, 0.0, 1.0])), r(2, 3)),
        (ops.cumprod, r(2, 0)),
    ],
    "copy": unary("copy"),
    "reshape": [(lambda x: x.reshape(3, 2), r(2, 3)), (lambda x: x.reshape((-1,)), r(2, 3)),
                (lambda x: x.reshape(1, 1), r()),
                (lambda x: x.reshape(3, 0), r(0, 3)), (lambda x: ops.squeeze(ops.expand_dims(x, -1), -1),
                r(2))],
    "permute_dims": [(lambda x: ops.permute_dims(x, (2, 0, 1)), r(2, 3, 4)),
                     (lambda x: ops.permute_dims(x, (-1, 0, 1)), r(2, 0, 4)),
                     (lambda x: ops.moveaxis(x, 0, -1), r(2, 3, 4)), (lambda x: ops.permute_dims(x, ()),
                     r())],
    "matrix_transpose": [(ops.matrix_transpose, r(2, 3)), (lambda x: x.mT, r(2, 0, 4))],
    "broadcast_to": [(lambda x: ops.broadcast_to(x, (4, 2, 3)), r(2, 1)),
                     (lambda x: ops.broadcast_to(x, (2, 3)), r()),
                     (lambda x: ops.broadcast_to(x, (0, 3)), r(3)), (lambda x: ops.repeat(x, 2, 0), r(2, 3))],
    "flip": [(ops.flip, r(2, 3)), (lambda x: ops.flip(x, axis=(0, -1)), r(2, 3, 2)), (ops.flip, r(0, 2))],
    "roll": [(lambda x: ops.roll(x, 2), r(2, 3)), (lambda x: ops.roll(x, (1, -2), axis=(0, 1)), r(2, 3)),
             (lambda x: ops.roll(x, -1, axis=0), r(3, 0))],
    "concat_parts": [(lambda a, b: ops.concat([a, b, a], axis=1), r(2, 3), r(2, 1)),
                     (lambda a, b: ops.concat([a, b], axis=-1), r(2, 0), r(2, 2)),
                     (lambda a: ops.concat([a, np.ones((1, 2))]), r(2, 2)),
                     (lambda x: ops.tile(x, (2, 3)), r(2, 3))],
    "split_parts": [
        (lambda x: ops.split(x, [1, 3, 2], axis=1)[1], r(2, 6)),
        (lambda x: tuple(ops.split(x, 2)), r(4, 3)),
        (lambda x: ops.split(x, [2, 0, 1])[0] * 2.0, r(3)),
        (lambda x: ops.unstack(x, axis=-1)[2], r(2, 1, 3)),
    ],
    "stack_parts": [(lambda a, b: ops.stack([a, b, a], axis=-1), r(2, 3), r(2, 3)),
                    (lambda a, b: ops.stack([a, b]), r(), r())],
    "pad_constant": [(lambda x: ops.pad(x, [(1, 0), (2, 3)], value=7.0), r(2, 3)), (lambda x: ops.pad(x,
                     [(1, 1)]), r(0))],
    "unfold": [(lambda x: ops.unfold(x, 2), r(2, 5)),
               (lambda x: ops.unfold(x, 2, axis=1, step=2, dilation=2), r(2, 7, 2)),
               (lambda x: ops.unfold(x, 3, axis=0, step=3), r(8)), (lambda x: ops.unfold(x, 2), r(0, 3))],
    "fold": [(lambda x: ops.fold(x, (2, 5)), r(2, 4, 2)),
             (lambda x: ops.fold(x, (2, 7, 2), axis=1, step=2, dilation=2), r(2, 3, 2, 2)),
             (lambda x: ops.fold(x, (8,), axis=0, step=3), r(2, 3))],
    "astype_to": [(lambda x: ops.real(ops.astype(x, "complex128") * (1.0 + 2.0j)), r(2, 3))],
    "to_device": [(lambda x: ops.to_device(x, "cpu") * x, r(2, 3))],
    "getitem": [
        (lambda x: x[1:, ::-2], r(3, 4)),
        (lambda x: x[..., None, 0], r(3, 4)),
        (lambda x: x[BACK], r(3, 4)),
        (lambda x: x[:, BACK], r(2, 3)),
        (lambda x: x[BACK, np.array([0, 1, 0])], r(3, 2)),
        (lambda x: x[[1, 1, 0]], r(2, 2)),
        (lambda x: x[tensor(np.array([1, 1]))], r(2, 2)),
        (lambda x: x[mask(3, 4)], r(3, 4)),
        (lambda x: x[mask(3), 1:], r(3, 4)),
        (lambda x: x[[]], r(3, 4)),
        (lambda x: x[()], r()),
        (lambda x: x[-1], r(3)),
        (ops.diagonal, r(2, 3, 3)),
        (lambda x: ops.take(x, np.array([[2, 2], [0, 1]]), axis=-1), r(2, 3)),
        (lambda x: ops.pad(x, [(0, 0), (2, 1)], mode="reflect"), r(2, 3)),
        (lambda x: ops.embedding(BACK, x), r(3, 2)),
    ],
    "scatter": [(lambda x: F.scatter(x, (BACK,), (4, 2)), r(2, 3, 2)),
                (lambda x: F.scatter(x, (slice(None), 1), (3, 2)), r(3)),
                (lambda x: F.scatter(x, (slice(None), BACK), (2, 3)), r(2, 2, 3)),
                (lambda x: F.scatter(x, (np.array([], int),), (4, 2)), r(0, 2))],
    "take_along_axis": [(lambda x: ops.take_along_axis(x, BACK, axis=1), r(2, 3)),
                        (lambda x: ops.take_along_axis(x, BACK, axis=0), r(3, 3)),
                        (lambda x: ops.sort(x, descending=True), r(2, 5)),
                        (lambda x: ops.topk(x, 2, axis=0)[0], r(4, 2)),
                        (lambda x: ops.take_along_axis(x, indices=BACK[:, :0], axis=1), r(2, 3))],
    "put_along_axis": [(lambda x, v: ops.put_along_axis(x, DIFFERENT, v, axis=1), r(2, 3), r(2, 2)),
                       (lambda x, v: ops.put_along_axis(x, DIFFERENT, values=v), r(2, 3), r())],
    "scatter_add": [(lambda x, v: ops.scatter_add(x, BACK, v, axis=1), r(2, 3), r(2, 3)),
                    (lambda x, v: ops.scatter_add(x, BACK, v, axis=0), r(3, 3), r(3))],
    "straight_through": [(lambda x: ops.straight_through(x.detach(), x) * x, r(2, 3))],
    "matmul": [
        (ops.matmul, r(2, 3), r(3, 4)),
        (ops.matmul, r(5, 2, 3), r(3, 4)),
        (ops.matmul, r(5, 1, 2, 3), r(4, 3, 2)),
        (ops.matmul, r(2, 3), r(5, 3, 4)),
        (ops.matmul, r(3), r(3)),
        (ops.matmul, r(3), r(3, 4)),
        (ops.matmul, r(2, 3), r(3)),
        (ops.matmul, r(3), r(5, 3, 2)),
        (ops.matmul, r(5, 2, 3), r(3)),
        (ops.matmul, r(2, 3, 0), r(0, 4)),
        (ops.matmul, r(0, 3, 2), r(2, 4)),
        (ops.matmul, z(2, 3), z(3, 2)),
    ],
    "einsum_pairs": [
        (lambda a, b: ops.einsum("bnd,dm->bnm", a, b), r(2, 3, 4), r(4, 2)),
        (lambda a, b: ops.einsum("...nd,...md->...nm", a, b), r(2, 3, 4), r(1, 2, 4)),
        (lambda a, b: ops.einsum("...d,...d", a, b), r(2, 4), r(3, 1, 4)),
        (lambda a: ops.einsum("...d->...", a), r(1, 4)),
        (lambda a, b, c: ops.einsum("ij,jk,kl->il", a, b, c), r(2, 3), r(3, 2), r(2, 2)),
        (lambda a: ops.einsum("ii->i", a), r(3, 3)),
        (lambda a, b: ops.einsum("bii,b->", a, b), r(2, 3, 3), r(2)),
        (lambda a, b: ops.einsum("ij,k->k", a, b), r(2, 3), r(4)),
        (lambda a: ops.einsum("ij->ji", a), r(2, 3)),
        (lambda a, b: ops.einsum("ij,jk", a, b), r(0, 3), r(3, 2)),
        (lambda a, b: ops.einsum("i,i->i", a, b), r(1), r(3)),
        (lambda a, b: ops.einsum("ij,kj->ik", a, b), r(3, 1), r(2, 3)),
        (lambda a, b: ops.einsum("ij,kj->ik", a, b), r(3, 1), r(2, 1)),
        (lambda a, b: ops.einsum("ij,kj->ik", a, b), r(3, 0), r(2, 0)),
        (lambda a, b: ops.tensordot(a, b, axes=1), r(2, 3), r(3, 4)),
        (lambda a, b: ops.tensordot(a, b, axes=((0, 2), (1, 0))), r(2, 3, 4), r(4, 2)),
        (lambda a, b: ops.einsum("ij,jk->ik", a, b), z(2, 3), z(3, 2)),
    ],
    "inv": [(lambda a: ops.inv(well(a)), r(3, 3)), (lambda a: ops.inv(well(a)), r(2, 2, 2))],
    "solve": [
        (lambda a, b: ops.solve(well(a), b), r(3, 3), r(3, 2)),
        (lambda a, b: ops.solve(well(a), b), r(3, 3), r(3)),
        (lambda a, b: ops.solve(well(a), b), r(2, 3, 3), r(3)),
        (lambda a, b: ops.solve(well(a), b), r(2, 3, 3), r(3, 2)),
    ],
    "cholesky": [(lambda a: ops.cholesky(definite(a)), r(3, 3)), (lambda a: ops.cholesky(definite(a)),
                 r(2, 2, 2))],
    "qr": [(ops.qr, r(4, 3)), (lambda a: ops.qr(a)[0], r(3, 3)), (lambda a: ops.qr(a)[1], r(2, 3, 2))],
    "svd": [(lambda a: ops.svd(a)[1], r(3, 3)), (whole_svd, r(3, 3)), (whole_svd, r(4, 2)), (whole_svd,
            r(2, 4))],
    "fft": [(ops.fft, r(2, 5)), (ops.fft, z(4)), (lambda x: ops.fft(x, axis=0), z(3, 2))],
    "ifft": [(ops.ifft, r(2, 5)), (ops.ifft, z(4)), (lambda x: ops.ifft(x, axis=0), z(3, 2))],
    "rfft": [(ops.rfft, r(2, 5)), (ops.rfft, r(4)), (lambda x: ops.rfft(x, axis=0), r(4, 2)), (ops.rfft,
             r(1))],
    "irfft": [(lambda x: ops.irfft(x, 5), z(2, 3)), (lambda x: ops.irfft(x, 4), z(3)),
              (lambda x: ops.irfft(x, 6, axis=0), z(4, 2)),
              (lambda x: ops.irfft(x, 1), z(2, 1))],
}  # fmt: skip

EACH = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]
LAYOUTS = ("contiguous", "transposed", "strided", "reversed")


def laid_out(a: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another arrangement of memory."""
    if layout == "transposed" and a.ndim:
        return np.ascontiguousarray(a.T).T
    if layout == "strided" and a.ndim:
        return np.repeat(a, 2, axis=-1)[..., ::2]
    if layout == "reversed" and a.ndim:
        return a[..., ::-1].copy()[..., ::-1]
    return a


def made(case: tuple[Any, ...], layout: str = "contiguous") -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [laid_out(make(rng), layout) for make in case[1:]]


def test_every_rule_has_a_case() -> None:
    missing = sorted(set(RULES) - set(CASES))
    unknown = sorted(set(CASES) - set(RULES))
    assert not missing, f"rules without a case in CASES: {missing}"
    assert not unknown, f"cases for operations that have no rule: {unknown}"


@pytest.mark.parametrize(("name", "case"), EACH)
def test_gradient(name: str, case: tuple[Any, ...]) -> None:
    seen: set[str] = set()
    STATE.watch = lambda op, *_: seen.add(op)
    try:
        case[0](*[tensor(a, requires_grad=True) for a in made(case)])
    finally:
        STATE.watch = None
    assert name in seen, f"the case under {name!r} runs {sorted(seen)}, not the operation that it is for"
    for layout in LAYOUTS:
        args = made(case, layout)
        before = [a.copy() for a in args]
        check_grad(case[0], *args, order=2)
        for a, b in zip(args, before, strict=True):
            assert np.array_equal(a, b), f"{name}: an argument in {layout} layout was changed by the gradient"


@pytest.mark.parametrize(("name", "case"), EACH)
def test_single_precision_stays_single(name: str, case: tuple[Any, ...]) -> None:
    """Gradients of float32 arguments are float32, and those of float64 up to rounding."""
    single = {np.dtype("float64"): np.float32, np.dtype("complex128"): np.complex64}
    if name == "astype_to":
        case = (lambda x: ops.astype(x, "complex64" if x.dtype == np.float32 else "complex128"), *case[1:])
    exact = gradients(case[0], made(case))
    args = [a.astype(single[a.dtype]) for a in made(case)]
    close = gradients(case[0], args)
    for i, (a, g, g64) in enumerate(zip(args, close, exact, strict=True)):
        assert g.dtype == a.dtype, f"{name}: argument {i} is {a.dtype}, its gradient {g.dtype}"
        scale = max(1.0, float(np.max(np.abs(g64), initial=0.0)))
        error = float(np.max(np.abs(g - g64), initial=0.0)) / scale
        assert error <= 1e-4, (
            f"{name}: the float32 gradient of argument {i} is off by {error:.1e} of its scale"
        )


def gradients(f: Callable[..., Any], args: list[np.ndarray]) -> list[np.ndarray]:
    def joined(*xs: Tensor) -> Tensor:
        y = f(*xs)
        return ops.concat([part.reshape((-1,)) for part in y]) if isinstance(y, tuple) else y

    y, pull = vjp(joined, *args)
    wanted = {a.dtype.itemsize // (2 if a.dtype.kind == "c" else 1) for a in args}
    width = y.dtype.itemsize // (2 if y.dtype.kind == "c" else 1)
    assert {width} == wanted, f"the output is {y.dtype} for arguments of {[a.dtype.name for a in args]}"
    cotangent = np.random.default_rng(2).standard_normal(y.shape)
    return [g.numpy() for g in pull(cotangent.astype(y.dtype))]


def test_every_operation_that_the_engine_names_exists() -> None:
    for module in (rules, tape, transforms):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "F":
                assert hasattr(F, node.attr), (
                    f"{module.__name__} uses F.{node.attr}, which no operation provides"
                )
    missing = [name for name in RULES if not hasattr(F, name)]
    assert not missing, f"rules for operations that do not exist: {missing}"
