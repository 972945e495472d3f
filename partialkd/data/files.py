"""Files that appear whole or not at all: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from partialkd.errors import DataError


@contextmanager
def replacing(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Open one binary file a path; at the end they take their names in the order given, on an error none does."""
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in paths]
    files: list[IO[bytes]] = []
    try:
        files.extend(name.open("wb") for name in temporary)
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, path in zip(temporary, paths, strict=True):
            os.replace(name, path)
    finally:
        for file in files:
            file.close()
        for name in temporary:
            name.unlink(missing_ok=True)


def refuse_existing(*paths: Path) -> None:
    """DataError naming the first path that is already there."""
    for path in paths:
        if path.exists():
            raise DataError(f"{path}: already exists; nothing is overwritten, choose another folder or remove it")
