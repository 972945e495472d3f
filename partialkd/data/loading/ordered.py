"""Base of the loaders: batches of a source in the order of a plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.images import augment
from partialkd.data.images.decode import check_size, decode
from partialkd.data.loading.unreadable import Unreadable
from partialkd.data.order.plan import Plan
from partialkd.data.sources.source import Source
from partialkd.errors import DataError, Where


class OrderedLoader(ABC):
    """Batches of a source in the order of a plan. What loaders share: their iterators, their end, augmentation."""

    def __init__(self, data: DataConfig, source: Source, plan: Plan, device: torch.device) -> None:
        self.data, self.source, self.plan, self.device = data, source, plan, device
        self.micro_steps = plan.micro_steps
        self.unreadable = Unreadable(data, source, plan)
        self._open: WeakSet[Generator[FaceBatch, None, None]] = WeakSet()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FaceBatch]:
        """The batches of micro-steps start, start + 1, ... of an epoch; threads start with the first `next`."""
        if not 0 <= start <= self.micro_steps:
            raise ValueError(f"start must be in [0, {self.micro_steps}], got {start}")
        batches = self._batches(epoch, range(start, self.micro_steps))
        self._open.add(batches)
        return batches

    def close(self) -> None:
        """End the iterators that still run, and with them their threads; say how many records were unreadable."""
        for batches in list(self._open):
            batches.close()
        self.unreadable.say_total()

    @abstractmethod
    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]: ...

    def _decode(self, encoded: bytes, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """The pixels (H, W, 3) uint8 of a record, in `out` if they have its size."""
        where = Where(self.source.name, index)
        image = decode(encoded, where, out)
        if not self.data.resize:
            check_size(image, self.data.image_size, where)
        return image

    def _batch(
        self, epoch: int, images: Tensor, labels: list[int], indices: np.ndarray, flips: np.ndarray
    ) -> FaceBatch:
        """Normalised images on their device -> augmented there, in this thread; the labels follow them."""
        augment.apply(images, augment.draw(self.data.augment, self.plan.seed, epoch, indices))
        on_device = torch.tensor(labels, dtype=torch.int64).to(images.device)
        return FaceBatch(images, on_device, torch.from_numpy(indices), torch.from_numpy(flips))


def read_record(source: Source, index: int) -> tuple[bytes, int]:
    """Encoded bytes and class id; whatever the disk says becomes a `DataError` naming the record."""
    try:
        return source.read(index)
    except OSError as error:
        raise DataError(f"{source.name(index)}: cannot be read: {error}") from error
