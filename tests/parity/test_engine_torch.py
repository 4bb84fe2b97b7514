"""Values, gradients and second derivatives of operations against torch's own, in float64 and float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as tf
from torch.nn.attention import SDPBackend, sdpa_kernel

from minitf import ops
from minitf.engine import Tensor, hvp, tensor

pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)
TARGETS = np.array([[0, 3, 2], [1, 1, -1]])
MASK = np.array([[True, False, True, True], [True, True, False, False], [False, True, True, True]])


def r(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def z(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)


def channels_last(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """torch's convolution, which wants channels first and weights (out, in, *kernel), on our layouts."""

    def run(x: Any, w: Any) -> Any:
        return f(x.movedim(-1, 1), w.movedim(-1, 0).movedim(-1, 1), **options).movedim(1, -1)

    return run


def attention(**options: Any) -> Callable[..., Any]:
    """torch's attention in its plain form: the fused one has no second derivative."""

    def run(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return tf.scaled_dot_product_attention(q, k, v, **options)

    return run


def pooled(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: f(x.movedim(-1, 1), 2).movedim(1, -1)


# name -> (ours, torch's, arguments)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[np.ndarray]]] = {
    "layer_norm": (ops.layer_norm, lambda x, w, b: tf.layer_norm(x, (4,), w, b), [r(2, 3, 4), r(4), r(4)]),
    "rms_norm": (ops.rms_norm, lambda x, w: tf.rms_norm(x, (4,), w, eps=1e-6), [r(2, 3, 4), r(4)]),
    "gelu": (ops.gelu, tf.gelu, [r(5)]),
    "gelu tanh": (
        lambda x: ops.gelu(x, approximate="tanh"),
        lambda x: tf.gelu(x, approximate="tanh"),
        [r(5)],
    ),
    "cross_entropy": (
        lambda x: ops.cross_entropy(x, TARGETS, ignore=-1),
        lambda x: tf.cross_entropy(x.reshape(6, 4), torch.tensor(TARGETS).reshape(6), ignore_index=-1),
        [r(2, 3, 4)],
    ),
    "attention": (
        lambda q, k, v: ops.softmax_attention(q, k, v, mask=MASK),
        attention(attn_mask=torch.tensor(MASK)),
        [r(2, 2, 3, 5), r(2, 2, 4, 5), r(2, 2, 4, 5)],
    ),
    "grouped attention": (
        ops.softmax_attention,
        attention(enable_gqa=True),
        [r(2, 4, 3, 5), r(2, 2, 4, 5), r(2, 2, 4, 5)],
    ),
    "conv1d": (
        lambda x, w: ops.conv1d(x, w, stride=2, padding=1, dilation=2),
        channels_last(tf.conv1d, stride=2, padding=1, dilation=2),
        [r(2, 9, 3), r(3, 3, 4)],
    ),
    "conv2d grouped": (
        lambda x, w: ops.conv2d(x, w, padding="same", groups=2),
        channels_last(tf.conv2d, padding="same", groups=2),
        [r(2, 5, 4, 4), r(3, 3, 2, 6)],
    ),
    "conv3d": (ops.conv3d, channels_last(tf.conv3d), [r(1, 3, 4, 3, 2), r(2, 2, 2, 2, 3)]),
    "avg_pool": (lambda x: ops.avg_pool(x, 2), pooled(tf.avg_pool2d), [r(2, 4, 6, 3)]),
    "max_pool": (lambda x: ops.max_pool(x, 2), pooled(tf.max_pool2d), [r(2, 4, 6, 3)]),
    "complex product": (lambda a, b: ops.abs(a * b), lambda a, b: (a * b).abs(), [z(3), z(3)]),
    "complex power": (lambda a, b: a**b, lambda a, b: a**b, [z(3), r(3)]),
    "complex matmul": (ops.matmul, torch.matmul, [z(2, 3), z(3, 2)]),
    "complex functions": (
        lambda a: ops.exp(a) / (1.5 + ops.conj(a) * a) + ops.real(a) * 1j,
        lambda a: torch.exp(a) / (1.5 + torch.conj(a) * a) + torch.real(a) * 1j,
        [z(4)],
    ),
    "fft": (ops.fft, torch.fft.fft, [z(2, 5)]),
    "rfft": (ops.rfft, torch.fft.rfft, [r(2, 5)]),
    "irfft": (lambda x: ops.irfft(x, 6), lambda x: torch.fft.irfft(x, 6), [z(2, 4)]),
}


def scalar(y: Any, lib: Any) -> Any:
    """A bent sum, in which real and imaginary parts weigh differently."""
    if y.dtype in (torch.complex128, torch.complex64) or getattr(y.dtype, "kind", "") == "c":
        y = lib.real(y) * 0.7 + lib.imag(y)
    return lib.sum(lib.sin(y))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [64, 32])
def test_values_and_derivatives(name: str, bits: int) -> None:
    ours, theirs, args = CASES[name]
    if bits == 32:
        args = [a.astype(np.complex64 if a.dtype.kind == "c" else np.float32) for a in args]
    tolerance = 1e-12 if bits == 64 else 1e-5
    xs = [tensor(a, requires_grad=True) for a in args]
    ts = [torch.tensor(a, requires_grad=True) for a in args]
    y, t = ours(*xs), theirs(*ts)
    close(f"{name}: value", y, t, tolerance)
    loss, torch_loss = scalar(y, ops), scalar(t, torch)
    loss.backward(create_graph=True)
    first = torch.autograd.grad(torch_loss, ts, create_graph=True)
    for i, (x, g) in enumerate(zip(xs, first, strict=True)):
        close(f"{name}: gradient of argument {i}", x.grad, g, 10 * tolerance)
    if name == "max_pool":
        # torch's max_pool2d has no second derivative.
        return
    bent = sum((scalar(x.grad, ops) for x in xs), tensor(np.zeros((), xs[0].grad.data.real.dtype)))
    for x in xs:
        x.grad = None
    bent.backward()
    second = torch.autograd.grad(sum(scalar(g, torch) for g in first), ts)
    for i, (x, g) in enumerate(zip(xs, second, strict=True)):
        close(f"{name}: second derivative of argument {i}", x.grad, g, 100 * tolerance)


def close(what: str, ours: Tensor, theirs: Any, tolerance: float) -> None:
    a, b = ours.numpy(), theirs.detach().resolve_conj().numpy()
    assert a.dtype == b.dtype and a.shape == b.shape, (
        f"{what}: {a.dtype} {a.shape}, torch {b.dtype} {b.shape}"
    )
    error = float(np.max(np.abs(a - b))) / max(1.0, float(np.max(np.abs(b))))
    assert error <= tolerance, f"{what} differs from torch by {error:.1e}"


def test_hessian_vector_product() -> None:
    a, x, v = r(4, 4), r(4), r(4)

    def f(t: Any, lib: Any) -> Any:
        return (lib.tanh(lib.matmul(a if lib is ops else torch.tensor(a), t)) ** 3).sum()

    _, expected = torch.autograd.functional.hvp(lambda t: f(t, torch), torch.tensor(x), torch.tensor(v))
    close("hvp", hvp(lambda t: f(t, ops), x, v), expected, 1e-12)
