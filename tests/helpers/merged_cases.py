"""Merged sources of small data sets, lists beside them, and what such a source holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partialkd.config import DataConfig
from partialkd.data.sources.merged import MergedSource
from partialkd.data.sources.open import open_source


def write_list(folder: Path, content: str) -> str:
    path = folder / f"list{len(list(folder.glob('list*')))}.txt"
    path.write_text(content)
    return str(path)


def merged(sets: Path, *parts: dict[str, Any], **keys: Any) -> MergedSource:
    listed = [{"source": "folder" if part["path"] == "c" else "recordio", **part} for part in parts]
    for part in listed:
        part["path"] = str(sets / part["path"])
    source = open_source(DataConfig.model_validate({"parts": tuple(listed), **keys}))
    assert isinstance(source, MergedSource)
    return source


def contents(source: MergedSource) -> list[tuple[str, int]]:
    got = [source.read(index) for index in range(len(source))]
    assert [label for _, label in got] == source.labels().tolist()
    assert [label for _, label in got] == [source.labels(n, n + 1)[0] for n in range(len(got))]
    assert sum(source.sizes) == len(source)
    return [(image.decode(), label) for image, label in got]
