"""Data is prepared once: what has moved is known by its content, what has changed is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.prepare_cases import EVALUATED, TRAINING, prepare_config, write_folder, write_pairs, write_tar
from partialkd.data.images.decode import DECODING
from partialkd.data.packing.prepare import prepare
from partialkd.errors import DataError
from partialkd.storage.manifest import read_manifest, write_manifest


def test_made_once(tmp_path: Path, inputs: dict[str, Any]) -> None:
    data = prepare_config(tmp_path, **inputs)
    facts = prepare(data)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert prepare(data) == facts
    with pytest.raises(DataError, match=r"made: was made from other settings.*min_images is 1 there, 2 here"):
        prepare(prepare_config(tmp_path, **inputs, min_images=2))
    with pytest.raises(DataError, match="image_size is 24 there, 32 here; resize is false there, true here"):
        prepare(prepare_config(tmp_path, **inputs, image_size=32, resize=True))
    write_pairs(tmp_path / "quiz.csv").open("a").write("zoe/0.jpg,zoe/1.jpg,1\n")
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
    inputs |= {
        "exclude_identities": tmp_path / "exclude.txt",
        "pairs_images": write_folder(tmp_path / "test", EVALUATED),
    }
    facts = prepare(prepare_config(tmp_path, **inputs))
    (tmp_path / "moved").mkdir()
    moved = {key: tmp_path / "moved" / path.name for key, path in inputs.items()}
    for key, path in moved.items():
        inputs[key].rename(path)
    assert prepare(prepare_config(tmp_path, **moved)) == facts
    assert prepare(prepare_config(tmp_path, **inputs)) == facts  # none of it is there any more
    with pytest.raises(DataError, match=r"absent: cannot be read: No such file or directory"):
        prepare(prepare_config(tmp_path, **(moved | {"images": tmp_path / "absent"})))
    moved["images"] = write_tar(tmp_path / "moved" / "train2.tar.gz", TRAINING | {"anna": 1})
    with pytest.raises(DataError, match=r"made from other settings.*: images: .*train2\.tar\.gz holds something else"):
        prepare(prepare_config(tmp_path, **moved))
    moved["images"] = inputs["images"]
    (moved["pairs_images"] / "zoe" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"pairs_images: .*test holds something else.*images 9 then, 8 now"):
        prepare(prepare_config(tmp_path, **moved))
    with pytest.raises(DataError, match=r"exclude_identities is '.*exclude\.txt' there, None here"):
        prepare(prepare_config(tmp_path, **(inputs | {"exclude_identities": None})))
    with pytest.raises(DataError, match=r"pairs is 'quiz\.csv' there, 'other\.csv' here"):
        prepare(prepare_config(tmp_path, **(inputs | {"pairs": tmp_path / "other.csv"})))


def test_data_of_other_pixels_or_of_an_earlier_version(
    tmp_path: Path, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare_config(tmp_path, **inputs)
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
    assert prepare(prepare_config(tmp_path, **inputs)) == made["facts"]
    inputs["pairs_images"] = inputs["pairs_images"].rename(tmp_path / "moved2.tar.gz")
    with pytest.raises(DataError, match=r"pairs_images is .* and what was in it then is not known"):
        prepare(prepare_config(tmp_path, **inputs))
