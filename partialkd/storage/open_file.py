"""Files that stay open for reading at any place, by any number of threads, after a fork, and in spawned processes.

Errors: `DataError` naming the file: it cannot be opened, or is no longer as long as it was when it was first opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from partialkd.errors import DataError


class OpenFile:
    """Holds one file open; pickled, it is opened again where it arrives."""

    path: Path
    size: int  # bytes, when it was first opened

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.size = self._open()

    def _open(self) -> int:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_fd"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._open() != self.size:
            raise DataError(f"{self.path}: the file changed while it was in use")

    def check_whole(self) -> None:
        """Raise DataError if the file was cut: touching what is mapped of it would end the process without a word."""
        found = os.fstat(self._fd).st_size
        if found < self.size:
            raise DataError(f"{self.path}: had {self.size} bytes when it was opened, now it has {found}")

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Read `count` bytes, fewer where the file ends."""
        return os.pread(self._fd, count, offset)

    def will_need(self, begin: int, end: int, at_once: int) -> None:
        """Have the system read these bytes into its page cache, `at_once` of them by each wish."""
        if hasattr(os, "posix_fadvise"):
            for at in range(begin, end, at_once):
                os.posix_fadvise(self._fd, at, min(at_once, end - at), os.POSIX_FADV_WILLNEED)
