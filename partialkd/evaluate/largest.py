"""The largest of very many numbers, exactly, in memory for twice as many as are wanted."""

from __future__ import annotations

import numpy as np


class Largest:
    """Keeps the `count` largest of the numbers that are added, with what belongs to each of them."""

    def __init__(self, count: int, companions: int = 0) -> None:
        """companions: how many integers belong to each number."""
        self.count = count
        self._parts: list[np.ndarray] = []
        self._with: list[tuple[np.ndarray, ...]] = []
        self._companions, self._held = companions, 0
        self.least = -np.inf  # numbers below this need not be added: they cannot be among the largest

    def add(self, numbers: np.ndarray, *companions: np.ndarray) -> None:
        """numbers (n,), companions (n,) each."""
        if self.count == 0:
            return
        if np.isfinite(self.least):
            keep = numbers >= self.least
            numbers, companions = numbers[keep], tuple(one[keep] for one in companions)
        self._parts.append(numbers)
        self._with.append(companions)
        self._held += len(numbers)
        if self._held > 2 * self.count:
            self._shrink()

    def _shrink(self) -> None:
        numbers = np.concatenate(self._parts)
        spare = max(0, len(numbers) - self.count)
        keep = np.argpartition(numbers, spare)[spare:] if spare else np.arange(len(numbers))
        self._with = [tuple(np.concatenate(one)[keep] for one in zip(*self._with, strict=True))]
        self._parts = [numbers[keep]]
        self._held = len(self._parts[0])
        if self._held == self.count:
            self.least = float(self._parts[0].min())

    def values(self) -> np.ndarray:
        """Return the largest, falling: (min(count, added),)."""
        return self.with_companions()[0]

    def with_companions(self) -> tuple[np.ndarray, ...]:
        """Return the largest, falling, and their companions in the same order."""
        if not self._parts:
            return (np.empty(0), *(np.empty(0, dtype=np.int64) for _ in range(self._companions)))
        self._shrink()
        order = np.argsort(-self._parts[0], kind="stable")
        return (self._parts[0][order], *(one[order] for one in self._with[0]))
