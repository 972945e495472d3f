"""Small sets of pictures, and a loader opened over them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.loading.ordered import Loader
from partialkd.data.order.plan import BatchCut, Plan, TrainingPlan
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import Source

SIZE, RECORDS, CLASSES = 32, 45, 9
LOADERS = ["jpeg", "dali"]
CPU = torch.device("cpu")


def picture(number: int, size: int = SIZE) -> np.ndarray:
    """Smooth in both directions, unlike its mirror image, in colour."""
    y, x = np.mgrid[0:size, 0:size] / size
    planes = [255 * x, 120 + 100 * np.sin(5 * y + number), 200 * y * x + number]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def as_png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def pack(folder: Path, change: Callable[[int, bytes], bytes] = lambda _, image: image) -> Path:
    images = ((change(n, encode_jpeg(picture(n), 90)), n * CLASSES // RECORDS) for n in range(RECORDS))
    pack_records(folder, images, CLASSES, SIZE)
    return folder


def open_one(
    loader: str, path: Path, plan: Plan | None = None, source: Source | None = None, **settings: object
) -> Loader:
    data = DataConfig(path=str(path), loader=loader, image_size=SIZE, **settings)  # type: ignore[arg-type]
    source = source or open_source(data)
    plan = plan or TrainingPlan(len(source), BatchCut(8), seed=2, flip=True, grey=0.3)
    return open_loader(data, source, plan, CPU)


def assert_equal(ours: FaceBatch, theirs: FaceBatch, tolerance: float = 0.0) -> None:
    assert all(torch.equal(getattr(ours, key), getattr(theirs, key)) for key in ("labels", "records", "flipped"))
    torch.testing.assert_close(ours.images, theirs.images, atol=tolerance, rtol=0)
