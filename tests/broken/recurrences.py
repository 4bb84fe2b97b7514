"""A right recurrence with a state, in chunks and by steps, and versions of it that are each wrong in one way.

S_t = r S_{t-1} + k_t^T v_t,   o_t = q_t S_t,   y = (norm(o) * silu(z)) W_o        0 < r < 1 for each head
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor, no_grad, stop_gradient
from minitf.nn import Buffer, Dropout, Linear, Module, Parameter, RMSNorm, init

HOW: dict[str, Any] = {"kind": "token_mixer", "claims": ("causal", "streams", "chunked", "key_masks")}


class RightMemory(Module):
    """x (B, N, D) -> (B, N, D), right: what the others change."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        chunk: int = 4,
        dropout: float = 0.0,
        seed: Any = 0,
        dtype: Any = "float32",
    ):
        rng = init.generator(seed)
        self.heads, self.chunk = heads, chunk
        self.wq, self.wk, self.wv, self.wz, self.wo = (
            Linear(dim, dim, False, rng, dtype=dtype) for _ in range(5)
        )
        self.norm = RMSNorm(dim // heads, dtype=dtype)
        self.dropout = Dropout(dropout)
        # The retention r of each head, as a logit.
        self.logit = Parameter(rng.standard_normal((heads, 1, 1)).astype(dtype))
        self.shift = Parameter(np.zeros(dim, dtype=dtype))

    def forward(self, x: Tensor, *, mask: Any = None, rng: np.random.Generator | None = None) -> Tensor:
        return self.dropout(self.mix(x, self.start(x.shape[0]), mask)[0], rng)

    def start(self, batch: int) -> Any:
        d = self.wq.weight.shape[0] // self.heads
        return ops.zeros((batch, self.heads, d, d), dtype=self.wq.weight.dtype)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = self.prefill(x.reshape((x.shape[0], 1, x.shape[1])), state)
        return y[:, 0], state

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        with no_grad():
            return self.mix(x, state, None)

    def mix(self, x: Tensor, state: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        q, k, v, z = (ops.split_heads(w(x), self.heads) for w in (self.wq, self.wk, self.wv, self.wz))
        visible = self.visible(mask, x)
        if visible is not None:
            k = ops.where(visible, k, 0.0)
        rows = []
        for i in range(0, x.shape[1], self.chunk):
            part = slice(i, i + self.chunk)
            o, state = self.in_chunk(q[:, :, part], k[:, :, part], v[:, :, part], state)
            rows.append(o)
        return self.finish(ops.concat(rows, axis=2), z), state

    def visible(self, mask: Any, x: Tensor) -> Any:
        """(B, 1, N, 1), or None."""
        if mask is not None and (np.ndim(mask) != 4 or mask.shape[2] != 1):
            raise ShapeError(f"only keys can be hidden, by (B, 1, 1, N), not {mask.shape}")
        return None if mask is None else np.swapaxes(mask, 2, 3)

    def in_chunk(self, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """o (B, H, C, d) of a chunk, and the state behind it."""
        c, r = q.shape[2], ops.sigmoid(self.logit)
        age = np.arange(c)[:, None] - np.arange(c)
        # r^(i-j) for j <= i: (H, C, C)
        decay = ops.where(age >= 0, r ** np.maximum(age, 0).astype(q.dtype), 0.0)
        since = np.arange(1, c + 1, dtype=q.dtype)[:, None]
        o = (q @ k.mT * decay) @ v + r**since * (q @ state)
        state = r**c * state + (k * r ** (c - since)).mT @ v
        return o, state

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        return self.wo(ops.merge_heads(self.norm(o) * ops.silu(z))) + self.shift


class DecaysOneStepLate(RightMemory):
    """What comes from before the chunk is one step too young."""

    def in_chunk(self, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return super().in_chunk(q, k, v, state / ops.sigmoid(self.logit))


class DropsTheChunkBoundary(RightMemory):
    """Every chunk starts from nothing."""

    def in_chunk(self, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        o, after = super().in_chunk(q, k, v, state * 0.0)
        return o, after


class RoundsItsState(RightMemory):
    """Keeps the state in float32, whatever it computes in."""

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().prefill(x, state)
        return y, state.astype("float32").astype(x.dtype)


class WrongFinalState(RightMemory):
    """All outputs are right; a prefill of several tokens leaves the last one out of the state."""

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().prefill(x, state)
        return y, super().prefill(x[:, :-1], state)[1] if x.shape[1] > 1 else after


class PrefillStartsAfresh(RightMemory):
    """A second prefill forgets what the first one saw."""

    def prefill(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().prefill(x, state if x.shape[1] == 1 else self.start(x.shape[0]))


class WritesIntoTheState(RightMemory):
    """A step changes the state that it was given."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().step(x, state)
        state.data[...] = after.data
        return y, state


class SharesTheStateInABatch(RightMemory):
    """Steps mix the states of the examples."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().step(x, state)
        return y, after * 0.999 + 0.001 * after.mean(axis=0, keepdims=True)


class StepsInFloat64(RightMemory):
    """A step gives float64, whatever it is given."""

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().step(x, state)
        return y.astype("float64"), after


class LeaksAtTheTileEdge(RightMemory):
    """The last token of a tile of 32 sees the first of the next."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = super().forward(x, **options)
        if x.shape[1] <= 32:
            return y
        return ops.concat([y[:, :31], y[:, 31:32] + 1e-6 * x[:, 32:33], y[:, 32:]], axis=1)


class LeaksUnderAMask(RightMemory):
    """Causal, unless there is a mask: then every token sees the mean of what is visible."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        y = super().forward(x, mask=mask, **options)
        if mask is None or np.all(mask):
            return y
        return y + 0.01 * ops.where(self.visible(mask, x)[:, 0], x, 0.0).mean(axis=1, keepdims=True)


class DividesByTheLength(RightMemory):
    """Scales with the number of all tokens, which the first cannot know."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) / x.shape[1]


class LastTileOnly(RightMemory):
    """The tokens behind the last whole tile of 16 are off."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y, n = super().forward(x, **options), x.shape[1] // 16 * 16
        return ops.concat([y[:, :n], y[:, n:] * 1.001], axis=1) if 0 < n < x.shape[1] else y


class HiddenTokensFeedTheGate(RightMemory):
    """The output gate of every token reads the mean of all, hidden ones too."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        y = super().forward(x, mask=mask, **options)
        return y if mask is None else y * (1.0 + 0.01 * ops.tanh(x[:, :1].mean(axis=-1, keepdims=True)))


class IgnoresPairMasks(RightMemory):
    """Hides keys only, but takes any mask and looks at its first row."""

    def visible(self, mask: Any, x: Tensor) -> Any:
        return None if mask is None else np.swapaxes(mask[:, :, :1], 2, 3)


class DropsWithoutASeed(RightMemory):
    """Dropout that no generator controls."""

    def forward(self, x: Tensor, *, rng: Any = None, **options: Any) -> Tensor:
        return super().forward(x, rng=np.random.default_rng(), **options)


class DropsInEval(RightMemory):
    """Dropout that never stops."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        y = super().forward(x, **options)
        return y if self.training or not self.dropout.rate else y * (1.0 - self.dropout.rate)


class ForgetsDropout(RightMemory):
    """Takes a rate and drops nothing."""

    def forward(self, x: Tensor, *, mask: Any = None, rng: Any = None) -> Tensor:
        return self.mix(x, self.start(x.shape[0]), mask)[0]


class GatesBeforeTheNorm(RightMemory):
    """Normalises what was gated, instead of gating what was normalised."""

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        return self.wo(ops.merge_heads(self.norm(o * ops.silu(z)))) + self.shift


class SeedsTheGlobalGenerator(RightMemory):
    """Draws from NumPy's global generator, which belongs to the caller."""

    def __init__(self, dim: int, *, seed: Any = 0, **options: Any):
        super().__init__(dim, seed=seed, **options)
        np.random.seed(seed % 2**32)
        self.scale = Buffer(np.random.standard_normal(dim).astype(self.shift.dtype))

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        return super().finish(o, z) * self.scale


class IdleParameter(RightMemory):
    """Has a parameter that it never uses."""

    def __init__(self, dim: int, *, heads: int = 1, chunk: int = 4, seed: Any = 0, dtype: Any = "float32"):
        super().__init__(dim, heads=heads, chunk=chunk, seed=seed, dtype=dtype)
        self.unused = Parameter(np.zeros(dim, dtype=dtype))


class HalfPrecisionInside(RightMemory):
    """Rounds to float16 on the way when it works in float32."""

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        return super().finish(o.astype("float16").astype("float32") if o.dtype == "float32" else o, z)


class KeepsItsFirstSize(RightMemory):
    """Makes a table of positions in its first call, and cuts or repeats it afterwards."""

    table: Any = None

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        n = x.shape[1]
        if self.table is None:
            self.table = np.linspace(0.0, 1.0, n + 1)[1:] if n > 2 else np.ones(n)
        scale = np.resize(self.table, n)[:, None].astype(x.dtype)
        return super().forward(x, **options) * scale


class SmallGradientOff(RightMemory):
    """The gradient of one small part is 0.1 % off."""

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        return super().finish(o, z) + 0.001 * (self.shift - stop_gradient(self.shift))


class BroadcastGradientNotSummed(RightMemory):
    """Adds its shift to every token, but passes on the gradient of the first alone."""

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        y, one = super().finish(o, z), self.shift - stop_gradient(self.shift)
        return y - one + ops.concat([one + 0.0 * y[:, :1], 0.0 * y[:, 1:]], axis=1)


class ScalesTwiceUnderAMask(RightMemory):
    """With a mask, a factor comes in a second time."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        y = super().forward(x, mask=mask, **options)
        return y if mask is None else y / (x.shape[-1] // self.heads) ** 0.5


class ReadsRawMemory(RightMemory):
    """Takes the elements as they lie in memory, whatever the strides say."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(Tensor(x.data.ravel(order="K").reshape(x.shape)), **options)


class OtherWithoutRecording(RightMemory):
    """Takes a coarser way where no gradient is wanted."""

    def finish(self, o: Tensor, z: Tensor) -> Tensor:
        y = super().finish(o, z)
        return y if y.requires_grad else y * 1.0001


class PromotesUnderAMask(RightMemory):
    """With a mask, float32 becomes float64."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        y = super().forward(x, mask=mask, **options)
        return y if mask is None else y.astype("float64")


class WrongForOneToken(RightMemory):
    """A sequence of one token is handed through."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return x + self.shift if x.shape[1] == 1 else super().forward(x, **options)
