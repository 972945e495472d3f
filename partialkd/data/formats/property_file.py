"""Read the file `property` of an InsightFace folder: the number of classes, height and width of the images.

Its first line counts: `classes,height,width`. InsightFace's own writers put a second line behind it. Sets made by
MXNet's im2rec have no such file, and their records no header: what is to be written is then said, by their records.
Errors: `DataError` naming the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from partialkd.data.formats.recordio import RecordReader
from partialkd.data.formats.text_file import read_lines
from partialkd.data.images.decode import image_size
from partialkd.errors import DataError

MAX_CLASSES = 1 << 24  # labels are float32, which hold every integer up to here
_FORM = "`classes,height,width`"


def read_property(path: Path) -> tuple[int, int, int]:
    """Read `property` -> number of classes, height, width."""
    if os.path.isdir(path.parent) and not os.path.exists(path):
        raise DataError(f"{path}: is missing; make it a text file of one line {_FORM}{_advice(path.parent)}")
    lines = read_lines(path)
    text = lines[0][1].strip() if lines else ""
    try:
        classes, height, width = (int(field) for field in text.split(","))
    except ValueError:
        raise DataError(f"{path}: must begin with a line {_FORM}, got {text[:60]!r}") from None
    if min(classes, height, width) <= 0 or classes > MAX_CLASSES:
        raise DataError(f"{path}: numbers must be positive and classes at most {MAX_CLASSES}, got {text}")
    return classes, height, width


def _advice(folder: Path) -> str:
    """Say what the line would be, by the records; nothing where they do not tell."""
    highest, size = -1, None
    try:
        for rec in sorted(folder.glob("train*.rec")):
            reader = RecordReader(rec, rec.with_suffix(".idx"))
            for start, headers in reader.scan():
                images = np.flatnonzero(headers.image_bytes > 0)
                labels = headers.labels[images]
                if not ((labels >= 0) & (labels == np.floor(labels)) & (labels < MAX_CLASSES)).all():
                    return ""
                highest = max(highest, int(labels.max(initial=-1)))
                if size is None and len(images):
                    position = start + int(images[0])
                    size = image_size(reader.read(position)[1], reader.where(position))
    except DataError:  # the records have their own say once there is a `property`
        return ""
    return f". By its records: `{highest + 1},{size[1]},{size[0]}`" if size else ""
