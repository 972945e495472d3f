"""The loader without DALI: threads decode with libjpeg-turbo (`decode.py`) a bounded number of micro-steps ahead.

Yields `FaceBatch`es in the order of the plan, from any micro-step of an epoch. Decoded bytes travel to the device;
resize, grey, mirror and normalisation happen there, in `decode.to_tensor` (on the CPU already in the decoding threads),
then augmentation.
Memory: at most `workers` + 2 micro-steps. Threads belong to one iterator and end with it: at its end, when it raises,
when it or the loader is closed, when it is dropped half-way.
Errors: `DataError` naming the record, at the micro-step the record belongs to; what `data.on_corrupt` makes of records
that cannot be read: unreadable.py. A micro-step that holds one is read once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data import augment
from partialkd.data.batch import FaceBatch
from partialkd.data.decode import check_size, decode, to_tensor, write_planes
from partialkd.data.order import Plan
from partialkd.data.source import Source
from partialkd.data.unreadable import Unreadable
from partialkd.errors import DataError, Where

Item = TypeVar("Item")
Result = TypeVar("Result")


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


@dataclass(frozen=True)
class Job:
    """A micro-step before reading."""

    indices: np.ndarray  # (b,) int64
    flips: np.ndarray  # (b,) bool
    greys: np.ndarray  # (b,) bool
    pixels: Tensor | None  # (b, S, S, 4) uint8 to decode into, pinned, where the device is a CUDA device


class JpegLoader(OrderedLoader):
    """Decodes on threads, finishes on the device."""

    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        jobs = (self._job(epoch, step) for step in steps)
        read = partial(self._read_others, epoch) if self.unreadable.skips else self._read
        for _, (job, images, labels) in ahead(read, jobs, self.data.workers):
            if job.pixels is not None:  # in this thread, whose current device and stream are the rank's
                images = to_tensor(images, self.data.image_size, job.flips, job.greys, self.device)
            yield self._batch(epoch, images, labels, job.indices, job.flips)

    def _job(self, epoch: int, step: int) -> Job:
        indices, size = self.plan.indices(epoch, step), self.data.image_size
        on_cuda = self.device.type == "cuda"
        pixels = torch.empty((len(indices), size, size, 4), dtype=torch.uint8, pin_memory=True) if on_cuda else None
        return Job(indices, self.plan.flips(epoch, indices), self.plan.greys(epoch, indices), pixels)

    def _read(self, job: Job) -> tuple[Job, Any, list[int]]:
        return job, *self.read(job)

    def _read_others(self, epoch: int, job: Job) -> tuple[Job, Any, list[int]]:
        """With other records in the place of those that cannot be read."""
        try:
            return self._read(job)
        except DataError:
            indices, _ = self.unreadable.read(epoch, job.indices, lambda index: self._read_image(index, None))
        pixels = None if job.pixels is None else job.pixels[: len(indices)]
        return self._read(Job(indices, self.plan.flips(epoch, indices), self.plan.greys(epoch, indices), pixels))

    def read(self, job: Job) -> tuple[Any, list[int]]:
        """Images and class ids: `job.pixels`, or a list if not all are S x S; (b, 3, S, S) float32 without them."""
        if job.pixels is None:
            return self._read_floats(job)
        images, labels, size = [], [], self.data.image_size
        for index, out in zip(job.indices.tolist(), job.pixels.numpy(), strict=True):
            image, label = self._read_image(index, out)
            images.append(image)
            labels.append(label)
        fits = all(image.shape[:2] == (size, size) for image in images)
        return job.pixels if fits else images, labels

    def _read_floats(self, job: Job) -> tuple[Tensor, list[int]]:
        size, labels = self.data.image_size, []
        planes = np.empty((len(job.indices), 3, size, size), dtype=np.float32)
        pixels = np.empty((size, size, 4), dtype=np.uint8)  # one image's: it stays in the cache
        for row, index in enumerate(job.indices.tolist()):
            image, label = self._read_image(index, pixels)
            write_planes(image, planes[row], bool(job.flips[row]), bool(job.greys[row]))
            labels.append(label)
        return torch.from_numpy(planes), labels

    def _read_image(self, index: int, out: np.ndarray | None) -> tuple[np.ndarray, int]:
        """One record -> its pixels (H, W, 3) uint8, in `out` if they have its size, and its class id."""
        encoded, label = read_record(self.source, index)
        return self._decode(encoded, index, out), label


def read_record(source: Source, index: int) -> tuple[bytes, int]:
    """Encoded bytes and class id; whatever the disk says becomes a `DataError` naming the record."""
    try:
        return source.read(index)
    except OSError as error:
        raise DataError(f"{source.name(index)}: cannot be read: {error}") from error


def ahead(
    job: Callable[[Item], Result], todo: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result], None, None]:
    """(item, job(item)) in the order of `todo`, computed by threads at most `workers` + 1 items ahead.

    An exception of `job` is raised in the place of its item. `todo` is read by the calling thread only.
    """
    pending: deque[tuple[Item, Future[Result]]] = deque()
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
