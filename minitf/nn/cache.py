"""The cache of keys and values that attention streams with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minitf import ops
from minitf.engine import Array, array_module


@dataclass(frozen=True)
class KVCache:
    """The keys and values of the tokens so far: a view of `length` rows into buffers that grow by doubling.

    Attributes:
        keys, values: (B, Hkv, capacity, d).

    A state stays valid after later steps were taken from it.
    """

    keys: Array
    values: Array
    length: int
    # How many rows of the buffers are written, by this state or by one that came from it.
    written: list[int]

    @classmethod
    def empty(cls, shape: tuple[int, ...], like: Any) -> KVCache:
        """The cache of no tokens, of shape (B, Hkv, 0, d), in the dtype and on the device of `like`."""
        return cls(ops.zeros(shape, like=like).data, ops.zeros(shape, like=like).data, 0, [0])

    @property
    def k(self) -> Array:
        """The keys so far (B, Hkv, length, d)."""
        return self.keys[:, :, : self.length]

    @property
    def v(self) -> Array:
        """The values so far (B, Hkv, length, d)."""
        return self.values[:, :, : self.length]

    def append(self, k: Array, v: Array) -> KVCache:
        """The cache with k, v (B, Hkv, n, d) after what it holds."""
        start, stop = self.length, self.length + k.shape[2]
        keys, values, written = self.keys, self.values, self.written
        # Another branch may have written behind this state: then, or when the buffers are full, copy.
        if stop > keys.shape[2] or written[0] != start:
            rows = max(2 * start, stop, 16)
            xp = array_module(keys)
            keys, values = (xp.empty((*a.shape[:2], rows, a.shape[3]), a.dtype) for a in (keys, values))
            written = [start]
            keys[:, :, :start], values[:, :, :start] = self.k, self.v
        keys[:, :, start:stop], values[:, :, start:stop] = k, v
        written[0] = stop
        return KVCache(keys, values, stop, written)

    def truncate(self, length: int) -> KVCache:
        """The cache of the first `length` tokens."""
        return KVCache(self.keys, self.values, min(length, self.length), self.written)
