"""The DALI loader, and the only import of DALI: it decodes, mirrors and normalises images that our source reads.

Images reach DALI through a callable `external_source` that follows the plan, so order, exact resume and InsightFace
files with their header and identity records need nothing of DALI. Reading runs on `data.workers` threads, decoding on
as many of DALI's; with a CUDA device decoding, mirroring and normalising run there (`mixed`).
Same records, labels, flips, greys and augmentations as `jpeg.py`, in the same order. Pixels: on the CPU equal up to
float32 rounding (1e-6 of the range -1..1); CUDA's decoder may differ by a few grey levels. With `data.resize`, where
sizes differ, DALI only decodes and `decode.to_tensor` does the rest.
A pipeline and its threads belong to one iterator of `epoch` and end with it.
Errors: `DataError` naming the record, at the micro-step the record belongs to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.decode import check_size, decode, to_grey, to_tensor
from partialkd.data.jpeg import OrderedLoader, ahead, read_record
from partialkd.data.order import Plan
from partialkd.data.sources import Source
from partialkd.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """A micro-step on its way through DALI."""

    indices: np.ndarray  # (b,) int64
    images: list[bytes]
    labels: list[int]
    flips: np.ndarray  # (b,) bool
    greys: np.ndarray  # (b,) bool


class DaliLoader(OrderedLoader):
    """Hands micro-steps to a pipeline and takes them back in the same order."""

    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        feeder = Feeder(self.source, self.plan, epoch, steps, self.data.workers)
        pipeline = build_pipeline(feeder, self.plan.local_batch, self.data, self.device)
        try:
            for step in steps:
                indices = self.plan.indices(epoch, step)
                if len(indices) == 0:  # DALI has no empty batches
                    nothing = to_tensor([], self.data.image_size, device=self.device)
                    yield self._batch(epoch, nothing, [], indices, np.zeros(0, dtype=bool))
                    continue
                images = self._run(pipeline, feeder)
                batch = feeder.under_way.popleft()
                yield self._batch(epoch, self._finish(images, batch), batch.labels, batch.indices, batch.flips)
        finally:
            feeder.close()

    def _run(self, pipeline: Pipeline, feeder: Feeder) -> Any:
        """The next micro-step's images as a DALI TensorList."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            return pipeline.run(stream)[0]
        except StopIteration:  # the feeder stopped early, and all before that came out
            raise feeder.failure from None
        except RuntimeError as error:
            raise self._undecodable(feeder.under_way, error) from error

    def _finish(self, images: Any, batch: Encoded) -> Tensor:
        """DALI's images -> (b, 3, S, S) float32 on the device. The tensors share DALI's memory and keep it."""
        size = self.data.image_size
        if self.data.resize:
            parts = (torch.from_dlpack(image)[None] for image in images)
            choices = zip(parts, batch.flips[:, None], batch.greys[:, None], strict=True)
            return torch.cat([to_tensor(part, size, flip, grey, self.device) for part, flip, grey in choices])
        for index, encoded, shape in zip(batch.indices.tolist(), batch.images, images.shape(), strict=True):
            if tuple(shape[1:]) != (size, size):
                check_size(decode(encoded, self.source.name(index)), size, self.source.name(index))
        pixels = torch.from_dlpack(images.as_tensor())
        if batch.greys.any():
            chosen = torch.from_numpy(np.flatnonzero(batch.greys)).to(pixels.device)
            pixels[chosen] = to_grey(pixels[chosen])  # the luma's weights add up to one: before or after normalising
        return pixels

    def _undecodable(self, under_way: deque[Encoded], error: RuntimeError) -> DataError:
        """Which record it was: DALI does not say, our decoder refuses it too."""
        for batch in under_way:
            for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
                try:
                    decode(image, self.source.name(index))
                except DataError as found:
                    return found
        indices = under_way[0].indices if under_way else np.array([-1])
        return DataError(f"one of the records {indices.tolist()}: DALI: {error}")


class Feeder:
    """What DALI calls for its next micro-step: encoded images read ahead, and whether to mirror them."""

    def __init__(self, source: Source, plan: Plan, epoch: int, steps: range, workers: int) -> None:
        self.under_way: deque[Encoded] = deque()  # handed to DALI, not yet back
        self.failure: Exception = RuntimeError("DALI ended before the plan")

        def read(indices: np.ndarray) -> Encoded:
            records = [read_record(source, index) for index in indices.tolist()]
            images, labels = [image for image, _ in records], [label for _, label in records]
            return Encoded(indices, images, labels, plan.flips(epoch, indices), plan.greys(epoch, indices))

        todo = (plan.indices(epoch, step) for step in steps)
        self._batches = ahead(read, (indices for indices in todo if len(indices)), workers)

    def __call__(self) -> tuple[list[np.ndarray], np.ndarray]:
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
    """One output: (b, 3, H, W) float32 mirrored and normalised, or with `data.resize` (b, H, W, 3) uint8 as decoded."""
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
            adjust_orientation=False,  # as decode.py: aligned faces have none
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
