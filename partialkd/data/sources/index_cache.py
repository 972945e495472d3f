"""The index cache keeps what was found in data files from one start to the next, with checksums, mapped into memory.

Opening a data file looks at every record once, which takes long for files of 1e8 records on a disk that seeks. In the
cache folder (`data.index_cache`) each file has a folder of its own, named by a hash of the file's path, size and time
of change and of whatever else the index hangs on. It holds the arrays of an `Index` as little-endian numbers
(`offsets.bin`, `labels.bin` and so on; a range of consecutive numbers stands in the manifest) and a manifest with the
type, size and CRC-32 of each, and of itself. All of them are compared before a kept index is believed (about 1 GB/s); a
damaged one is named in a warning, removed, and the file is read anew. The ranks of a host hold one copy of it.
Errors: `DataError` naming the file; `StorageError` where the cache cannot be written.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.images.decode import DECODING
from partialkd.errors import DataError, printable
from partialkd.storage.atomic_files import discard, hidden_name, naming, new_folder
from partialkd.storage.checksum import crc32, hexadecimal
from partialkd.storage.manifest import read_manifest, write_manifest
from partialkd.storage.mapped_file import MappedFile

LOG = logging.getLogger(__name__)
FORMAT = "partialkd-index-1"


@dataclass(frozen=True)
class Index:
    """What one look at a data file found."""

    digest: str  # SHA-256 of what was found, and of some images
    arrays: dict[str, Any]  # each a range or (n,) numbers
    mapped: tuple[MappedFile, ...] = ()  # what the arrays are views of, where they are kept in files

    def check(self) -> None:
        """Raise DataError if a kept index was cut while it is in use; before every read of it."""
        for file in self.mapped:
            file.check()


def open_index(files: Sequence[Path], hangs_on: object, cache: Path | None, find: Callable[[], Index]) -> Index:
    """Find the index of a data file, or take the kept one.

    files: those it is of, the first of which it is named by. hangs_on: format and whatever else decides what is found.
    """
    if cache is None:
        return find()
    place = cache / _name(files, hangs_on)
    if place.is_dir():
        try:
            return _kept(place)
        except DataError as error:
            LOG.warning("%s; the index of %s is read anew", error, printable(str(files[0])))
            _remove(place)
    index = find()
    if place.name == _name(files, hangs_on):  # else it was written to meanwhile
        _keep(index, files[0], place)
    return index


def _name(files: Sequence[Path], hangs_on: object) -> str:
    """Hash the path, size and time of the files, and whatever else the content hangs on."""
    try:
        stats = [(str(path.resolve()), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(repr((FORMAT, DECODING, hangs_on, stats)).encode()).hexdigest()[:32]


def _kept(place: Path) -> Index:
    """Open a kept index; DataError naming what is damaged."""
    facts = read_manifest(place, DataError, FORMAT, required=True)
    if facts["name"] != place.name:
        raise DataError(f"{place}: is the index {facts['name']} under another name")
    mapped: list[MappedFile] = []
    arrays = {name: _opened(place / f"{name}.bin", said, mapped) for name, said in facts["arrays"].items()}
    return Index(facts["digest"], arrays, tuple(mapped))


def _opened(path: Path, said: dict[str, Any] | list[int], mapped: list[MappedFile]) -> Any:
    """Open one array: the numbers of a range, or a file whose checksum is the manifest's."""
    if isinstance(said, list):
        return range(*said)
    file = MappedFile(path, said["size"], DataError)
    if hexadecimal(file.checksum()) != said["crc32"]:
        raise DataError(f"{path}: damaged: its checksum is not the manifest's")
    mapped.append(file)
    return file.array(said["dtype"])


def _keep(index: Index, named: Path, place: Path) -> None:
    """Keep an index; where another rank was faster, its own stays."""
    facts = {"format": FORMAT, "name": place.name, "of": str(named), "digest": index.digest}
    with naming(place), suppress(FileExistsError), new_folder(place) as hidden:
        arrays = {name: _written(hidden / f"{name}.bin", values) for name, values in index.arrays.items()}
        write_manifest(hidden, {**facts, "arrays": arrays})


def _written(path: Path, values: range | np.ndarray) -> dict[str, Any] | list[int]:
    """Write one array, unless it is a range -> its entry in the manifest."""
    if isinstance(values, range):
        return [values.start, values.stop]
    kept = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    kept.tofile(path)
    return {"dtype": kept.dtype.str, "size": kept.nbytes, "crc32": hexadecimal(crc32(kept.data.cast("B")))}


def _remove(place: Path) -> None:
    """Take a damaged index away, out of sight first; another rank may be doing so as well."""
    hidden = hidden_name(place)
    with naming(place, "removed"), suppress(FileNotFoundError):
        os.replace(place, hidden)
    discard(hidden)
