"""Read IJB-B and IJB-C as CVLface lays them out: aligned faces in Arrow files, and `metadata.pt`.

The table has columns `image` and `index`; `metadata.pt` is a dictionary of arrays, saved by torch: `templates`,
`medias` and `faceness_scores` of the images in the order of `index`; `p1`, `p2` and `label` of the pairs. No 1:N.
It is read by torch's unpickler for weights, which makes numbers and arrays and nothing else.
Errors: `DataError` with file and entry; `ConfigError` where pyarrow is missing.
Source: mk-minchul/CVLface at d3d09c9, evaluations/ijbbc_evaluator.py (the layout, not the code).
"""

from __future__ import annotations

import pickle
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partialkd.data.formats.arrow_file import find_images
from partialkd.data.formats.ijb_folder import TemplateSet
from partialkd.data.sources.arrow_table import list_tables
from partialkd.data.sources.placed_file import PlacedFile
from partialkd.errors import DataError

METADATA = "metadata.pt"
_OF_IMAGES, _OF_PAIRS = ("templates", "medias", "faceness_scores"), ("p1", "p2", "label")
_ARRAYS = [
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1")},
]


def read_cvlface(folder: Path) -> TemplateSet:
    """Read the lists of a folder, and see that they agree."""
    path = Path(folder) / METADATA
    found = {name: values for names in (_OF_IMAGES, _OF_PAIRS) for name, values in _alike(_read(path), names, path)}
    open_one = partial(PlacedFile.opened, form="arrow templates", record="row", cache=None, find=_find)
    files = [open_one(file) for file in list_tables(Path(folder))]
    index = np.concatenate([file.labels for file in files])
    count = len(found["templates"])
    if sorted(index.tolist()) != list(range(count)):
        rule = f"must hold each index from 0 to {count - 1} once, as many as templates in {METADATA}"
        raise DataError(f"{folder}: its table {rule}; got {len(index)} rows")
    places = [(file, at) for file in files for at in range(len(file.labels))]
    row = np.argsort(index)

    def stored(image: int) -> bytes:
        file, at = places[int(row[image])]
        return file.image(at)

    templates, scores = found["templates"].astype(np.int64), found["faceness_scores"].astype(np.float32)
    known = np.unique(templates)
    for name in ("p1", "p2"):
        if len(strange := np.setdiff1d(found[name], known)):
            raise DataError(f"{path}: {name}: template {strange[0]} has no image")
    pairs = found["p1"].astype(np.int64), found["p2"].astype(np.int64), found["label"].astype(bool)
    names = [f"index {image}" for image in range(count)]
    return TemplateSet(
        Path(folder), names, templates, found["medias"].astype(np.int64), np.zeros((count, 5, 2)), scores, pairs,
        {}, None, stored,
    )  # fmt: skip


_find = partial(find_images, label_columns=("index",))


def _read(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        rule = "must be a dictionary of arrays saved by torch; other objects may be code, and are not unpickled"
        raise DataError(f"{path}: {rule}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be a dictionary of arrays, got {type(content).__name__}")
    return content


def _alike(content: dict[str, Any], names: tuple[str, ...], path: Path) -> list[tuple[str, np.ndarray]]:
    """Return the arrays of these names, which must be of one length and of finite numbers."""
    found: list[tuple[str, np.ndarray]] = []
    for name in names:
        if name not in content:
            raise DataError(f"{path}: no entry {name!r} in it ({', '.join(map(str, content))[:200]})")
        values = np.asarray(content[name])
        if values.ndim != 1 or values.dtype.kind not in "iufb" or not np.isfinite(values).all() or not len(values):
            raise DataError(f"{path}: {name} must be a list of finite numbers, got {values.dtype} of {values.shape}")
        if found and len(values) != len(found[0][1]):
            raise DataError(f"{path}: {name} must be as long as {names[0]} ({len(found[0][1])}), got {len(values)}")
        found.append((name, values))
    return found
