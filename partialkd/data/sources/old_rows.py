"""Which row of centres that were trained before is whose now: row numbers by the class id of this run's data.

    "identity"     row k is class k; classes past the last row are new
    "names"        the identity is the same in both: its data set's number and its name, as class_ids.txt of the run
                   that the rows are from has them. Rows of identities that are gone are not used
    a text file    a line `row<TAB>class id` for each row (or spaces, where a name has none), -1: the row is not used.
                   In the place of both numbers an identity's name; for a row that needs the class_ids.txt of its run.
                   `class:3` is the number and `name:3` the name, where 3 is one identity's name and another's number

Errors: DataError naming the file, its line and what is wrong: rows that are not there, listed twice or not at all, two
rows of one class.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np

from partialkd.data.formats.text_file import read_lines
from partialkd.data.sources.source import Source
from partialkd.errors import DataError, printable

NEW = -1  # in the place of a row, of a class that has none
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_BY_NAME, _BY_NUMBER = "name:", "class:"
Origin = tuple[int, str]  # number of the data set, identity there


def rows_of_classes(label_map: str, rows: int, class_ids: Path | None, source: Source) -> np.ndarray:
    """Find the row (C,) int64 of each class of the data; NEW where there is none.

    class_ids: the file of the run that the rows are from, if there is one.
    """
    if label_map == "identity":
        found = _same(rows, source.num_classes)
    elif label_map == "names":
        found = _by_name(rows, class_ids, source)
    else:
        found = _listed(Path(label_map), rows, class_ids, source)
    if not (found != NEW).any():
        raise DataError(f"{label_map}: no row is of an identity of this run")
    return found


def _same(rows: int, classes: int) -> np.ndarray:
    if rows > classes:
        rule = f"row k is class k, but there are {rows} rows and {classes} classes: a file says which are not used"
        raise DataError(f'"identity": {rule}')
    return np.concatenate([np.arange(rows), np.full(classes - rows, NEW)])


def _by_name(rows: int, class_ids: Path | None, source: Source) -> np.ndarray:
    if class_ids is None:
        raise DataError('"names": no class_ids.txt of a run says whose rows these are: give a file in its place')
    now = {(part, printable(name)): label for label, part, name in source.origins()}
    found = np.full(source.num_classes, NEW)
    for row, origin in _origins(class_ids, rows):
        label = now.get(origin)
        if label is not None and found[label] not in (NEW, row):
            raise DataError(f"{class_ids}: rows {found[label]} and {row} are one class, {label}, in this run's data")
        if label is not None:
            found[label] = row
    used, counts = np.unique(found[found != NEW], return_counts=True)
    if len(used) and counts.max() > 1:
        row = used[counts.argmax()]
        raise DataError(f"{class_ids}: row {row} is of several classes now: {np.flatnonzero(found == row).tolist()}")
    return found


def _origins(class_ids: Path, rows: int) -> list[tuple[int, Origin]]:
    """Read class_ids.txt of another run -> (row, whose)."""
    found = []
    for number, line in read_lines(class_ids):
        label, part, name = (*line.split("\t", 2), "", "")[:3]
        if not (_NUMBER.fullmatch(label) and _NUMBER.fullmatch(part) and int(label) < rows):
            rule = f"must be class id<TAB>data set<TAB>identity, the class id one of {rows} rows"
            raise DataError(f"{class_ids}: line {number}: {rule}, got {line[:60]!r}")
        found.append((int(label), (int(part), name)))
    return found


def _listed(path: Path, rows: int, class_ids: Path | None, source: Source) -> np.ndarray:
    found, listed = np.full(source.num_classes, NEW), np.zeros(rows, dtype=bool)
    row_of = Places(rows, [] if class_ids is None else [(row, *origin) for row, origin in _origins(class_ids, rows)])
    class_of = Places(source.num_classes, list(source.origins()))
    for number, line in read_lines(path):
        where = f"{path}: line {number}"
        old, _, new = (part.strip() for part in (line.partition("\t") if "\t" in line else line.strip().partition(" ")))
        row, label = row_of.find(old, where), NEW if new == "-1" else class_of.find(new, where)
        if row is None:
            raise DataError(f"{where}: there is no row {old[:60]!r}: they are 0 to {rows - 1}")
        if label is None:
            raise DataError(f"{where}: must give a class id below {source.num_classes}, a name or -1, got {new[:60]!r}")
        if listed[row]:
            raise DataError(f"{where}: row {old[:60]} is listed twice")
        listed[row] = True
        if label != NEW and found[label] != NEW:
            raise DataError(f"{where}: class {label} has two rows, {found[label]} and {row}")
        if label != NEW:
            found[label] = row
    if not listed.all():
        missing = np.flatnonzero(~listed)
        raise DataError(f"{path}: has no line for row {missing[0]} ({len(missing)} such rows; -1: not used)")
    return found


class Places:
    """Numbers below `count`, and the names that stand for them: those that occur once in all data sets."""

    def __init__(self, count: int, origins: list[tuple[int, int, str]]) -> None:
        """origins: (number, data set, name)."""
        names = Counter(name for _, _, name in origins)
        self.count = count
        self.names = {printable(name): number for number, _, name in origins if names[name] == 1}
        self._one_set = all(part == 0 for _, part, _ in origins)

    def find(self, text: str, where: str) -> int | None:
        """Find the number that a text at `where` stands for, None if there is none; DataError if it could be two."""
        number = text.removeprefix(_BY_NUMBER)
        if text.startswith(_BY_NAME) or not _NUMBER.fullmatch(number):
            return self.names.get(text.removeprefix(_BY_NAME))
        if number == text and self._one_set and self.names.get(text, int(text)) != int(text):
            rule = f"{text} is a number, and the name of number {self.names[text]}"
            raise DataError(f"{where}: {rule}; write {_BY_NUMBER}{text} or {_BY_NAME}{text}")
        return int(number) if int(number) < self.count else None
