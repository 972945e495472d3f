"""Read tables of images, Arrow and Parquet files as Hugging Face `datasets` writes them, with pyarrow alone.

A table has a column `image` (or `jpg`, `img`), structures of `bytes` and `path` or bytes alone, and a column `label`
(or `cls`) of integers. The names of its classes, where it has some, stand in its metadata under "huggingface".
Of an Arrow file (the stream form or the file form, not compressed) only offsets and labels are read: where the images
lie is known then. Parquet compresses pages of many rows, so its images come in its order alone.
Errors: `DataError` with file and row; `ConfigError` where pyarrow is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.label import label_of
from partialkd.data.formats.property_file import MAX_CLASSES
from partialkd.errors import ConfigError, DataError
from partialkd.storage.open_file import OpenFile

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "jpg", "img"), ("label", "cls")
_FILE_MARK = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_ROWS = 256  # of a Parquet file decoded in one go


def find_images(
    file: OpenFile, label_columns: tuple[str, ...] = LABEL_COLUMNS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where the images of an Arrow file lie, and their class ids: offsets, sizes (n,) int64, labels (n,) int32.

    label_columns: names of the column of integers that goes with the images.
    """
    pyarrow = _pyarrow()
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    rows = 0
    with _naming(file.path), pyarrow.memory_map(str(file.path)) as mapped:
        start = mapped.read_buffer().address if file.size else 0
        for batch in _batches(file, mapped):
            batch.validate(full=True)
            images, labels = _columns(batch, file.path, rows, label_columns)
            offsets, sizes = _places(images)
            _refuse_empty(sizes, file.path, rows)
            at = images.buffers()[2].address - start + offsets if len(batch) else offsets
            if len(batch) and not 0 <= at[0] <= at[-1] + sizes[-1] <= file.size:
                rule = "is compressed; write it anew without compression, or pack it from Parquet"
                raise DataError(f"{file.path}: {rule}")
            found.append((at, sizes, labels))
            rows += len(batch)
    if not rows:
        raise DataError(f"{file.path}: holds no row")
    offsets, sizes, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return offsets, sizes, labels


def arrow_texts(path: Path, column: str) -> list[str]:
    """Read a column of strings of an Arrow file, in the order of its rows."""
    texts: list[str] = []
    with _naming(path), _pyarrow().memory_map(str(path)) as mapped:
        for batch in _batches(OpenFile(path), mapped):
            found = batch.column(_column(batch.schema, (column,), path)).to_pylist()
            if not all(isinstance(text, str) for text in found):
                at = next(at for at, text in enumerate(found) if not isinstance(text, str))
                raise DataError(f"{path}: row {len(texts) + at}: {column} must be a string, got {found[at]!r:.60}")
            texts += found
    return texts


def _batches(file: OpenFile, mapped: Any) -> Iterator[Any]:
    """Read the batches of either form; DataError for a stream that was cut between two of them."""
    ipc = _pyarrow().ipc
    mapped.seek(0)
    if file.bytes_at(0, len(_FILE_MARK)) == _FILE_MARK:
        reader = ipc.open_file(mapped)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        return
    yield from ipc.open_stream(mapped)
    if file.bytes_at(max(file.size - len(_STREAM_END), 0), len(_STREAM_END)) != _STREAM_END:
        raise DataError(f"{file.path}: is cut short: no end mark of an Arrow stream after {file.size} bytes")


def _places(images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return where each image of a column lies in its buffer, and its bytes, (n,) int64."""
    wide = images.type == _pyarrow().large_binary()
    if not len(images):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = np.frombuffer(images.buffers()[1], np.int64 if wide else np.int32)
    ends = ends[images.offset : images.offset + len(images) + 1].astype(np.int64)
    return ends[:-1], np.diff(ends)


def parquet_labels(path: Path) -> np.ndarray:
    """Read the class ids of a Parquet file (n,) int32; the images are not read."""
    with _naming(path), _parquet(path) as file:
        name = _column(file.schema_arrow, LABEL_COLUMNS, path)
        rows, found = 0, [np.empty(0, np.int32)]
        for batch in file.iter_batches(1 << 16, columns=[name]):
            found.append(_labels(batch.column(name), path, rows))
            rows += len(batch)
        return np.concatenate(found)


def parquet_images(path: Path) -> Iterator[bytes]:
    """Read the encoded images of a Parquet file, in its order, some rows at a time."""
    with _naming(path), _parquet(path) as file:
        name, rows = _column(file.schema_arrow, IMAGE_COLUMNS, path), 0
        for batch in file.iter_batches(_ROWS, columns=[name]):
            images = _images(batch.column(name), path, rows)
            _refuse_empty(_places(images)[1], path, rows)
            yield from (image.as_py() for image in images)
            rows += len(batch)


def class_names(path: Path) -> list[str] | None:
    """Read the names of the classes by class id, where the metadata of an Arrow or Parquet file has them."""
    pyarrow = _pyarrow()
    with _naming(path):
        if path.suffix == ".parquet":
            with _parquet(path) as file:
                schema = file.schema_arrow
        else:
            with pyarrow.memory_map(str(path)) as mapped:
                is_file = mapped.read(len(_FILE_MARK)) == _FILE_MARK
                mapped.seek(0)
                schema = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(mapped).schema
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[_column(schema, LABEL_COLUMNS, path)]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):  # metadata of others, or none
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


# ----------------------------------------------------------------------------------------------- columns


def _columns(batch: Any, path: Path, rows: int, label_columns: tuple[str, ...]) -> tuple[Any, np.ndarray]:
    """Return the images of a batch as an array of bytes, and its class ids; `rows` stand before it."""
    images = batch.column(_column(batch.schema, IMAGE_COLUMNS, path))
    labels = batch.column(_column(batch.schema, label_columns, path))
    return _images(images, path, rows), _labels(labels, path, rows)


def _column(schema: Any, names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(f"{path}: needs a column {' or '.join(names)}, has {', '.join(schema.names)[:200]}")


def _images(column: Any, path: Path, rows: int) -> Any:
    types = _pyarrow().types
    images = column
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0 and not column.null_count:
        images = column.field("bytes")
    if not (types.is_binary(images.type) or types.is_large_binary(images.type)):
        raise DataError(f"{path}: images must be bytes, or structures of bytes and path, got {column.type}")
    if images.null_count:
        at = images.is_null().to_numpy(zero_copy_only=False).argmax()
        rule = "holds no bytes of its image, only a path or nothing; the images must be inside (embed_table_storage)"
        raise DataError(f"{path}: row {rows + at}: {rule}")
    return images


def _labels(column: Any, path: Path, rows: int) -> np.ndarray:
    if not _pyarrow().types.is_integer(column.type):
        hint = 'datasets makes them by class_encode_column("label")'
        raise DataError(f"{path}: labels must be integers, got a column of {column.type}; {hint}")
    if column.null_count:
        at = column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise DataError(f"{path}: row {rows + at}: has no label")
    labels = column.to_numpy(zero_copy_only=False)
    wrong = (labels < 0) | (labels >= MAX_CLASSES)
    if wrong.any():
        label_of(int(labels[wrong.argmax()]), path, f"row {rows + wrong.argmax()}")
    return labels.astype(np.int32)


def _refuse_empty(sizes: np.ndarray, path: Path, rows: int) -> None:
    if len(sizes) and not sizes.all():
        raise DataError(f"{path}: row {rows + int(sizes.argmin())}: the image is empty")


# ----------------------------------------------------------------------------------------------- pyarrow


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    _pyarrow()
    from pyarrow import parquet

    with parquet.ParquetFile(str(path)) as file:
        yield file


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("Arrow and Parquet files need pyarrow: pip install 'partialkd[formats]'") from error
    return pyarrow


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error of pyarrow into one line that names the file."""
    pyarrow = _pyarrow()
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read: {why}") from error
