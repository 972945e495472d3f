"""Files and folders that are either complete or absent: made under a hidden name, flushed to the disk, renamed.

The hidden name stands beside the later one and says which process makes it: `.<name>.<process>-<birth>-<where>-<random
number>.partial`. Whoever next makes the same file or folder sweeps up what a killed process left there, if it can see
that this process has ended: it ran on this machine, since this machine was started. Other leftovers may still be
written by another machine; they are named in a warning.
A path that is a link is followed: what it points to is replaced, the link stays.

Errors: `StorageError` naming the file (disk full, read-only, missing folder); what was hidden is removed and an older
file of the same name stays as it was. `write_json` raises `ValueError` for NaN and infinity, which JSON does not have.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import IO, Any, cast

from partialkd.errors import DataError, PartialKDWarning, StorageError
from partialkd.storage.process import Place

BUFFER_BYTES = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing, which come without a file's name
_MAKER = re.compile(r"(\d+)-(\d*)-([0-9a-f]{12})-[0-9a-f]{8}")  # process, its birth, where, a random number


# ------------------------------------------------------------------------------- names, leftovers, publishing


def hidden_name(path: Path) -> Path:
    """A new name beside `path` for what is to become it; leftovers of ended processes are swept up."""
    sweep(path)
    mine = Place.here()
    return path.with_name(f".{path.name}.{mine.pid}-{mine.born}-{_where(mine)}-{os.urandom(4).hex()}.partial")


def sweep(path: Path) -> None:
    """Remove what processes that have ended left of making `path`; warn of what may still be in use."""
    mine = Place.here()
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        match = _MAKER.fullmatch(left.name.removeprefix(f".{path.name}.").removesuffix(".partial"))
        if match is None:  # not called so by `hidden_name`
            continue
        state = replace(mine, pid=int(match[1]), born=match[2]).state() if match[3] == _where(mine) else "unknown"
        if state == "gone":
            discard(left)
        if state in ("gone", "unknown") and left.exists():
            why = "could not be removed" if state == "gone" else "of another machine, which may still be writing it"
            warnings.warn(f"{left}: left by an earlier start, {why}", PartialKDWarning, stacklevel=4)


def sweep_owned(folder: Path, pattern: str) -> None:
    """Remove all hidden leftovers `.<pattern>.partial` of a folder that only the caller writes to."""
    for left in folder.glob(f".{pattern}.partial"):
        discard(left)


def publish(hidden: Path, path: Path) -> None:
    """Flush a hidden file, or a folder with all that is in it, to the disk and give it its name.

    A file replaces one of the same name. FileExistsError where a folder's name is taken, unless by an empty folder.
    """
    with naming(path):
        if hidden.is_dir():
            _sync_tree(hidden)
        else:
            sync(hidden)
    try:
        os.replace(hidden, path)
    except OSError as error:
        if hidden.is_dir() and os.path.lexists(path):
            raise FileExistsError(error.errno, error.strerror, str(path)) from error
        raise StorageError.of(path, "written", error) from error
    with naming(path):
        sync(path.parent)


def replace_folder(hidden: Path, path: Path) -> None:
    """Publish a hidden folder in the place of `path`, which is removed only when its successor is complete."""
    path = followed(path)
    old = hidden_name(path)
    with naming(path):
        _sync_tree(hidden)
        if not path.exists():
            publish(hidden, path)
            return
        os.replace(path, old)
        try:
            os.replace(hidden, path)
        except OSError:
            os.replace(old, path)
            raise
        sync(path.parent)
    discard(old)


def discard(path: Path) -> None:
    """Remove a file or folder that nobody needs, as far as possible; another process may be removing it too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_folder(path: Path) -> None:
    """Remove a folder that others may look at: out of sight first, so that they never see half of it."""
    hidden = hidden_name(path)
    with naming(path, "removed"):
        os.replace(path, hidden)
        shutil.rmtree(hidden)


def followed(path: Path) -> Path:
    """Where a link points to, whether or not anything is there; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def naming(path: Path, done: str = "written") -> Iterator[None]:
    """Turns an OSError inside into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError.of(path, done, error) from error


# ------------------------------------------------------------------------------------------ files and folders


@contextmanager
def replacing(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Open one binary stream per path; at the end they take their names in the order given, on an error none does."""
    targets = [followed(path) for path in paths]
    hidden: list[Path] = []
    streams: list[IO[bytes]] = []
    try:
        for target in targets:
            hidden.append(hidden_name(target))
            raw = _NamedFile(hidden[-1], target)
            streams.append(cast(IO[bytes], io.BufferedWriter(raw, BUFFER_BYTES)))
        yield streams
        for stream in streams:
            stream.close()
        for name, target in zip(hidden, targets, strict=True):
            publish(name, target)
    finally:
        for stream in streams:
            with suppress(OSError, StorageError):  # a full disk once more; the failure itself is being raised
                stream.close()
        for name in hidden:
            discard(name)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to fill; at the end it takes its name, on an error it is removed.

    FileExistsError if there is a folder that is not empty by then.
    """
    path = followed(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = hidden_name(path)
        hidden.mkdir()
    try:
        yield hidden
        publish(hidden, path)
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise StorageError.of(path, "written", error) from error
    finally:
        discard(hidden)


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
    """Replace `path` by indented JSON, keys in the order given, one line feed at the end."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Flush everything in a folder, from the leaves up."""

    def fail(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, topdown=False, onerror=fail):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


class _NamedFile(io.FileIO):
    """A new file whose errors name what it is to become."""

    def __init__(self, hidden: Path, target: Path) -> None:
        with naming(target):
            super().__init__(hidden, "xb")
        self._target = target

    def write(self, data: Any, /) -> int:
        with naming(self._target):
            return super().write(data)


def _where(place: Place) -> str:
    """Equal for processes that can tell whether the other one lives."""
    return hashlib.sha256(f"{place.host} {place.system}".encode()).hexdigest()[:12]
