"""Map files into memory for reading, and look at their size before what is mapped is touched.

Touching a page that lies past the end of its file ends the process with SIGBUS, without a word. So a file that was
cut while it is in use must be noticed before it is read; what is cut during a read is not: the launcher then says
which file it was.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.errors import PartialKDError
from partialkd.storage.checksum import PIECE_BYTES, crc32
from partialkd.storage.launcher_notes import note_mapped


class MappedFile:
    """Maps a file of a known size. Errors are of the `kind` given and name the file."""

    def __init__(self, path: Path, size: int, kind: type[PartialKDError]) -> None:
        self.path, self.size, self.kind = path, size, kind
        try:
            with path.open("rb") as file:
                self._refuse(os.fstat(file.fileno()).st_size, "")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
            note_mapped(path)
        except OSError as error:
            raise kind(f"{path}: cannot be read: {error.strerror}") from error

    def __reduce__(self) -> tuple[type[MappedFile], tuple[Any, ...]]:
        return MappedFile, (self.path, self.size, self.kind)  # in a spawned process the file is mapped again

    def check(self) -> None:
        """Raise an error if the file is no longer as long as it was; before every read."""
        if self._map is not None:
            self._refuse(self._map.size(), ": it was changed while in use")

    def _refuse(self, found: int, why: str) -> None:
        if found != self.size:
            raise self.kind(f"{self.path}: must have {self.size} bytes, as the manifest says, got {found}{why}")

    def array(self, dtype: str) -> np.ndarray:
        """View the whole file as (n,) numbers. Nothing is read yet: `check` before the view is."""
        return np.empty(0, dtype) if self._map is None else np.frombuffer(self._map, dtype)

    def checksum(self, start: int = 0, stop: int | None = None) -> int:
        """Compute the CRC-32 of some bytes, by default of all, a piece at a time."""
        total, stop = 0, self.size if stop is None else stop
        if self._map is None:
            return total
        with memoryview(self._map) as view:
            for at in range(start, stop, PIECE_BYTES):
                self.check()
                total = crc32(view[at : min(at + PIECE_BYTES, stop)], total)
        return total
