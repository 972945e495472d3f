"""Which rows take part in a step: all of them, or a sample that holds every class of the global batch.

A row is drawn when a hash of (seed, step, class id) falls below the sample rate. The choice therefore depends
neither on the world size nor on the chunk size, it needs no list of rows, and the second sweep of trainable
centres finds the same rows again by asking again. The number of rows drawn varies around rate * C by about
sqrt(rate * (1 - rate) * C). (Partial FC, arXiv:2203.15565, draws an exact number on every rank, so that its sample
changes with the world size.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class RowFilter:
    """The rows of one shard that are compared with in one step."""

    first_class: int  # global class id of row 0
    positives: Tensor  # (P,) rows of this shard in the global batch, any order, repeats allowed
    rate: float = 1.0
    seed: int = 0
    step: int = 0
    seen: Tensor | None = None  # (R,) bool: only these may be negatives

    @property
    def everything(self) -> bool:
        return self.rate >= 1.0 and self.seen is None

    def keep(self, start: int, stop: int) -> Tensor:
        """Rows start..stop -> (stop - start,) bool."""
        if self.rate < 1.0:
            ids = torch.arange(self.first_class + start, self.first_class + stop, device=self.positives.device)
            kept = hash_words(ids, self.seed, self.step) < int(self.rate * 2**32)
        else:
            kept = torch.ones(stop - start, dtype=torch.bool, device=self.positives.device)
        if self.seen is not None:
            kept &= self.seen[start:stop]
        inside = (self.positives >= start) & (self.positives < stop)
        slot = torch.where(inside, self.positives - start, stop - start)  # one slot too many, cut off again
        return torch.cat([kept, kept.new_zeros(1)]).index_fill_(0, slot, True)[:-1]


def hash_words(ids: Tensor, seed: int, step: int) -> Tensor:
    """ids (n,) int64 -> (n,) int64 in [0, 2**32), well mixed and the same on every device."""
    key = mix_word(mix_word(seed & _WORD) ^ mix_word((step + 0x9E3779B9) & _WORD))
    return mix_word(mix_word((ids & _WORD) ^ key) ^ (ids >> 32))


def mix_word(x: Word) -> Word:
    """One 32-bit word -> one 32-bit word, a bijection (multiply and xor-shift)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
