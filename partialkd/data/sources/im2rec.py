"""The source of a .rec that MXNet's im2rec made: no `property`, a name of any kind, a .lst and an .idx beside it.

Records are in the order of their keys, as with every .rec; without an .idx, in the order of the file. Class ids are the
first labels of the records, 0 to the highest one. A .lst is compared with them at each start: that of another file, or
one that was made anew, says something else.
Errors: `DataError` with file and key, or the list and its line. Images that are listed and have no record (im2rec
leaves out those that it cannot read) are a warning.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from partialkd.data.formats.image_list_file import read_lst
from partialkd.data.formats.insightface_folder import NAMES
from partialkd.data.formats.property_file import MAX_CLASSES
from partialkd.data.sources.files import FilesSource, known_classes
from partialkd.data.sources.record_file import RecordFile
from partialkd.errors import DataError
from partialkd.world.messages import rank

LOG = logging.getLogger(__name__)


class Im2recSource(FilesSource[RecordFile]):
    """Reads one .rec, or that of a folder which holds one."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        rec = _only(Path(path))
        idx, lst = rec.with_suffix(".idx"), rec.with_suffix(".lst")
        file = RecordFile.opened(rec, idx if idx.exists() else None, MAX_CLASSES, cache)
        if lst.exists():
            _compare(lst, file)
        super().__init__([file], *known_classes([file], rec.parent / NAMES))


def _only(path: Path) -> Path:
    if not path.is_dir():
        return path.with_suffix(".rec")
    found = sorted(path.glob("*.rec"))
    if len(found) != 1:
        names = ", ".join(rec.name for rec in found[:5])
        raise DataError(f"{path}: must hold one .rec, holds {len(found)}" + (f"; name one: {names}" if found else ""))
    return found[0]


def _compare(lst: Path, file: RecordFile) -> None:
    """Raise DataError where a list and the records say different things."""
    keys = file.reader.keys[np.asarray(file.positions)]
    pairs = ((image.key, image.label) for image in read_lst(lst))
    listed = np.sort(np.fromiter(pairs, [("key", np.int64), ("label", np.int64)]), order="key")
    at = np.searchsorted(listed["key"], keys)
    there = at < len(listed)
    there[there] = listed["key"][at[there]] == keys[there]
    if not there.all():
        first = int(there.argmin())
        raise DataError(f"{file.where(first)}: is not listed in {lst}; is it the list of another file?")
    labels = listed["label"][at]
    wrong = labels != file.labels
    if wrong.any():
        first = int(wrong.argmax())
        rule = f"has label {file.labels[first]}, {lst} says {labels[first]}; is it the list of another file?"
        raise DataError(f"{file.where(first)}: {rule}")
    if len(listed) > len(keys):
        LOG.warning(f"{lst}: lists {len(listed)} images, {len(keys)} have a record", extra={"shown": rank() == 0})
