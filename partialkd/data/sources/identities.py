"""Which identities of a data set training uses, and under which numbers: exclude lists and label maps.

An identity is named as its data set names it: a folder's name, or in .rec files the class id as a number. Where a
packed set has identities.txt, `name:X` is the identity that was packed from folder X, and `class:N` the class id N.
A number alone is the class id; if a *different* class came from a folder of that name it could mean either, and is an
error.
Exclude list: a text file, one identity a line. A folder's list, and `name:`, may name identities that the set has not
(a list of evaluated persons usually does); a number outside the classes of .rec files is an error, and so is one with
zeros in front (`0000045`), which is the name of a folder that was packed: its class id is another.
Label map: a text file, `identity<TAB>new id` a line (or spaces, where the name has none). -1 leaves the identity out;
several identities with one new id become one. Every identity with images must have a line.
Errors: `DataError` with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from partialkd.data.formats.insightface_folder import read_names
from partialkd.errors import DataError

LEFT_OUT = -1
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_NEW_ID = re.compile(r"-1|[0-9]{1,10}")
_BY_NAME, _BY_NUMBER = "name:", "class:"
Find = Callable[[str, str], int | None]


class Names:
    """The identities of a data set: their names by class id, numbers where it has none.

    packed: where identities.txt stands if the set has one; it is read when a list is to be understood.
    """

    def __init__(self, num_classes: int, names: list[str] | None, packed: Path | None = None) -> None:
        self.num_classes, self.names, self.packed = num_classes, names, packed

    def __getitem__(self, label: int) -> str:
        return str(label) if self.names is None else self.names[label]

    def known(self) -> list[str] | None:
        """Return the names by class id, read from identities.txt where they stand there; None without any."""
        if self.names is None and self.packed is not None and self.packed.exists():
            return read_names(self.packed, self.num_classes)
        return self.names

    def finder(self) -> Find:
        """(identity, where it is listed) -> its class id, None for a name that the data set does not have."""
        class_ids = {name: label for label, name in enumerate(self.known() or ())}
        if self.names is not None:
            return lambda identity, _: class_ids.get(identity)
        return lambda identity, where: self._packed_id(identity, class_ids, where)

    def _packed_id(self, identity: str, class_ids: dict[str, int], where: str) -> int | None:
        if class_ids and identity.startswith(_BY_NAME):
            return class_ids.get(identity.removeprefix(_BY_NAME))
        number = identity.removeprefix(_BY_NUMBER)
        if not (_NUMBER.fullmatch(number) and int(number) < self.num_classes):
            hint = f" (or {_BY_NAME} and a folder's name out of {self.packed})" if class_ids else ""
            rule = f"identity must be a class id below {self.num_classes}{hint}"
            raise DataError(f"{where}: {rule}, got {identity[:60]!r}")
        named = class_ids.get(identity, int(number))
        if named != int(number):
            rule = f"{identity} is a class id, and in {self.packed} the name of class {named}"
            raise DataError(f"{where}: {rule}; write {_BY_NUMBER}{identity} or {_BY_NAME}{identity}")
        return int(number)


def excluded(path: Path, names: Names) -> np.ndarray:
    """(C,) bool: True for the identities of the list."""
    found, find = np.zeros(names.num_classes, dtype=bool), names.finder()
    for number, line in _lines(path):
        label = find(line.strip(), f"{path}: line {number}")
        if label is not None:
            found[label] = True
    return found


def mapped(path: Path, names: Names, present: np.ndarray) -> np.ndarray:
    """New ids (C,) int64 by class id, LEFT_OUT for those left out. present (C,) bool: identities with images."""
    new = np.full(names.num_classes, LEFT_OUT, dtype=np.int64)
    listed, find = np.zeros(names.num_classes, dtype=bool), names.finder()
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        identity, _, text = line.rpartition("\t") if "\t" in line else line.strip().rpartition(" ")
        if not identity.strip() or not _NEW_ID.fullmatch(text.strip()) or int(text) >= 1 << 31:
            raise DataError(f"{where}: must be identity<TAB>new id, the id -1 or from 0 on, got {line[:80]!r}")
        label = find(identity.strip(), where)
        if label is None:
            raise DataError(f"{where}: the data set has no identity {identity.strip()[:60]!r}")
        if listed[label]:
            raise DataError(f"{where}: identity {names[label]!r} occurs twice")
        new[label], listed[label] = int(text), True
    missing = np.flatnonzero(present & ~listed)
    if len(missing):
        raise DataError(f"{path}: has no line for identity {names[int(missing[0])]!r} ({len(missing)} such identities)")
    return new


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
