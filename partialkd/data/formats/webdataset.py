"""Understand WebDataset: tar shards whose files with one name make a sample, and the index of wids that lists shards.

A sample is the files that follow each other and have one path up to the first dot of the last part: `anna/0017.jpg`
and `anna/0017.cls`. For training it has one image (by its ending) and a class id: `.cls`, a whole number as text, or
`.json`, such a number or an object with one under `label` or `cls`. Other files are not looked at, nor are those
whose name begins with `__` and ends with it.
wids's index is JSON: {"wids_version": 1, "shardlist": [{"url": path, "nsamples": number}, ...]}, paths relative to the
index. Shards are local files. wids's own `.index` files beside shards are pickles, and are not read.
Errors: `DataError` with file and sample.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.data.formats.image_tree import IMAGE_SUFFIXES
from partialkd.data.formats.label import label_of
from partialkd.data.formats.shard_files import list_shards
from partialkd.data.formats.tar_index import Member, list_members
from partialkd.data.formats.text_file import read_text
from partialkd.errors import DataError
from partialkd.storage.open_file import OpenFile

WIDS_INDEX = "index.json"  # of a folder of shards
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MOST_LABEL_BYTES = 1 << 16
Sample = tuple[str, dict[str, Member]]  # the name up to the first dot; member by the rest of its name


def list_samples(file: OpenFile) -> Iterator[Sample]:
    """List the samples of a shard, in its order."""
    key, members = "", dict[str, Member]()
    for member in list_members(file):
        match = _NAME.fullmatch(member.name.removeprefix("./"))
        if match is None or (match[1].startswith("__") and match[1].endswith("__")):
            continue
        if members and match[1] != key:
            yield key, members
            members = {}
        key, ending = match[1], match[2].lower()
        if ending in members:
            raise DataError(f"{file.path}: {member.name}: occurs twice in its sample")
        members[ending] = member
    if members:
        yield key, members


def find_images(file: OpenFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find where the images of a shard lie, and their class ids: offsets (n,) int64, sizes and labels (n,) int32."""
    offsets, sizes, labels = array("q"), array("i"), array("i")
    for key, members in list_samples(file):
        images = [ending for ending in members if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES]
        if len(images) != 1:
            rule = f"a sample must have one image, this has {', '.join(images) or 'none'}"
            raise DataError(f"{file.path}: sample {key}: {rule} (its files: {', '.join(members)})")
        image = members[images[0]]
        if not image.size:
            raise DataError(f"{file.path}: {image.name}: the image is empty")
        offsets.append(image.offset)
        sizes.append(image.size)
        labels.append(_label(file, key, members))
    return np.frombuffer(offsets, np.int64), np.frombuffer(sizes, np.int32), np.frombuffer(labels, np.int32)


def _label(file: OpenFile, key: str, members: dict[str, Member]) -> int:
    member = members.get("cls") or members.get("json")
    if member is None:
        rule = "has no class id: a sample needs a .cls or .json file"
        raise DataError(f"{file.path}: sample {key}: {rule} (its files: {', '.join(members)})")
    if member.size > _MOST_LABEL_BYTES:
        raise DataError(f"{file.path}: {member.name}: has at most {_MOST_LABEL_BYTES} bytes, got {member.size}")
    content = file.bytes_at(member.offset, member.size)
    if content.isdigit():  # nearly always
        return label_of(int(content[:20]), file.path, member.name)
    return label_of(_value(content, file, member), file.path, member.name)


def _value(content: bytes, file: OpenFile, member: Member) -> Any:
    """Read the label of a sample, whatever it is."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # not JSON: shown as it is
        return content.decode("utf-8", "replace").strip()
    if not isinstance(value, dict):
        return value
    found = [value[name] for name in ("label", "cls") if name in value]
    if not found:
        raise DataError(f"{file.path}: {member.name}: needs `label` or `cls`, has {', '.join(value)[:80]}")
    return found[0]


def shards_of(path: Path) -> list[tuple[Path, int | None]]:
    """List the shards that a path stands for, each with the number of samples that an index gives.

    An index of wids; a folder, of which `index.json` if it has one, else all .tar by name; a .tar or a pattern.
    """
    if path.suffix == ".json":
        return _listed(path)
    if (path / WIDS_INDEX).is_file():
        return _listed(path / WIDS_INDEX)
    return [(shard, None) for shard in list_shards(path, ".tar")]


def _listed(index: Path) -> list[tuple[Path, int | None]]:
    try:
        said = json.loads(read_text(index))
        shards = said["shardlist"]
        found = [(str(shard["url"]), shard["nsamples"]) for shard in shards]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        rule = 'not an index of wids, {"wids_version": 1, "shardlist": [{"url": ..., "nsamples": ...}]}'
        raise DataError(f"{index}: {rule}: {type(error).__name__}: {error}") from error
    if not found:
        raise DataError(f"{index}: lists no shard")
    for url, count in found:
        if _REMOTE.match(url):
            raise DataError(f"{index}: shards must be local files; download them, and list them by path, got {url}")
        if type(count) is not int or count < 0:
            raise DataError(f"{index}: nsamples of {url} must be a whole number, got {count!r}")
    return [(index.parent / url, count) for url, count in found]
