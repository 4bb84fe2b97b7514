"""Random numbers from a counter, and the dropout made of them."""

import numpy as np

from minitf import ops
from minitf.engine import check_grad, tensor
from minitf.ops.random import random_bits, random_key, threshold

LIKE = np.zeros(0)


def test_the_hash_is_splitmix64() -> None:
    # By Python's own integers.
    for key in (0, 1234567, 2**64 - 1):
        found = random_bits(key, 5, LIKE)
        for i, bits in enumerate(found):
            z = (key + (i + 1) * 0x9E3779B97F4A7C15) % 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            assert int(bits) == z ^ z >> 31, f"key {key}, number {i}"
    # The published first number of the seed 1234567.
    assert int(random_bits(1234567, 1, LIKE)[0]) == 6457827717110365317


def test_share_neighbours_and_keys() -> None:
    n = 1 << 16
    for rate in (0.1, 0.5, 0.9):
        keep = [random_bits(key, n, LIKE) >= np.uint64(threshold(rate)) for key in (1, 2, 3 << 40)]
        deviation = np.sqrt(rate * (1 - rate))
        for mask in keep:
            # The mean of n independent draws: five standard deviations.
            assert abs(mask.mean() - (1 - rate)) <= 5 * deviation / np.sqrt(n), (
                f"another share than 1 - {rate}"
            )
            centred = (mask - (1 - rate)) / deviation
            for lag in (1, 2, 8, 64, 1000):
                correlation = float(np.mean(centred[lag:] * centred[:-lag]))
                assert abs(correlation) <= 5 / np.sqrt(n - lag), f"elements {lag} apart go together"
        for a, b in ((0, 1), (0, 2), (1, 2)):
            both = (keep[a] - (1 - rate)) * (keep[b] - (1 - rate)) / deviation**2
            assert abs(both.mean()) <= 5 / np.sqrt(n), "masks of two keys go together"


def test_bits_are_balanced() -> None:
    n = 1 << 14
    bits = random_bits(99, n, LIKE)
    for place in range(64):
        share = float(((bits >> np.uint64(place)) & np.uint64(1)).mean())
        assert abs(share - 0.5) <= 5 * 0.5 / np.sqrt(n), f"bit {place} is 1 in a share of {share}"


def test_dropout_draws_one_key_and_numbers_elements_in_c_order() -> None:
    x = np.random.default_rng(0).standard_normal((6, 5))
    key = random_key(np.random.default_rng(3))
    y = ops.dropout(tensor(x), 0.4, np.random.default_rng(3))
    assert np.array_equal(y.numpy(), ops.keyed_dropout(x, key, 0.4))
    assert np.array_equal(y.numpy(), ops.keyed_dropout(np.asfortranarray(x), key, 0.4)), "layout in memory"
    rng = np.random.default_rng(3)
    first, second = (ops.dropout(x, 0.4, rng) for _ in range(2))
    assert not np.array_equal(first, second), "each call has its own key"
    check_grad(lambda t: ops.keyed_dropout(t, key, 0.4), x)
    assert ops.keyed_dropout(x.astype("float32"), key, 0.4).dtype == np.float32
    assert np.array_equal(ops.keyed_dropout(x, key, 0.0), x), "nothing is dropped at rate 0"
