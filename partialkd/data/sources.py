"""Where labelled encoded images come from: InsightFace folders, image folders, or a generator in memory.

One data set of `data.path`, or several of `data.parts` merged; with identities mapped or left out where the
configuration says so (merged.py).
Errors: `DataError` with file and record key, or the image's path.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from partialkd.config import DataConfig, PartConfig
from partialkd.data.decode import encode_jpeg
from partialkd.data.folder_source import IMAGE_SUFFIXES, FolderSource, digest_of, list_folder
from partialkd.data.layout import PROPERTY
from partialkd.data.merged import MergedSource, merge
from partialkd.data.record_source import RecordIOSource
from partialkd.data.source import Source, check_index
from partialkd.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "FolderSource",
    "MergedSource",
    "RecordIOSource",
    "Source",
    "SyntheticSource",
    "list_folder",
    "open_source",
]


class SyntheticSource:
    """Noise on a gradient, a colour pair an identity, as JPEG made on the fly: nothing is on disk.

    Image i is of identity i % num_classes and a function of (seed, i) only.
    """

    def __init__(self, num_classes: int, num_images: int, image_size: int, seed: int = 0) -> None:
        self.num_classes, self.num_images, self.image_size, self.seed = num_classes, num_images, image_size, seed
        self.sizes: tuple[int, ...] = (num_images,)
        self.fingerprint = digest_of([f"synthetic {num_classes} {num_images} {image_size} {seed}".encode()])

    def __len__(self) -> int:
        return self.num_images

    def labels(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.arange(start, self.num_images if stop is None else stop, dtype=np.int64) % self.num_classes

    def read(self, index: int) -> tuple[bytes, int]:
        check_index(index, len(self))
        label = index % self.num_classes
        left, right = np.random.default_rng((self.seed, 0, label)).uniform(32, 224, (2, 3))
        ramp = np.linspace(0, 1, self.image_size)[None, :, None]
        noise = np.random.default_rng((self.seed, 1, index)).normal(0, 16, (self.image_size, self.image_size, 3))
        pixels = left * (1 - ramp) + right * ramp + noise
        return encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=90), label

    def name(self, index: int) -> str:
        return f"synthetic image {index}"

    def readahead(self, start: int, stop: int) -> None:
        """Nothing: nothing is read."""


def open_source(data: DataConfig) -> Source:
    """The source that `data.path` or `data.parts` name, with the identities that training uses."""
    if data.source == "synthetic":
        return SyntheticSource(data.synthetic_identities, data.synthetic_images, data.image_size)
    alone = PartConfig(
        path=data.path, source=data.source, label_map=data.label_map, exclude_identities=data.exclude_identities
    )
    parts = data.parts or (alone,)
    sources = [_open_part(part, data) for part in parts]
    return merge(sources, parts, data.min_images, data.shared_identities) if data.filtered else sources[0]


def _open_part(part: PartConfig, data: DataConfig) -> FolderSource | RecordIOSource:
    if part.source == "folder":
        return FolderSource(Path(part.path))
    source = RecordIOSource(Path(part.path), Path(data.index_cache) if data.index_cache else None, data.embeddings)
    if not data.resize and (source.height, source.width) != (data.image_size, data.image_size):
        rule = f"data.image_size is {data.image_size} and data.resize is false"
        raise DataError(f"{Path(part.path) / PROPERTY}: images are {source.height} x {source.width}, but {rule}")
    return source
