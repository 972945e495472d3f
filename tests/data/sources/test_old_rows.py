"""Rows of another run by the class ids of this one: names and numbers, one data set and several, what is ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from partialkd.data.sources.identities import Names
from partialkd.data.sources.old_rows import NEW, rows_of_classes
from partialkd.data.sources.source import Source
from partialkd.errors import DataError


class People(Source):
    """A source of identities without images."""

    def __init__(self, *names: str) -> None:
        self.num_classes, self.names = len(names), Names(len(names), list(names))

    def __len__(self) -> int:
        return 0

    def labels(self, start: int = 0, stop: int | None = None):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    read = name = labels  # type: ignore[assignment]


class Several(People):
    """Two data sets that have a name in common."""

    def origins(self):  # type: ignore[no-untyped-def]
        yield from [(0, 0, "anna"), (1, 0, "bob"), (2, 1, "anna"), (3, 1, "zoe")]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_names_find_their_rows(tmp_path: Path) -> None:
    known = write(tmp_path / "class_ids.txt", "0\t0\tanna", "1\t0\tbob", "2\t0\tcleo")
    assert rows_of_classes("names", 3, known, People("aaron", "bob", "cleo", "anna")).tolist() == [NEW, 1, 2, 0]


def test_the_same_name_in_another_data_set_is_another_identity(tmp_path: Path) -> None:
    known = write(tmp_path / "class_ids.txt", "0\t0\tanna", "1\t1\tzoe")
    assert rows_of_classes("names", 2, known, Several("anna", "bob", "anna", "zoe")).tolist() == [0, NEW, NEW, 1]


def test_identities_that_were_joined_or_split_are_named(tmp_path: Path) -> None:
    joined = write(tmp_path / "class_ids.txt", "0\t0\tanna", "0\t0\tbob")
    with pytest.raises(DataError, match=r"class_ids\.txt: row 0 is of several classes now: \[0, 1\]"):
        rows_of_classes("names", 1, joined, People("anna", "bob"))
    nobody = write(tmp_path / "class_ids.txt", "0\t0\tzoe")
    with pytest.raises(DataError, match=r"^names: no row is of an identity of this run$"):
        rows_of_classes("names", 1, nobody, People("anna", "bob"))
    with pytest.raises(DataError, match=r"class_ids\.txt: line 1: must be class id<TAB>data set<TAB>identity"):
        rows_of_classes("names", 1, write(tmp_path / "class_ids.txt", "0 anna"), People("anna"))


def test_a_file_has_numbers_or_names(tmp_path: Path) -> None:
    known = write(tmp_path / "class_ids.txt", "0\t0\tanna", "1\t0\tbob")
    listed = write(tmp_path / "map.txt", "bob 0", "name:anna\tname:Eve M")
    assert rows_of_classes(str(listed), 2, known, People("carl", "Eve M")).tolist() == [1, 0]
    identities = write(tmp_path / "identities.txt", "0\tEve M", "1\tcarl")
    assert rows_of_classes(str(identities), 2, None, People("carl", "Eve M")).tolist() == [1, 0]


def test_a_number_that_is_also_a_name_is_not_guessed(tmp_path: Path) -> None:
    people = People("1", "0", "007")
    with pytest.raises(DataError, match=r"line 1: 1 is a number, and the name of number 0; write class:1 or name:1$"):
        rows_of_classes(str(write(tmp_path / "map.txt", "0\t1")), 1, None, people)
    for text, label in (("class:1", 1), ("name:1", 0), ("007", 2)):
        found = rows_of_classes(str(write(tmp_path / "map.txt", f"0\t{text}")), 1, None, people)
        assert found[label] == 0
