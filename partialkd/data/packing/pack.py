"""Image folders or list files -> an InsightFace folder (`layout.pack_records`), and back.

A folder is `<identity>/<image>`, class ids in the order of the sorted identity names. A list file has a line
`path<TAB>label` or `path,label` an image, paths relative to the file, labels the class ids.
JPEG and PNG bytes are kept as they are; other formats become PNG. A size resizes (antialiased bilinear) what is not of
that size already; a quality re-encodes everything. What is re-encoded becomes JPEG without chroma subsampling.
Every image is decoded once. What cannot be packed is a `Problem` with its path and reason: all of them are raised
together (`PackError`) and nothing is written, or, when skipping, all are written to `out`/skipped.txt.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from partialkd.data.formats.image_tree import list_folder
from partialkd.data.formats.insightface_folder import FLOAT_EXACT, NAMES, pack_records, read_names
from partialkd.data.images.decode import decode, encode_jpeg, image_suffix, to_pixels
from partialkd.data.ordered_threads import in_order
from partialkd.data.progress_bar import shown
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import ConfigError, DataError, printable
from partialkd.storage.atomic_files import new_folder, refuse_existing, replacing

SKIPPED = "skipped.txt"
READ_AHEAD = 32  # images per thread: some take much longer than others
_NUMBER = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class Problem:
    """An image that cannot be packed."""

    path: str
    reason: str


class PackError(DataError):
    """Some images cannot be packed."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        lines = [f"{problem.path}: {problem.reason}" for problem in problems]
        super().__init__(*lines, f"{len(problems)} images cannot be packed; nothing was written")


@dataclass
class ImageList:
    """What to pack: paths and labels in ascending order of labels, identity names by label."""

    root: Path
    names: list[str]
    paths: list[str]
    labels: list[int]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class PackOptions:
    """How images are packed."""

    size: int | None = None  # pixels; None: the size of the first image, others are problems
    quality: int | None = None  # JPEG quality 1..100; None: re-encode only what is resized, at 95
    skip_unreadable: bool = False
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)  # threads

    def __post_init__(self) -> None:
        for key, low, high in (("size", 16, 512), ("quality", 1, 100), ("workers", 1, 1024)):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"pack.{key}: must be in {low}..{high}, got {value}")


def pack(images: Path, out: Path, options: PackOptions | None = None) -> tuple[int, list[Problem]]:
    """Pack a folder or a list file into `out` -> number of images, problems that were skipped."""
    images, out, options = Path(images), Path(out), options or PackOptions()
    refuse_existing(out / SKIPPED)
    todo = _from_folder(images) if images.is_dir() else _from_list(images)
    size = options.size or _first_size(todo)
    job: Callable[[int], tuple[bytes, int] | Problem] = lambda number: _prepare(todo, number, size, options)
    results = in_order(job, range(len(todo.paths)), options.workers, READ_AHEAD * options.workers)
    packable = _packable((result for _, result in results), todo.problems, options)
    count = pack_records(out, shown(packable, len(todo.paths), "packing"), len(todo.names), size, todo.names)
    if todo.problems:
        with replacing(out / SKIPPED) as (file,):
            file.writelines(f"{printable(one.path)}\t{printable(one.reason)}\n".encode() for one in todo.problems)
    return count, todo.problems


def _packable(
    results: Iterable[tuple[bytes, int] | Problem], problems: list[Problem], options: PackOptions
) -> Iterator[tuple[bytes, int]]:
    """The images that can be packed; problems are collected and, unless skipped, raised at the end."""
    packed = False
    for result in results:
        if isinstance(result, Problem):
            problems.append(result)
        else:
            packed = True
            yield result
    if problems and not (packed and options.skip_unreadable):
        raise PackError(problems)


def _prepare(todo: ImageList, number: int, size: int, options: PackOptions) -> tuple[bytes, int] | Problem:
    """Encoded image and label as they go into the record."""
    path = todo.paths[number]
    try:
        encoded = (todo.root / path).read_bytes()
        pixels = decode(encoded, path)
        return _encoded(encoded, pixels, size, options), todo.labels[number]
    except OSError as error:
        return Problem(path, f"cannot be read: {error.strerror}")
    except DataError as error:
        return Problem(path, str(error).removeprefix(f"{path}: "))


def _encoded(encoded: bytes, pixels: np.ndarray, size: int, options: PackOptions) -> bytes:
    height, width = pixels.shape[:2]
    if height != width:
        raise DataError(f"must be square, got {width} x {height}")
    if width != size and options.size is None:
        raise DataError(f"the first image is {size} x {size}, got {width} x {height} (a size brings all to one)")
    if width != size or options.quality is not None:
        return encode_jpeg(to_pixels(pixels, size), options.quality or 95)
    if image_suffix(encoded) in (".jpg", ".png"):
        return encoded
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return png.getvalue()


def _first_size(todo: ImageList) -> int:
    """Width of the first image that can be decoded."""
    for path in todo.paths:
        try:
            return int(decode((todo.root / path).read_bytes(), path).shape[1])
        except (OSError, DataError):  # becomes a Problem when its turn comes
            continue
    raise PackError([*todo.problems, Problem(str(todo.root), "none of its images can be decoded")])


def _from_folder(folder: Path) -> ImageList:
    found = list_folder(folder)
    return ImageList(folder, found.names, found.paths, found.labels, [Problem(*problem) for problem in found.problems])


def _from_list(path: Path) -> ImageList:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    entries: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, separator, label = line.rpartition("\t" if "\t" in line else ",")
        if not separator or not name.strip() or not _NUMBER.fullmatch(label.strip()):
            raise DataError(f"{path}: line {number}: must be path<TAB>label or path,label, got {line[:120]!r}")
        if int(label) >= FLOAT_EXACT:
            raise DataError(f"{path}: line {number}: label must be below {FLOAT_EXACT}, got {label.strip()}")
        entries.append((int(label), name.strip()))
    if not entries:
        raise DataError(f"{path}: no image in the list")
    entries.sort(key=lambda entry: entry[0])
    labels = [label for label, _ in entries]
    names = [str(label) for label in range(labels[-1] + 1)]
    return ImageList(path.parent, names, [name for _, name in entries], labels)


def unpack(folder: Path, out: Path, workers: int | None = None) -> int:
    """An InsightFace folder -> `out`/<identity>/<key>.<suffix>, bytes as they are; returns the number of images."""
    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    source = RecordIOSource(folder)
    digits = len(str(source.num_classes - 1))
    names = [f"{label:0{digits}d}" for label in range(source.num_classes)]
    if (folder / NAMES).exists():
        names = read_names(folder / NAMES, source.num_classes)
    with new_folder(out) as hidden:
        for label in np.unique(source.labels()).tolist():
            (hidden / names[label]).mkdir(parents=True)
        job: Callable[[int], None] = lambda index: _write_image(source, index, hidden, names)
        written = in_order(job, range(len(source)), workers := workers or os.cpu_count() or 1, READ_AHEAD * workers)
        for _ in shown(written, len(source), "unpacking"):
            pass
    return len(source)


def _write_image(source: RecordIOSource, index: int, root: Path, names: list[str]) -> None:
    image, label = source.read(index)
    suffix = image_suffix(image)
    if suffix is None:
        raise DataError(f"{source.name(index)}: not a known image format (starts with {image[:8]!r})")
    (root / names[label] / f"{source.stem(index)}{suffix}").write_bytes(image)
