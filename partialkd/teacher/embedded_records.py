"""Records that carry a teacher's embedding as float labels: the form in which MarginDistillation keeps its teacher.

The payload of an image record, little-endian (data/formats/recordio.py says what lies around it):
  bytes 0..3    flag, uint32: D + 1, the number of labels
  bytes 4..7    0.0, float32: unused where flag > 0
  bytes 8..23   the record's key, uint64, and 0, uint64
  4 D bytes     the embedding, float32, not normalised, of the image as it is (not mirrored)
  4 bytes       the class id, float32
  the rest      the encoded image, byte for byte as it was
Header and identity records, .idx and `property` are those of any InsightFace folder (insightface_folder.py there). With
D = 512 these are the 513 labels that MarginDistillation writes; there the class id is the last one, too. Images cannot
be mirrored in training, since only one embedding is there. Beside ours stands manifest.json, {"format", "teacher",
"decoding"}: embeddings of images that are decoded otherwise now are refused; files without it are believed.
Errors: DataError naming the record.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.images.decode import DECODING
from partialkd.data.sources.source import Source
from partialkd.errors import DataError
from partialkd.storage.manifest import MANIFEST, read_manifest, write_manifest
from partialkd.teacher.cache import KeptEmbeddings
from partialkd.world.passes import counted

EMBEDDED = "partialkd-embedded-1"
_CHUNK = 1 << 18  # labels looked at in one go


def check_decoding(folders: Iterable[Path]) -> None:
    """Raise DataError for a folder whose embeddings are of images as an earlier version decoded them."""
    for folder in folders:
        if (folder / MANIFEST).is_file():
            said = read_manifest(folder, DataError)
            made = said.get("decoding", DECODING) if said.get("format") == EMBEDDED else DECODING
            if made != DECODING:
                rule = f"embeddings are of images as decoding {made} made them, now it is {DECODING}"
                raise DataError(f"{folder}: {rule}; write these records again (launch/embed.py --records)")


class RecordEmbeddings:
    """The embeddings that the records of a source carry. Reading one reads its record again, from the page cache."""

    def __init__(self, source: Source, dim: int) -> None:
        for first in (0, *accumulate(source.sizes[:-1])):
            source.embedding(first)  # a data set that carries none says so before anything is trained
        self.source, self.dim = source, dim
        self.fingerprint = f"records {source.fingerprint}"

    def rows(self, records: Tensor, flipped: Tensor) -> Tensor:
        """Read embeddings: records (b,) int64, flipped (b,) bool, all False -> (b, D) float32."""
        if flipped.any():
            raise DataError(f"{self.source.name(int(records[flipped][0]))}: carries no embedding of its mirrored image")
        if not len(records):
            return torch.empty(0, self.dim)
        rows = np.stack([self.source.embedding(index) for index in records.tolist()])
        bad = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(bad):
            raise DataError(f"{self.source.name(int(records[bad[0]]))}: the embedding it carries is not finite")
        return torch.from_numpy(rows)


def check_writable(source: Source) -> None:
    """Raise DataError unless class ids ascend, as those of packed records do; before hours of a teacher's work."""
    for start in range(0, len(source) - 1, _CHUNK):
        labels = source.labels(start, min(start + _CHUNK + 1, len(source)))
        falls = np.flatnonzero(labels[1:] < labels[:-1])
        if len(falls):
            at = int(falls[0])
            rule = "class ids must ascend for records to be written (other maps, offsets or order of data.parts)"
            raise DataError(f"{source.name(start + at + 1)}: {rule}, got {labels[at + 1]} after {labels[at]}")


def write_embedded(out: Path, source: Source, kept: KeptEmbeddings, image_size: int) -> int:
    """Write the images of a source with their embeddings as a folder of records -> their number.

    `check_writable` says whether it can be done.
    """
    plain = torch.zeros(1, dtype=torch.bool)
    embed = lambda index: kept.rows(torch.tensor([index]), plain)[0].tolist()
    images = (source.read(index) for index in counted(range(len(source)), "writing records", len(source), "records"))
    count = pack_records(out, images, source.num_classes, image_size, source.names.known(), embed)
    write_manifest(out, {"format": EMBEDDED, "teacher": kept.fingerprint, "decoding": DECODING})
    return count
