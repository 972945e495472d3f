"""Count the images of every class, and refuse data that no training can be meant to use.

Errors: `DataError` naming the data and the counts: fewer than two classes with images; more classes without images than
with (a `property` or a list with ids that are not class ids). A few classes without images are a warning.
"""

from __future__ import annotations

import logging

import numpy as np

from partialkd.data.sources.source import Source
from partialkd.errors import DataError
from partialkd.world.messages import rank

LOG = logging.getLogger(__name__)
_CHUNK = 1 << 18  # labels looked at in one go


def images_of_classes(source: Source) -> np.ndarray:
    """Count the images of every class (C,) int64."""
    counts = np.zeros(source.num_classes, dtype=np.int64)
    for start in range(0, len(source), _CHUNK):
        labels = source.labels(start, min(start + _CHUNK, len(source)))
        counts += np.bincount(labels, minlength=len(counts))
    return counts


def check_classes(source: Source, path: str) -> None:
    """Refuse a source with one class, or with mostly empty ones: each would get a centre that nobody belongs to."""
    counts = images_of_classes(source)
    used, empty = int((counts > 0).sum()), np.flatnonzero(counts == 0)
    if used < 2:
        raise DataError(f"{path}: training needs images of at least two identities, got {used}")
    if not len(empty):
        return
    found = f"{path}: {len(empty)} of its {len(counts)} classes have no image, the first is {empty[0]}"
    if len(empty) > used:
        raise DataError(f"{found}; named under [[data.parts]] its classes are numbered anew, without those")
    LOG.warning(found, extra={"shown": rank() == 0})  # once, not by every rank


def records_of(source: Source, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the images (n,) int64 of some class ids, ascending, and those of the classes (k,) int64 that have any."""
    wanted, records, found = np.zeros(source.num_classes, dtype=bool), [], np.zeros(source.num_classes, dtype=bool)
    wanted[classes] = True
    for start in range(0, len(source), _CHUNK):
        labels = source.labels(start, min(start + _CHUNK, len(source)))
        records.append(start + np.flatnonzero(wanted[labels]))
        found[labels] = True
    return np.concatenate(records), np.flatnonzero(found & wanted)
