"""Make labelled images on the fly, for tests and benchmarks: nothing is on disk."""

from __future__ import annotations

import numpy as np

from partialkd.data.images.encode import encode_jpeg
from partialkd.data.sources.identities import Names
from partialkd.data.sources.source import Source, check_index, digest_of


class SyntheticSource(Source):
    """Makes noise on a gradient, one pair of colours per identity, as JPEG: nothing is on disk.

    Image i is of identity i % num_classes and a function of (seed, i) only.
    """

    def __init__(self, num_classes: int, num_images: int, image_size: int, seed: int = 0) -> None:
        self.num_classes, self.num_images, self.image_size, self.seed = num_classes, num_images, image_size, seed
        self.sizes, self.names = (num_images,), Names(num_classes, None)
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
