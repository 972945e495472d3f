"""Sources: InsightFace folders of every kind, image folders, synthetic images; each wrong label is named."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from helpers.source_cases import Labels, contents, write_plain, write_with_header
from partialkd.config import DataConfig, PartConfig
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.images.decode import decode
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.sources.folder import FolderSource
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.open import open_source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import DataError


def test_set_with_header_record(tmp_path: Path) -> None:
    write_with_header(tmp_path, [0, (3.0, 1.0), 2], (4.0, 6.0), identities=2)
    source = RecordIOSource(tmp_path)
    assert contents(source) == [(b"1", 0), (b"2", 3), (b"3", 2)]
    assert source.labels().dtype == np.int64
    assert source.labels().tolist() == [0, 3, 2]
    assert (source.num_classes, source.height, source.width) == (10, 112, 112)
    assert source.name(1) == f"{tmp_path}/train.rec: key 2 at byte {source.reader.offsets[2]}"


@pytest.mark.parametrize("first_key", [0, 1, 7])
@pytest.mark.parametrize("labels", [[4, 9, 0], [(4.0, 1.0), (9.0, 0.5), (0.0,)]])
def test_set_without_header_record(tmp_path: Path, labels: list[Labels], first_key: int) -> None:
    write_plain(tmp_path, labels, first_key=first_key)
    expected = [(b"%d" % (first_key + k), label) for k, label in enumerate([4, 9, 0])]
    assert contents(RecordIOSource(tmp_path)) == expected


def test_header_record_that_disagrees_with_the_index(tmp_path: Path) -> None:
    write_with_header(tmp_path, [0, 1, 2], (9.0, 11.0), identities=2)
    with pytest.raises(DataError, match=r"train\.rec: header record announces image keys 1\.\.8, the index has 5"):
        RecordIOSource(tmp_path)
    write_with_header(tmp_path, [0, 1, 2], (float("nan"), 11.0), identities=2)
    with pytest.raises(DataError, match=r"key 0: header record must give the key after the last image, got nan"):
        RecordIOSource(tmp_path)


@pytest.mark.parametrize("rounded", [11, 12, 13])
def test_header_beyond_what_float32_can_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounded: int) -> None:
    """Where labels are rounded, the header may be off by one or more: the images end where records hold none."""
    monkeypatch.setattr("partialkd.data.formats.insightface_folder.FLOAT_EXACT", 8)
    write_with_header(tmp_path, [0] * 11, (rounded, rounded + 2), identities=2)
    (tmp_path / "property").write_text("1,112,112")
    assert contents(RecordIOSource(tmp_path)) == [(b"%d" % key, 0) for key in range(1, 12)]


@pytest.mark.parametrize("label", [10.0, -1.0, 3.5, float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("several", [False, True])
def test_wrong_label(tmp_path: Path, label: float, several: bool) -> None:
    labels: list[Labels] = [0.0, (label, 0.0) if several else label, 2.0, label]
    write_with_header(tmp_path, labels, (5.0, 6.0), identities=1)
    message = rf"train\.rec: key 2 at byte \d+: label must be an integer in \[0, 10\), got {label}.* \(2 such records\)"
    with pytest.raises(DataError, match=message):
        RecordIOSource(tmp_path)


def test_record_without_image(tmp_path: Path) -> None:
    write_plain(tmp_path, [0, 1])
    with open_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(1, pack_payload(0, 1, b"image"))
        writer.write(2, pack_payload(0, 2))
    with pytest.raises(DataError, match=r"train\.rec: key 2 at byte 40: the record holds no image"):
        RecordIOSource(tmp_path)


@pytest.mark.parametrize("text", ["", "10", "10,112", "a,112,112", "0,112,112", "10,-1,112", "16777217,112,112", "é"])
def test_wrong_property(tmp_path: Path, text: str) -> None:
    write_plain(tmp_path, [0])
    (tmp_path / "property").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="property: "):
        RecordIOSource(tmp_path)


@pytest.mark.parametrize("name", ["property", "train.rec", "train.idx"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    write_plain(tmp_path, [0])
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: (cannot be read|is missing)"):
        RecordIOSource(tmp_path)


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    seen = set()
    for labels, classes in (([0, 1, 2], 10), ([0, 1, 3], 10), ([0, 1], 10), ([0, 1, 2], 11)):
        write_plain(tmp_path, labels, classes)
        first = RecordIOSource(tmp_path).fingerprint
        assert first == RecordIOSource(tmp_path).fingerprint
        seen.add(first)
    assert len(seen) == 4


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside(tmp_path: Path, index: int) -> None:
    write_plain(tmp_path, [0, 1, 2])
    with pytest.raises(IndexError, match=rf"\[0, 3\), got {index}"):
        RecordIOSource(tmp_path).read(index)


def test_pickled_source_reads_the_same(tmp_path: Path) -> None:
    write_with_header(tmp_path, [0, 1, 2], (4.0, 6.0), identities=2)
    source = RecordIOSource(tmp_path)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


# ---------------------------------------------------------------------------------------------- other sources


def make_folder(root: Path) -> None:
    for path in ("bob/2.jpg", "bob/1.PNG", "anna/x.jpeg", "readme.txt", ".cache/x.jpg", "anna/.hidden"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def test_folder_source(tmp_path: Path) -> None:
    make_folder(tmp_path)
    source = FolderSource(tmp_path)
    assert source.names.known() == ["anna", "bob"]
    expected = [(b"anna/x.jpeg", 0), (b"bob/1.PNG", 1), (b"bob/2.jpg", 1)]
    assert [source.read(index) for index in range(3)] == expected
    assert source.labels().tolist() == [0, 1, 1]
    assert source.name(2) == str(tmp_path / "bob/2.jpg")
    before = source.fingerprint
    (tmp_path / "bob/2.jpg").write_bytes(b"longer than before")
    assert FolderSource(tmp_path).fingerprint != before
    (tmp_path / "bob/2.jpg").write_bytes(b"Bob/2.jpg")  # another picture of the same size
    assert FolderSource(tmp_path).fingerprint != before
    (tmp_path / "bob/2.jpg").write_bytes(b"bob/2.jpg")
    assert FolderSource(tmp_path).fingerprint == before
    (tmp_path / "bob/2.jpg").unlink()
    with pytest.raises(DataError, match=r"bob/2\.jpg: cannot be read: No such file"):
        source.read(2)


def test_folder_with_what_is_no_image(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "bob/notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"bob/notes\.txt: not an image file .* \(1 such problems"):
        FolderSource(tmp_path)
    (tmp_path / "bob/notes.txt").unlink()
    (tmp_path / "zoe").mkdir()
    with pytest.raises(DataError, match="zoe: identity without an image"):
        FolderSource(tmp_path)


def test_empty_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no <identity>/<image>"):
        FolderSource(tmp_path)
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        FolderSource(tmp_path / "nowhere")


def test_synthetic_source_is_a_function_of_seed_and_index() -> None:
    source = SyntheticSource(3, 7, 48)
    assert source.labels().tolist() == [0, 1, 2, 0, 1, 2, 0]
    first = [source.read(index) for index in range(7)]
    assert first == [SyntheticSource(3, 7, 48).read(index) for index in range(7)]
    assert [label for _, label in first] == source.labels().tolist()
    assert len({image for image, _ in first}) == 7
    images = [decode(image, source.name(k)).astype(float) for k, (image, _) in enumerate(first)]
    assert images[0].shape == (48, 48, 3)
    same, other = np.abs(images[0] - images[3]).mean(), np.abs(images[0] - images[1]).mean()
    assert same < other  # an identity's images share their colours
    assert SyntheticSource(3, 7, 48, seed=1).read(0) != first[0]
    assert SyntheticSource(3, 7, 48, seed=1).fingerprint != source.fingerprint


def test_open_source(tmp_path: Path) -> None:
    image = encode_jpeg(np.zeros((64, 64, 3), np.uint8))
    pack_records(tmp_path / "packed", [(image, 0), (image, 1)], 2, 64)
    for name in ("anna", "bob"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "1.jpg").write_bytes(image)
    packed, folder = str(tmp_path / "packed"), str(tmp_path / "folder")
    assert open_source(DataConfig(path=packed, image_size=64)).read(1) == (image, 1)
    assert open_source(DataConfig(source="folder", path=folder)).read(0) == (image, 0)
    data = DataConfig(source="synthetic", path="", image_size=32, synthetic_identities=4, synthetic_images=9)
    assert (len(open_source(data)), open_source(data).num_classes) == (9, 4)
    assert len(open_source(DataConfig(path=packed, image_size=112, resize=True))) == 2
    with pytest.raises(DataError, match=r"property: images are 64 x 64, but data\.image_size is 112"):
        open_source(DataConfig(path=packed, image_size=112))


def test_what_every_source_offers(tmp_path: Path) -> None:
    """Names, facts and origins of any source; and an error of one whose records carry no embedding."""
    make_folder(tmp_path / "images")
    pack_records(tmp_path / "packed", [(b"1", 0), (b"2", 1)], 2, 16, ["anna", "bob"])
    for source in (FolderSource(tmp_path / "images"), RecordIOSource(tmp_path / "packed"), SyntheticSource(2, 6, 16)):
        assert not source.facts
        assert [label for label, _, _ in source.origins()] == list(range(source.num_classes))
        with pytest.raises(DataError, match=r"carries no embedding of a teacher \(data\.embeddings\)"):
            source.embedding(1)
    assert FolderSource(tmp_path / "images").names.known() == ["anna", "bob"]
    assert RecordIOSource(tmp_path / "packed").names.known() == ["anna", "bob"]
    assert SyntheticSource(2, 6, 16).names.known() is None


# ------------------------------------------------------------------------------------------------- classes


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    write_plain(tmp_path / "set", [3, 3], classes=4)
    (tmp_path / "folder/anna").mkdir(parents=True)
    (tmp_path / "folder/anna/1.jpg").write_bytes(b"1")
    for name, keys in (("set", {}), ("folder", {"source": "folder"}), ("set", {"label_map": "map.txt"})):
        if "label_map" in keys:
            (tmp_path / "map.txt").write_text("3\t0\n")
            keys["label_map"] = str(tmp_path / "map.txt")
        with pytest.raises(DataError, match=rf"{name}: training needs images of at least two identities, got 1"):
            open_source(DataConfig(path=str(tmp_path / name), **keys))


def test_mostly_empty_classes_are_refused_and_numbered_anew_as_a_part(tmp_path: Path) -> None:
    write_plain(tmp_path, [3, 3, 6900307], classes=6900308)
    rule = r"6900306 of its 6900308 classes have no image, the first is 0; named under \[\[data\.parts\]\]"
    with pytest.raises(DataError, match=rf"{tmp_path}: {rule}"):
        open_source(DataConfig(path=str(tmp_path)))
    source = open_source(DataConfig(parts=(PartConfig(path=str(tmp_path)),)))
    assert (source.num_classes, source.labels().tolist()) == (2, [0, 0, 1])


def test_class_ids_from_one_on_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_plain(tmp_path, [1, 2, 3], classes=4)
    assert open_source(DataConfig(path=str(tmp_path))).num_classes == 4
    assert caplog.messages == [f"{tmp_path}: 1 of its 4 classes have no image, the first is 0"]
