"""Handwritten digits as a task: which of ten digits is on an image of 8 x 8 pixels.

One fixed permutation splits the 1,797 images into 1,437 to learn from and 360 to be tested on, as the
LRA-style small version of image classification has it. Pixels are divided by 16, so that they lie in 0..1.
Chance is 1/10.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.tasks.corpus import load_digits

TRAIN = 1437

Pairs = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def split_digits() -> tuple[Pairs, Pairs]:
    """((images, labels) to learn from, (images, labels) to be tested on).

    images: (1437, 8, 8) and (360, 8, 8) float32 in 0..1
    labels: (1437,) and (360,) int64
    """
    images, labels = load_digits()
    order = np.random.default_rng(0).permutation(len(images))
    learn, test = order[:TRAIN], order[TRAIN:]
    images = images / np.float32(16.0)
    return (images[learn], labels[learn]), (images[test], labels[test])
