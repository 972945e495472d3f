"""A loader ends: at a record it cannot read, which is named, or left in mid-epoch, when no threads stay behind."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.loader_cases import CLASSES, LOADERS, RECORDS, SIZE, open_one, pack, picture
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.order.plan import SequentialPlan
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import DataError


def _truncated(image: bytes) -> bytes:
    return image[: len(image) // 2]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "broken JPEG"),
        (lambda _: b"not an image at all", "not an image"),
        (lambda _: encode_jpeg(picture(0, 40)), "must be 32 x 32 pixels.*got 40 x 40"),
    ],
)
def test_a_bad_record_is_named_where_it_stands(
    loader: str, damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    folder = pack(tmp_path / "bad", lambda n, image: damage(image) if n == 29 else image)
    batches = open_one(loader, folder, SequentialPlan(RECORDS, 8, 0, 1)).epoch(0)
    for step in range(3):
        assert next(batches).records.tolist() == list(range(8 * step, 8 * step + 8))
    with pytest.raises(DataError, match=rf"train\.rec: key 30 at byte \d+: {message}"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


class _Unplugged(SyntheticSource):
    """A disk that goes away."""

    error: Exception = OSError(5, "Input/output error")

    def read(self, index: int) -> tuple[bytes, int]:
        if index == 29:
            raise self.error
        return super().read(index)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("error", [_Unplugged.error, ZeroDivisionError("a mistake in our code")])
def test_an_error_of_the_disk_names_the_record(loader: str, error: Exception, tmp_path: Path) -> None:
    """Any other exception comes out as it is, at the same place."""
    source = _Unplugged(CLASSES, RECORDS, SIZE)
    source.error = error
    batches = open_one(loader, tmp_path, SequentialPlan(RECORDS, 8, 0, 1), source).epoch(0)
    for step in range(3):
        assert next(batches).records[0] == 8 * step
    ours = isinstance(error, OSError)
    message = r"synthetic image 29: cannot be read: .*Input/output error" if ours else "a mistake in our code"
    with pytest.raises(DataError if ours else ZeroDivisionError, match=message):
        next(batches)


def _tasks() -> int:
    """Threads of this process, Python's and the libraries'."""
    return len(os.listdir("/proc/self/task"))


def _settled() -> int:
    """Count the tasks once their number has stood still for a tenth of a second."""
    counts = list(range(-10, 0))
    while len(set(counts)) > 1:
        counts = [*counts[1:], _tasks()]
        time.sleep(0.01)
    return counts[-1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("end", ["closed", "loader closed", "dropped", "failed"])
def test_an_abandoned_iterator_leaves_no_threads(loader: str, end: str, folder: Path, tmp_path: Path) -> None:
    source = _Unplugged(CLASSES, RECORDS, SIZE) if end == "failed" else None
    opened = open_one(loader, folder, SequentialPlan(RECORDS, 8, 0, 1), source, workers=3)
    list(open_one(loader, folder).epoch(0))  # what libraries start once and keep
    gc.collect()  # pipelines of earlier tests end now, not between the two counts
    before = _settled()
    batches: Any = opened.epoch(0)
    next(batches)
    assert _tasks() > before
    if end == "failed":
        with pytest.raises(DataError):
            list(batches)
    elif end == "closed":
        batches.close()
    elif end == "loader closed":
        opened.close()
    else:
        batches = None
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("partialkd-data")]
    for _ in range(1000):  # a joined thread may still be on its way out
        if _tasks() <= before:
            break
        time.sleep(0.01)
    assert _tasks() <= before


@pytest.mark.parametrize("loader", LOADERS)
def test_reading_ahead_is_bounded(loader: str, tmp_path: Path) -> None:
    class Counting(SyntheticSource):
        started = 0

        def read(self, index: int) -> tuple[bytes, int]:
            self.started += 1
            return super().read(index)

    source = Counting(CLASSES, 400, SIZE)
    plan = SequentialPlan(400, 4, 0, 1)
    batches = open_one(loader, tmp_path, plan, source, workers=2).epoch(0)
    for taken in range(1, 11):
        next(batches)
        # jpeg: at most `workers` micro-steps beyond the one handed over; DALI holds two more
        assert source.started <= 4 * (taken + (2 if loader == "jpeg" else 4))
