"""Folders of data and of runs: room, and how fast they are read and written. What is written is removed again."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from pathlib import Path

from partialkd.cluster.findings import Finding, Verdict, judged
from partialkd.errors import DataError

WRITTEN = 1 << 26  # bytes
READ = 1 << 26
PIECE = 1 << 22
LITTLE, NONE = 20e9, 1e9  # bytes free
SLOW_WRITE, SLOW_READ = 50e6, 50e6  # bytes/s


def room_and_write_speed(name: str, folder: Path, key: str = "run.folder") -> Finding:
    """Write and flush 64 MB in the folder, or in the nearest one above it that is there, and remove them again."""
    there = nearest(folder)
    if not os.access(there, os.W_OK):
        return judged(name, "bad", f"{there}: cannot be written to", f"choose another {key}, or its owner")
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    if free < WRITTEN + NONE:
        return judged(name, "bad", f"{there}: {free / 1e9:.1f} GB free", "make room", free=free)
    block, start = os.urandom(PIECE), time.perf_counter()
    with tempfile.TemporaryFile(dir=there) as file:
        for _ in range(WRITTEN // PIECE):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    rate = WRITTEN / (time.perf_counter() - start)
    verdict: Verdict = "doubtful" if free < LITTLE or rate < SLOW_WRITE else "good"
    mend = f"make room, or choose another {key}" if free < LITTLE else f"choose a faster {key}"
    said = f"{there}: {free / 1e9:.0f} GB free, written at {rate / 1e6:.0f} MB/s"
    return judged(name, verdict, said, mend, free=free, write_bytes_per_s=rate)


def read_speed(name: str, path: Path) -> Finding:
    """Read up to 64 MB from the middle of the largest file, which the system is asked to forget first."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else []
    if not files:
        raise DataError(f"{path}: no file to read")
    largest = max(files, key=lambda one: one.stat().st_size)
    size = largest.stat().st_size
    count, start = 0, 0.0
    with largest.open("rb", buffering=0) as file:
        begin = max(0, (size - READ) // 2)
        os.posix_fadvise(file.fileno(), begin, READ, os.POSIX_FADV_DONTNEED)
        file.seek(begin)
        start = time.perf_counter()
        while count < READ and (piece := file.read(PIECE)):
            count += len(piece)
    rate = count / max(time.perf_counter() - start, 1e-9)
    slow = rate < SLOW_READ and count == READ  # of a small file hardly anything is told
    mend = 'copy the data to a local disk, or read them in long runs: data.shuffle = "blocks"'
    said = f"{largest}: {size / 1e9:.2f} GB, read at {rate / 1e6:.0f} MB/s"
    return judged(name, "doubtful" if slow else "good", said, mend, read_bytes_per_s=rate)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there. NotADirectoryError where something else is."""
    folder = folder.absolute()
    while not folder.is_dir():
        if os.path.lexists(folder):
            raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(folder))
        folder = folder.parent
    return folder
