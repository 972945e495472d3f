"""Open a folder of evaluation as CVLface lays it out: faces in Arrow files with an `index`, and `metadata.pt`.

`metadata.pt` is a dictionary of arrays and lists, saved by torch. It is read by torch's unpickler for weights, which
makes numbers, strings and arrays and nothing else.
Errors: `DataError` with file and entry; `ConfigError` where pyarrow is missing.
Source: mk-minchul/CVLface at d3d09c9, research/recognition/code/run_v1/evaluations (the layout, not the code).
"""

from __future__ import annotations

import pickle
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partialkd.data.formats.arrow_file import arrow_texts, find_images
from partialkd.data.sources.arrow_table import list_tables
from partialkd.data.sources.placed_file import PlacedFile
from partialkd.errors import DataError

METADATA = "metadata.pt"
_ARRAYS = [
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1", "U1")},
]
_find = partial(find_images, label_columns=("index",))


class CvlfaceFolder:
    """Rows of a folder's Arrow files, in order: `index` (n,) as the table has it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tables = Path(folder), list_tables(Path(folder))
        open_one = partial(PlacedFile.opened, form="arrow templates", record="row", cache=None, find=_find)
        self._files = [open_one(table) for table in self.tables]
        self._ends = np.cumsum([len(file.labels) for file in self._files])
        self.index = np.concatenate([file.labels for file in self._files])

    def image(self, row: int) -> bytes:
        """Read an encoded image."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        file = self._files[number]
        return file.image(row - int(self._ends[number]) + len(file.labels))

    def texts(self, column: str) -> list[str]:
        """Read a column of strings."""
        return [text for table in self.tables for text in arrow_texts(table, column)]


def read_metadata(path: Path) -> dict[str, Any]:
    """Unpickle what is data, and nothing else."""
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


def entry(content: dict[str, Any], name: str, path: Path) -> Any:
    """Return an entry of the metadata; DataError where there is none."""
    if name not in content:
        raise DataError(f"{path}: no entry {name!r} in it ({', '.join(map(str, content))[:200]})")
    return content[name]


def strings(content: dict[str, Any], name: str, path: Path) -> list[str]:
    """Return an entry that is a list or an array of strings."""
    found = entry(content, name, path)
    values = found.tolist() if isinstance(found, np.ndarray) and found.ndim == 1 else found
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{path}: {name} must be a list of strings, got {type(found).__name__}")
    return list(values)
