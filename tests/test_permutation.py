"""Stateless permutations: bijections of every size, uniform where that can be counted, one call for many of them."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest

from partialkd.counter_random import hash64, permute


def test_every_size_is_permuted() -> None:
    for size in (*range(1, 130), 4096, 99_991):
        assert np.array_equal(np.sort(permute(size, hash64(5, size), np.arange(size))), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_orders_of_few_are_as_frequent(size: int) -> None:
    """Chi-squared over all size! orders, of a fixed sample: within four standard deviations of its expectation."""
    orders = factorial(size)
    samples = 200 * orders
    keys = hash64(7, np.repeat(np.arange(samples), size))
    found = permute(size, keys, np.tile(np.arange(size), samples)).reshape(samples, size)
    _, counts = np.unique(found @ size ** np.arange(size), return_counts=True)
    assert len(counts) == orders
    freedom = orders - 1
    assert ((counts - 200) ** 2 / 200).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_a_large_order_looks_random() -> None:
    size = 1_000_000
    order = permute(size, hash64(1), np.arange(size))
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.004  # standard deviation 0.001
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.004
    cells = np.histogram2d(np.arange(size), order, bins=20)[0]
    assert ((cells - 2500) ** 2 / 2500).sum() < 361 + 4 * np.sqrt(2 * 361)  # 19 x 19 degrees of freedom
    assert (order == np.arange(size)).sum() < 10  # one fixed point is expected
    assert (order == permute(size, hash64(2), np.arange(size))).sum() < 10


def test_many_permutations_in_one_call_equal_each_alone() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 50, 300)
    keys, index = hash64(3, np.arange(300)), rng.integers(0, sizes)
    together = permute(sizes, keys, index)
    alone = [permute(int(sizes[n]), keys[n : n + 1], index[n : n + 1])[0] for n in range(300)]
    assert together.tolist() == alone
    assert permute(10**12, hash64(1), np.array([0, 10**12 - 1])).max() < 10**12
    assert permute(5, hash64(1), np.empty(0, np.int64)).shape == (0,)


def test_hash_depends_on_every_word_and_their_order() -> None:
    values = [hash64(*words)[0] for words in ((1, 2), (2, 1), (1, 2, 0), (1,), (-1, 2), (1, 3))]
    assert len(set(values)) == 6
    bits = np.unpackbits(hash64(9, np.arange(10_000)).view(np.uint8)).reshape(10_000, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.025  # five standard deviations
