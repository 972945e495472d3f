"""Preparation: which identities and pairs go in, what is left out and counted, made once, nothing half-made."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.places import FACES
from partialkd.config import ArchiveConfig, DataConfig, ProceduralConfig
from partialkd.data.formats.image_tree import list_images
from partialkd.data.formats.insightface_folder import read_names
from partialkd.data.formats.verification_bin import read_bin
from partialkd.data.images.decode import DECODING, decode, encode_jpeg
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError, DataError
from partialkd.storage.manifest import MANIFEST, read_manifest, write_manifest

SIZE = 24
TRAINING = {"anna": 3, "berta": 1, "carl": 2, "dora": 4, "emil": 2}
EVALUATED = {"anna": 2, "xaver": 2, "yann": 3, "zoe": 2}


def _image(identity: str, number: int, size: int = SIZE) -> bytes:
    rng = np.random.default_rng([*identity.encode(), number])
    return encode_jpeg(rng.integers(0, 255, (size, size, 3), dtype=np.uint8), 90)


def _tar(path: Path, counts: dict[str, int], size: int = SIZE, prefix: str = "") -> Path:
    """Identities in the reverse of their order, to see that it does not matter."""
    with tarfile.open(path, "w:gz") as archive:
        _add(archive, "README.txt", b"beside the identities")
        for identity in sorted(counts, reverse=True):
            for number in range(counts[identity]):
                _add(archive, f"{prefix}{identity}/{number}.jpg", _image(identity, number, size))
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _folder(path: Path, counts: dict[str, int]) -> Path:
    for identity, count in counts.items():
        (path / identity).mkdir(parents=True)
        for number in range(count):
            (path / identity / f"{number}.jpg").write_bytes(_image(identity, number))
    return path


def _pairs(path: Path) -> Path:
    rows = ("xaver/0.jpg,xaver/1.jpg,1", "yann/0.jpg,yann/2.jpg,1", "anna/0.jpg,anna/1.jpg,1",
            "xaver/0.jpg,yann/0.jpg,0", "zoe/0.jpg,anna/1.jpg,0", "zoe/1.jpg,yann/1.jpg,0")  # fmt: skip
    path.write_text("a,b,same\n" + "".join(f"{row}\n" for row in rows))
    return path


def _config(folder: Path, **settings: Any) -> DataConfig:
    data: dict[str, Any] = {key: settings.pop(key) for key in ("resize", "image_size") if key in settings}
    given: dict[str, Any] = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    archive = ArchiveConfig(kind="archive", **given)
    return DataConfig(path=str(folder / "made"), prepare=archive, **{"image_size": SIZE, **data})


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    return {
        "images": _tar(tmp_path / "train.tar.gz", TRAINING),
        "pairs_images": _tar(tmp_path / "test.tar.gz", EVALUATED, prefix="./"),
        "pairs": _pairs(tmp_path / "quiz.csv"),
    }


def test_everything_goes_in_but_pairs_of_trained_identities(tmp_path: Path, inputs: dict[str, Any]) -> None:
    data = _config(tmp_path, **inputs)
    facts = prepare(data)
    assert facts is not None
    assert (facts["images"], facts["identities"], facts["pairs"]) == (12, 5, {"quiz.bin": 4})
    assert facts["left_out_pairs"] == {"identity_in_training": 2, "over_max_pairs": 0}
    assert json.loads((tmp_path / "made" / MANIFEST).read_text())["facts"] == facts
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "identities.txt", MANIFEST, "property", "quiz.bin", "train.idx", "train.rec",
    ]  # fmt: skip
    source = open_source(data)
    assert read_names(tmp_path / "made" / "identities.txt", 5) == sorted(TRAINING)
    expected = [(_image(who, n), label) for label, who in enumerate(sorted(TRAINING)) for n in range(TRAINING[who])]
    assert [source.read(index) for index in range(len(source))] == expected
    quiz = read_bin(tmp_path / "made" / "quiz.bin")
    assert quiz.same.tolist() == [True, True, False, False]
    assert quiz.images[:2] == [_image("xaver", 0), _image("xaver", 1)]
    assert quiz.images[-2:] == [_image("zoe", 1), _image("yann", 1)]


def test_choice_of_identities(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "exclude.txt").write_text("dora\nnobody\n\n")
    data = _config(tmp_path, **inputs, exclude_identities=tmp_path / "exclude.txt", min_images=2, max_identities=2)
    facts = prepare(data)
    assert facts is not None
    assert read_names(tmp_path / "made" / "identities.txt", 2) == ["anna", "carl"]
    assert facts["left_out_identities"] == {"excluded": 1, "too_few_images": 1, "over_max_identities": 1}
    assert facts["exclude_list"] == "1 of 2 names found"
    assert facts["images"] == 5


def test_exclude_list_of_another_system(
    tmp_path: Path, inputs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "exclude.txt").write_bytes("\ufeffdora\r\nBERTA\r\n".encode())
    facts = prepare(_config(tmp_path, **inputs, exclude_identities=tmp_path / "exclude.txt"))
    assert facts is not None
    assert read_names(tmp_path / "made" / "identities.txt", 3) == ["anna", "carl", "emil"]
    assert facts["exclude_list"] == "2 of 2 names found (1 written otherwise)"
    (tmp_path / "nobody.txt").write_text("x\n")
    prepare(_config(tmp_path / "second", **inputs, exclude_identities=tmp_path / "nobody.txt"))
    assert caplog.messages == [f"{tmp_path}/nobody.txt: 0 of 1 names found, not 'x': nobody is left out"]


def test_an_identity_that_is_not_utf_8_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, os.fsdecode(b"zo\xeb/1.jpg"), b"no image")
    with pytest.raises(
        DataError, match=r"train\.tar: class 0: identity name must be UTF-8 text; rename the folder, got"
    ):
        prepare(_config(tmp_path, images=tmp_path / "train.tar"))


def test_pairs_of_trained_identities_in_another_unicode_form(tmp_path: Path) -> None:
    images = _tar(tmp_path / "train.tar.gz", {"zoë": 2, "anna": 1})
    pairs_images = _tar(tmp_path / "test.tar.gz", {"zoe\u0308": 2, "xaver": 2})
    rows = "zoe\u0308/0.jpg,zoe\u0308/1.jpg,1\nxaver/0.jpg,xaver/1.jpg,1\n"
    (tmp_path / "quiz.csv").write_text(f"a,b,same\n{rows}")
    facts = prepare(_config(tmp_path, images=images, pairs_images=pairs_images, pairs=tmp_path / "quiz.csv"))
    assert facts is not None
    assert facts["left_out_pairs"]["identity_in_training"] == 1


def test_identities_that_are_not_trained_keep_their_pairs(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "exclude.txt").write_text("anna\n")
    facts = prepare(_config(tmp_path, **inputs, exclude_identities=tmp_path / "exclude.txt"))
    assert facts is not None
    assert facts["pairs"] == {"quiz.bin": 6}
    assert facts["left_out_pairs"]["identity_in_training"] == 0


def test_folders_give_the_same_as_archives(tmp_path: Path, inputs: dict[str, Any]) -> None:
    prepare(_config(tmp_path, **inputs))
    folders = {
        "images": _folder(tmp_path / "folder", TRAINING),
        "pairs_images": _folder(tmp_path / "evaluated", EVALUATED),
    }
    prepare(_config(tmp_path / "second", **(inputs | folders)))
    for name in ("train.rec", "train.idx", "property", "identities.txt", "quiz.bin"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "second" / "made" / name).read_bytes(), name


def test_max_pairs_thins_evenly(tmp_path: Path) -> None:
    """10 folds of 6 + 6, of which 30 pairs: 3 of each fold, 15 of each kind; also where the kinds alternate."""
    images = _tar(tmp_path / "train.tar.gz", TRAINING)
    evaluated = {f"p{number:03d}": 2 for number in range(120)}
    pairs_images = _tar(tmp_path / "test.tar.gz", evaluated)
    people = sorted(evaluated)
    for order in ("blocks", "alternating"):
        same = [(number % 12 < 6) if order == "blocks" else number % 2 == 0 for number in range(120)]
        rows = [
            f"{who}/0.jpg,{who if same[n] else people[n - 1]}/1.jpg,{int(same[n])}\n" for n, who in enumerate(people)
        ]
        (tmp_path / f"{order}.csv").write_text("a,b,same\n" + "".join(rows))
        inputs = {"images": images, "pairs_images": pairs_images, "pairs": tmp_path / f"{order}.csv"}
        facts = prepare(_config(tmp_path / order, **inputs, max_pairs=30))
        assert facts is not None
        assert facts["left_out_pairs"] == {"identity_in_training": 0, "over_max_pairs": 90}
        made = read_bin(tmp_path / order / "made" / f"{order}.bin")
        assert made.same.sum() == 15
        places = {_image(who, 0): place for place, who in enumerate(people)}
        kept = [places[image] for image in made.images[0::2]]
        assert kept == sorted(kept)
        assert [same[place] for place in kept] == made.same.tolist()
        counts = np.bincount(np.array(kept) // 12, minlength=10)
        assert counts.min() >= 2
        assert counts.max() <= 4


def test_made_once(tmp_path: Path, inputs: dict[str, Any]) -> None:
    data = _config(tmp_path, **inputs)
    facts = prepare(data)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert prepare(data) == facts
    with pytest.raises(DataError, match=r"made: was made from other settings.*min_images is 1 there, 2 here"):
        prepare(_config(tmp_path, **inputs, min_images=2))
    with pytest.raises(DataError, match="image_size is 24 there, 32 here; resize is false there, true here"):
        prepare(_config(tmp_path, **inputs, image_size=32, resize=True))
    _pairs(tmp_path / "quiz.csv").open("a").write("zoe/0.jpg,zoe/1.jpg,1\n")
    with pytest.raises(
        DataError, match=r"made: was made from other settings.*: pairs: .*quiz\.csv holds something else"
    ):
        prepare(data)
    for key in ("images", "pairs", "pairs_images"):  # what was made does not need what it was made of
        os.remove(str(inputs[key]))
    assert prepare(data) == facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()} == stamps


def test_what_was_moved_is_known_by_what_is_in_it(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "exclude.txt").write_text("dora\n")
    inputs |= {"exclude_identities": tmp_path / "exclude.txt", "pairs_images": _folder(tmp_path / "test", EVALUATED)}
    facts = prepare(_config(tmp_path, **inputs))
    (tmp_path / "moved").mkdir()
    moved = {key: tmp_path / "moved" / path.name for key, path in inputs.items()}
    for key, path in moved.items():
        inputs[key].rename(path)
    assert prepare(_config(tmp_path, **moved)) == facts
    assert prepare(_config(tmp_path, **inputs)) == facts  # none of it is there any more
    with pytest.raises(DataError, match=r"absent: cannot be read: No such file or directory"):
        prepare(_config(tmp_path, **(moved | {"images": tmp_path / "absent"})))
    moved["images"] = _tar(tmp_path / "moved" / "train2.tar.gz", TRAINING | {"anna": 1})
    with pytest.raises(DataError, match=r"made from other settings.*: images: .*train2\.tar\.gz holds something else"):
        prepare(_config(tmp_path, **moved))
    moved["images"] = inputs["images"]
    (moved["pairs_images"] / "zoe" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"pairs_images: .*test holds something else.*images 9 then, 8 now"):
        prepare(_config(tmp_path, **moved))
    with pytest.raises(DataError, match=r"exclude_identities is '.*exclude\.txt' there, None here"):
        prepare(_config(tmp_path, **(inputs | {"exclude_identities": None})))
    with pytest.raises(DataError, match=r"pairs is 'quiz\.csv' there, 'other\.csv' here"):
        prepare(_config(tmp_path, **(inputs | {"pairs": tmp_path / "other.csv"})))


def test_data_of_other_pixels_or_of_an_earlier_version(
    tmp_path: Path, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _config(tmp_path, **inputs)
    facts = prepare(data)
    assert facts is not None
    monkeypatch.setattr("partialkd.data.packing.archive.DECODING", DECODING + 1)
    with pytest.raises(DataError, match=rf"made from other settings.*: decoding is {DECODING} there, {DECODING + 1} h"):
        prepare(data)
    monkeypatch.undo()
    made = read_manifest(tmp_path / "made", DataError)  # as earlier versions wrote it
    del made["made_from"]["decoding"]
    made["facts"] = {"input_bytes": {"images": os.path.getsize(inputs["images"])}}
    write_manifest(tmp_path / "made", made)
    assert prepare(data) == made["facts"]
    inputs["images"] = inputs["images"].rename(tmp_path / "moved.tar.gz")
    assert prepare(_config(tmp_path, **inputs)) == made["facts"]
    inputs["pairs_images"] = inputs["pairs_images"].rename(tmp_path / "moved2.tar.gz")
    with pytest.raises(DataError, match=r"pairs_images is .* and what was in it then is not known"):
        prepare(_config(tmp_path, **inputs))


def test_other_sizes(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"train\.tar\.gz: emil/0\.jpg: must be 32 x 32 pixels.*got 24 x 24"):
        prepare(_config(tmp_path, **inputs, image_size=32))
    data = _config(tmp_path, **inputs, image_size=32, resize=True)
    prepare(data)
    sized = open_source(data)
    assert {decode(sized.read(index)[0], "").shape for index in range(len(sized))} == {(32, 32, 3)}
    quiz = read_bin(tmp_path / "made" / "quiz.bin")
    assert {decode(image, "").shape for image in quiz.images} == {(32, 32, 3)}


def test_sizes_of_pairs_are_checked_too(tmp_path: Path, inputs: dict[str, Any]) -> None:
    inputs["pairs_images"] = _tar(tmp_path / "small.tar.gz", EVALUATED, size=20)
    with pytest.raises(DataError, match=r"small\.tar\.gz: zoe/1\.jpg: must be 24 x 24 pixels.*got 20 x 20"):
        prepare(_config(tmp_path, **inputs))


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("pairs", b"a,b\nx,y\n", r"quiz\.csv: line 1: must be a,b,same"),
        ("pairs", b"a,b,same\nxaver/0.jpg,xaver/1.jpg,yes\n", r"quiz\.csv: line 2: must be path,path,0 or 1"),
        ("pairs", b"a,b,same\nxaver/0.jpg,xaver/7.jpg,1\n", r"test\.tar\.gz: no image xaver/7\.jpg in it \(1 such"),
        ("pairs", b"a,b,same\nanna/0.jpg,anna/1.jpg,1\n", r"quiz\.csv: no pair is left of 1"),
        ("images", b"no archive at all", r"train\.tar\.gz: cannot be read"),
        ("images", None, r"train\.tar\.gz: cannot be read"),
    ],
)
def test_problems_are_named_and_nothing_is_left(
    key: str, content: bytes | None, message: str, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    path = Path(str(inputs[key]))
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=message):
        prepare(_config(tmp_path, **inputs))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../anna/0.jpg", "must be a file <identity>/<image>"),
        ("/anna/0.jpg", "must be a file <identity>/<image>"),
        ("faces/anna/0.jpg", "must be a file <identity>/<image>"),
        ("anna/notes.doc", "not an image file"),
    ],
)
def test_members_that_are_no_image_of_an_identity(name: str, message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        _add(archive, "anna/1.jpg", _image("anna", 1))
        _add(archive, "anna/._1.jpg", b"of another system")
        _add(archive, name, _image("anna", 0))
    with pytest.raises(DataError, match=message):
        list_images(tmp_path / "odd.tar")


def test_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        link = tarfile.TarInfo("anna/0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"anna/0\.jpg: must be a file"):
        list_images(tmp_path / "link.tar")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "folder", TRAINING)
    (folder / "carl" / "1.jpg").write_bytes(_image("carl", 1)[:300])
    with pytest.raises(DataError, match=r"carl/1\.jpg: broken JPEG"):
        prepare(_config(tmp_path, images=folder))
    assert not (tmp_path / "made").exists()


def test_excluding_everybody(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no identity is left of 5.*'too_few_images': 5"):
        prepare(_config(tmp_path, **inputs, min_images=9))


def test_what_is_prepared_and_what_is_not(tmp_path: Path, inputs: dict[str, Any]) -> None:
    assert prepare(DataConfig(path=str(tmp_path / "there"))) is None
    procedural = ProceduralConfig(
        kind="procedural", identities=2, images_per_identity=2, held_out_identities=2, pairs=10
    )
    facts = prepare(DataConfig(path=str(tmp_path / "faces"), image_size=16, prepare=procedural))
    assert facts == {"images": 4, "identities": 2, "pairs": {"faces.bin": 10}}
    with pytest.raises(ConfigError, match=r'data\.source must be "recordio".*got "folder"'):
        prepare(DataConfig(source="folder", path=str(tmp_path / "other"), prepare=procedural))
    with pytest.raises(ConfigError, match="must be given together"):
        prepare(_config(tmp_path, images=str(inputs["images"]), pairs=str(inputs["pairs"])))


def _real_faces() -> Path:
    folder = FACES
    if not (folder / "pubfig112.tar.gz").exists():
        pytest.skip(f"no real faces in {folder} (PARTIALKD_FACES)")
    return folder


@pytest.mark.faces
@pytest.mark.slow
def test_real_faces(tmp_path: Path) -> None:
    real = _real_faces()
    data = _config(
        tmp_path,
        images=real / "pubfig112.tar.gz",
        pairs_images=real / "lfw112.tar.gz",
        pairs=real / "lfw_pairs.csv",
        max_identities=12,
        max_pairs=200,
        image_size=112,
    )
    facts = prepare(data)
    assert facts is not None
    listed = set((real / "pubfig_identities_in_lfw.txt").read_text().split())
    trained = set(read_names(tmp_path / "made" / "identities.txt", 12))
    lines = [line.split(",") for line in (real / "lfw_pairs.csv").read_text().splitlines()[1:]]
    seen = [{a.split("/")[0], b.split("/")[0]} & trained for a, b, _ in lines]
    assert trained & listed  # people of both sets: there is something to leave out
    assert facts["left_out_pairs"]["identity_in_training"] == sum(map(bool, seen)) > 0
    assert facts["pairs"] == {"lfw_pairs.bin": 200}
    quiz = read_bin(tmp_path / "made" / "lfw_pairs.bin")
    assert abs(int(quiz.same.sum()) - 100) <= 2
    assert decode(quiz.images[0], "").shape == (112, 112, 3)
    assert len(open_source(data)) == facts["images"] >= 12 * 8
