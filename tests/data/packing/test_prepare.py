"""Preparation: which identities and pairs go in, what is left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.places import FACES
from helpers.prepare_cases import EVALUATED, TRAINING, picture, prepare_config, write_folder, write_tar
from partialkd.config import DataConfig, ProceduralConfig
from partialkd.data.formats.insightface_folder import read_names
from partialkd.data.formats.verification_bin import read_bin
from partialkd.data.images.decode import decode
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.errors import ConfigError, DataError
from partialkd.storage.manifest import MANIFEST


def test_everything_goes_in_but_pairs_of_trained_identities(tmp_path: Path, inputs: dict[str, Any]) -> None:
    data = prepare_config(tmp_path, **inputs)
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
    expected = [(picture(who, n), label) for label, who in enumerate(sorted(TRAINING)) for n in range(TRAINING[who])]
    assert [source.read(index) for index in range(len(source))] == expected
    quiz = read_bin(tmp_path / "made" / "quiz.bin")
    assert quiz.same.tolist() == [True, True, False, False]
    assert quiz.images[:2] == [picture("xaver", 0), picture("xaver", 1)]
    assert quiz.images[-2:] == [picture("zoe", 1), picture("yann", 1)]


def test_choice_of_identities(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "exclude.txt").write_text("dora\nnobody\n\n")
    data = prepare_config(
        tmp_path, **inputs, exclude_identities=tmp_path / "exclude.txt", min_images=2, max_identities=2
    )
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
    facts = prepare(prepare_config(tmp_path, **inputs, exclude_identities=tmp_path / "exclude.txt"))
    assert facts is not None
    assert read_names(tmp_path / "made" / "identities.txt", 3) == ["anna", "carl", "emil"]
    assert facts["exclude_list"] == "2 of 2 names found (1 written otherwise)"
    (tmp_path / "nobody.txt").write_text("x\n")
    prepare(prepare_config(tmp_path / "second", **inputs, exclude_identities=tmp_path / "nobody.txt"))
    assert caplog.messages == [f"{tmp_path}/nobody.txt: 0 of 1 names found, not 'x': nobody is left out"]


def test_pairs_of_trained_identities_in_another_unicode_form(tmp_path: Path) -> None:
    images = write_tar(tmp_path / "train.tar.gz", {"zoë": 2, "anna": 1})
    pairs_images = write_tar(tmp_path / "test.tar.gz", {"zoe\u0308": 2, "xaver": 2})
    rows = "zoe\u0308/0.jpg,zoe\u0308/1.jpg,1\nxaver/0.jpg,xaver/1.jpg,1\n"
    (tmp_path / "quiz.csv").write_text(f"a,b,same\n{rows}")
    facts = prepare(prepare_config(tmp_path, images=images, pairs_images=pairs_images, pairs=tmp_path / "quiz.csv"))
    assert facts is not None
    assert facts["left_out_pairs"]["identity_in_training"] == 1


def test_identities_that_are_not_trained_keep_their_pairs(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "exclude.txt").write_text("anna\n")
    facts = prepare(prepare_config(tmp_path, **inputs, exclude_identities=tmp_path / "exclude.txt"))
    assert facts is not None
    assert facts["pairs"] == {"quiz.bin": 6}
    assert facts["left_out_pairs"]["identity_in_training"] == 0


def test_folders_give_the_same_as_archives(tmp_path: Path, inputs: dict[str, Any]) -> None:
    prepare(prepare_config(tmp_path, **inputs))
    folders = {
        "images": write_folder(tmp_path / "folder", TRAINING),
        "pairs_images": write_folder(tmp_path / "evaluated", EVALUATED),
    }
    prepare(prepare_config(tmp_path / "second", **(inputs | folders)))
    for name in ("train.rec", "train.idx", "property", "identities.txt", "quiz.bin"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "second" / "made" / name).read_bytes(), name


def test_max_pairs_thins_evenly(tmp_path: Path) -> None:
    """10 folds of 6 + 6, of which 30 pairs: 3 of each fold, 15 of each kind; also where the kinds alternate."""
    images = write_tar(tmp_path / "train.tar.gz", TRAINING)
    evaluated = {f"p{number:03d}": 2 for number in range(120)}
    pairs_images = write_tar(tmp_path / "test.tar.gz", evaluated)
    people = sorted(evaluated)
    for order in ("blocks", "alternating"):
        same = [(number % 12 < 6) if order == "blocks" else number % 2 == 0 for number in range(120)]
        rows = [
            f"{who}/0.jpg,{who if same[n] else people[n - 1]}/1.jpg,{int(same[n])}\n" for n, who in enumerate(people)
        ]
        (tmp_path / f"{order}.csv").write_text("a,b,same\n" + "".join(rows))
        inputs = {"images": images, "pairs_images": pairs_images, "pairs": tmp_path / f"{order}.csv"}
        facts = prepare(prepare_config(tmp_path / order, **inputs, max_pairs=30))
        assert facts is not None
        assert facts["left_out_pairs"] == {"identity_in_training": 0, "over_max_pairs": 90}
        made = read_bin(tmp_path / order / "made" / f"{order}.bin")
        assert made.same.sum() == 15
        places = {picture(who, 0): place for place, who in enumerate(people)}
        kept = [places[image] for image in made.images[0::2]]
        assert kept == sorted(kept)
        assert [same[place] for place in kept] == made.same.tolist()
        counts = np.bincount(np.array(kept) // 12, minlength=10)
        assert counts.min() >= 2
        assert counts.max() <= 4


def test_other_sizes(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"train\.tar\.gz: emil/0\.jpg: must be 32 x 32 pixels.*got 24 x 24"):
        prepare(prepare_config(tmp_path, **inputs, image_size=32))
    data = prepare_config(tmp_path, **inputs, image_size=32, resize=True)
    prepare(data)
    sized = open_source(data)
    assert {decode(sized.read(index)[0], "").shape for index in range(len(sized))} == {(32, 32, 3)}
    quiz = read_bin(tmp_path / "made" / "quiz.bin")
    assert {decode(image, "").shape for image in quiz.images} == {(32, 32, 3)}


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
        prepare(prepare_config(tmp_path, images=str(inputs["images"]), pairs=str(inputs["pairs"])))


def _real_faces() -> Path:
    folder = FACES
    if not (folder / "pubfig112.tar.gz").exists():
        pytest.skip(f"no real faces in {folder} (PARTIALKD_FACES)")
    return folder


@pytest.mark.faces
@pytest.mark.slow
def test_real_faces(tmp_path: Path) -> None:
    real = _real_faces()
    data = prepare_config(
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
