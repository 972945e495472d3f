"""Identities and images that are left out: by their count, by lists of names, numbers and images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.merged_cases import contents, merged, write_list
from partialkd.config import DataConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.sources.merged import MergedSource
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError


def test_identities_with_few_images_are_left_out(sets: Path) -> None:
    """Counted over all parts; images are those of the identities that stay, in their order."""
    source = merged(sets, {"path": "a"}, {"path": "c"}, min_images=2)
    assert contents(source) == [
        ("1", 0), ("2", 0), ("4", 1), ("5", 1), ("6", 1), ("anna/1.jpg", 2), ("anna/2.jpg", 2),
        ("cleo/1.jpg", 3), ("cleo/2.jpg", 3),
    ]  # fmt: skip
    first, second = source.facts["parts"]
    assert (first["images"], first["images_used"], first["too_few_images"]) == (6, 5, 1)
    assert (second["identities"], second["identities_used"]) == (3, 2)
    shared = merged(sets, {"path": "a"}, {"path": "b", "label_offset": 2}, shared_identities=True, min_images=3)
    assert contents(shared) == [("3", 1), ("4", 0), ("5", 0), ("6", 0), ("0", 1), ("1", 0), ("2", 1)]


def test_an_exclude_list_of_names_and_of_numbers(sets: Path) -> None:
    source = merged(
        sets,
        {"path": "a", "exclude_identities": write_list(sets, "2\n0\n\n7\n")},
        {"path": "c", "exclude_identities": write_list(sets, "bob lee\nsomebody else\n")},
    )
    assert [image for image, _ in contents(source)] == ["3", "anna/1.jpg", "anna/2.jpg", "cleo/1.jpg", "cleo/2.jpg"]
    assert [fact["excluded"] for fact in source.facts["parts"]] == [2, 1]
    for line in ("10", "anna", "-1", "1.5", "0000003", "9" * 5000):
        with pytest.raises(DataError, match=rf"line 2: identity must be a class id below 10, got '{line[:60]}'"):
            merged(sets, {"path": "a", "exclude_identities": write_list(sets, f"1\n{line}\n")})
    with pytest.raises(DataError, match=r"a: no identity is left: .*'excluded': 3"):
        merged(sets, {"path": "a", "exclude_identities": write_list(sets, "0\n2\n3\n")})


def test_an_exclude_list_of_another_system(sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A byte order mark would hide the first person, another Unicode form anybody with an accent."""
    (sets / "c/zoë").mkdir()  # one letter; listed as two
    (sets / "c/zoë/1.jpg").write_bytes(b"zoe")
    (sets / "c/dora").mkdir()
    (sets / "c/dora/1.jpg").write_bytes(b"dora")
    path = Path(write_list(sets, ""))
    path.write_bytes("\ufeffanna\r\nzoe\u0308\r\nBob Lee\r\nnobody\r\n".encode())
    source = merged(sets, {"path": "c", "exclude_identities": str(path)})
    assert [image for image, _ in contents(source)] == ["cleo/1.jpg", "cleo/2.jpg", "dora"]
    assert source.facts["parts"][0]["exclude_list"] == "3 of 4 names found (2 written otherwise)"
    assert not caplog.records


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exclude_list_of_strangers_is_a_warning_of_one_rank(
    rank: int, sets: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    path = write_list(sets, "somebody\n\x1b[31melse\n")
    source = merged(sets, {"path": "c", "exclude_identities": path})
    assert (len(source), source.facts["parts"][0]["excluded"]) == (5, 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 0 of 2 names found, not 'somebody': nobody is left out"
    ]
    assert [getattr(record, "shown", None) for record in caplog.records] == [rank == 0]


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Packed from folders 0, 12, 3 and dora: their class ids are 0, 1, 2, 3."""
    names = ["0", "12", "3", "dora"]
    pack_records(tmp_path / "packed", [(name.encode(), label) for label, name in enumerate(names)], 4, 112, names)
    return tmp_path


def kept_of(folder: Path, listed: str) -> list[str]:
    source = open_source(DataConfig(path=str(folder / "packed"), exclude_identities=write_list(folder, listed)))
    return [source.read(index)[0].decode() for index in range(len(source))]


def test_a_number_that_is_a_class_id_and_a_folders_name(numbered: Path) -> None:
    message = r"line 2: 3 is a class id, and in .*packed/identities\.txt the name of class 2; write class:3 or name:3"
    with pytest.raises(DataError, match=message):
        kept_of(numbered, "1\n3\n")
    assert kept_of(numbered, "class:3\n") == ["0", "12", "3"]
    assert kept_of(numbered, "name:3\n") == ["0", "12", "dora"]
    assert kept_of(numbered, "0\n1\n") == ["3", "dora"]  # class 0 is called 0; no folder is called 1
    with pytest.raises(DataError, match=r"line 1: identity must be a class id below 4 \(or name: .*, got '12'"):
        kept_of(numbered, "12\n")


def test_packed_identities_by_their_folders_names(numbered: Path) -> None:
    assert kept_of(numbered, "name:dora\nname:somebody else\n") == ["0", "12", "3"]
    with pytest.raises(DataError, match=r"identity must be a class id below 4 \(or name: and .*identities\.txt\)"):
        kept_of(numbered, "dora\n")
    by_name = write_list(numbered, "name:0\t-1\nname:12\t5\nclass:3\t7\nname:3\t6\n")
    mapped = open_source(DataConfig(path=str(numbered / "packed"), label_map=by_name))
    assert [mapped.read(index) for index in range(len(mapped))] == [(b"12", 0), (b"3", 1), (b"dora", 2)]
    with pytest.raises(DataError, match=r"line 1: 3 is a class id, and in .* the name of class 2"):
        open_source(DataConfig(path=str(numbered / "packed"), label_map=write_list(numbered, "3\t0\n")))
    (numbered / "packed" / "identities.txt").unlink()
    assert kept_of(numbered, "3\n") == ["0", "12", "3"]
    with pytest.raises(DataError, match=r"line 1: identity must be a class id below 4, got 'name:3'"):
        kept_of(numbered, "name:3\n")


def test_a_single_data_set_is_filtered_alike(sets: Path) -> None:
    source = open_source(DataConfig(path=str(sets / "a"), min_images=2))
    assert isinstance(source, MergedSource)
    assert contents(source) == [("1", 0), ("2", 0), ("4", 1), ("5", 1), ("6", 1)]
    names = write_list(sets, "cleo\n")
    folder = open_source(DataConfig(source="folder", path=str(sets / "c"), exclude_identities=names))
    assert folder.labels().tolist() == [0, 0, 1]


def test_single_images_are_left_out(sets: Path) -> None:
    """Before identities with too few images; an identity of which nothing is left has no class; another fingerprint."""
    out = write_list(sets, "4\t2\n0\t0\n")
    source = merged(sets, {"path": "a", "exclude_images": out}, {"path": "c"})
    assert [image for image, _ in contents(source)[:4]] == ["2", "3", "4", "6"]
    few = merged(sets, {"path": "a", "exclude_images": out}, {"path": "c"}, min_images=2)
    assert contents(few)[:2] == [("4", 0), ("6", 0)]
    fingerprints = {merged(sets, {"path": "a"}, {"path": "c"}, min_images=2).fingerprint, few.fingerprint}
    other = merged(sets, {"path": "a", "exclude_images": write_list(sets, "5\t2\n0\t0\n")}, {"path": "c"}, min_images=2)
    assert len(fingerprints | {other.fingerprint}) == 3
    assert few.facts["parts"][0]["images_listed"] == 2
    whole = merged(sets, {"path": "c", "exclude_images": write_list(sets, "2\tbob lee\n")})
    assert [image for image, _ in contents(whole)] == ["anna/1.jpg", "anna/2.jpg", "cleo/1.jpg", "cleo/2.jpg"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1\t0\n4 2\n", "line 2: must be image<TAB>identity"),
        ("-1\t0\n", "line 1: must be image<TAB>identity"),
        ("6\t2\n", "line 1: must be an image below 6"),
        ("5\t2\n3\t0\n", "line 2: the data set says that image 3 shows '2': the list is of other data"),
        ("3\t2\n5\t2\n3\t2\n", "line 3: image 3 occurs twice"),
        ("3\t77\n", "line 1: identity must be a class id below 10"),
    ],
)
def test_lists_of_images_that_cannot_be_meant(sets: Path, content: str, says: str) -> None:
    with pytest.raises(DataError, match=re.escape(says)):
        merged(sets, {"path": "a", "exclude_images": write_list(sets, content)}, {"path": "c"})
