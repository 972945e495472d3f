"""Refuse labels outside [0, num_classes): on the CPU at once, on CUDA without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from partialkd.centres.device_io import to_host


class LabelCheck:
    """Labels of one rank that have been asked about, in order, until the device has answered."""

    def __init__(self, num_classes: int, rank: int) -> None:
        self.num_classes, self.rank = num_classes, rank
        self._asked: deque[tuple[Tensor, Callable[[], bool]]] = deque()  # (2, b) wrong or not, labels; once there

    def wrong(self, labels: Tensor) -> Tensor:
        """Tell which labels (b,) are outside the range: (b,) bool, on their device."""
        return (labels < 0) | (labels >= self.num_classes)

    def ask(self, labels: Tensor) -> None:
        """Look at labels (b,): ValueError for a wrong one, on the CPU now, on CUDA from a later call."""
        self.answer()
        if labels.dtype != torch.int64:
            raise ValueError(f"rank {self.rank}: labels must be int64, got {labels.dtype}")
        self._asked.append(to_host(torch.stack([self.wrong(labels).long(), labels])))
        if not labels.is_cuda:
            self.answer()

    def answer(self) -> None:
        """Raise ValueError, naming rank, sample and label, for a wrong label that the device has told of by now."""
        while self._asked and self._asked[0][1]():
            found, _ = self._asked.popleft()
            if found[0].any():
                sample = int(found[0].argmax())
                rule = f"label must be in [0, {self.num_classes})"
                raise ValueError(f"rank {self.rank}, sample {sample}: {rule}, got {int(found[1, sample])}")

    def settle(self, device: torch.device) -> None:
        """Wait until all labels are known to be right, or raise ValueError."""
        if self._asked and device.type == "cuda":
            torch.cuda.synchronize(device)
        self.answer()
