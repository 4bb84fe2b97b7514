"""sigmaReparam: a linear layer whose weight is divided by its spectral norm, times a learned scalar.

    v  = W^T u / ||W^T u||,   u' = W v / ||W v||       one step of power iteration, constants for the gradient
    sigma = u'^T W v                                   tends to the largest singular value of W
    W_hat = (gamma / sigma) W
    y  = x W_hat + b

    x  (..., D)     y  (..., E)     W  (D, E)     gamma  a scalar     b  (E,)
    u  (D,)  a unit vector that is kept: u <- u' in each forward pass in training mode, and only there

However large W grows, the layer stretches no vector by more than |gamma|, once u has converged. That keeps
the scores of attention from exploding. At the start u is the top left singular vector of W and gamma = sigma,
so that the layer equals the plain one.

    dL/dW = (gamma / sigma) (G - (<G, W> / sigma) u' v^T),   dL/dgamma = <G, W> / sigma,   G = dL/dW_hat

Cost: 2 N D E operations for the tokens and 6 D E for the step of power iteration.
Source: Stabilizing Transformer Training by Preventing Attention Entropy Collapse, Zhai et al.,
arXiv:2303.06296, 2023. Convolutions: the kernel is flattened to (K_h K_w C_in, C_out).
Differs from the paper: gamma starts at sigma, as the published vision code does; the paper and the speech
code start at 1 (`gamma=1.0`, there with std=0.1). The published code writes W as (out, in), and the vision
code cuts off the tails of the normal values that W starts from.
Numerics: the power iteration runs in float32 or wider. The gradient takes u' and v for constants, which is
the derivative of the spectral norm once they have converged. Do not decay gamma.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor, array_module
from minitf.nn import Buffer, Card, Case, Linear, Module, Paper, Parameter, identity, init, positive

CARD = Card(
    name="sigma_reparam",
    title="Linear layer with a reparametrised spectral norm",
    kind="adapter",
    family="reparametrisation",
    papers=(
        Paper(
            "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", "2303.06296", 2023
        ),
    ),
    causal=True,
    streams=False,
    grid="any",
    complexity="2 N D E + 6 D E",
    properties=("token_wise",),
    basis="published code: apple/ml-sigma-reparam vision/layers.py, speech/layers.py",
    expected_failures={
        "gradients": "u' and v move with W but count as constants, so the gradient of W is that of the "
        "spectral norm at convergence, not of one step of power iteration"
    },
    parity=("apple/ml-sigma-reparam fea4e35 vision/layers.py SNLinear",),
)


def power_step(w: Array, u: Array) -> tuple[Array, Array]:
    """u' (D,) and v (E,), unit vectors, from W (D, E) and u (D,)."""
    v = w.T @ u
    v = v / np.linalg.norm(v)
    u = w @ v
    return u / np.linalg.norm(u), v


def reparametrised(w: Tensor, gamma: Tensor, u: Array) -> tuple[Tensor, Array, float]:
    """W_hat of the shape of W (..., E), u' and sigma. All axes but the last are flattened to D."""
    flat = w.reshape((-1, w.shape[-1])).astype(u.dtype)
    u, v = power_step(flat.data, u)
    # sigma = u'^T W v: a scalar through which the gradient reaches W
    sigma = (Tensor(u[None]) @ flat @ Tensor(v[:, None])).sum()
    return w * (gamma / sigma).astype(w.dtype), u, sigma.item()


class SigmaReparam(Module):
    """x (..., D) -> (..., E), as `Linear`.

    Parameters: weight W (D, E), normal with std 0.02; gamma, a scalar; bias (E,), zero, or None.
    Buffers: u (D,) and sigma, a scalar: what power iteration has found.

    Args:
        dim: D. n_out: E, default D. gamma: where gamma starts; the spectral norm of W if left out.
        std: of the initial weight. values: the initial weight itself.
        update: "forward" moves u in every forward pass in training mode; "manual" leaves that to
            `power_iterate()`, once for each step of the optimiser, where several passes make one step.

    Raises:
        ValueError: another `update`; sizes or std of 0 or less; gamma NaN; a weight of zeros, which
            has no direction.
    """

    card = CARD

    def __init__(
        self,
        dim: int,
        *,
        n_out: int | None = None,
        bias: bool = True,
        gamma: float | None = None,
        std: float = 0.02,
        values: Any = None,
        update: str = "forward",
        seed: init.Seed = 0,
        dtype: Any = "float32",
    ):
        positive(dim=dim, n_out=n_out, std=std)
        if update not in ("forward", "manual"):
            raise ValueError(f"update must be 'forward' or 'manual', not {update!r}")
        if gamma is not None and math.isnan(gamma):
            raise ValueError("gamma must be a number, not NaN")
        n_out = dim if n_out is None else n_out
        w = init.normal(seed, (dim, n_out), std, dtype) if values is None else np.asarray(values)
        wide = np.promote_types(w.dtype, "float32")
        left, s, _ = np.linalg.svd(w.reshape((-1, w.shape[-1])).astype(wide), full_matrices=False)
        if s[0] == 0.0:
            raise ValueError("a weight of zeros has no spectral norm to divide by: start from another")
        self.update = update
        self.weight = Parameter(w)
        self.gamma = Parameter(np.asarray(s[0] if gamma is None else gamma, dtype=wide))
        self.bias = Parameter(np.zeros(w.shape[-1], dtype=w.dtype)) if bias else None
        self.u = Buffer(np.ascontiguousarray(left[:, 0]))
        self.sigma = Buffer(np.asarray(s[0]))

    @classmethod
    def from_linear(cls, linear: Linear, **options: Any) -> Self:
        """The same map as a trained `Linear`, from copies of its weights. options: gamma, update."""
        dim, n_out = linear.weight.shape
        new = cls(
            dim, n_out=n_out, bias=linear.bias is not None, values=linear.weight.numpy().copy(), **options
        )
        if new.bias is not None and linear.bias is not None:
            new.bias.data = linear.bias.data.copy()
        return new

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.effective_weight()
        return y if self.bias is None else y + self.bias

    def effective_weight(self) -> Tensor:
        """W_hat (D, E). In training mode, and unless `update` is "manual", u and sigma move."""
        w_hat, u, sigma = reparametrised(self.weight, self.gamma, self.u.data)
        if self.training and self.update == "forward":
            self.u.data, self.sigma.data = u, array_module(u).asarray(sigma, dtype=u.dtype)
        return w_hat

    def power_iterate(self, steps: int = 1) -> None:
        """Move u and sigma by some steps, in any mode."""
        w = self.weight.numpy().reshape((-1, self.weight.shape[-1])).astype(self.u.dtype)
        for _ in range(steps):
            u, v = power_step(w, self.u.data)
            self.u.data, self.sigma.data = u, np.asarray(u @ w @ v)

    def merge(self) -> Linear:
        """The plain `Linear` that this layer is in eval mode: W_hat and the bias, for inference."""
        w_hat = reparametrised(self.weight, self.gamma, self.u.data)[0].numpy()
        linear = Linear(w_hat.shape[0], w_hat.shape[1], self.bias is not None, values=w_hat)
        if linear.bias is not None and self.bias is not None:
            linear.bias.data = self.bias.data.copy()
        return linear


class SigmaConv(SigmaReparam):
    """x (B, rows, columns, C_in) -> (B, rows', columns', C_out): a convolution with the same treatment.

    Parameters and buffers as `SigmaReparam`, with weight (K_h, K_w, C_in, C_out) and u (K_h K_w C_in,).
    conv: options of `ops.conv2d`, such as stride and padding.
    """

    def __init__(self, kernel: Any, *, conv: dict[str, Any] | None = None, **options: Any):
        kernel = np.asarray(kernel)
        super().__init__(kernel.shape[-2], n_out=kernel.shape[-1], values=kernel, **options)
        self.conv = conv or {}

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.effective_weight(), self.bias, **self.conv)


def build(case: Case, gamma: float = 0.7) -> SigmaReparam:
    """D = h d, E = D + 1; a bias, and u off the singular vectors."""
    rng, n_out = case.rng(), case.dim + 1
    layer = SigmaReparam(case.dim, n_out=n_out, gamma=gamma, seed=case.seed, dtype="float64")
    assert layer.bias is not None
    layer.bias.data = rng.standard_normal(case.dim + 1)
    u = rng.standard_normal(case.dim)
    layer.u.data = u / np.linalg.norm(u)
    return layer.eval()


def backward(case: Case) -> tuple[SigmaReparam, Array, Array, Array]:
    """A layer with gradients, its u' and v, and G = dL/dW_hat, for a random cotangent c: G = sum of x^T c."""
    layer, x = build(case), case.tokens()
    c = case.rng().standard_normal((case.b, case.t, case.dim + 1))
    layer(x).backward(c)
    u, v = power_step(layer.weight.data, layer.u.data)
    return layer, u, v, np.einsum("bti,bto->io", x.data, c)


@identity("the layer equals the published equations, with W as (out, in)")
def by_equations(case: Case) -> tuple[Tensor, Any]:
    layer, x = build(case), case.tokens()
    w, u = layer.weight.data.T, layer.u.data
    v = np.array([row @ u for row in w])
    v = v / math.sqrt((v * v).sum())
    u = np.array([column @ v for column in w.T])
    u = u / math.sqrt((u * u).sum())
    assert layer.bias is not None
    return layer(x), x.data @ (0.7 / (v @ w @ u) * w).T + layer.bias.data


@identity("at the start it equals the plain linear layer")
def plain_start(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = SigmaReparam(case.dim, seed=case.seed, dtype="float64"), case.tokens()
    return layer(x), x @ layer.weight


@identity("scaling W by a changes the map by the sign of a only")
def scale_free(case: Case) -> tuple[Tensor, Tensor]:
    layer, x, left = build(case), case.tokens(), []
    assert layer.bias is not None
    y, w = layer(x) - layer.bias, layer.weight.data
    for a in (3.0, -0.2):
        layer.weight.data = a * w
        left.append(layer(x) - layer.bias)
    return ops.stack(left), ops.stack([y, -y])


@identity("after 50 passes in training mode the spectral norm of W_hat is |gamma|, and u a singular vector")
def converged(case: Case) -> tuple[Any, Any]:
    layer, x, rng = build(case, gamma=-1.3), case.tokens(), case.rng()
    # Singular values 1, 1/2, 1/4, ...: each pass divides the error by 4.
    a, b = (np.linalg.qr(rng.standard_normal((n, case.dim)))[0] for n in (case.dim, case.dim + 1))
    layer.weight.data = a * 0.5 ** np.arange(case.dim) @ b.T
    layer.train()
    for _ in range(50):
        layer(x)
    layer.eval()
    norm = np.linalg.norm(layer.effective_weight().data, 2)
    return np.array([norm, layer.sigma.item(), abs(layer.u.data @ a[:, 0])]), np.array([1.3, 1.0, 1.0])


@identity("dL/dW and dL/dgamma are as the equations say")
def gradient(case: Case) -> tuple[Any, Any]:
    layer, u, v, g = backward(case)
    w = layer.weight.data
    sigma, inner = u @ w @ v, (g * w).sum()
    expected = 0.7 / sigma * (g - inner / sigma * np.outer(u, v))
    assert layer.weight.grad is not None and layer.gamma.grad is not None
    left = np.append(layer.weight.grad.data.ravel(), layer.gamma.grad.data)
    return left, np.append(expected.ravel(), inner / sigma)


@identity("dL/dW is orthogonal to W: no step changes the length of W to first order")
def orthogonal(case: Case) -> tuple[Any, Any]:
    layer = backward(case)[0]
    w, grad = layer.weight.data, layer.weight.grad
    assert grad is not None
    # The cosine of the angle between them.
    return (grad.data * w).sum() / (np.linalg.norm(grad.data) * np.linalg.norm(w)), np.zeros(())


@identity("merged for inference it is a plain linear layer with the same outputs")
def merged(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.tokens()
    return layer.merge()(x), layer(x)


@identity("a convolution with a kernel of one pixel is the linear layer of every pixel")
def one_pixel(case: Case) -> tuple[Tensor, Tensor]:
    layer, x = build(case), case.image()
    conv = SigmaConv(layer.weight.data[None, None], gamma=0.7).eval()
    conv.load_state_dict({**layer.state_dict(), "weight": layer.weight.data[None, None]})
    return conv(x), layer(x)


@identity("a convolution is bounded as its flattened kernel is: patches (K_h K_w C_in) times W_hat")
def patches(case: Case) -> tuple[Tensor, Tensor]:
    rng = case.rng()
    kernel = rng.standard_normal((2, 1, case.dim, 3))
    x = Tensor(rng.standard_normal((2, case.t + 1, 1, case.dim)))
    conv = SigmaConv(kernel, gamma=0.7, conv={"padding": 0}).eval()
    linear = SigmaReparam(2 * case.dim, values=kernel.reshape((-1, 3)), gamma=0.7).eval()
    rows = ops.concat([x[:, :-1, 0], x[:, 1:, 0]], axis=-1)
    return conv(x)[:, :, 0], linear(rows)
