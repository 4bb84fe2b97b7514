"""An image classifier: patches are tokens on a grid, and any mixer of grids or of sequences mixes them.

    x_rc   = flat(image[r p : (r+1) p, c p : (c+1) p]) W_p + b_p        one token for each patch
    h      = Backbone(x)                                                every block sees the whole image
    logits = mean_rc(h_rc) W + b

    image  (B, rows, columns) or (B, rows, columns, C), real numbers       p   side of a patch
    x, h   (B, N, D), N = rows/p * columns/p, row by row                   W_p (p p C, D)
    logits  (B, classes)

A mixer or FFN of grids ("2d", "nd") sees tokens as (B, rows/p, columns/p, D); one of sequences ("1d") sees
them in a line, row by row, and no causal mask is set.
Source: ViT, An Image is Worth 16x16 Words, Dosovitskiy et al., arXiv:2010.11929, 2020, with exchangeable
parts.
Differs from the paper: the tokens are pooled by their mean, not by a special first token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import ShapeError, Tensor
from minitf.nn import Linear, init

from .backbone import Backbone, Host, share_right, tensor_like
from .config import ImageConfig


class ImageModel(Backbone):
    """images (B, rows, columns[, C]) -> logits (B, classes).

    Parameters: patches.weight (p p C, D), patches.bias; those of the backbone; head.weight (D, classes),
    head.bias. A mixer or FFN of grids is blocks.{i}.mixer.inner or blocks.{i}.ffn.inner.

    Args:
        config: sizes and names of the parts.
        seed: for all initial values. dtype: of the parameters.

    Raises:
        ValueError: parts that do not fit each other, or a mixer that sees only the past.
    """

    def __init__(self, config: ImageConfig, seed: init.Seed = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        self.patches = Linear(config.patch**2 * config.channels, config.dim, seed=rng, dtype=dtype)
        host = Host("an image model", config.grid, causal="never", varies=False)
        super().__init__(config, host, rng, dtype)
        values = init.normal(rng, (config.dim, config.classes), dtype=dtype)
        self.head = Linear(config.dim, config.classes, values=values, dtype=dtype)

    @staticmethod
    def first_weight(config: ImageConfig) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the first parameter, by which files are checked."""
        return "patches.weight", (config.patch**2 * config.channels, config.dim)

    def forward(self, images: Any, rng: np.random.Generator | None = None) -> Tensor:
        """Classify.

        Args:
            images: real numbers of about unit size, (B, rows, columns) with one channel, or
                (B, rows, columns, C).
            rng: for dropout in training mode.

        Raises:
            ShapeError: images of another size.
        """
        x = self.placed(self.patches(self.cut(images)))
        return self.head(self.through(x, rng).mean(axis=1))

    def loss(self, images: Any, labels: Any, rng: np.random.Generator | None = None) -> Tensor:
        """The mean cross entropy in nats of labels (B,), a scalar."""
        return self.with_auxiliary(lambda: ops.cross_entropy(self(images, rng), labels))

    def accuracy(self, images: Any, labels: Any) -> float:
        """The share of labels (B,) that are the most probable class, without dropout."""
        with self.evaluating():
            return share_right(self(images), labels)

    def attention_maps(self, images: Any) -> list[np.ndarray[Any, Any]]:
        """P (B, H, N, N) of every block whose mixer attends along the line of tokens, without dropout.

        Raises:
            ValueError: no mixer of this model does.
        """
        return self.maps(lambda: self(images))

    def cut(self, images: Any) -> Tensor:
        """The patches of images, (B, N, p p C), row by row."""
        x, (rows, columns), config = tensor_like(images, self.head.weight), self.config.grid, self.config
        wanted = (*config.size, config.channels)
        shape = (*x.shape, 1) if x.ndim == 3 else x.shape
        if len(shape) != 4 or shape[1:] != wanted:
            raise ShapeError(
                f"images must be (B, {', '.join(map(str, wanted))}), not {x.shape}; "
                "the last axis may be left out if it is 1, and a single image is a batch of 1: images[None]"
            )
        p = config.patch
        # (B, rows, p, columns, p, C) -> (B, rows, columns, p, p, C)
        x = x.reshape((shape[0], rows, p, columns, p, config.channels))
        return ops.permute_dims(x, (0, 1, 3, 2, 4, 5)).reshape((shape[0], rows * columns, -1))
