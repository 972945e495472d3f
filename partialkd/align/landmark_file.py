"""Landmarks that somebody else found, read from a text file.

InsightFace's `.txt`: a line `<path> x1 y1 ... x5 y5 [score]` per image, separated by blanks or tabs.
CSV with a header: the first column is the path, and ten columns follow (CVLface names them ldmk_0 to ldmk_9).
Coordinates that all lie in [0, 1] are shares of the image's width and height, as in CVLface.
Errors: DataError naming file and line.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from partialkd.data.formats.name_lookup import NameLookup
from partialkd.data.formats.text_file import read_lines, read_text
from partialkd.errors import DataError


class LandmarkFile:
    """Landmarks by path, relative to the folder of images, with forward slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, np.ndarray] = {}
        lines = list(_csv(path) if path.suffix.lower() == ".csv" else _text(path))
        for number, name, values in lines:
            if name in self._found:
                raise DataError(f"{path}: line {number}: landmarks of {name} stand there twice")
            self._found[name] = np.array(values).reshape(5, 2)
        if not self._found:
            raise DataError(f"{path}: no landmarks in it")
        self.shares = all(0 <= value <= 1 for points in self._found.values() for value in points.ravel())

    def match(self, images: Iterable[str]) -> str:
        """Call each image as the folder does, where the file writes its name otherwise -> how many names were found."""
        lookup = NameLookup(images)
        known = {name: lookup.find(name) for name in self._found}
        exact = set(known) & set(known.values())
        meant = {there: name for name, there in known.items() if there is not None and there not in exact}
        self._found |= {there: self._found[name] for there, name in meant.items()}
        if not lookup.found:
            rule = "names no image of the folder, to which its paths must be relative"
            raise DataError(f"{lookup.summary(self.path)}: {rule}")
        return lookup.summary(self.path)

    def __len__(self) -> int:
        return len(self._found)

    def names(self) -> set[str]:
        """Paths of the images it knows."""
        return set(self._found)

    def of(self, name: str, width: int, height: int) -> np.ndarray | None:
        """Landmarks (5, 2) in pixels; None for an image that the file does not know."""
        points = self._found.get(name)
        if points is None or not self.shares:
            return points
        return points * np.array([width, height]) - 0.5


def _text(path: Path) -> Iterator[tuple[int, str, list[float]]]:
    for number, line in read_lines(path):
        words = line.split()
        if len(words) not in (11, 12):
            rule = "must be a path, ten coordinates and possibly a score, separated by blanks"
            raise DataError(f"{path}: line {number}: {rule}, got {len(words)} words")
        yield number, words[0].removeprefix("./"), _numbers(words[1:11], path, number)


def _csv(path: Path) -> Iterator[tuple[int, str, list[float]]]:
    rows = _rows(path)
    header = next(rows, [])
    if len(header) < 11:
        raise DataError(f"{path}: line 1: must name a path column and ten coordinates, got {len(header)} columns")
    for number, row in enumerate(rows, start=2):
        if row and len(row) < 11:
            raise DataError(f"{path}: line {number}: must have {len(header)} columns, got {len(row)}")
        if row:
            yield number, row[0].removeprefix("./"), _numbers(row[1:11], path, number)


def _rows(path: Path) -> Iterator[list[str]]:
    rows = csv.reader(read_text(path).split("\n"))
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: {error}") from error


def _numbers(words: list[str], path: Path, number: int) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{path}: line {number}: coordinates must be finite numbers, got {' '.join(words)[:80]!r}")
    return values
