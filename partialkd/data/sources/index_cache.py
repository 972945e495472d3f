"""The index cache keeps what was found in .rec files from one start to the next, with checksums, mapped into memory.

Opening a .rec reads every record's header once, which takes long for files of 1e8 records on a disk that seeks. In the
cache folder (`data.index_cache`) each file has a folder of its own, named by a hash of the file's path, size and time
of change and of whatever else the index hangs on. It holds the arrays as little-endian numbers (`offsets.bin`,
`labels.bin`, `numbers.bin` and `positions.bin` where these are not consecutive) and a manifest with the type, size and
CRC-32 of each, and of itself. All of them are compared before a kept index is believed (about 1 GB/s); a damaged one is
named in a warning, removed, and the file is read anew. The ranks of a host hold one copy of it between them.
Errors: `DataError` naming the file; `StorageError` where the cache cannot be written.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.recordio import RecordReader
from partialkd.data.images.decode import DECODING
from partialkd.data.sources.record_file import RecordFile
from partialkd.errors import DataError, printable
from partialkd.storage.atomic_files import discard, hidden_name, naming, new_folder
from partialkd.storage.checksum import crc32, hexadecimal
from partialkd.storage.manifest import read_manifest, write_manifest
from partialkd.storage.mapped_file import MappedFile

LOG = logging.getLogger(__name__)
FORMAT = "partialkd-record-index-3"
_ARRAYS = ("numbers", "offsets", "positions", "labels")


def open_file(rec: Path, idx: Path, num_classes: int, cache: Path | None, embeddings: int | None = None) -> RecordFile:
    """Open a .rec file, from the cache where it has been opened before."""
    if cache is None:
        return RecordFile.scanned(rec, idx, num_classes, embeddings)
    place = cache / _name(rec, idx, num_classes, embeddings)
    if place.is_dir():
        try:
            return _kept(rec, place)
        except DataError as error:
            LOG.warning("%s; the index of %s is read anew", error, printable(str(rec)))
            _remove(place)
    file = RecordFile.scanned(rec, idx, num_classes, embeddings)
    if place.name == _name(rec, idx, num_classes, embeddings):  # else it was written to meanwhile
        _keep(file, place)
    return file


def _name(rec: Path, idx: Path, num_classes: int, embeddings: int | None) -> str:
    """Hash the path, size and time of the files, and whatever else the content hangs on."""
    try:
        stats = [(str(path.resolve()), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in (rec, idx)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(repr((FORMAT, DECODING, num_classes, embeddings, stats)).encode()).hexdigest()[:32]


def _kept(rec: Path, place: Path) -> RecordFile:
    """Open a kept index; DataError naming what is damaged."""
    facts = read_manifest(place, DataError, FORMAT, required=True)
    if facts["name"] != place.name:
        raise DataError(f"{place}: is the index {facts['name']} under another name")
    mapped: list[MappedFile] = []
    values = {name: _opened(place / f"{name}.bin", facts[name], mapped) for name in _ARRAYS}
    reader = RecordReader.parsed(rec, values["numbers"], values["offsets"])
    return RecordFile(reader, values["positions"], values["labels"], facts["digest"], tuple(mapped))


def _opened(path: Path, said: dict[str, Any] | list[int], mapped: list[MappedFile]) -> Any:
    """Open one array: the numbers of a range, or a file whose checksum is the manifest's."""
    if isinstance(said, list):
        return range(*said)
    file = MappedFile(path, said["size"], DataError)
    if hexadecimal(file.checksum()) != said["crc32"]:
        raise DataError(f"{path}: damaged: its checksum is not the manifest's")
    mapped.append(file)
    return file.array(said["dtype"])


def _keep(file: RecordFile, place: Path) -> None:
    """Keep a parsed index; where another rank was faster, its own stays."""
    facts: dict[str, Any] = {
        "format": FORMAT, "name": place.name, "rec": str(file.reader.path), "digest": file.digest,
    }  # fmt: skip
    arrays = (file.reader.numbers, file.reader.offsets, file.positions, file.labels)
    with naming(place), suppress(FileExistsError), new_folder(place) as hidden:
        for name, values in zip(_ARRAYS, arrays, strict=True):
            facts[name] = _written(hidden / f"{name}.bin", values)
        write_manifest(hidden, facts)


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
