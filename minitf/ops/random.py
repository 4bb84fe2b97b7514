"""Random numbers from a counter: number i under a key is a hash of both, so any part can be drawn again.

The hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants of its public reference code):

    z = key + (i + 1) GAMMA                        all modulo 2^64
    z = (z ^ z >> 30) FIRST
    z = (z ^ z >> 27) SECOND
    hash(key, i) = z ^ z >> 31
"""

from __future__ import annotations

import numpy as np

from minitf.engine import Array, array_module

from .elementwise import Like

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def random_bits(key: int, count: int, like: Like) -> Array:
    """hash(key, i) for i from 0 to count - 1: (count,) of uint64, where the array `like` lives."""
    u = np.uint64
    z = array_module(like).arange(1, count + 1, dtype=u)
    z = z * u(GAMMA) + u(key)
    z = (z ^ (z >> u(30))) * u(FIRST)
    z = (z ^ (z >> u(27))) * u(SECOND)
    return z ^ (z >> u(31))


def threshold(rate: float) -> int:
    """The number that a share `rate` of all hashes lies below."""
    return int(rate * 2.0**64)


def random_key(rng: np.random.Generator) -> int:
    """Draw a key."""
    return int(rng.integers(1 << 64, dtype=np.uint64))
