"""What the decoding threads hand over: floats for the CPU, bytes for another device; nothing depends on the thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from partialkd.config import DataConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.images.tensors import to_tensor
from partialkd.data.loading.jpeg import Job, JpegLoader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.sources.open import open_source

SIZE, RECORDS = 24, 12
CPU = torch.device("cpu")


def opened(folder: Path, sizes: tuple[int, ...], resize: bool) -> JpegLoader:
    """A loader over pictures of noise, their sizes in turn."""
    rng = np.random.default_rng(0)
    pictures = (rng.integers(0, 256, (sizes[n % len(sizes)],) * 2 + (3,), dtype=np.uint8) for n in range(RECORDS))
    pack_records(folder, ((encode_jpeg(picture), n // 4) for n, picture in enumerate(pictures)), 3, SIZE)
    data = DataConfig(path=str(folder), loader="jpeg", image_size=SIZE, resize=resize)
    source = open_source(data)
    return JpegLoader(data, source, TrainingPlan(RECORDS, BatchCut(6), seed=1, flip=True, grey=0.4), CPU)


@pytest.mark.parametrize(("sizes", "resize"), [((SIZE,), False), ((SIZE,), True), ((SIZE, 30), True)])
def test_bytes_for_a_device_become_the_images_of_the_cpu(tmp_path: Path, sizes: tuple[int, ...], resize: bool) -> None:
    loader = opened(tmp_path / "set", sizes, resize)
    for step, batch in enumerate(loader.epoch(0)):
        indices = loader.plan.indices(0, step)
        pixels = torch.full((len(indices), SIZE, SIZE, 4), 200, dtype=torch.uint8)
        job = Job(indices, loader.plan.flips(0, indices), loader.plan.greys(0, indices), pixels)
        images, labels = loader.read(job)
        assert isinstance(images, list) if len(sizes) > 1 else images is pixels
        assert labels == batch.labels.tolist()
        assert batch.images.is_contiguous()
        assert torch.equal(to_tensor(images, SIZE, job.flips, job.greys), batch.images)


def test_no_records_are_an_empty_batch(tmp_path: Path) -> None:
    loader = opened(tmp_path / "set", (SIZE,), False)
    none = np.zeros(0, dtype=np.int64)
    for pixels in (None, torch.empty((0, SIZE, SIZE, 4), dtype=torch.uint8)):
        images, labels = loader.read(Job(none, none.astype(bool), none.astype(bool), pixels))
        assert to_tensor(images, SIZE).shape == (0, 3, SIZE, SIZE) if pixels is not None else len(images[0]) == 0
        assert labels == []
