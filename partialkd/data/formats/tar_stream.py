"""Read tar archives, compressed or not, as a stream in which no header can be larger than it may be.

tarfile reads long names, extended (pax) headers and maps of sparse files whole before anything of them can be checked:
in a compressed archive of some megabytes they can be gigabytes. Here at most `HEADER_BYTES` may lie between the end of
one member and the content of the next. tarfile also takes a damaged header for the end of the archive; here it is an
error.
Errors: `tarfile.TarError`, `OSError`, `EOFError` and `zlib.error` or `lzma.LZMAError`, as tarfile and the decompressors
raise them.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self, TypeVar, cast

HEADER_BYTES = 1 << 20
T = TypeVar("T")


def read_members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Read the members of an archive in its order, each with the archive, from which it can be extracted meanwhile."""
    with _opened(path) as file:
        guard = _Guard(file)
        with _headers(lambda: _archive(guard)) as archive:  # it reads the first member's
            while (member := _headers(archive.next)) is not None:
                archive.members.clear()  # else it keeps every one, a kilobyte each
                guard.allow(member.size)
                yield archive, member


def _archive(guard: _Guard) -> Any:
    return tarfile.open(fileobj=guard, mode="r|", tarinfo=_Member)  # type: ignore[call-overload]


def _headers(read: Callable[[], T]) -> T:
    """Read headers; whatever tarfile makes of damaged ones is an error of the archive."""
    try:
        return read()
    except (ValueError, IndexError, OverflowError) as error:  # tarfile reads numbers of sparse files as they come
        raise tarfile.ReadError(f"invalid header: {error}") from error
    except RecursionError as error:
        raise tarfile.ReadError("too many headers of one member") from error


def _opened(path: Path) -> IO[bytes]:
    """Open an archive so that it is decompressed as it is read."""
    with path.open("rb") as file:
        start = file.read(3)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path))
    if start == b"BZh":
        return bz2.open(path)
    return lzma.open(path) if start == b"\xfd7z" else path.open("rb")


class _Guard:
    """A stream of which so many more bytes may be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.allow(0)

    def allow(self, content: int) -> None:
        """Allow, from here on, the content of a member, its padding, and the headers of the next one."""
        self._left = content + HEADER_BYTES + 2 * tarfile.RECORDSIZE

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"the headers of a member take more than {HEADER_BYTES} bytes")
        return data


class _Member(tarfile.TarInfo):
    """A member whose header is whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from error
