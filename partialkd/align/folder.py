"""Align a folder of photographs: every image read, its face found and brought to the template, and written.

    OUT/<same path>.jpg         the aligned face (all faces: <same path>_1.jpg, _2.jpg, ...); JPEG, quality 95, 4:4:4
    OUT/alignment.csv           a line per face: image, aligned file, score, x1, y1, ..., x5, y5; per image without one,
                                the image and the reason
    OUT/alignment.json          what it was made with

The lines of alignment.csv are written in the order of the images, after the faces they name. A start that was broken
off goes on after the last whole line, if it is made with the same settings; nothing is done twice and no image is
passed over silently.
Errors: DataError naming the file; an image that cannot be read, or that shows no face, is a line of alignment.csv.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialkd.align.detector import Detector, Face, the_one_meant
from partialkd.align.landmark_file import LandmarkFile
from partialkd.align.template import aligned
from partialkd.data.formats.image_tree import IMAGE_SUFFIXES, is_hidden, read_file
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.ordered_threads import in_order
from partialkd.errors import ConfigError, DataError, printable
from partialkd.storage.atomic_files import naming, write_bytes, write_json
from partialkd.world.passes import counted

JOURNAL, SETTINGS = "alignment.csv", "alignment.json"
NO_FACE, NOT_LISTED = "no face found", "no landmarks given"
HEADER = ["image", "aligned", "score", *(f"{axis}{point}" for point in range(1, 6) for axis in "xy")]

Finder = Callable[[str, np.ndarray], list[Face]]  # path of an image, its pixels (H, W, 3) -> faces, best first


@dataclass(frozen=True)
class AlignOptions:
    """How faces are chosen and written."""

    size: int = 112  # pixels a side
    all_faces: bool = False  # every face that is found, not only the one meant
    workers: int = 1  # threads

    def __post_init__(self) -> None:
        for key, low, high in (("size", 16, 512), ("workers", 1, 1024)):
            if not low <= getattr(self, key) <= high:
                raise ConfigError(f"{key} must be in {low}..{high}, got {getattr(self, key)}")


@dataclass(frozen=True)
class Aligned:
    """What became of an image: the faces written, or the reason why there is none."""

    image: str
    faces: list[tuple[str, Face]]  # path of the result, relative to the folder
    reason: str = ""

    def rows(self) -> list[list[str]]:
        """Lines of alignment.csv."""
        if not self.faces:
            return [[self.image, "", self.reason]]
        coordinates = lambda face: [f"{value:.2f}" for value in face.landmarks.ravel()]
        return [[self.image, path, f"{face.score:.4f}", *coordinates(face)] for path, face in self.faces]


def detecting(make: Callable[[], Detector]) -> Finder:
    """Faces by a detector of each thread's own."""
    own = threading.local()

    def find(_: str, pixels: np.ndarray) -> list[Face]:
        if not hasattr(own, "detector"):
            own.detector = make()
        found: list[Face] = own.detector.find(pixels)
        return found

    return find


def given(landmarks: LandmarkFile) -> Finder:
    """The one face whose landmarks a file gives."""

    def find(image: str, pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[:2]
        points = landmarks.of(image, width, height)
        if points is None:
            raise DataError(NOT_LISTED)
        return [Face(_around(points), points, 1.0)]

    return find


def align_folder(
    images: Path, out: Path, find: Finder, made_with: dict[str, Any], options: AlignOptions
) -> Iterator[Aligned]:
    """Align what is not aligned yet, giving each image's result in the order of their paths."""
    paths = list_images(images)
    done = _begin(out, {**made_with, "size": options.size, "all_faces": options.all_faces})
    stems = _stems(paths)
    todo = [path for path in paths if path not in done]
    job = lambda path: _align(images, out, path, stems[path], find, options)
    with naming(out / JOURNAL), (out / JOURNAL).open("a", encoding="utf-8", newline="", buffering=1) as journal:
        results = in_order(job, todo, options.workers, ahead=4 * options.workers)
        for _, result in counted(results, "aligning", len(todo), "images"):
            lines = io.StringIO()
            csv.writer(lines, lineterminator="\n").writerows(result.rows())
            journal.write(lines.getvalue())
            yield result


def list_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, sorted; hidden files and folders are not looked at."""
    if not folder.is_dir():
        raise DataError(f"{folder}: must be a folder of photographs")
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside = Path(place).relative_to(folder)
        names = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)]
        found += [(inside / name).as_posix() for name in names]
    if not found:
        raise DataError(f"{folder}: no image in it ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(found)


def read_journal(out: Path) -> list[list[str]]:
    """The lines of alignment.csv without its header; a last line that was cut short is left out."""
    try:
        text = (out / JOURNAL).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{out / JOURNAL}: cannot be read: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(whole)))
    except csv.Error as error:
        raise DataError(f"{out / JOURNAL}: damaged: {error}") from error
    if not rows or rows[0] != HEADER or any(len(row) < 3 for row in rows):
        raise DataError(f"{out / JOURNAL}: not written by this program")
    return rows[1:]


def _begin(out: Path, made_with: dict[str, Any]) -> set[str]:
    """Begin a folder, or go on with it -> images that are done."""
    if not (out / SETTINGS).exists():
        if out.exists() and any(out.iterdir()):
            raise DataError(f"{out}: exists and was not made by this program; choose another folder")
        with naming(out):
            out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / JOURNAL, (",".join(HEADER) + "\n").encode())
        write_json(out / SETTINGS, made_with)
        return set()
    before = _settings(out / SETTINGS)
    differ = sorted(key for key in {*before, *made_with} if before.get(key) != made_with.get(key))
    if differ:
        changes = "; ".join(f"{key} is {before.get(key)!r} there, {made_with.get(key)!r} here" for key in differ)
        raise DataError(f"{out}: was made with other settings; choose another folder: {changes}")
    return _finished(out)


def _settings(path: Path) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError(f"it holds a {type(before).__name__}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: not the settings of a folder: {error}") from error
    return before


def _finished(out: Path) -> set[str]:
    """Images whose lines are whole; what was cut short is taken back."""
    rows = read_journal(out)
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([HEADER, *rows])
    write_bytes(out / JOURNAL, lines.getvalue().encode())
    return {row[0] for row in rows}


def _align(images: Path, out: Path, path: str, stem: str, find: Finder, options: AlignOptions) -> Aligned:
    where = str(images / path)
    try:
        pixels = decode(read_file(images / path), where)
        faces = find(path, pixels)
    except OSError as error:
        return Aligned(path, [], f"cannot be read: {error.strerror or error}")
    except DataError as error:
        return Aligned(path, [], str(error).removeprefix(f"{printable(where)}: "))
    if not faces:
        return Aligned(path, [], NO_FACE)
    height, width = pixels.shape[:2]
    chosen = faces if options.all_faces else [the_one_meant(faces, width, height)]
    ends = [f"_{number}.jpg" if options.all_faces else ".jpg" for number in range(1, len(chosen) + 1)]
    named = [(stem + end, face) for end, face in zip(ends, chosen, strict=True)]
    for name, face in named:
        with naming(out / name):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out / name, encode_jpeg(aligned(pixels, face.landmarks, options.size)))
    return Aligned(path, named)


def _stems(paths: list[str]) -> dict[str, str]:
    """Path of an image -> that of its result without the ending: anna/1.png becomes anna/1, unless anna/1.jpg is
    there."""
    short = {path: Path(path).with_suffix("").as_posix() for path in paths}
    count = Counter(short.values())
    return {path: stem if count[stem] == 1 else path for path, stem in short.items()}


def _around(points: np.ndarray) -> np.ndarray:
    """The smallest box with all points (5, 2)."""
    return np.concatenate([points.min(0), points.max(0)])
