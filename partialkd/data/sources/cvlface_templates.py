"""Read IJB-B and IJB-C as CVLface lays them out: aligned faces in Arrow files, and `metadata.pt`.

The table has columns `image` and `index`; `metadata.pt` holds arrays: `templates`, `medias` and `faceness_scores` of
the images in the order of `index`; `p1`, `p2` and `label` of the pairs. No 1:N.
Errors: `DataError` with file and entry.
Source: mk-minchul/CVLface at d3d09c9, run_v1/evaluations/ijbbc_evaluator.py (the layout, not the code).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.ijb_folder import TemplateSet
from partialkd.data.sources.cvlface_folder import METADATA, CvlfaceFolder, entry, read_metadata
from partialkd.errors import DataError

_OF_IMAGES, _OF_PAIRS = ("templates", "medias", "faceness_scores"), ("p1", "p2", "label")


def read_cvlface(folder: Path) -> TemplateSet:
    """Read the lists of a folder, and see that they agree."""
    path = Path(folder) / METADATA
    content = read_metadata(path)
    found = {name: values for names in (_OF_IMAGES, _OF_PAIRS) for name, values in _alike(content, names, path)}
    table, count = CvlfaceFolder(folder), len(found["templates"])
    if sorted(table.index.tolist()) != list(range(count)):
        rule = f"must hold each index from 0 to {count - 1} once, as many as templates in {METADATA}"
        raise DataError(f"{folder}: its table {rule}; got {len(table.index)} rows")
    row = np.argsort(table.index)
    templates, scores = found["templates"].astype(np.int64), found["faceness_scores"].astype(np.float32)
    known = np.unique(templates)
    for name in ("p1", "p2"):
        if len(strange := np.setdiff1d(found[name], known)):
            raise DataError(f"{path}: {name}: template {strange[0]} has no image")
    pairs = found["p1"].astype(np.int64), found["p2"].astype(np.int64), found["label"].astype(bool)
    names = [f"index {image}" for image in range(count)]
    return TemplateSet(
        Path(folder), names, templates, found["medias"].astype(np.int64), np.zeros((count, 5, 2)), scores, pairs,
        {}, None, lambda image: table.image(int(row[image])),
    )  # fmt: skip


def _alike(content: dict[str, Any], names: tuple[str, ...], path: Path) -> list[tuple[str, np.ndarray]]:
    """Return the arrays of these names, which must be of one length and of finite numbers."""
    found: list[tuple[str, np.ndarray]] = []
    for name in names:
        values = np.asarray(entry(content, name, path))
        if values.ndim != 1 or values.dtype.kind not in "iufb" or not np.isfinite(values).all() or not len(values):
            raise DataError(f"{path}: {name} must be a list of finite numbers, got {values.dtype} of {values.shape}")
        if found and len(values) != len(found[0][1]):
            raise DataError(f"{path}: {name} must be as long as {names[0]} ({len(found[0][1])}), got {len(values)}")
        found.append((name, values))
    return found
