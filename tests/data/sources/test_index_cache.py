"""The kept index of .rec files: the same source, of the files as they are, and never believed unchecked."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.source_cases import contents, write_part
from partialkd.data.formats.recordio import RecordReader
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import DataError, StorageError


def test_a_kept_index_gives_the_same_source(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = RecordIOSource(parts, cache)
    assert len([place for place in cache.iterdir() if not place.name.startswith(".")]) == 3
    monkeypatch.setattr(RecordReader, "scan", lambda self: pytest.fail("read again"))
    again = RecordIOSource(parts, cache)
    assert contents(again) == contents(first)
    assert (again.fingerprint, again.name(3), again.stem(4)) == (first.fingerprint, first.name(3), first.stem(4))
    for values in (again.files[1].reader.offsets, again.files[1].labels):
        assert not values.flags.owndata  # a view of the mapped file
        assert not values.flags.writeable
    assert contents(pickle.loads(pickle.dumps(again))) == contents(first)


def test_a_kept_index_is_of_the_files_as_they_were(parts: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    RecordIOSource(parts, cache)
    write_part(parts, "02", {9: (2, b"F")})  # of the same size
    os.utime(parts / "train.02.rec", ns=(1, 1))
    assert contents(RecordIOSource(parts, cache))[5] == (b"F", 2)
    (parts / "property").write_text("3,112,112")  # labels are looked at again
    with pytest.raises(DataError, match=r"label must be an integer in \[0, 3\), got 3"):
        RecordIOSource(parts, cache)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit": _flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["labels.bin", "offsets.bin", "numbers.bin", "manifest.json"])
def test_a_damaged_kept_index_is_read_anew(
    parts: Path, tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    expected = contents(RecordIOSource(parts, cache))
    (place,) = [path.parent for path in cache.glob("*/numbers.bin")]  # of the part with gaps between its keys
    DAMAGES[damage](place / name)
    assert contents(RecordIOSource(parts, cache)) == expected
    (said,) = caplog.messages
    assert re.search(rf"{name}: .*; the index of .*train\.\d\d\.rec is read anew", said)
    caplog.clear()
    assert contents(RecordIOSource(parts, cache)) == expected
    assert not caplog.messages
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_an_index_under_another_name_is_not_believed(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    expected = contents(RecordIOSource(parts, cache))
    first, second, _ = sorted(cache.iterdir())
    shutil.rmtree(first)
    shutil.copytree(second, first)
    assert contents(RecordIOSource(parts, cache)) == expected
    assert "under another name" in caplog.text


def test_an_index_cut_while_in_use_is_named_and_kills_nobody(parts: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    RecordIOSource(parts, cache)
    source = RecordIOSource(parts, cache)
    for path in cache.glob("*/labels.bin"):
        os.truncate(path, 0)
    for read in (source.labels, lambda: source.read(0), lambda: source.name(0), lambda: source.readahead(0, 2)):
        with pytest.raises(DataError, match=r"labels\.bin: must have \d+ bytes, .*got 0: it was changed while in use"):
            read()


def test_a_full_disk_leaves_nothing_and_is_named(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("partialkd.data.sources.index_cache._written", full)
    with pytest.raises(StorageError, match=r"cache/[0-9a-f]{32}: cannot be written: No space left"):
        RecordIOSource(parts, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"cache/[0-9a-f]{32}: cannot be written: "):
        RecordIOSource(parts, tmp_path / "cache")
