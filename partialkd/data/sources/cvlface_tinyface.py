"""Read TinyFace as CVLface lays it out: a table of faces with their paths, and which of them are probes, and gallery.

The table has columns `image`, `index` and `path`; `metadata.pt` holds lists of paths: `probe_paths`, `gallery_paths`
and `distractor_paths`. A path is told by its last part without its ending; what stands before the first `_` is the
subject. Faces of the table that no list names are not used.
Errors: `DataError` with file and entry.
Source: mk-minchul/CVLface at d3d09c9, run_v1/evaluations/tinyface (the layout, not the code).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from partialkd.data.formats.identification_folder import IdentificationSet
from partialkd.data.sources.cvlface_folder import METADATA, CvlfaceFolder, read_metadata, strings
from partialkd.errors import DataError

PROBES = "probe_paths"
_LISTS = (PROBES, "gallery_paths", "distractor_paths")


def read_cvlface_identification(folder: Path) -> IdentificationSet:
    """Read the lists of a folder, and see that the table has their faces."""
    path, table = Path(folder) / METADATA, CvlfaceFolder(folder)
    content = read_metadata(path)
    row_of: dict[str, int] = {}
    for row, name in enumerate(table.texts("path")):
        if row_of.setdefault(_key(name), row) != row:
            raise DataError(
                f"{folder}: rows {row_of[_key(name)]} and {row} of its table are both called {_key(name)!r}"
            )
    probes, gallery, distractors = (strings(content, name, path) for name in _LISTS)
    for name, listed in zip(_LISTS, (probes, gallery, distractors), strict=True):
        for at, one in enumerate(listed):
            if _key(one) not in row_of:
                raise DataError(f"{path}: {name}: entry {at}: no face {_key(one)!r} in the table")
    if not probes or not gallery:
        raise DataError(f"{path}: must name probes and a gallery, got {len(probes)} and {len(gallery)}")
    subjects = [_subject(one) for one in probes + gallery]
    number = {subject: at for at, subject in enumerate(sorted(set(subjects)))}
    names = probes + gallery + distractors
    rows = [row_of[_key(one)] for one in names]
    return IdentificationSet(
        Path(folder), names, np.array([number[one] for one in subjects] + [-1] * len(distractors), dtype=np.int64),
        len(probes), len(gallery), 0, lambda image: table.image(rows[image]),
    )  # fmt: skip


def _key(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).stem


def _subject(path: str) -> str:
    subject = _key(path).partition("_")[0]
    return str(int(subject)) if subject.isascii() and subject.isdigit() else subject
