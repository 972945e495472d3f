"""Pack image folders, list files or any source as an InsightFace folder or as WebDataset, and back.

A folder or a list is packed in the order of its class ids, a source in its own order: records whose class ids do not
ascend have no header and identity records (insightface_folder.py).

JPEG and PNG bytes are kept as they are; other formats become PNG. A size resizes (antialiased bilinear) what is not of
that size already; a quality re-encodes everything. What is re-encoded becomes JPEG without chroma subsampling. Images
that EXIF says to turn are turned and encoded anew, so that every reader sees them alike. All must be square.
Every image is decoded once. What cannot be packed is a `Problem` with its path and reason: all of them are raised
together (`PackError`) and nothing is written, or, when skipping, all are written to `out`/skipped.txt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from partialkd.config import DataConfig, PartConfig
from partialkd.config.data import PartSource
from partialkd.data.formats.insightface_folder import NAMES, pack_records, read_names
from partialkd.data.formats.webdataset_writer import write_shards
from partialkd.data.images.decode import Wanted, decode, image_size, image_suffix
from partialkd.data.images.encode import encode_jpeg, encode_png, encode_upright
from partialkd.data.images.orientation import UPRIGHT, orientation
from partialkd.data.images.tensors import to_pixels
from partialkd.data.ordered_threads import in_order
from partialkd.data.packing.image_list import Gaps, Problem, SourceToPack, ToPack, files_to_pack
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.open import SOURCES
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError, DataError, printable
from partialkd.storage.atomic_files import discard, followed, hidden_name, new_folder, refuse_existing, replacing
from partialkd.world.passes import counted

SKIPPED = "skipped.txt"
READ_AHEAD = 32  # images per thread: some take much longer than others


class PackError(DataError):
    """Says which images cannot be packed."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        lines = [f"{problem.path}: {problem.reason}" for problem in problems]
        super().__init__(*lines, f"{len(problems)} images cannot be packed; nothing was written")


@dataclass(frozen=True)
class PackOptions:
    """Says how images are packed."""

    size: int | None = None  # pixels; None: the size of the first image, others are problems
    size_option: str = "--size"  # what the user can give to have all resized
    quality: int | None = None  # JPEG quality 1..100; None: re-encode only what is resized, at 95
    skip_unreadable: bool = False
    gaps: Gaps = "refuse"  # class ids of a list file or a source that have no image
    to: Literal["rec", "webdataset"] = "rec"
    shard_images: int = 10000  # webdataset: in each shard but the last
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)  # threads

    def __post_init__(self) -> None:
        ranges = ("size", 16, 512), ("quality", 1, 100), ("workers", 1, 1024), ("shard_images", 1, 10**9)
        for key, low, high in ranges:
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"pack.{key}: must be in {low}..{high}, got {value}")


def pack(
    images: Path, out: Path, options: PackOptions | None = None, form: PartSource | None = None
) -> tuple[int, list[Problem]]:
    """Pack a folder, a list file or a source into `out` -> number of images, problems that were skipped.

    form: of a source, as data.source names it.
    """
    images, out, options = Path(images), Path(out), options or PackOptions()
    refuse_existing(out / SKIPPED)
    if form is None:
        return _pack(files_to_pack(images, options.gaps), out, options)
    with _opened(images, form, out) as source:
        return _pack(SourceToPack(source, images, options.gaps), out, options)


@contextmanager
def _opened(path: Path, form: PartSource, out: Path) -> Iterator[Source]:
    """Open a source; Parquet is written out beside `out` meanwhile."""
    place = hidden_name(followed(out))
    try:
        data = DataConfig(path=str(path), source=form, resize=True, index_cache=str(place))
        yield SOURCES[form](PartConfig(path=str(path), source=form), data)
    finally:
        discard(place)


def _pack(todo: ToPack, out: Path, options: PackOptions) -> tuple[int, list[Problem]]:
    size = options.size or _first_size(todo)
    job: Callable[[int], tuple[bytes, int] | Problem] = lambda number: _prepare(todo, number, size, options)
    results = in_order(job, range(len(todo)), options.workers, READ_AHEAD * options.workers)
    packed = (result for _, result in counted(results, "packing", len(todo), "images"))
    packable = _packable(packed, todo.problems, options)
    if options.to == "webdataset":
        count = write_shards(out, packable, todo.names, options.shard_images)
    else:
        count = pack_records(out, packable, len(todo.names), size, todo.names, plain=not todo.sorted)
    if todo.problems:
        with replacing(out / SKIPPED) as (file,):
            file.writelines(f"{printable(one.path)}\t{printable(one.reason)}\n".encode() for one in todo.problems)
    return count, todo.problems


def _packable(
    results: Iterable[tuple[bytes, int] | Problem], problems: list[Problem], options: PackOptions
) -> Iterator[tuple[bytes, int]]:
    """Give the images that can be packed; problems are collected and, unless skipped, raised at the end."""
    packed = False
    for result in results:
        if isinstance(result, Problem):
            problems.append(result)
        else:
            packed = True
            yield result
    if problems and not (packed and options.skip_unreadable):
        raise PackError(problems)


def _prepare(todo: ToPack, number: int, size: int, options: PackOptions) -> tuple[bytes, int] | Problem:
    """Encode image and label as they go into the record."""
    path = todo.name(number)
    try:
        return _encoded(todo.read(number), path, size, options), int(todo.labels[number])
    except OSError as error:
        return Problem(path, f"cannot be read: {error.strerror}")
    except DataError as error:
        return Problem(path, str(error).removeprefix(f"{printable(path)}: "))


def _encoded(encoded: bytes, path: str, size: int, options: PackOptions) -> bytes:
    option = f"as the first image is; {options.size_option}"
    pixels = decode(encoded, path, wanted=Wanted(size, resize=options.size is not None, option=option))
    if pixels.shape[1] != size or options.quality is not None:
        return encode_jpeg(to_pixels(pixels, size), options.quality or 95)
    if image_suffix(encoded) not in (".jpg", ".png"):
        return encode_png(pixels)
    return encoded if orientation(encoded) == UPRIGHT else encode_upright(encoded, pixels)


def _first_size(todo: ToPack) -> int:
    """Read the width of the first image whose header can be read."""
    for number in range(len(todo)):
        try:
            return image_size(todo.read(number), todo.name(number))[0]
        except (OSError, DataError):  # becomes a Problem when its turn comes
            continue
    raise PackError([*todo.problems, Problem(str(todo.where), "none of its images can be decoded")])


def unpack(folder: Path, out: Path, workers: int = PackOptions().workers) -> int:
    """Unpack a folder as `out`/<identity>/<key>.<suffix>, bytes as they are; returns the number of images."""
    folder, out, workers = Path(folder), Path(out), PackOptions(workers=workers).workers
    refuse_existing(out)
    source = RecordIOSource(folder)
    digits = len(str(source.num_classes - 1))
    names = [f"{label:0{digits}d}" for label in range(source.num_classes)]
    if os.path.exists(folder / NAMES):
        names = read_names(folder / NAMES, source.num_classes)
    with new_folder(out) as hidden:
        for label in np.unique(source.labels()).tolist():
            (hidden / names[label]).mkdir(parents=True)
        job: Callable[[int], None] = lambda index: _write_image(source, index, hidden, names)
        written = in_order(job, range(len(source)), workers, READ_AHEAD * workers)
        for _ in counted(written, "unpacking", len(source), "images"):
            pass
    return len(source)


def _write_image(source: RecordIOSource, index: int, root: Path, names: list[str]) -> None:
    image, label = source.read(index)
    suffix = image_suffix(image)
    if suffix is None:
        raise DataError(f"{source.name(index)}: not a known image format (starts with {image[:8]!r})")
    (root / names[label] / f"{source.stem(index)}{suffix}").write_bytes(image)
