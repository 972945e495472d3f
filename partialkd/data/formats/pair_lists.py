"""Read lists of pairs, in the forms in which verification sets are published, as paths inside an image folder.

    lfw      pairs.txt: a line `folds count` (or `count`: one fold), then in each fold `count` lines `name i j`, one
             person, and `count` lines `name i name j`, two; `names` makes a path of a name and a number.
    xqlfw    xqlfw_pairs.txt: as lfw.
    rfw      African_pairs.txt, Asian_... : lines like those of lfw in the order of folds, and no line before them.
    calfw, cplfw   pairs_CALFW.txt, pairs_CPLFW.txt: `file number`, two lines per pair with one number, 0: two persons.
    cfp-fp, cfp-ff   the folder Protocol: Split/FP/<fold>/same.txt and diff.txt with lines `i,j`; i counts the lines
             `number path` of Pair_list_F.txt, j those of Pair_list_P.txt (ff: of Pair_list_F.txt too). Paths are
             relative to Protocol, `../Data/Images/001/frontal/01.jpg`, and become `Data/Images/...`.
    sllfw    pair_SLLFW.txt: two lines `name/name_0001.jpg` per pair, of one person where the names are equal.
    paths    `path path label` or `label path path`, label 1 for one person, 0 for two; so AgeDB-30 is handed on
             (its own protocol is a MATLAB file, which is not read), and CALFW, CPLFW and LFW with it.
    csv      `a,b,same` under that header, as `data.prepare` takes it.

The pairs come in the order of folds, which a .bin keeps as the order of pairs: evaluation cuts ten equal folds. The
lists of CALFW and CPLFW hold all positive pairs before the negative ones, which have no fold of their own: both kinds
are cut into ten parts, and fold k is part k of both.
Errors: `DataError` naming file, line and rule.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from partialkd.data.formats.text_file import read_lines, read_text
from partialkd.errors import DataError

LFW_NAMES = "{name}/{name}_{number:04d}.jpg"
_FIELD = re.compile(r"name:|number:(0?[0-9]{1,2}d?)?")
FOLDS = 10  # of the lists that do not say


class ListedPair(NamedTuple):
    """Pair of paths inside the image folder, and where they are listed."""

    first: str
    second: str
    same: bool
    where: str  # "pairs.txt: line 3"


class _Line(NamedTuple):
    fields: list[str]
    where: str


def read_pair_list(form: str, path: Path, names: str = LFW_NAMES, allow_duplicates: bool = False) -> list[ListedPair]:
    """Read the pairs of a list; form: a key of FORMS. names: of NAMED only."""
    if form not in FORMS:
        raise DataError(f"{path}: the form of the list must be in {sorted(FORMS)}, got {form!r}")
    path = Path(path)
    pairs = NAMED[form](path, names) if form in NAMED else FORMS[form](path)
    if not pairs:
        raise DataError(f"{path}: no pair in the list")
    for pair in pairs:
        for name in (pair.first, pair.second):
            _check_path(name, pair.where)
    _check_repeats(pairs, allow_duplicates)
    return pairs


def read_lfw(path: Path, names: str = LFW_NAMES) -> list[ListedPair]:
    """Read LFW's pairs.txt (view 2) or pairsDevTest.txt (view 1)."""
    _check_names(names, path)
    header, *lines = _lines(path) or [_Line([], f"{path}: line 1")]
    if len(header.fields) not in (1, 2) or not all(_is_number(field) for field in header.fields):
        raise DataError(f"{header.where}: must be `folds count` or `count`, got {' '.join(header.fields)!r:.80}")
    folds, count = (int(field) for field in ["1", *header.fields][-2:])
    if len(lines) != 2 * folds * count:
        raise DataError(f"{path}: the header announces {folds} x 2 x {count} pairs, got {len(lines)} lines after it")
    return [_lfw_pair(line, place // count % 2 == 0, names) for place, line in enumerate(lines)]


def read_rfw(path: Path, names: str = LFW_NAMES) -> list[ListedPair]:
    """Read the list of one of RFW's groups: a line of three words is a pair of one person, of four words of two."""
    _check_names(names, path)
    return [_lfw_pair(line, len(line.fields) == 3, names) for line in _lines(path)]


def _lfw_pair(line: _Line, same: bool, names: str) -> ListedPair:
    fields, where = line
    if same:
        fields = [fields[0], fields[1], fields[0], fields[2]] if len(fields) == 3 else []
    if len(fields) != 4 or not (_is_number(fields[1]) and _is_number(fields[3])):
        wanted = "`name i j` (a pair of one person)" if same else "`name i name j` (a pair of two persons)"
        raise DataError(f"{where}: must be {wanted}, got {' '.join(line.fields)!r:.120}")
    first, second = (names.format(name=fields[at], number=int(fields[at + 1])) for at in (0, 2))
    return ListedPair(first, second, same, where)


def _check_names(names: str, path: Path) -> None:
    """Raise DataError unless all that the pattern asks for is the name, and the number in at most 99 digits."""
    try:
        parts = [part[1:] for part in Formatter().parse(names) if part[1] is not None]
        good = all(_FIELD.fullmatch(f"{name}:{spec}") and conversion is None for name, spec, conversion in parts)
    except ValueError:
        good = False
    if not good:
        raise DataError(f"{path}: names must be a pattern like {LFW_NAMES!r}, got {names!r:.80}")


def read_two_lines(path: Path) -> list[ListedPair]:
    """Read pairs_CALFW.txt or pairs_CPLFW.txt, positive and negative pairs spread over the folds."""
    lines = _lines(path)
    if len(lines) % 2:
        raise DataError(f"{lines[-1].where}: two lines are a pair, got an odd number of lines ({len(lines)})")
    pairs = []
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        for line in (first, second):
            if len(line.fields) != 2 or not _is_number(line.fields[1]):
                raise DataError(f"{line.where}: must be `file number`, got {' '.join(line.fields)!r:.120}")
        if first.fields[1] != second.fields[1]:
            found = f"{first.fields[1]} and {second.fields[1]}"
            raise DataError(f"{second.where}: both lines of a pair must have one number, got {found}")
        pairs.append(ListedPair(first.fields[0], second.fields[0], int(first.fields[1]) > 0, first.where))
    kinds = [[pair for pair in pairs if pair.same is same] for same in (True, False)]
    return [pair for fold in range(FOLDS) for kind in kinds for pair in _part(kind, fold)]


def _part(pairs: list[ListedPair], fold: int) -> list[ListedPair]:
    return pairs[fold * len(pairs) // FOLDS : (fold + 1) * len(pairs) // FOLDS]


def read_cfp(protocol: Path, kind: str) -> list[ListedPair]:
    """Read CFP's folder Protocol; kind "FP": frontal with profile, "FF": frontal with frontal."""
    frontal = _cfp_images(protocol / "Pair_list_F.txt")
    other = _cfp_images(protocol / "Pair_list_P.txt") if kind == "FP" else frontal
    folder = protocol / "Split" / kind
    folds = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if os.path.isdir(folder) else []
    if not folds:
        raise DataError(f"{folder}: must hold one folder per fold, 01 to 10")
    pairs = []
    for fold in folds:
        for name, same in (("same.txt", True), ("diff.txt", False)):
            for line in _lines(fold / name, ","):
                if len(line.fields) != 2 or line.fields[0] not in frontal or line.fields[1] not in other:
                    rule = f"must be `i,j` with i in 1..{len(frontal)} and j in 1..{len(other)}"
                    raise DataError(f"{line.where}: {rule}, got {','.join(line.fields)!r:.80}")
                pairs.append(ListedPair(frontal[line.fields[0]], other[line.fields[1]], same, line.where))
    return pairs


def _cfp_images(path: Path) -> dict[str, str]:
    """Read number -> path below the folder that holds Protocol."""
    images: dict[str, str] = {}
    for line in _lines(path):
        if len(line.fields) != 2 or not line.fields[1].startswith("../") or line.fields[0] != str(len(images) + 1):
            rule = f"must be `{len(images) + 1} ../path`"
            raise DataError(f"{line.where}: {rule}, got {' '.join(line.fields)!r:.120}")
        images[line.fields[0]] = line.fields[1].removeprefix("../")
        _check_path(images[line.fields[0]], line.where)
    return images


def read_paths(path: Path) -> list[ListedPair]:
    """Read lines `path path label` or `label path path`."""
    pairs = []
    for fields, where in _lines(path):
        ends = [place for place in (0, -1) if len(fields) == 3 and fields[place] in ("0", "1")]
        if len(ends) != 1:
            raise DataError(f"{where}: must be `path path label` or `label path path`, got {' '.join(fields)!r:.120}")
        label = fields.pop(ends[0])
        first, second = fields
        pairs.append(ListedPair(first, second, label == "1", where))
    return pairs


def read_sllfw(path: Path) -> list[ListedPair]:
    """Read two lines `<name>/<file>` per pair; its people are told by the names."""
    lines = _lines(path)
    if len(lines) % 2:
        raise DataError(f"{lines[-1].where}: must be the first of two lines of a pair, got no second one")
    pairs = []
    for one, other in zip(lines[0::2], lines[1::2], strict=True):
        for line in (one, other):
            if len(line.fields) != 1 or line.fields[0].count("/") != 1:
                raise DataError(f"{line.where}: must be `<name>/<file>`, got {' '.join(line.fields)!r:.120}")
        first, second = one.fields[0], other.fields[0]
        pairs.append(ListedPair(first, second, first.split("/")[0] == second.split("/")[0], one.where))
    return pairs


def read_csv(path: Path) -> list[ListedPair]:
    """Read lines `a,b,same` under that header, in their order; a pair may be there twice."""
    pairs = []
    for number, (line, row) in enumerate(_rows(path)):
        where = f"{path}: line {line}"
        if number == 0 and row != ["a", "b", "same"]:
            raise DataError(f"{where}: must be a,b,same, got {','.join(row)!r:.120}")
        if number > 0:
            if len(row) != 3 or row[2] not in ("0", "1"):
                raise DataError(f"{where}: must be path,path,0 or 1, got {','.join(row)!r:.120}")
            pairs.append(ListedPair(row[0], row[1], row[2] == "1", where))
    return pairs


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(read_text(path)))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: {error}") from error


NAMED: dict[str, Callable[[Path, str], list[ListedPair]]] = {"lfw": read_lfw, "xqlfw": read_lfw, "rfw": read_rfw}
FORMS: dict[str, Callable[[Path], list[ListedPair]]] = {
    "lfw": read_lfw,
    "xqlfw": read_lfw,
    "rfw": read_rfw,
    "calfw": read_two_lines,
    "cplfw": read_two_lines,
    "cfp-fp": lambda path: read_cfp(path, "FP"),
    "cfp-ff": lambda path: read_cfp(path, "FF"),
    "sllfw": read_sllfw,
    "paths": read_paths,
    "csv": read_csv,
}


def _lines(path: Path, separator: str | None = None) -> list[_Line]:
    """Cut the lines that are not blank at white space or at the separator."""
    return [
        _Line([field.strip() for field in line.split(separator)], f"{path}: line {number}")
        for number, line in read_lines(path)
    ]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _check_path(name: str, where: str) -> None:
    if not name or name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise DataError(f"{where}: must be a path inside the image folder, got {name!r:.120}")


def _check_repeats(pairs: list[ListedPair], allowed: bool) -> None:
    """Refuse a pair twice, in either order, or an image with itself; with two answers even if repeats are allowed."""
    seen: dict[frozenset[str], ListedPair] = {}
    for pair in pairs:
        before = seen.setdefault(frozenset((pair.first, pair.second)), pair)
        if before.same != pair.same:
            raise DataError(f"{pair.where}: {pair.first} and {pair.second} have the other answer in {before.where}")
        if before is not pair and not allowed:
            raise DataError(f"{pair.where}: {pair.first} and {pair.second} are a pair in {before.where} already")
        if pair.first == pair.second and not allowed:
            raise DataError(f"{pair.where}: {pair.first} is paired with itself")
