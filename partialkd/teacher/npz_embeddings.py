"""A teacher's embeddings that some other program has kept in an .npz: row i is of image i of the training data.

Arrays: `embeddings` (n, D), floats, not normalised or so; `flipped` (n, D) of the mirrored images, where training is to
mirror them; `labels` (n,), where the order is to be compared with the class ids of the data. They stay in the file,
mapped; each is compared with its checksum when it is opened.
Errors: `TeacherError` naming the file, the array and the record.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partialkd.data.formats.npz_file import NpzFile
from partialkd.data.sources.source import Source
from partialkd.errors import TeacherError

EMBEDDINGS, FLIPPED, LABELS = "embeddings", "flipped", "labels"
_CHUNK = 1 << 18  # labels looked at in one go


class NpzEmbeddings:
    """Looks up embeddings in an .npz, from any thread."""

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source = Path(path), source
        self._file = NpzFile(self.path, TeacherError)
        if EMBEDDINGS not in self._file.names:
            found = ", ".join(self._file.names)[:80]
            raise TeacherError(f"{path}: needs an array {EMBEDDINGS} (n, D), has {found or 'none'}")
        self._plain = self._array(EMBEDDINGS)
        self.dim = self._plain.shape[1]
        self._flipped = self._array(FLIPPED) if FLIPPED in self._file.names else None
        if self._flipped is not None and self._flipped.shape != self._plain.shape:
            rule = f"{FLIPPED} must be as large as {EMBEDDINGS}, {self._plain.shape}"
            raise TeacherError(f"{path}: {rule}, got {self._flipped.shape}")
        if LABELS in self._file.names:
            self._compare(self._file.array(LABELS))
        kept = sorted((name, *self._file.sums[name]) for name in self._file.names)
        self.fingerprint = f"npz {hashlib.sha256(repr(kept).encode()).hexdigest()}"

    @property
    def mirrored(self) -> bool:
        """Whether embeddings of mirrored images are there."""
        return self._flipped is not None

    def rows(self, records: Tensor, flipped: Tensor) -> Tensor:
        """Look up embeddings: records (b,) int64, flipped (b,) bool -> (b, D) float32."""
        self._file.check()
        at, mirrored = records.numpy(), flipped.numpy()
        rows = self._plain[at].astype(np.float32)
        if mirrored.any():
            if self._flipped is None:
                raise TeacherError(f"{self.path}: has no array {FLIPPED}, and an image is mirrored (data.flip)")
            rows[mirrored] = self._flipped[at[mirrored]]
        bad = np.flatnonzero(~np.isfinite(rows).all(1) | ~rows.any(1))
        if len(bad):
            record = int(at[bad[0]])
            what = f"row {record} is zero or not finite, the embedding of {self.source.name(record)}"
            raise TeacherError(f"{self.path}: {FLIPPED if mirrored[bad[0]] else EMBEDDINGS}: {what}")
        return torch.from_numpy(rows)

    def _array(self, name: str) -> np.ndarray:
        values = self._file.array(name)
        if values.ndim != 2 or values.dtype.kind != "f" or not values.shape[1]:
            raise TeacherError(f"{self.path}: {name} must be (n, D) floats, got {values.shape} {values.dtype}")
        if len(values) != len(self.source):
            rule = f"{name} must have a row for each of the {len(self.source)} images of the data, in their order"
            raise TeacherError(f"{self.path}: {rule}, got {len(values)}")
        self._file.verify(name)
        return values

    def _compare(self, labels: np.ndarray) -> None:
        """Raise TeacherError where the class id of a row is not that of its image."""
        if labels.shape != (len(self.source),) or labels.dtype.kind not in "iu":
            rule = f"{LABELS} must be ({len(self.source)},) integers"
            raise TeacherError(f"{self.path}: {rule}, got {labels.shape} {labels.dtype}")
        for start in range(0, len(labels), _CHUNK):
            theirs, ours = labels[start : start + _CHUNK], self.source.labels(start, min(start + _CHUNK, len(labels)))
            wrong = np.flatnonzero(theirs != ours)
            if len(wrong):
                at = start + int(wrong[0])
                what = f"row {at} is of class {theirs[wrong[0]]}, {self.source.name(at)} of class {ours[wrong[0]]}"
                raise TeacherError(f"{self.path}: {LABELS}: {what}; were they made of these images, in this order?")
