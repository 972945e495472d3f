"""Choose which identities of a data set training uses, and under which numbers: exclude lists and label maps.

An identity is named as its data set names it: a folder's name, or in .rec files the class id as a number. Where a
packed set has identities.txt, `name:X` is the identity that was packed from folder X, and `class:N` the class id N.
A number alone is the class id; if a *different* class came from a folder of that name it could mean either, and is an
error.
Exclude list: a text file, one identity per line. A folder's list, and `name:`, may name identities that the set does
not have (a list of evaluated persons usually does); a number outside the classes of .rec files is an error, and so is
one with zeros in front (`0000045`), which is the name of a folder that was packed: its class id is another.
Label map: a text file, `identity<TAB>new id` per line (or spaces, where the name has none). -1 leaves the identity out;
several identities with one new id become one. Every identity with images must have a line.
Names that are written otherwise than in the data set are found where only one can be meant (name_lookup.py).
Errors: `DataError` with file and line. An exclude list whose names are all unknown is a warning.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np

from partialkd.data.formats.insightface_folder import read_names
from partialkd.data.formats.name_lookup import NameLookup
from partialkd.data.formats.text_file import read_lines
from partialkd.errors import DataError
from partialkd.world.messages import rank

LOG = logging.getLogger(__name__)

LEFT_OUT = -1
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_NEW_ID = re.compile(r"-1|[0-9]{1,10}")
_BY_NAME, _BY_NUMBER = "name:", "class:"


class Names:
    """Names the identities of a data set by class id, by numbers where it has no names.

    packed: where identities.txt stands if the set has one; it is read when a list is to be understood.
    """

    def __init__(self, num_classes: int, names: list[str] | None, packed: Path | None = None) -> None:
        self.num_classes, self.names, self.packed = num_classes, names, packed

    def __getitem__(self, label: int) -> str:
        return str(label) if self.names is None else self.names[label]

    def known(self) -> list[str] | None:
        """Return the names by class id, read from identities.txt where they stand there; None without any."""
        if self.names is None and self.packed is not None and os.path.exists(self.packed):
            return read_names(self.packed, self.num_classes)
        return self.names

    def finder(self) -> Finder:
        """Return what looks up the identities of one list."""
        return Finder(self)


class Finder:
    """Looks up the identities that a list names."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._class_ids = {name: label for label, name in enumerate(names.known() or ())}
        self.lookup = NameLookup(self._class_ids)

    def find(self, identity: str, where: str) -> int | None:
        """Find the class id of an identity listed at `where`, None for a name that the data set does not have."""
        if self._names.names is not None:
            return self._named(identity)
        if self._class_ids and identity.startswith(_BY_NAME):
            return self._named(identity.removeprefix(_BY_NAME))
        return self._numbered(identity, where)

    def _named(self, name: str) -> int | None:
        found = self.lookup.find(name)
        return None if found is None else self._class_ids[found]

    def _numbered(self, identity: str, where: str) -> int:
        number, num_classes, packed = identity.removeprefix(_BY_NUMBER), self._names.num_classes, self._names.packed
        if not (_NUMBER.fullmatch(number) and int(number) < num_classes):
            hint = f" (or {_BY_NAME} and a folder's name out of {packed})" if self._class_ids else ""
            rule = f"identity must be a class id below {num_classes}{hint}"
            raise DataError(f"{where}: {rule}, got {identity[:60]!r}")
        named = self._class_ids.get(identity, int(number))
        if named != int(number):
            rule = f"{identity} is a class id, and in {packed} the name of class {named}"
            raise DataError(f"{where}: {rule}; write {_BY_NUMBER}{identity} or {_BY_NAME}{identity}")
        return int(number)


def excluded(path: Path, names: Names) -> tuple[np.ndarray, str | None]:
    """Read an exclude list -> (C,) bool, True for its identities; how many of its names were found, if it has names."""
    found, finder = np.zeros(names.num_classes, dtype=bool), names.finder()
    for number, line in read_lines(path):
        label = finder.find(line.strip(), f"{path}: line {number}")
        if label is not None:
            found[label] = True
    if finder.lookup.listed and not found.any():
        LOG.warning(f"{finder.lookup.summary(path)}: nobody is left out", extra={"shown": rank() == 0})
    return found, finder.lookup.counts() if finder.lookup.listed else None


def mapped(path: Path, names: Names, present: np.ndarray) -> np.ndarray:
    """Read a label map -> new ids (C,) int64 by class id, LEFT_OUT for those left out.

    present (C,) bool: identities with images, which must all be listed.
    """
    new = np.full(names.num_classes, LEFT_OUT, dtype=np.int64)
    listed, finder = np.zeros(names.num_classes, dtype=bool), names.finder()
    for number, line in read_lines(path):
        where = f"{path}: line {number}"
        identity, _, text = line.rpartition("\t") if "\t" in line else line.strip().rpartition(" ")
        if not identity.strip() or not _NEW_ID.fullmatch(text.strip()) or int(text) >= 1 << 31:
            raise DataError(f"{where}: must be identity<TAB>new id, the id -1 or from 0 on, got {line[:80]!r}")
        label = finder.find(identity.strip(), where)
        if label is None:
            raise DataError(f"{where}: the data set has no identity {identity.strip()[:60]!r}")
        if listed[label]:
            raise DataError(f"{where}: identity {names[label]!r} occurs twice")
        new[label], listed[label] = int(text), True
    missing = np.flatnonzero(present & ~listed)
    if len(missing):
        raise DataError(f"{path}: has no line for identity {names[int(missing[0])]!r} ({len(missing)} such identities)")
    return new
