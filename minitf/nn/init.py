"""Initial values. Every function takes an explicit generator or seed, and gives a plain array."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.engine import Array

Seed = int | np.random.Generator


def generator(seed: Seed) -> np.random.Generator:
    """A generator from a seed; a generator passes through, so that one can be shared by many layers."""
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)


def normal(rng: Seed, shape: tuple[int, ...], std: float = 0.02, dtype: Any = "float32") -> Array:
    """Normal with mean 0 and standard deviation `std`."""
    return (generator(rng).standard_normal(shape) * std).astype(dtype)


def uniform(rng: Seed, shape: tuple[int, ...], bound: float, dtype: Any = "float32") -> Array:
    """Uniform in [-bound, bound)."""
    return generator(rng).uniform(-bound, bound, shape).astype(dtype)


def xavier_uniform(rng: Seed, shape: tuple[int, int], gain: float = 1.0, dtype: Any = "float32") -> Array:
    """Uniform with bound gain * sqrt(6 / (fan_in + fan_out)), for (in, out) (Glorot and Bengio, 2010)."""
    return uniform(rng, shape, gain * math.sqrt(6.0 / (shape[0] + shape[1])), dtype)


def kaiming_normal(
    rng: Seed, shape: tuple[int, ...], gain: float = math.sqrt(2.0), dtype: Any = "float32"
) -> Array:
    """Normal with std gain / sqrt(fan_in), for a weight (..., in, out) (He et al., 2015)."""
    return normal(rng, shape, gain / math.sqrt(math.prod(shape[:-1])), dtype)


def fan_in_uniform(rng: Seed, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """Uniform with bound 1 / sqrt(fan_in), for a weight (..., in, out): the default of linear layers."""
    return uniform(rng, shape, 1.0 / math.sqrt(math.prod(shape[:-1])), dtype)
