"""Well mixed 32-bit words of integers, on any device: what is random about a row, without a generator's state."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Word = TypeVar("Word", int, Tensor)
_WORD = 0xFFFFFFFF


def hash_words(ids: Tensor, seed: int, step: int) -> Tensor:
    """ids (n,) int64 -> (n,) int64 in [0, 2**32), the same on every device."""
    key = mix_word(mix_word(seed & _WORD) ^ mix_word((step + 0x9E3779B9) & _WORD))
    return mix_word(mix_word((ids & _WORD) ^ key) ^ (ids >> 32))


def mix_word(x: Word) -> Word:
    """One 32-bit word -> one 32-bit word, a bijection (multiply and xor-shift)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
