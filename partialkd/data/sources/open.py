"""Open the source of labelled encoded images: InsightFace folders, image folders, or a generator in memory.

One data set of `data.path`, or several of `data.parts` merged; with identities mapped or left out where the
configuration says so (merged.py).
Errors: `DataError` with file and record key, or the image's path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from partialkd.config import DataConfig, PartConfig
from partialkd.data.formats.insightface_folder import PROPERTY
from partialkd.data.sources.arrow_table import ArrowSource
from partialkd.data.sources.class_counts import check_classes
from partialkd.data.sources.folder import FolderSource
from partialkd.data.sources.im2rec import Im2recSource
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.lmdb_images import LmdbSource
from partialkd.data.sources.merged import merge
from partialkd.data.sources.parquet_table import ParquetSource
from partialkd.data.sources.source import Source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.data.sources.webdataset import WebDatasetSource
from partialkd.errors import DataError


def open_source(data: DataConfig) -> Source:
    """Open what `data.path` or `data.parts` name, with the identities that training uses."""
    if data.source == "synthetic":
        return SyntheticSource(data.synthetic_identities, data.synthetic_images, data.image_size)
    lists = {key: getattr(data, key) for key in ("label_map", "exclude_identities", "exclude_images")}
    alone = PartConfig(path=data.path, source=data.source, **lists)
    parts = data.parts or (alone,)
    sources = [SOURCES[part.source](part, data) for part in parts]
    source = merge(sources, parts, data.min_images, data.shared_identities) if data.filtered else sources[0]
    check_classes(source, ", ".join(part.path for part in parts))
    return source


def _open_records(part: PartConfig, data: DataConfig) -> Source:
    source = RecordIOSource(Path(part.path), _cache(data), data.embeddings)
    if not data.resize and (source.height, source.width) != (data.image_size, data.image_size):
        rule = f"data.image_size is {data.image_size} and data.resize is false"
        raise DataError(f"{Path(part.path) / PROPERTY}: images are {source.height} x {source.width}, but {rule}")
    return source


def _cache(data: DataConfig) -> Path | None:
    return Path(data.index_cache) if data.index_cache else None


SOURCES: dict[str, Callable[[PartConfig, DataConfig], Source]] = {
    "recordio": _open_records,
    "lmdb": lambda part, data: LmdbSource(Path(part.path), _cache(data)),
    "im2rec": lambda part, data: Im2recSource(Path(part.path), _cache(data)),
    "arrow": lambda part, data: ArrowSource(Path(part.path), _cache(data)),
    "parquet": lambda part, data: ParquetSource(Path(part.path), _cache(data)),
    "webdataset": lambda part, data: WebDatasetSource(Path(part.path), _cache(data)),
    "folder": lambda part, _: FolderSource(Path(part.path)),
}
