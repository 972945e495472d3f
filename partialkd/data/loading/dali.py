"""The DALI loader, and the only import of DALI: it decodes, mirrors and normalises images that our source reads.

Images reach DALI through a callable `external_source` that follows the plan, so order, exact resume and InsightFace
files with their header and identity records need nothing of DALI. Reading runs on `data.workers` threads, decoding on
as many of DALI's; with a CUDA device decoding, mirroring and normalising run there (`mixed`).
Same records, labels, flips, greys and augmentations as `jpeg.py`, in the same order. Pixels: on the CPU equal up to
float32 rounding (1e-6 of the range -1..1); CUDA's decoder may differ by a few grey levels. With `data.resize`, where
sizes differ, DALI only decodes and `decode.normalised` does the rest.
A pipeline and its threads belong to one iterator of `epoch` and end with it.
DALI takes what `decode.py` does not: transparency, 16 bits a channel, animations, and JPEG that is damaged in the
middle but ends as it should. So images that are not JPEG, and those to be turned upright, are decoded twice, by us
first; of the others the header is looked at; and with
`data.on_corrupt = "skip"` all are (about 0.15 ms per image of 112 x 112 on one core, on the threads that read): an
unreadable image ends a pipeline, and which ones are unreadable must not depend on the loader. With "stop" a JPEG
damaged in the middle goes through with grey or shifted blocks.
Errors: `DataError` naming the record, at the micro-step the record belongs to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.images.decode import JPEG, check_jpeg, decode
from partialkd.data.images.encode import encode_png
from partialkd.data.images.orientation import UPRIGHT, orientation
from partialkd.data.images.tensors import made_grey, normalised, rows_of, stacked
from partialkd.data.loading.ordered import Finish, SourceLoader, read_record
from partialkd.data.order.plan import Plan
from partialkd.data.ordered_threads import in_order
from partialkd.errors import DataError, Where


@dataclass(frozen=True)
class Encoded:
    """Holds a micro-step on its way through DALI."""

    indices: np.ndarray  # (b,) int64
    images: list[bytes]
    labels: list[int]
    flips: np.ndarray  # (b,) bool
    greys: np.ndarray  # (b,) bool


Read = Callable[[int, np.ndarray], Encoded]  # (epoch, indices (b,)) -> micro-step


class DaliLoader(SourceLoader):
    """Hands micro-steps to a pipeline and takes them back in the same order."""

    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        feeder = Feeder(self.plan, epoch, steps, self.data.workers, self._read)
        pipeline = build_pipeline(feeder, self.plan.local_batch, self.data, self.device)
        images = None
        try:
            for _ in steps:
                images = self._run(pipeline, feeder) if images is None else images
                batch = feeder.under_way.popleft()
                if len(batch.indices):
                    pixels, images = self._pixels(images), None
                else:  # DALI has no empty batches: its images are of a later micro-step
                    pixels = stacked([], self.data.image_size, self.device)
                yield self._batch(epoch, pixels, batch.labels, batch.indices, batch.flips, *self._finishing(batch))
        finally:
            feeder.close()

    def _run(self, pipeline: Pipeline, feeder: Feeder) -> Any:
        """Return the images of the next micro-step that has any, a TensorList; None if only empty ones are left."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            return pipeline.run(stream)[0]
        except StopIteration:  # all before the feeder's end came out
            if feeder.failure is not None:
                raise feeder.failure from None
            return None
        except RuntimeError as error:
            raise self._undecodable(feeder.under_way, error) from error

    def _read(self, epoch: int, indices: np.ndarray) -> Encoded:
        """Read a micro-step; runs on the feeder's threads."""
        if self.unreadable.skips:
            indices, records = self.unreadable.read(epoch, indices, lambda index: self._record(index, look=True))
        else:
            records = [self._record(index, look=False) for index in indices.tolist()]
        images, labels = [image for image, _ in records], [label for _, label in records]
        return Encoded(indices, images, labels, self.plan.flips(epoch, indices), self.plan.greys(epoch, indices))

    def _record(self, index: int, look: bool) -> tuple[bytes, int]:
        """Read encoded bytes and class id. look: whether our decoder must take the image, JPEG or not."""
        encoded, label = read_record(self.source, index)
        upright = orientation(encoded) == UPRIGHT  # else DALI gets the pixels as we have turned them
        if look or encoded[:2] != JPEG or not upright:
            pixels = self._decode(encoded, index)
        else:
            check_jpeg(encoded, Where(self.source.name, index), self.wanted)
        return encoded if upright else encode_png(pixels), label

    def _pixels(self, images: Any) -> Tensor:
        """Turn DALI's images into (b, 3, S, S) float32 on the device. The tensor shares DALI's memory and keeps it."""
        if not self.data.resize:
            return torch.from_dlpack(images.as_tensor())
        parts = (torch.from_dlpack(image)[None] for image in images)
        return torch.cat([stacked(part, self.data.image_size, self.device) for part in parts])

    def _finishing(self, batch: Encoded) -> tuple[dict[str, np.ndarray], Finish]:
        """Say what DALI has left to do, and for which images."""
        if self.data.resize:
            return rows_of(batch.flips, batch.greys), normalised
        # The luma's weights add up to one: before or after normalising.
        return rows_of(np.zeros_like(batch.flips), batch.greys), made_grey

    def _undecodable(self, under_way: deque[Encoded], error: RuntimeError) -> DataError:
        """Find which record it was: DALI does not say, our decoder refuses it too."""
        for batch in under_way:
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                try:
                    decode(image, self.source.name(index))
                except DataError as found:
                    return found
        indices = under_way[0].indices if under_way else np.array([-1])
        return DataError(f"one of the records {indices.tolist()}: DALI: {error}")


class Feeder:
    """Gives DALI its next micro-step when it calls: encoded images read ahead, and whether to mirror them."""

    def __init__(self, plan: Plan, epoch: int, steps: range, workers: int, read: Read) -> None:
        self.under_way: deque[Encoded] = deque()  # handed to DALI, or empty; not yet back
        self.failure: Exception | None = None
        self._batches = in_order(partial(read, epoch), (plan.indices(epoch, step) for step in steps), workers)

    def __call__(self) -> tuple[list[np.ndarray], np.ndarray]:
        batch = None
        while batch is None or not len(batch.indices):
            try:
                _, batch = next(self._batches)
            except StopIteration:
                raise
            except Exception as error:  # kept until the micro-steps before this one have come out
                self.failure = error
                raise StopIteration from error
            self.under_way.append(batch)
        return [np.frombuffer(image, np.uint8) for image in batch.images], batch.flips.astype(np.int32)

    def close(self) -> None:
        """End the reading threads."""
        self._batches.close()


def build_pipeline(feeder: Feeder, local_batch: int, data: DataConfig, device: torch.device) -> Pipeline:
    """Build what gives (b, 3, H, W) float32 mirrored and normalised; with `data.resize` (b, H, W, 3) uint8."""
    on_gpu = device.type == "cuda"
    index = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
    pipeline = Pipeline(batch_size=local_batch, num_threads=data.workers, device_id=index, prefetch_queue_depth=2)
    with pipeline:
        encoded, mirror = fn.external_source(
            feeder, num_outputs=2, batch=True, dtype=[types.DALIDataType.UINT8, types.DALIDataType.INT32], ndim=[1, 0]
        )
        images = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,  # `_record` has turned them, in every format alike
            jpeg_fancy_upsampling=True,  # libjpeg's own default, and decode.py's
        )
        if not data.resize:
            images = fn.crop_mirror_normalize(
                images,
                mirror=mirror,
                mean=[127.5] * 3,
                std=[127.5] * 3,
                dtype=types.DALIDataType.FLOAT,
                output_layout="CHW",
            )
        pipeline.set_outputs(images, mirror)  # the second is not looked at; left out, DALI warns of an unused input
    pipeline.build()
    return pipeline
