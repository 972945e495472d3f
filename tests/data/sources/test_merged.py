"""Data sets merged, mapped and filtered without rewriting a file; class ids that lead back; what is refused."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.source_cases import write_plain, write_with_header
from partialkd.config import DataConfig
from partialkd.config.load import parse_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.merged import MergedSource
from partialkd.data.sources.open import open_source
from partialkd.data.sources.source import save_class_ids
from partialkd.errors import ConfigError, DataError


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """a: .rec, classes 0..9, images of 0, 0, 3, 2, 2, 2 behind a header; b: .rec of classes 1, 0, 1; c: a folder."""
    write_with_header(tmp_path / "a", [0, 0, 3, 2, 2, 2], (7.0, 9.0), identities=2)
    write_plain(tmp_path / "b", [1, 0, 1], classes=2)
    for path in ("anna/1.jpg", "anna/2.jpg", "bob lee/1.jpg", "cleo/1.jpg", "cleo/2.jpg"):
        (tmp_path / "c" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / path).write_bytes(path.encode())
    return tmp_path


def text(folder: Path, content: str) -> str:
    path = folder / f"list{len(list(folder.glob('list*')))}.txt"
    path.write_text(content)
    return str(path)


def merged(sets: Path, *parts: dict[str, Any], **keys: Any) -> MergedSource:
    listed = [{"source": "folder" if part["path"] == "c" else "recordio", **part} for part in parts]
    for part in listed:
        part["path"] = str(sets / part["path"])
    source = open_source(DataConfig.model_validate({"parts": tuple(listed), **keys}))
    assert isinstance(source, MergedSource)
    return source


def contents(source: MergedSource) -> list[tuple[str, int]]:
    got = [source.read(index) for index in range(len(source))]
    assert [label for _, label in got] == source.labels().tolist()
    assert [label for _, label in got] == [source.labels(n, n + 1)[0] for n in range(len(got))]
    assert sum(source.sizes) == len(source)
    return [(image.decode(), label) for image, label in got]


def test_parts_are_read_one_after_the_other_under_new_ids(sets: Path) -> None:
    source = merged(sets, {"path": "a"}, {"path": "b"}, {"path": "c"})
    assert contents(source) == [
        ("1", 0), ("2", 0), ("3", 2), ("4", 1), ("5", 1), ("6", 1), ("0", 4), ("1", 3), ("2", 4),
        ("anna/1.jpg", 5), ("anna/2.jpg", 5), ("bob lee/1.jpg", 6), ("cleo/1.jpg", 7), ("cleo/2.jpg", 7),
    ]  # fmt: skip
    assert (source.num_classes, source.sizes) == (8, (6, 3, 5))
    assert source.labels(4, 8).tolist() == [1, 1, 4, 3]
    assert source.name(7).startswith(str(sets / "b/train.rec: key 1"))
    assert source.name(13) == str(sets / "c/cleo/2.jpg")
    with pytest.raises(IndexError, match=r"\[0, 14\), got 14"):
        source.read(14)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_class_ids_lead_back_to_part_and_identity(sets: Path) -> None:
    save_class_ids(merged(sets, {"path": "a"}, {"path": "c"}, min_images=2), sets / "class_ids.txt")
    assert (sets / "class_ids.txt").read_text() == "0\t0\t0\n1\t0\t2\n2\t1\tanna\n3\t1\tcleo\n"


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
        {"path": "a", "exclude_identities": text(sets, "2\n0\n\n7\n")},
        {"path": "c", "exclude_identities": text(sets, "bob lee\nsomebody else\n")},
    )
    assert [image for image, _ in contents(source)] == ["3", "anna/1.jpg", "anna/2.jpg", "cleo/1.jpg", "cleo/2.jpg"]
    assert [fact["excluded"] for fact in source.facts["parts"]] == [2, 1]
    for line in ("10", "anna", "-1", "1.5", "0000003", "9" * 5000):
        with pytest.raises(DataError, match=rf"line 2: identity must be a class id below 10, got '{line[:60]}'"):
            merged(sets, {"path": "a", "exclude_identities": text(sets, f"1\n{line}\n")})
    with pytest.raises(DataError, match=r"a: no identity is left: .*'excluded': 3"):
        merged(sets, {"path": "a", "exclude_identities": text(sets, "0\n2\n3\n")})


def test_an_exclude_list_of_another_system(sets: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A byte order mark would hide the first person, another Unicode form anybody with an accent."""
    (sets / "c/zoë").mkdir()  # one letter; listed as two
    (sets / "c/zoë/1.jpg").write_bytes(b"zoe")
    (sets / "c/dora").mkdir()
    (sets / "c/dora/1.jpg").write_bytes(b"dora")
    path = Path(text(sets, ""))
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
    path = text(sets, "somebody\n\x1b[31melse\n")
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
    source = open_source(DataConfig(path=str(folder / "packed"), exclude_identities=text(folder, listed)))
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
    by_name = text(numbered, "name:0\t-1\nname:12\t5\nclass:3\t7\nname:3\t6\n")
    mapped = open_source(DataConfig(path=str(numbered / "packed"), label_map=by_name))
    assert [mapped.read(index) for index in range(len(mapped))] == [(b"12", 0), (b"3", 1), (b"dora", 2)]
    with pytest.raises(DataError, match=r"line 1: 3 is a class id, and in .* the name of class 2"):
        open_source(DataConfig(path=str(numbered / "packed"), label_map=text(numbered, "3\t0\n")))
    (numbered / "packed" / "identities.txt").unlink()
    assert kept_of(numbered, "3\n") == ["0", "12", "3"]
    with pytest.raises(DataError, match=r"line 1: identity must be a class id below 4, got 'name:3'"):
        kept_of(numbered, "name:3\n")


def test_a_single_data_set_is_filtered_alike(sets: Path) -> None:
    source = open_source(DataConfig(path=str(sets / "a"), min_images=2))
    assert isinstance(source, MergedSource)
    assert contents(source) == [("1", 0), ("2", 0), ("4", 1), ("5", 1), ("6", 1)]
    names = text(sets, "cleo\n")
    folder = open_source(DataConfig(source="folder", path=str(sets / "c"), exclude_identities=names))
    assert folder.labels().tolist() == [0, 0, 1]


def test_a_label_map_joins_renames_and_leaves_out(sets: Path) -> None:
    by_number = text(sets, "0\t7\n2\t7\n3\t-1\n9\t1\n")  # identity 9 has no image
    by_name = text(sets, "cleo 7\nanna\t2\nbob lee\t-1\n")
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
        merged(sets, {"path": "a", "label_map": text(sets, content)})


def test_a_map_of_a_folder_names_identities_it_has_not(sets: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the data set has no identity 'dora'"):
        merged(sets, {"path": "c", "label_map": text(sets, "dora\t1\n")})
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        merged(sets, {"path": "c", "label_map": str(sets / "nowhere.txt")})


def test_common_ids_must_be_meant(sets: Path) -> None:
    parts = ({"path": "a"}, {"path": "b", "label_offset": 2})  # b: 2, 3
    with pytest.raises(ConfigError, match=r"data\.shared_identities: must be true .*/a and .*/b have 2, the first 2"):
        merged(sets, *parts)
    assert merged(sets, *parts, shared_identities=True).num_classes == 3
    apart = merged(sets, {"path": "a"}, {"path": "b", "label_offset": 4})  # 4 and 5 have no image in a
    assert apart.num_classes == 5
    assert apart.labels().tolist()[-3:] == [4, 3, 4]


def test_fingerprint_follows_parts_and_filters_but_not_weights(sets: Path) -> None:
    a, b = {"path": "a"}, {"path": "b"}
    choices: list[tuple[tuple[dict[str, Any], ...], dict[str, Any]]] = [
        ((a, b), {}),
        ((b, a), {}),
        ((a, a), {}),
        ((a,), {}),
        ((a, b), {"min_images": 2}),
        (({**a, "exclude_identities": text(sets, "3")}, b), {}),
        (({**a, "label_map": text(sets, "0\t2\n2\t1\n3\t0\n")}, b), {}),
        ((a, {**b, "label_offset": 2}), {"shared_identities": True}),
    ]
    prints = [merged(sets, *parts, **keys).fingerprint for parts, keys in choices]
    assert len(set(prints)) == len(prints)
    assert merged(sets, {**a, "weight": 2.0}, b).fingerprint == prints[0]
    assert RecordIOSource(sets / "a").fingerprint not in prints


def test_readahead_reaches_the_files(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = merged(sets, {"path": "a"}, {"path": "b"}, {"path": "c"}, min_images=2)
    asked: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        "partialkd.data.formats.recordio.RecordReader.readahead",
        lambda self, start, stop: asked.append((self.path.parent.name, start, stop)),
    )
    source.readahead(1, 7)  # the first image of class 0 of a is not among them; b has two of class 1
    assert asked == [("a", 2, 7), ("b", 0, 3)]


def test_labels_of_scattered_images_in_any_slice(sets: Path) -> None:
    source = merged(sets, {"path": "a", "exclude_identities": text(sets, "3")}, {"path": "b"})
    every = source.labels()
    for start in range(len(source) + 1):
        for stop in range(start, len(source) + 1):
            np.testing.assert_array_equal(source.labels(start, stop), every[start:stop])


def test_labels_of_few_images_among_many_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the images that are used lie apart."""
    write_plain(tmp_path, [5 + place % 2 if place in (3, 4, 9, 90, 91, 199) else place % 2 for place in range(200)])
    (tmp_path / "out.txt").write_text("0\n1\n")
    source = open_source(DataConfig(path=str(tmp_path), exclude_identities=str(tmp_path / "out.txt")))
    assert isinstance(source, MergedSource)
    asked: list[int] = []
    read = source.parts[0].source.labels
    monkeypatch.setattr("partialkd.data.sources.merged._CHUNK", 8)
    monkeypatch.setattr(
        source.parts[0].source, "labels", lambda start, stop: (asked.append(stop - start), read(start, stop))[1]
    )
    assert source.labels().tolist() == [1, 0, 1, 0, 1, 1]
    assert asked == [7, 2, 1]
    assert source.labels(2, 5).tolist() == [1, 0, 1]
    assert source.labels(6, 6).tolist() == []


# -------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.path: required key is missing"),
        (
            {"parts": [{"path": "a"}], "source": "folder"},
            "data.source: must be left out beside data.parts",
        ),
        ({"parts": [{"path": "a"}], "label_map": "m"}, "data.label_map: must be left out beside data.parts, got 'm'"),
        ({"parts": [{"path": "a", "weight": 0.0}]}, "data.parts.0.weight: must be greater than 0, got 0.0"),
        ({"parts": [{"path": "a", "offset": 1}]}, "data.parts.0.offset: unknown key"),
        (
            {"path": "a", "sampler": "pk", "shuffle": "blocks"},
            'data.shuffle: must be "global" with data.sampler',
        ),
        (
            {"parts": [{"path": "a", "weight": 2.0}], "sampler": "balanced"},
            'data.sampler: must be "shuffle" where parts have weights [2.0], got "balanced"',
        ),
        (
            {"path": "", "source": "synthetic", "min_images": 2},
            'data.source: must name files where identities are left out, got "synthetic"',
        ),
    ],
)
def test_configurations_that_cannot_be_meant(data: dict[str, Any], message: str) -> None:
    student = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1, "global_batch": 8}
    with pytest.raises(ConfigError) as error:
        parse_config({"run": {"name": "x"}, "data": data, "student": student})
    assert message in str(error.value)


def test_single_images_are_left_out(sets: Path) -> None:
    """Before identities with too few images; an identity of which nothing is left has no class; another fingerprint."""
    out = text(sets, "4\t2\n0\t0\n")
    source = merged(sets, {"path": "a", "exclude_images": out}, {"path": "c"})
    assert [image for image, _ in contents(source)[:4]] == ["2", "3", "4", "6"]
    few = merged(sets, {"path": "a", "exclude_images": out}, {"path": "c"}, min_images=2)
    assert contents(few)[:2] == [("4", 0), ("6", 0)]
    fingerprints = {merged(sets, {"path": "a"}, {"path": "c"}, min_images=2).fingerprint, few.fingerprint}
    other = merged(sets, {"path": "a", "exclude_images": text(sets, "5\t2\n0\t0\n")}, {"path": "c"}, min_images=2)
    assert len(fingerprints | {other.fingerprint}) == 3
    assert few.facts["parts"][0]["images_listed"] == 2
    whole = merged(sets, {"path": "c", "exclude_images": text(sets, "2\tbob lee\n")})
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
        merged(sets, {"path": "a", "exclude_images": text(sets, content)}, {"path": "c"})
