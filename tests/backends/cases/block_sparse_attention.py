"""Listed blocks: sizes around the tiles of 64 queries and 128 keys, partial blocks, empty rows, heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minitf import ops


def block_cases(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    def case(
        nq: int,
        nk: int,
        block_q: int,
        block_k: int,
        density: float = 0.5,
        shape: tuple[int, ...] = (1, 2, 2, 1, 2),
        d: tuple[int, int] = (5, 3),
        size: float = 1.0,
        **options: Any,
    ) -> dict[str, Any]:
        """shape: B, H, Hkv, and B and H of the pattern."""
        b, h, hkv, pattern_b, pattern_h = shape
        q = size * rng.standard_normal((b, h, nq, d[0]))
        k, v = size * rng.standard_normal((b, hkv, nk, d[0])), rng.standard_normal((b, hkv, nk, d[1]))
        seen = rng.random((pattern_b, pattern_h, -(-nq // block_q), -(-nk // block_k))) < density
        indptr, indices = ops.csr_of(seen)
        given = {"q": q, "k": k, "v": v, "indptr": indptr, "indices": indices}
        return {**given, "block_q": block_q, "block_k": block_k, **options}

    for nq, nk, block_q, block_k in (
        (1, 1, 1, 1), (7, 9, 1, 1), (15, 17, 4, 3), (16, 16, 16, 16), (3, 40, 8, 8), (63, 33, 63, 32),
        (64, 127, 64, 64), (65, 129, 65, 64), (130, 257, 130, 257), (40, 300, 16, 150), (33, 260, 33, 20),
    ):  # fmt: skip
        yield f"{nq} by {nk} in {block_q} by {block_k}", case(nq, nk, block_q, block_k)
    yield "nothing visible", case(9, 9, 4, 4, density=-1.0)
    yield "all visible", case(30, 40, 8, 8, density=2.0)
    yield "one pattern for all", case(20, 20, 4, 4, shape=(2, 4, 4, 1, 1))
    yield "patterns for every head", case(20, 20, 4, 4, shape=(2, 4, 1, 2, 4))
    yield "grouped heads in several units", case(200, 200, 8, 8, 0.3, shape=(1, 6, 3, 1, 6), d=(16, 16))
    yield "causal", case(70, 70, 16, 8, causal=True)
    yield "causal, fewer queries", case(20, 70, 16, 8, causal=True)
    yield "causal, more queries", case(70, 20, 16, 8, causal=True)
    yield "causal over long rows", case(200, 300, 64, 32, causal=True)
    yield "masked", case(40, 50, 8, 8, mask=rng.random((1, 2, 40, 50)) < 0.3)
    yield "masked keys", case(40, 50, 8, 8, shape=(2, 2, 2, 2, 1), mask=rng.random((2, 1, 1, 50)) < 0.5)
    yield "masked queries", case(40, 50, 8, 8, causal=True, mask=rng.random((40, 1)) < 0.5)
    yield "everything masked", case(10, 10, 4, 4, mask=np.zeros((1, 1), bool))
    yield "everything shown", case(10, 10, 4, 4, mask=np.ones((1, 1, 1, 1), bool))
    yield "broadcast mask", case(20, 20, 4, 4, mask=np.broadcast_to(rng.random(20) < 0.5, (1, 2, 20, 20)))
    yield "large logits", case(40, 150, 8, 8, size=40.0)
    yield "scaled", case(20, 20, 4, 4, scale=0.3)
    unsorted = case(20, 20, 4, 4, density=2.0)
    unsorted["indices"] = np.concatenate([rng.permutation(5) for _ in range(10)])
    yield "lists in any order", unsorted
    shared = case(20, 20, 4, 4, density=2.0)
    shared["indptr"] = np.array([[[0, 2, 4, 4, 5, 5], [0, 1, 2, 3, 4, 5]]])
    shared["indices"] = np.array([4, 2, 0, 1, 3], dtype=np.int32)
    yield "shared lists of int32", shared


CASES = {"block_sparse_attention": block_cases}
