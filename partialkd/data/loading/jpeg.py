"""The loader without DALI: threads decode with libjpeg-turbo (`decode.py`) a bounded number of micro-steps ahead.

Yields `FaceBatch`es in the order of the plan, from any micro-step of an epoch. Decoded bytes travel to the device;
resize, grey, mirror and normalisation happen there, by `decode.normalised` (on the CPU already in the threads that
decode), then augmentation. On CUDA a batch is two page-locked copies that nobody waits for: its bytes, and all else.
Memory: at most `workers` + 2 micro-steps. Threads belong to one iterator and end with it: at its end, when it raises,
when it or the loader is closed, when it is dropped half-way.
Errors: `DataError` naming the record, at the micro-step the record belongs to; what `data.on_corrupt` makes of records
that cannot be read: unreadable.py. A micro-step that holds one is read once more.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialkd.data.batch import FaceBatch
from partialkd.data.images.tensors import normalised, rows_of, stacked, write_planes
from partialkd.data.loading.ordered import SourceLoader, read_record
from partialkd.data.ordered_threads import in_order
from partialkd.errors import DataError


@dataclass(frozen=True)
class Job:
    """Holds what is to be read in a micro-step."""

    indices: np.ndarray  # (b,) int64
    flips: np.ndarray  # (b,) bool
    greys: np.ndarray  # (b,) bool
    pixels: Tensor | None  # (b, S, S, 4) uint8 to decode into, pinned, where the device is a CUDA device


class JpegLoader(SourceLoader):
    """Decodes on threads, finishes on the device."""

    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        jobs = (self._job(epoch, step) for step in steps)
        read = partial(self._read_others, epoch) if self.unreadable.skips else self._read
        for _, (job, images, labels) in in_order(read, jobs, self.data.workers):
            if job.pixels is None:
                planes, clean = images
                yield self._batch(epoch, planes, labels, job.indices, job.flips, clean=clean)
            else:  # in this thread, whose current device and stream are the rank's
                pixels, rows = stacked(images, self.data.image_size, self.device), rows_of(job.flips, job.greys)
                yield self._batch(epoch, pixels, labels, job.indices, job.flips, rows, normalised)

    def _job(self, epoch: int, step: int) -> Job:
        indices, size = self.plan.indices(epoch, step), self.data.image_size
        on_cuda = self.device.type == "cuda"
        pixels = torch.empty((len(indices), size, size, 4), dtype=torch.uint8, pin_memory=True) if on_cuda else None
        return Job(indices, self.plan.flips(epoch, indices), self.plan.greys(epoch, indices), pixels)

    def _read(self, job: Job) -> tuple[Job, Any, list[int]]:
        return job, *self.read(job)

    def _read_others(self, epoch: int, job: Job) -> tuple[Job, Any, list[int]]:
        """Read a micro-step with other records in the place of those that cannot be read."""
        try:
            return self._read(job)
        except DataError:
            indices, _ = self.unreadable.read(epoch, job.indices, lambda index: self._read_image(index, None))
        pixels = None if job.pixels is None else job.pixels[: len(indices)]
        return self._read(Job(indices, self.plan.flips(epoch, indices), self.plan.greys(epoch, indices), pixels))

    def read(self, job: Job) -> tuple[Any, list[int]]:
        """Read images and class ids: `job.pixels`, or a list if not all are S x S; without: `_read_floats`."""
        if job.pixels is None:
            return self._read_floats(job)
        images, labels, size = [], [], self.data.image_size
        for index, out in zip(job.indices.tolist(), job.pixels.numpy(), strict=True):
            image, label = self._read_image(index, out)
            images.append(image)
            labels.append(label)
        fits = all(image.shape[:2] == (size, size) for image in images)
        return job.pixels if fits else images, labels

    def _read_floats(self, job: Job) -> tuple[tuple[Tensor, Tensor | None], list[int]]:
        """Read images (b, 3, S, S) float32, the same all in colour where they are wanted, and class ids."""
        size, labels = self.data.image_size, []
        planes = np.empty((len(job.indices), 3, size, size), dtype=np.float32)
        clean = np.empty_like(planes) if self.with_clean else None
        pixels = np.empty((size, size, 4), dtype=np.uint8)  # one image's: it stays in the cache
        for row, index in enumerate(job.indices.tolist()):
            image, label = self._read_image(index, pixels)
            write_planes(image, planes[row], bool(job.flips[row]), bool(job.greys[row]))
            if clean is not None:
                write_planes(image, clean[row], bool(job.flips[row]), False)
            labels.append(label)
        return (torch.from_numpy(planes), None if clean is None else torch.from_numpy(clean)), labels

    def _read_image(self, index: int, out: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Read a record's pixels (H, W, 3) uint8, in `out` if they have its size, and its class id."""
        encoded, label = read_record(self.source, index)
        return self._decode(encoded, index, out), label
