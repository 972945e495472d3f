"""Choose single images that training leaves out: a text file, `image<TAB>identity` per line (launch/audit.py).

An image is its number in its data set, from 0 in the order of the set's records; the identity, named as in the other
lists (identities.py), is whom the data set says it shows, so that a list made of other data is found out.
Errors: `DataError` with file and line.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from partialkd.data.formats.text_file import read_lines
from partialkd.data.sources.source import Source
from partialkd.errors import DataError

NO_IMAGES = np.empty(0, dtype=np.int64)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")
_CHUNK = 1 << 18  # labels looked at in one go


def excluded_images(path: Path, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Read a list -> images (k,) int64, ascending, and the class ids (k,) that they have."""
    images, named, lines = [], [], []
    finder = source.names.finder()
    for number, line in read_lines(path):
        where = f"{path}: line {number}"
        image, _, identity = line.partition("\t")
        if not _NUMBER.fullmatch(image) or not identity.strip():
            raise DataError(f"{where}: must be image<TAB>identity, the image a number from 0 on, got {line[:80]!r}")
        if int(image) >= len(source):
            raise DataError(f"{where}: must be an image below {len(source)}, as many as the data set has, got {image}")
        label = finder.find(identity.strip(), where)
        images.append(int(image))
        named.append(-1 if label is None else label)
        lines.append(number)
    order = np.argsort(images, kind="stable")
    ascending, expected, line_of = (np.array(part, dtype=np.int64)[order] for part in (images, named, lines))
    labels = _labels(source, ascending)
    for at in np.flatnonzero(labels != expected)[:1]:
        shown = source.names[int(labels[at])]
        rule = f"the data set says that image {ascending[at]} shows {shown!r}: the list is of other data"
        raise DataError(f"{path}: line {line_of[at]}: {rule}")
    for at in np.flatnonzero(np.diff(ascending) == 0)[:1]:
        raise DataError(f"{path}: line {line_of[at + 1]}: image {ascending[at]} occurs twice")
    return ascending, labels


def _labels(source: Source, images: np.ndarray) -> np.ndarray:
    """Class ids of these images, ascending, read in pieces."""
    labels = np.empty(len(images), dtype=np.int64)
    for start in range(0, len(source), _CHUNK):
        first, end = np.searchsorted(images, (start, start + _CHUNK))
        if first < end:
            labels[first:end] = source.labels(start, min(start + _CHUNK, len(source)))[images[first:end] - start]
    return labels
