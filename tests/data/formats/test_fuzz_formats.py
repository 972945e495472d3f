"""Readers of other programs' formats on valid files with bytes changed: they read, or raise a named error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.format_cases import drawn, table, write_im2rec, write_stream, write_webdataset
from helpers.fuzzing import CHANGES, Change, bounded, changed, read_or_refuse
from partialkd.data.formats.npz_file import NpzFile
from partialkd.data.formats.pixel_arrays import PixelArray
from partialkd.data.sources.arrow_table import ArrowSource
from partialkd.data.sources.im2rec import Im2recSource
from partialkd.data.sources.source import Source
from partialkd.data.sources.webdataset import WebDatasetSource
from partialkd.errors import DataError


def _read(source: Source) -> None:
    assert ((source.labels() >= 0) & (source.labels() < source.num_classes)).all()
    for index in range(len(source)):
        with suppress(DataError):
            assert source.read(index)[0]


def _arrays(path: Path) -> None:
    file = NpzFile(path, DataError)
    for name in file.names:
        file.array(name).sum()
        file.verify(name)


READERS: dict[str, Callable[[Path], object]] = {
    "a.tar": lambda path: _read(WebDatasetSource(path)),
    "a.json": lambda path: _read(WebDatasetSource(path)),
    "a.arrow": lambda path: _read(ArrowSource(path)),
    "a.rec": lambda path: _read(Im2recSource(path)),
    "a.npz": _arrays,
    "a.npy": lambda path: [PixelArray(path).pixels(index) for index in range(2)],
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("valid")
    images = drawn(24)
    write_webdataset(root / "tar", images)
    (root / "a.json").write_text('{"wids_version": 1, "shardlist": [{"url": "a.tar", "nsamples": 20}]}')
    np.savez(root / "a.npz", embeddings=np.ones((3, 2), np.float32), labels=np.arange(3))
    np.save(root / "a.npy", np.zeros((2, 3, 4, 4), np.uint8))
    paths: dict[str, Any] = {
        "a.tar": root / "tar" / "faces-000000.tar", "a.json": root / "a.json", "a.npz": root / "a.npz",
        "a.npy": root / "a.npy", "a.arrow": write_stream(root / "a.arrow", table(images, ["a", "b", "c", "d", "e"])),
        "a.rec": write_im2rec(root / "im2rec", images) / "faces.rec",
    }  # fmt: skip
    return {name: path.read_bytes() for name, path in paths.items()}


@pytest.mark.parametrize("name", READERS)
def test_what_is_whole_is_read(name: str, valid: dict[str, bytes], tmp_path: Path) -> None:
    for other in {name, "a.tar"}:
        (tmp_path / other).write_bytes(valid[other])
    READERS[name](tmp_path / name)


@pytest.mark.slow
@bounded
@given(st.sampled_from(sorted(READERS)), CHANGES)
def test_what_is_changed_is_read_or_refused(
    valid: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[Change]
) -> None:
    place = tmp_path_factory.getbasetemp()
    (place / "a.tar").write_bytes(valid["a.tar"])
    (place / name).write_bytes(changed(valid[name], changes))
    read_or_refuse(lambda: READERS[name](place / name))
