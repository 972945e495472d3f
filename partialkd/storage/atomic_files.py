"""Files that are either complete or absent: written under a temporary name, flushed to the disk, renamed.

Errors: `OSError` (disk full, read-only, missing folder); the temporary file is removed and an older file of the
same name stays as it was. `write_json` raises `ValueError` for NaN and infinity, which JSON does not have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from partialkd.errors import DataError


@contextmanager
def replacing(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Open one binary stream a path; at the end they take their names in the order given, on an error none does."""
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in paths]
    streams: list[IO[bytes]] = []
    try:
        streams.extend(name.open("wb") for name in temporary)
        yield streams
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        for name, path in zip(temporary, paths, strict=True):
            os.replace(name, path)
    finally:
        for stream in streams:
            stream.close()
        for name in temporary:
            name.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        sync(folder)


def refuse_existing(*paths: Path) -> None:
    """DataError naming the first path that is already there."""
    for path in paths:
        if path.exists():
            raise DataError(f"{path}: already exists; nothing is overwritten, choose another folder or remove it")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by these bytes."""
    with replacing(Path(path)) as (stream,):
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by this text, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Indented, keys in the order given, one line feed at the end."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
