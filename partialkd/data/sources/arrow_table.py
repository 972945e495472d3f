"""The source of Arrow files: what `datasets` saves with `save_to_disk`, or any .arrow files (formats/arrow_file.py).

A folder of `save_to_disk` names its files, and their order, in state.json. Images are read where they lie in the file;
opening reads offsets and labels alone.
Errors: `DataError` with file and row, or naming the split to choose.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from partialkd.data.formats.arrow_file import class_names, find_images
from partialkd.data.formats.shard_files import list_shards
from partialkd.data.formats.text_file import read_text
from partialkd.data.sources.files import FilesSource
from partialkd.data.sources.identities import Names
from partialkd.data.sources.placed_file import PlacedFile
from partialkd.errors import DataError

_SPLITS, _STATE = "dataset_dict.json", "state.json"  # of save_to_disk


class ArrowSource(FilesSource[PlacedFile]):
    """Reads the Arrow files of a folder, or one."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        paths = list_tables(Path(path))
        open_one = partial(PlacedFile.opened, form="arrow", record="row", cache=cache, find=find_images)
        files = [open_one(file) for file in paths]
        classes = 1 + max(int(file.labels.max()) for file in files)
        super().__init__(files, *table_classes(paths[0], classes))


def table_classes(path: Path, classes: int) -> tuple[int, Names]:
    """Return the number of classes and their names as a file gives them; else the numbers of `classes`."""
    named = class_names(path)
    if named is None:
        return classes, Names(classes, None)
    if len(named) < classes:
        raise DataError(f"{path}: names {len(named)} classes, but there is an image of class {classes - 1}")
    return len(named), Names(len(named), named)


def list_tables(path: Path) -> list[Path]:
    """List the Arrow files of a folder in the order of its rows; DataError where it holds splits, or none."""
    if (path / _SPLITS).is_file():
        splits = [child.name for child in sorted(path.iterdir()) if (child / _STATE).is_file()]
        raise DataError(f"{path}: holds the splits {', '.join(splits)}; name the folder of one")
    if not (path / _STATE).is_file():
        return list_shards(path, ".arrow")
    try:
        state = json.loads(read_text(path / _STATE))
        files = [path / str(file["filename"]) for file in state["_data_files"]]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise DataError(f"{path / _STATE}: not what save_to_disk writes: {type(error).__name__}: {error}") from error
    if state.get("_indices_data_files"):
        raise DataError(f"{path / _STATE}: rows are chosen by an indices file; save it anew (flatten_indices)")
    if not files:
        raise DataError(f"{path / _STATE}: lists no file")
    return files
