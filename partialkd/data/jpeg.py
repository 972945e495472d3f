"""The loader without DALI: threads decode with libjpeg-turbo (`decode.py`) a bounded number of micro-steps ahead.

Yields `FaceBatch`es in the order of the plan, from any micro-step of an epoch. Decoded bytes travel to the device;
resize, grey, mirror and normalisation happen there, in `decode.to_tensor` (on the CPU in the decoding threads too).
Memory: at most `workers` + 2 micro-steps. Threads belong to one iterator and end with it: at its end, when it raises,
when it or the loader is closed, when it is dropped half-way.
Errors: `DataError` naming the record, at the micro-step the record belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.decode import check_size, decode, to_tensor
from partialkd.data.order import Plan
from partialkd.data.sources import Source
from partialkd.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")


class OrderedLoader(ABC):
    """Batches of a source in the order of a plan. What loaders share: their iterators, and the end of them."""

    def __init__(self, data: DataConfig, source: Source, plan: Plan, device: torch.device) -> None:
        self.data, self.source, self.plan, self.device = data, source, plan, device
        self.micro_steps = plan.micro_steps
        self._open: WeakSet[Generator[FaceBatch, None, None]] = WeakSet()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FaceBatch]:
        """The batches of micro-steps start, start + 1, ... of an epoch; threads start with the first `next`."""
        if not 0 <= start <= self.micro_steps:
            raise ValueError(f"start must be in [0, {self.micro_steps}], got {start}")
        batches = self._batches(epoch, range(start, self.micro_steps))
        self._open.add(batches)
        return batches

    def close(self) -> None:
        """End the iterators that still run, and with them their threads."""
        for batches in list(self._open):
            batches.close()

    @abstractmethod
    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]: ...


class JpegLoader(OrderedLoader):
    """Decodes on threads, finishes on the device."""

    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        todo = (self.plan.indices(epoch, step) for step in steps)
        if self.device.type == "cpu":
            whole = lambda indices: self._finish(epoch, indices, *self._read(indices))
            yield from (batch for _, batch in ahead(whole, todo, self.data.workers))
        else:  # the last part in this thread, whose current device and stream are the rank's
            for indices, (pixels, labels) in ahead(self._read, todo, self.data.workers):
                yield self._finish(epoch, indices, pixels, labels)

    def _finish(
        self, epoch: int, indices: np.ndarray, pixels: Tensor | list[np.ndarray], labels: list[int]
    ) -> FaceBatch:
        flips, greys = self.plan.flips(epoch, indices), self.plan.greys(epoch, indices)
        if self.device.type == "cuda" and isinstance(pixels, Tensor):
            pixels = pixels.pin_memory()
        images = to_tensor(pixels, self.data.image_size, flips, greys, self.device)
        return make_batch(images, labels, indices, flips)

    def _read(self, indices: np.ndarray) -> tuple[Tensor | list[np.ndarray], list[int]]:
        """Decoded images, as one (b, H, W, 3) uint8 tensor where they are of one size, and class ids."""
        images, labels = [], []
        for index in indices.tolist():
            encoded, label = read_record(self.source, index)
            image = decode(encoded, self.source.name(index))
            if not self.data.resize:
                check_size(image, self.data.image_size, self.source.name(index))
            images.append(image)
            labels.append(label)
        if len({image.shape for image in images}) != 1:
            return images, labels
        return torch.from_numpy(np.stack(images)), labels


def read_record(source: Source, index: int) -> tuple[bytes, int]:
    """Encoded bytes and class id; whatever the disk says becomes a `DataError` naming the record."""
    try:
        return source.read(index)
    except OSError as error:
        raise DataError(f"{source.name(index)}: cannot be read: {error}") from error


def make_batch(images: Tensor, labels: list[int], indices: np.ndarray, flips: np.ndarray) -> FaceBatch:
    """`images` are on their device; the labels follow them."""
    on_device = torch.tensor(labels, dtype=torch.int64).to(images.device)
    return FaceBatch(images, on_device, torch.from_numpy(indices), torch.from_numpy(flips))


def ahead(job: Callable[[Job], Result], todo: Iterable[Job], workers: int) -> Generator[tuple[Job, Result], None, None]:
    """(item, job(item)) in the order of `todo`, computed by threads at most `workers` + 1 items ahead.

    An exception of `job` is raised in the place of its item. `todo` is read by the calling thread only.
    """
    pending: deque[tuple[Job, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="partialkd-loader")
    try:
        for item in todo:
            pending.append((item, pool.submit(job, item)))
            if len(pending) > workers:
                yield pending[0][0], pending.popleft()[1].result()
        while pending:
            yield pending[0][0], pending.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
