"""Hashes and random permutations without state: any element of any of them, at any time, in no memory.

`hash64` mixes integers into 64 bits by repeated SplitMix64 finalisers; `permute` is one of many permutations of
0..size-1, named by a 64-bit key. Both take arrays and broadcast: (n,) elements of n different permutations are one
call. A permutation is a Feistel network over a rectangle of a x b >= size numbers, a = ceil(sqrt(size)), by
alternate modular additions (Black and Rogaway, "Ciphers with arbitrary finite domains"); the few numbers from `size`
on are sent through again until they fall below it.
Cost: about 0.4 microseconds an element, so an order of 1e8 records needs neither 0.4 GB nor a shuffle at each epoch.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

ROUNDS = 8  # each moves both coordinates; fewer are visibly not uniform for sizes of 5 to 10
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONES = (1 << 64) - 1
Word = TypeVar("Word", int, Tensor)
_WORD = 0xFFFFFFFF


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """Integers, and arrays (n,) of them -> (n,) or (1,) uint64; every word and their order count."""
    mixed = np.zeros(1, dtype=np.uint64)  # never a scalar: numpy warns where those overflow
    for word in words:
        bits = word.astype(np.uint64) if isinstance(word, np.ndarray) else np.array([word & _ONES], dtype=np.uint64)
        mixed = _mix(mixed + bits + _GOLDEN)
    return mixed


def permute(size: int | np.ndarray, key: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The `index`-th elements (n,) int64 of the permutations of 0..size-1 that `key` names; 0 <= index < size."""
    number = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    sizes, keys = np.atleast_1d(np.asarray(size, dtype=np.uint64)), np.atleast_1d(key)
    a = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    b = (sizes + a - np.uint64(1)) // a
    found = _feistel(a, b, keys, number)
    outside = np.flatnonzero(found >= sizes)
    while len(outside):
        some_a, some_b, key, size = (x if len(x) == 1 else x[outside] for x in (a, b, keys, sizes))
        found[outside] = _feistel(some_a, some_b, key, found[outside])
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(a: np.ndarray, b: np.ndarray, keys: np.ndarray, number: np.ndarray) -> np.ndarray:
    left, right = number // b, number % b  # [0, a), [0, b)
    for turn in range(ROUNDS):
        left = (left + _mix(right + _mix(keys + np.uint64(2 * turn + 1))) % a) % a
        right = (right + _mix(left + _mix(keys + np.uint64(2 * turn + 2))) % b) % b
    return left * b + right


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, salt: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """(b,) float64 in [0, 1): a hash of (seed, salt, epoch, index).

    Every random choice about one record (flip, grey, an augmentation) takes a salt of its own.
    """
    return (hash64(seed, salt, epoch, indices) >> np.uint64(11)) * 2.0**-53


def hash_words(ids: Tensor, seed: int, step: int) -> Tensor:
    """ids (n,) int64 -> (n,) int64 in [0, 2**32), the same on every device."""
    key = mix_word(mix_word(seed & _WORD) ^ mix_word((step + 0x9E3779B9) & _WORD))
    return mix_word(mix_word((ids & _WORD) ^ key) ^ (ids >> 32))


def mix_word(x: Word) -> Word:
    """One 32-bit word -> one 32-bit word, a bijection (multiply and xor-shift)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
