"""Write and understand the folder InsightFace trains from: train.rec, train.idx, property (and, ours, identities.txt).

`property` is a line `classes,height,width` (property_file.py). Records: key 0 a header without image, labels (first
identity key, end); keys 1..n the images, sorted by class id, label = class id; then one record without image per
identity, labels (first image key, end). Labels are float32, exact to 2^24: a set of more images is written without
header and identity records, image keys 0..n-1, as InsightFace's largest sets are (the id inside a record is then its
key + 1); more classes than that cannot be written.
identities.txt holds `class id<TAB>name` lines.
Differs from InsightFace's reader: a key 0 with several labels *and* an image is an image, not a header.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from partialkd.data.formats.recordio import Headers, RecordWriter, open_writer, pack_payload
from partialkd.data.formats.text_file import read_text
from partialkd.errors import DataError
from partialkd.storage.atomic_files import refuse_existing, replacing

REC, IDX, PROPERTY, NAMES = "train.rec", "train.idx", "property", "identities.txt"
FLOAT_EXACT = 1 << 24  # float32 holds every integer up to here
_NOT_UTF_8 = re.compile("[\ud800-\udfff]")  # how Python keeps such bytes of a file's name


def pack_records(
    out: Path,
    images: Iterable[tuple[bytes, int]],
    num_classes: int,
    image_size: int,
    names: Sequence[str] | None = None,
    embed: Callable[[int], Sequence[float]] | None = None,
    plain: bool = False,
) -> int:
    """Write `out`/{train.rec, train.idx, property, identities.txt}; returns the number of images.

    images: (encoded bytes, class id) in ascending order of class ids, taken one at a time. plain: without header and
    identity records, as sets of more than 2^24 images always are, and class ids in any order. names: an identity's name
    by class id (default: the number). embed: numbers that image 0, 1, ... is to carry as labels in front of its class
    id (embedded_records.py). The files appear together when all images are written; if `images` raises,
    none does. Existing ones are not overwritten.
    """
    out = Path(out)
    _check_classes(num_classes)
    names = [str(label) for label in range(num_classes)] if names is None else list(names)
    check_names(names, num_classes)
    refuse_existing(*(out / name for name in (REC, IDX, PROPERTY, NAMES)))
    out.mkdir(parents=True, exist_ok=True)
    with open_writer(out / REC, out / IDX) as writer, replacing(out / PROPERTY, out / NAMES) as (size_file, names_file):
        counts = _write_images(writer, images, num_classes, embed, plain)
        size_file.write(f"{num_classes},{image_size},{image_size}\n".encode())
        names_file.writelines(f"{label}\t{name}\n".encode() for label, name in enumerate(names))
    return int(counts.sum())


def _write_images(
    writer: RecordWriter,
    images: Iterable[tuple[bytes, int]],
    num_classes: int,
    embed: Callable[[int], Sequence[float]] | None,
    plain: bool,
) -> np.ndarray:
    """Write image, identity and header records -> images of each class (C,) int64."""
    counts = np.zeros(num_classes, dtype=np.int64)
    previous = 0
    for key, (image, label) in enumerate(images, 1):
        if not (0 if plain else previous) <= label < num_classes:
            rule = f"class ids must {'be from 0 on' if plain else 'ascend'} and be below {num_classes}"
            raise DataError(f"image {key}: {rule}, got {label} after {previous}")
        if not image:
            raise DataError(f"image {key} of class {label} is empty")
        writer.write(key, pack_payload([*embed(key - 1), label] if embed else label, key, image))
        counts[label] += 1
        previous = label
    if not counts.any():
        raise DataError("no image to write")
    ends = np.cumsum(counts) + 1
    first = int(ends[-1])
    if plain or first + num_classes > FLOAT_EXACT:
        writer.renumber(-1)
        return counts
    for label, (start, end) in enumerate(zip((ends - counts).tolist(), ends.tolist(), strict=True)):
        writer.write(first + label, pack_payload((start, end), first + label))
    writer.write(0, pack_payload((first, first + num_classes), 0))
    return counts


def _check_classes(num_classes: int) -> None:
    if not 0 < num_classes <= FLOAT_EXACT:
        raise DataError(f"number of classes must be in 1..{FLOAT_EXACT} (labels are float32), got {num_classes}")


def check_names(names: Sequence[str], num_classes: int) -> None:
    """Raise DataError unless there is one distinct name per class, each usable as a folder's name."""
    if len(names) != num_classes:
        raise DataError(f"{num_classes} classes need as many identity names, got {len(names)}")
    for label, name in enumerate(names):
        if name in ("", ".", "..") or any(sign in name for sign in "/\\\0\n\r\t"):
            raise DataError(f"class {label}: identity name must be usable as a folder's name, got {name!r}")
        if _NOT_UTF_8.search(name):
            rule = "identity name must be UTF-8 text; rename the folder"
            raise DataError(f"class {label}: {rule}, got {os.fsencode(name)!r}")
    if len(set(names)) != num_classes:
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"identity name {twice!r} occurs more than once")


def read_names(path: Path, num_classes: int) -> list[str]:
    """Read identities.txt -> names by class id."""
    lines = read_text(path).split("\n")
    names = []
    for label, line in enumerate(lines[:-1] if lines[-1] == "" else lines):
        number, tab, name = line.partition("\t")
        if number != str(label) or not tab:
            raise DataError(f"{path}: line {label + 1}: must be `{label}<TAB>name`, got {line[:60]!r}")
        names.append(name)
    check_names(names, num_classes)
    return names


def image_positions(keys: range | np.ndarray, first: Headers, where: str) -> range | None:
    """Find the positions of the image records in a file: past the header record, before the identity records.

    keys (n,) ascending; first: what the first record says. None: the header's number is rounded, and the images are
    the records that hold one.
    """
    if not (keys[0] == 0 and first.flags[0] > 0 and first.image_bytes[0] == 0):
        return range(len(keys))
    end = float(first.labels[0])
    if not (end >= 1 and end == np.floor(end)):
        raise DataError(f"{where}: key 0: header record must give the key after the last image, got {end}")
    if end >= FLOAT_EXACT:
        return None
    stop = min(int(end), len(keys)) if isinstance(keys, range) else int(np.searchsorted(keys, int(end)))
    if stop != end:
        raise DataError(
            f"{where}: header record announces image keys 1..{int(end) - 1}, the index has {stop - 1} of them"
        )
    return range(1, stop)
