"""Tables of images, Arrow and Parquet: what is read, and what is said of those that no training can use."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from helpers.format_cases import CLASSES, drawn, table, write_arrow, write_parquet, write_stream
from partialkd.config import DataConfig
from partialkd.data.formats.shard_files import list_shards
from partialkd.data.sources.arrow_table import ArrowSource
from partialkd.data.sources.open import open_source
from partialkd.data.sources.parquet_table import ParquetSource
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError, DataError

IMAGES = drawn()
LABELS = [label for _, label in IMAGES]
NAMES = [f"person {label}" for label in range(CLASSES)]


def write(form: str, folder: Path, content: pyarrow.Table) -> Path:
    folder.mkdir(exist_ok=True)
    if form == "arrow":
        return write_stream(folder / "a.arrow", content)
    pyarrow.parquet.write_table(content, folder / "a.parquet", row_group_size=7)
    return folder / "a.parquet"


def opened(path: Path) -> Source:
    return ArrowSource(path) if path.suffix == ".arrow" else ParquetSource(path, path.parent / "cache")


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        opened(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    if (path.parent / "cache").exists():
        assert not [left for left in (path.parent / "cache").iterdir() if not left.name.endswith(".claim")]
    return text


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize("kind", ["structures", "bytes", "large bytes", "small labels", "an empty batch"])
def test_columns_of_every_kind(form: str, kind: str, tmp_path: Path) -> None:
    content = table(IMAGES, NAMES)
    if kind in ("bytes", "large bytes"):
        encoded = pyarrow.array([image for image, _ in IMAGES], pyarrow.large_binary() if "l" in kind else None)
        content = pyarrow.table({"jpg": encoded, "cls": content["label"]})
    elif kind == "small labels":
        content = content.set_column(0, "label", content["label"].cast(pyarrow.uint8()))
    path = write(form, tmp_path, content)
    if kind == "an empty batch" and form == "arrow":
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, content.schema) as writer:
            for batch in (content[:9], content[:0], content[9:]):
                writer.write_batch(pyarrow.RecordBatch.from_struct_array(batch.to_struct_array().combine_chunks()))
    source = opened(path)
    assert [source.read(index) for index in range(len(source))] == IMAGES
    assert source.names.known() == (None if "bytes" in kind else NAMES)


def test_the_file_form(tmp_path: Path) -> None:
    content = table(IMAGES, NAMES)
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=6)
    source = ArrowSource(tmp_path / "a.arrow")
    assert [source.read(index) for index in range(len(source))] == IMAGES
    assert source.names.known() == NAMES
    assert source.name(7) == f"{tmp_path}/a.arrow: row 7 at byte {source.files[0].offsets[7]}"


def changed(column: str, row: int, value: Any, kind: Any = None) -> pyarrow.Table:
    content = table(IMAGES)
    values = content[column].to_pylist()
    values[row] = value
    at = content.schema.get_field_index(column)
    return content.set_column(at, column, pyarrow.array(values, kind or content.schema.field(column).type))


WRONG: dict[str, tuple[Callable[[], pyarrow.Table], str]] = {
    "no label": (lambda: changed("label", 7, None), r"row 7: has no label"),
    "text as label": (lambda: changed("label", 7, 0).set_column(0, "label", [list(map(str, LABELS))]),
                      r"labels must be integers, got a column of string; datasets makes them by class_encode_column"),
    "negative label": (lambda: changed("label", 7, -1), r"row 7: label must be an integer in \[0, 16777216\), got -1"),
    "huge label": (lambda: changed("label", 7, 1 << 40), r"row 7: label must be an integer .*, got 1099511627776"),
    "a path alone": (lambda: changed("image", 7, {"bytes": None, "path": "a.jpg"}), r"row 7: holds no bytes of its im"),
    "no image": (lambda: changed("image", 7, None), r"(images must be bytes|row 7: holds no bytes of its image)"),
    "an empty image": (lambda: changed("image", 7, {"bytes": b"", "path": None}), r"row 7: the image is empty"),
    "other columns": (lambda: table(IMAGES).rename_columns(["id", "photo"]), r"needs a column .*, has id, photo"),
    "pixels": (lambda: table(IMAGES).set_column(1, "image", [[[1, 2]] * 33]), r"images must be bytes, or structures"),
    "too few names": (lambda: table(IMAGES, NAMES[:3]), r"names 3 classes, but there is an image of class 4"),
    "no row": (lambda: table([]).cast(table(IMAGES).schema), r"holds no row"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize("what", WRONG)
def test_a_row_that_is_wrong_is_named(form: str, what: str, tmp_path: Path) -> None:
    make, says = WRONG[what]
    path = write(form, tmp_path, make())
    if (form, what) == ("parquet", "too few names"):  # found when the images are there already
        with pytest.raises(DataError, match=says):
            opened(path)
        return
    said = refused(path)
    assert said.startswith(f"{path}: ")
    assert re.search(says, said), said


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_a_file_cut_anywhere(form: str, tmp_path: Path) -> None:
    path = write(form, tmp_path, table(IMAGES))
    content = path.read_bytes()
    for size in (len(content) - 4, len(content) - 8, len(content) - 700, 900, 20, 0):
        path.write_bytes(content[:size])
        assert re.search(rf"a\.{form}: (cannot be read: .|is cut short: no end mark)", refused(path)), size
    path.write_bytes(b"text" * 100)
    assert f"a.{form}: cannot be read: " in refused(path)


def test_an_arrow_file_that_is_compressed(tmp_path: Path) -> None:
    content, options = table(IMAGES), pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_stream(str(tmp_path / "a.arrow"), content.schema, options=options) as writer:
        writer.write_table(content)
    assert "a.arrow: is compressed; write it anew without compression" in refused(tmp_path / "a.arrow")


def test_parquet_needs_a_place(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "set", IMAGES)
    with pytest.raises(ConfigError, match=r"data\.index_cache is required for Parquet files .*pack them first"):
        open_source(DataConfig(path=str(path), source="parquet"))


def test_an_error_in_parquet_names_its_row(tmp_path: Path) -> None:
    source = ParquetSource(write_parquet(tmp_path / "set", IMAGES), tmp_path / "cache")
    assert source.name(19).startswith(f"{tmp_path}/set/train-00000-of-00002.parquet: row 19 ({tmp_path}/cache/parquet-")
    assert source.name(20).startswith(f"{tmp_path}/set/train-00001-of-00002.parquet: row 0 (")
    assert source.names.known() is None


def test_parquet_is_copied_anew_when_it_changes(tmp_path: Path) -> None:
    path = write("parquet", tmp_path, table(IMAGES))
    first = opened(path).fingerprint
    write("parquet", tmp_path, table(IMAGES[:-1]))
    assert (len(opened(path)), opened(path).fingerprint == first) == (32, False)


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_a_missing_library_is_named(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(form, tmp_path, table(IMAGES))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"Arrow and Parquet files need pyarrow: pip install 'partialkd\[formats\]'"):
        opened(path)


# ---------------------------------------------------------------------------------------------- folders


def test_the_order_is_that_of_the_state(tmp_path: Path) -> None:
    folder = write_arrow(tmp_path / "set", IMAGES)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({"_data_files": state["_data_files"][::-1]}))
    source = ArrowSource(folder)
    assert [source.read(index) for index in range(33)] == IMAGES[20:] + IMAGES[:20]


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    folder = write_arrow(tmp_path / "set" / "train", IMAGES)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "set: holds the splits train; name the folder of one" in _says(tmp_path / "set")
    state = json.loads((folder / "state.json").read_text())
    for changes, says in (
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "rows are chosen by an indices file"),
        ({"_data_files": []}, "state.json: lists no file"),
        ({"_data_files": 3}, "state.json: not what save_to_disk writes"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow: cannot be read: No such file"),
    ):
        (folder / "state.json").write_text(json.dumps(state | changes))
        assert says in _says(folder)


def _says(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        ArrowSource(folder)
    return str(caught.value)


def test_a_split_and_its_missing_files(tmp_path: Path) -> None:
    for name in ("train-00000-of-00003", "train-00002-of-00003", "test-00000-of-00001"):
        (tmp_path / f"{name}.parquet").touch()
    with pytest.raises(DataError, match=r"holds files of several splits, test, train; name one: .*/train-\*\.parquet"):
        list_shards(tmp_path, ".parquet")
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet: is missing, one of 3 files"):
        list_shards(tmp_path / "train-*.parquet", ".parquet")
    assert list_shards(tmp_path / "test-*.parquet", ".parquet") == [tmp_path / "test-00000-of-00001.parquet"]
    with pytest.raises(DataError, match=r"there is no such file"):
        list_shards(tmp_path / "none-*.parquet", ".parquet")
    with pytest.raises(DataError, match=r"holds no \.arrow file"):
        list_shards(tmp_path, ".arrow")
