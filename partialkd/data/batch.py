"""One batch of faces as every loader hands it to the trainer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FaceBatch:
    """Holds b images with their class ids and where they came from."""

    images: Tensor  # (b, 3, H, W) float32, RGB, (pixel - 127.5) / 127.5, on the rank's device
    labels: Tensor  # (b,) int64 global class ids, same device
    records: Tensor  # (b,) int64 indices into the Source, CPU
    flipped: Tensor  # (b,) bool, CPU: True where the image is mirrored
    clean: Tensor | None = None  # as `images`, before grey and augmentation: what a live teacher sees, if it is told so
    teacher: Tensor | None = None  # (b, D) float32, same device as the images: where the embeddings are kept

    def __len__(self) -> int:
        return len(self.labels)
