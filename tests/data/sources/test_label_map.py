"""A label map joins, renames and leaves out identities; a wrong one names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.merged_cases import contents, merged, write_list
from partialkd.errors import DataError


def test_a_label_map_joins_renames_and_leaves_out(sets: Path) -> None:
    by_number = write_list(sets, "0\t7\n2\t7\n3\t-1\n9\t1\n")  # identity 9 has no image
    by_name = write_list(sets, "cleo 7\nanna\t2\nbob lee\t-1\n")
    parts = ({"path": "a", "label_map": by_number}, {"path": "c", "label_map": by_name, "label_offset": 0})
    source = merged(sets, *parts, shared_identities=True)
    assert contents(source) == [
        ("1", 1), ("2", 1), ("4", 1), ("5", 1), ("6", 1), ("anna/1.jpg", 0), ("anna/2.jpg", 0),
        ("cleo/1.jpg", 1), ("cleo/2.jpg", 1),
    ]  # fmt: skip
    assert list(source.origins()) == [(0, 1, "anna"), (1, 0, "0"), (1, 0, "2"), (1, 1, "cleo")]
    assert [fact["mapped_to_none"] for fact in source.facts["parts"]] == [1, 1]
    behind = merged(sets, parts[0], {"path": "b"})  # its ids start behind the map's: 8, 9
    assert behind.labels().tolist()[-3:] == [2, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\t1\n2\t1\n", r"has no line for identity '3' \(1 such identities\)"),
        ("0\t1\n2\t1\n3\t1\n0\t1\n", r"line 4: identity '0' occurs twice"),
        ("0\t1\n2\t1\n3\tx\n", r"line 3: must be identity<TAB>new id, the id -1 or from 0 on, got '3\\tx'"),
        ("0\t-2\n", r"line 1: must be identity<TAB>new id"),
        ("0\n", r"line 1: must be identity<TAB>new id"),
        ("0\t4294967296\n", r"line 1: must be identity<TAB>new id"),
        ("0\t" + "9" * 5000 + "\n", r"line 1: must be identity<TAB>new id"),
        ("\n11\t1\n", r"line 2: identity must be a class id below 10, got '11'"),
    ],
)
def test_a_wrong_label_map_names_its_line(sets: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"list0\.txt: {message}"):
        merged(sets, {"path": "a", "label_map": write_list(sets, content)})


def test_a_map_of_a_folder_names_identities_it_has_not(sets: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the data set has no identity 'dora'"):
        merged(sets, {"path": "c", "label_map": write_list(sets, "dora\t1\n")})
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        merged(sets, {"path": "c", "label_map": str(sets / "nowhere.txt")})
