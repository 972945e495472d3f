"""The ways to read one training file that loaders.py compares; what each is stands there."""

from __future__ import annotations

import argparse
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from partialkd.config import DataConfig
from partialkd.data.loading.jpeg import Job, JpegLoader
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.ordered_threads import in_order
from partialkd.data.sources.open import open_source

CPU = torch.device("cpu")
SIZE = 112


class Pass(ABC):
    """One way over one folder: each call reads all batches of another epoch."""

    def __init__(self, args: argparse.Namespace, cores: int) -> None:
        self.folder, self.batch, self.cores, self.epoch = args.folder, args.batch, cores, 0

    def __call__(self) -> None:
        shapes = {tuple(images.shape) for images in self.images()}
        self.epoch += 1
        if len(shapes) != 1 or shapes.pop()[0] != self.batch:
            raise SystemExit(f"{type(self).__name__}: batches of {shapes}")

    @abstractmethod
    def images(self) -> Iterator[Any]:
        """The batches of an epoch."""


class Ours(Pass):
    """A loader of ours."""

    loader = "jpeg"

    def __init__(self, args: argparse.Namespace, cores: int) -> None:
        super().__init__(args, cores)
        self.data = DataConfig(path=str(self.folder), loader=self.loader, workers=cores)  # type: ignore[arg-type]
        self.source = open_source(self.data)
        self.plan = TrainingPlan(len(self.source), BatchCut(self.batch), seed=0, flip=True)

    def images(self) -> Iterator[Any]:
        for batch in open_loader(self.data, self.source, self.plan, CPU).epoch(self.epoch):
            yield batch.images


class OursDali(Ours):
    """DALI behind an external source."""

    loader = "dali"


class OursToBytes(Ours):
    """Decoded into (b, S, S, 4) uint8, as for a CUDA device, but not in pinned memory."""

    def images(self) -> Iterator[Any]:
        loader = JpegLoader(self.data, self.source, self.plan, CPU)
        jobs = (self._job(step) for step in range(self.plan.micro_steps))
        for _, (pixels, _) in in_order(loader.read, jobs, self.cores):
            yield pixels

    def _job(self, step: int) -> Job:
        indices, size = self.plan.indices(self.epoch, step), self.data.image_size
        pixels = torch.empty((len(indices), size, size, 4), dtype=torch.uint8)
        return Job(indices, self.plan.flips(self.epoch, indices), self.plan.greys(self.epoch, indices), pixels)


class Libjpeg(Pass):
    """Images in memory, decoded one over the other: what is left when nothing else costs anything."""

    def __init__(self, args: argparse.Namespace, cores: int) -> None:
        super().__init__(args, cores)
        source = open_source(DataConfig(path=str(self.folder)))
        encoded = [source.read(index)[0] for index in range(len(source))]
        self.batches = [encoded[start : start + self.batch] for start in range(0, len(encoded), self.batch)]
        self.batches = [batch for batch in self.batches if len(batch) == self.batch]

    def images(self) -> Iterator[Any]:
        for batch, size in in_order(self._decode, self.batches, self.cores):
            yield np.empty((len(batch), *size))

    @staticmethod
    def _decode(batch: list[bytes]) -> tuple[int, ...]:
        pixels = np.empty((SIZE, SIZE, 4), dtype=np.uint8)
        for image in batch:
            simplejpeg.decode_jpeg(image, colorspace="RGBX", buffer=pixels)
        return pixels.shape


class DaliReader(Pass):
    """DALI's own reader; its index leaves out the records without an image."""

    def __init__(self, args: argparse.Namespace, cores: int) -> None:
        super().__init__(args, cores)
        lines = (self.folder / "train.idx").read_text().splitlines()
        index = self.folder / f"images.{cores}.idx"
        index.write_text("".join(f"{line}\n" for line in lines if 1 <= int(line.split("\t")[0]) <= args.images))
        self.steps, self.pipeline = args.images // self.batch, self._build(index)

    def _build(self, index: Path) -> Any:
        from nvidia.dali import Pipeline, fn, types

        pipeline = Pipeline(batch_size=self.batch, num_threads=self.cores, device_id=None, prefetch_queue_depth=2)
        with pipeline:
            encoded, _ = fn.readers.mxnet(
                path=[str(self.folder / "train.rec")], index_path=[str(index)], random_shuffle=True
            )
            images = fn.decoders.image(encoded, output_type=types.DALIImageType.RGB, jpeg_fancy_upsampling=True)
            pipeline.set_outputs(
                fn.crop_mirror_normalize(
                    images, mirror=fn.random.coin_flip(), mean=[127.5] * 3, std=[127.5] * 3,
                    dtype=types.DALIDataType.FLOAT, output_layout="CHW",
                )
            )  # fmt: skip
        pipeline.build()
        return pipeline

    def images(self) -> Iterator[Any]:
        for _ in range(self.steps):
            yield torch.from_dlpack(self.pipeline.run()[0].as_tensor())


class FaceDataset(Dataset[torch.Tensor]):
    """Records decoded by Pillow, mirrored, made a tensor and normalised one by one."""

    def __init__(self, folder: Path) -> None:
        self.source = open_source(DataConfig(path=str(folder)))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(io.BytesIO(self.source.read(index)[0])).convert("RGB")
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(0.5).div_(0.5)


class Pillow(Pass):
    """What is usually written."""

    def __init__(self, args: argparse.Namespace, cores: int) -> None:
        super().__init__(args, cores)
        self.batches = DataLoader(
            FaceDataset(self.folder), self.batch, shuffle=True, num_workers=cores, drop_last=True,
            persistent_workers=True, multiprocessing_context="spawn",
        )  # fmt: skip

    def images(self) -> Iterator[Any]:
        yield from self.batches


WAYS: dict[str, Callable[[argparse.Namespace, int], Pass]] = {
    "libjpeg": Libjpeg,
    "jpeg": Ours,
    "jpeg to bytes": OursToBytes,
    "dali": OursDali,
    "dali reader": DaliReader,
    "pillow": Pillow,
}
