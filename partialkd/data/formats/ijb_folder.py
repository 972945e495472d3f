"""Read sets of templates as InsightFace lays out IJB-B and IJB-C: which images make a template, and what is compared.

    FOLDER/meta/<any>_face_tid_mid.txt         <image> <template> <medium>                 a line per image
           meta/<any>_name_5pts_score.txt      <image> x1 y1 ... x5 y5 <score>             the same images, same order
           meta/<any>_template_pair_label.txt  <template> <template> <1 same, 0 not>       1:1
           meta/<any>_1N_gallery_<any>.csv     TEMPLATE_ID,SUBJECT_ID,...  one header      1:N, one file per gallery
           meta/<any>_1N_probe_mixed.csv       likewise
           loose_crop/<image>                  photographs, aligned on the way by their landmarks
           aligned/<image>                     or faces that are aligned already

Of 1:1 and 1:N one must be there. Numbers may be written as 7 or 7.0.
Errors: `DataError` naming file and line, before any image is read. Eight million pairs take seconds and 0.2 GB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from partialkd.data.formats.image_tree import read_file
from partialkd.data.formats.text_file import read_lines
from partialkd.errors import DataError

LANDMARKS = 10  # numbers of five points
MOST = 10**15  # of a template's number: whole ones up to here are exact as floats


@dataclass(frozen=True)
class Listed:
    """Templates and whom they show, as a gallery or a list of probes has them."""

    templates: np.ndarray  # (t,) int64
    subjects: np.ndarray  # (t,) int64


@dataclass(frozen=True)
class TemplateSet:
    """One set: n images, and what is compared of their templates."""

    folder: Path
    names: Sequence[str]  # (n,) of images
    templates: np.ndarray  # (n,) int64
    media: np.ndarray  # (n,) int64
    landmarks: np.ndarray  # (n, 5, 2) pixels of the photograph
    scores: np.ndarray  # (n,) float32, the detector's
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # templates (p,), templates (p,), same (p,) bool
    galleries: dict[str, Listed]  # by name, G1, G2 ...
    probes: Listed | None
    stored: Callable[[int], bytes] | None = None  # reads an image that is no file of its own
    listed: Path | None = None  # the file whose lines are the images

    @property
    def aligned(self) -> bool:
        """Whether the images are aligned faces, not photographs."""
        return self.stored is not None or not (self.folder / "loose_crop").is_dir()

    def path(self, image: int) -> Path:
        """Return where an image is."""
        kind = "" if self.stored else "aligned" if self.aligned else "loose_crop"
        return self.folder / kind / self.names[image]

    def line(self, image: int) -> str:
        """Say where an image is listed."""
        return f"{self.listed}: line {read_lines(self.listed)[image][0]}" if self.listed else self.names[image]

    def encoded(self, image: int) -> bytes:
        """Read an image; DataError naming it where it cannot be read."""
        if self.stored is not None:
            return self.stored(image)
        try:
            return read_file(self.path(image))
        except OSError as error:
            raise DataError(f"{self.path(image)}: cannot be read: {error.strerror}") from error


def read_template_set(folder: Path) -> TemplateSet:
    """Read all lists of a folder, and see that they agree."""
    found = _Meta(Path(folder))
    names, templates, media = _memberships(found.one("face_tid_mid.txt"))
    photographs = (found.folder / "loose_crop").is_dir()
    listed = found.one("face_tid_mid.txt")
    landmarks, scores = _looks(found.one("name_5pts_score.txt"), names, listed, photographs)
    pairs, probes = found.any("template_pair_label.txt"), found.any("1N_probe_mixed.csv")
    galleries = {_gallery_name(path): path for path in found.all("1N_gallery_*.csv")}
    if pairs is None and (probes is None or not galleries):
        raise DataError(
            f"{found.meta}: neither pairs (*_template_pair_label.txt) nor probes and galleries (*_1N_*.csv)"
        )
    if not (photographs or (found.folder / "aligned").is_dir()):
        raise DataError(f"{found.folder}: no folder loose_crop (photographs) or aligned (faces) in it")
    known = np.unique(templates)
    return TemplateSet(
        found.folder, names, templates, media, landmarks, scores,
        None if pairs is None else _pairs(pairs, known),
        {name: _listed(path, known, once=True) for name, path in sorted(galleries.items())} if probes else {},
        _listed(probes, known, once=False) if probes and galleries else None,
        listed=listed,
    )  # fmt: skip


class _Meta:
    """The lists of a folder by the ends of their names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.meta = folder, folder / "meta"
        if not self.meta.is_dir():
            raise DataError(f"{folder}: not a set of templates: no folder meta in it")

    def all(self, end: str) -> list[Path]:
        return sorted(self.meta.glob(f"*_{end}"))

    def any(self, end: str) -> Path | None:
        found = self.all(end)
        if len(found) > 1:
            raise DataError(f"{self.meta}: must hold one *_{end}, got {', '.join(path.name for path in found)}")
        return found[0] if found else None

    def one(self, end: str) -> Path:
        found = self.any(end)
        if found is None:
            raise DataError(f"{self.meta}: no *_{end} in it")
        return found


def _memberships(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Read names, templates (n,), media (n,)."""
    rows = [_fields(path, number, line.split(), 3) for number, line in read_lines(path)]
    if not rows:
        raise DataError(f"{path}: no images in it")
    numbers = [[_whole(path, number, word) for word in words[1:]] for number, words in rows]
    templates, media = np.array(numbers, dtype=np.int64).T
    return [words[0] for _, words in rows], templates, media


def _looks(path: Path, names: Sequence[str], other: Path, photographs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read landmarks (n, 5, 2) and scores (n,) of the images named, which must be the same ones in the same order."""
    numbers, lines = [], read_lines(path)
    for name, line in zip_longest(names, lines):
        if line is None:
            raise DataError(f"{path}: must hold a line per image of {other.name}: {name} and what follows is missing")
        if name is None:
            raise DataError(f"{path}: line {line[0]}: {other.name} has {len(names)} images, this is one more")
        number, words = _fields(path, line[0], line[1].split(), LANDMARKS + 2)
        if words[0] != name:
            raise DataError(f"{path}: line {number}: must be image {name} as in {other.name}, got {words[0]}")
        numbers.append([_number(path, number, word) for word in words[1:]])
    table = np.array(numbers, dtype=np.float64)
    points, scores = table[:, :LANDMARKS].reshape(-1, 5, 2), table[:, LANDMARKS].astype(np.float32)
    if photographs and len(wrong := np.flatnonzero(~np.ptp(points, axis=1).any(axis=1))):
        raise DataError(f"{path}: line {lines[wrong[0]][0]}: its five landmarks are one and the same point")
    if len(wrong := np.flatnonzero(~((scores >= 0) & np.isfinite(scores)))):
        raise DataError(f"{path}: line {lines[wrong[0]][0]}: the score must be 0 or more, got {table[wrong[0], -1]:g}")
    return points, scores


def _pairs(path: Path, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with path.open("rb") as stream:
        if not any(line.strip() for line in stream):
            raise DataError(f"{path}: no pairs in it")
    try:
        table = np.loadtxt(path, dtype=np.int64, ndmin=2, comments=None, encoding="utf-8-sig")
    except (ValueError, OSError):  # look again, slowly, for the line
        table = np.array(list(_pair_lines(path)), dtype=np.int64).reshape(-1, 3)
    if table.shape[1] != 3:
        raise DataError(f"{path}: must hold lines of two templates and 1 or 0, got {table.shape[1]} words in a line")
    wrong = np.flatnonzero((table[:, 2] != 0) & (table[:, 2] != 1))
    if len(wrong):
        line = _line_of(path, int(wrong[0]))
        raise DataError(f"{path}: line {line}: the label must be 1 (same) or 0, got {table[wrong[0], 2]}")
    if len(alone := np.flatnonzero((table[:, 0] == table[:, 1]) & (table[:, 2] == 0))):
        raise DataError(
            f"{path}: line {_line_of(path, int(alone[0]))}: template {table[alone[0], 0]} and itself are not two people"
        )
    for side in (0, 1):
        if len(strange := np.flatnonzero(~_are_known(table[:, side], known))):
            raise _unknown(path, _line_of(path, int(strange[0])), table[strange[0], side])
    numbers = np.int32 if known[-1] < 1 << 31 and known[0] >= 0 else np.int64  # eight million pairs: half the memory
    return table[:, 0].astype(numbers), table[:, 1].astype(numbers), table[:, 2] == 1


def _line_of(path: Path, row: int) -> int:
    """Return the number of the line that a row of numbers stands in; blank ones are no rows."""
    return read_lines(path)[row][0]


def _pair_lines(path: Path) -> Iterator[list[int]]:
    for number, line in read_lines(path):
        number, words = _fields(path, number, line.split(), 3)
        yield [_whole(path, number, word) for word in words]


def _listed(path: Path, known: np.ndarray, once: bool) -> Listed:
    """Read a gallery or probes; a template that has a line for each of its images counts once."""
    subjects: dict[int, int] = {}
    lines = read_lines(path)
    if lines and lines[0][1].split(",")[0].strip().replace(".", "").isdigit():
        raise DataError(f"{path}: line {lines[0][0]}: must be a header (TEMPLATE_ID,SUBJECT_ID), got {lines[0][1]!r}")
    for number, line in lines[1:]:
        words = line.split(",")
        if len(words) < 2:
            raise DataError(f"{path}: line {number}: must begin with TEMPLATE_ID,SUBJECT_ID, got {line!r}")
        template, subject = (_whole(path, number, word.strip()) for word in words[:2])
        if subjects.setdefault(template, subject) != subject:
            raise DataError(f"{path}: line {number}: template {template} shows subject {subject} here, not before")
        if not _are_known(np.array([template]), known).all():
            raise _unknown(path, number, template)
    if not subjects:
        raise DataError(f"{path}: no templates in it")
    listed = Listed(*(np.array(list(part), dtype=np.int64) for part in (subjects.keys(), subjects.values())))
    if once and len(np.unique(listed.subjects)) < len(listed.subjects):
        values, counts = np.unique(listed.subjects, return_counts=True)
        raise DataError(f"{path}: subject {values[counts > 1][0]} has several templates; a gallery holds one of each")
    return listed


def _are_known(templates: np.ndarray, known: np.ndarray) -> np.ndarray:
    return known[np.minimum(np.searchsorted(known, templates), len(known) - 1)] == templates


def _unknown(path: Path, line: int, template: int) -> DataError:
    return DataError(f"{path}: line {line}: template {template} has no image in *_face_tid_mid.txt")


def _gallery_name(path: Path) -> str:
    return re.sub(r".*_1N_gallery_", "", path.stem)


def _fields(path: Path, number: int, words: list[str], count: int) -> tuple[int, list[str]]:
    if len(words) != count:
        raise DataError(f"{path}: line {number}: must hold {count} words, got {len(words)}")
    return number, words


def _whole(path: Path, number: int, word: str) -> int:
    value = _number(path, number, word)
    if value != int(value) or abs(value) > MOST:
        raise DataError(f"{path}: line {number}: must be a whole number of at most 15 digits, got {word!r}")
    return int(value)


def _number(path: Path, number: int, word: str) -> float:
    try:
        value = float(word)
        if not np.isfinite(value):
            raise ValueError
    except ValueError:
        raise DataError(f"{path}: line {number}: must be a number, got {word!r}") from None
    return value
