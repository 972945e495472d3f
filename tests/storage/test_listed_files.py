"""Files that a manifest lists are compared with it: prepared data, and what was exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from partialkd.errors import CheckpointError, DataError
from partialkd.storage import listed_files
from partialkd.storage.listed_files import check_exported, write_export_manifest
from partialkd.storage.made_folder import make_once
from partialkd.storage.manifest import MANIFEST, write_manifest


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "damaged: the checksum must be": flip,
    "must have 8 bytes, got 7": cut,
    "cannot be read: No such": Path.unlink,
}


def fill(new: Path, facts: dict[str, Any]) -> None:
    for name in ("train.rec", "train.idx", "faces.bin"):
        (new / name).write_bytes(b"contents")
    facts["images"] = 1


@pytest.mark.parametrize("name", ["train.rec", "train.idx", "faces.bin"])
@pytest.mark.parametrize("said", DAMAGE)
def test_damaged_prepared_data_are_named(tmp_path: Path, name: str, said: str) -> None:
    assert make_once(tmp_path / "faces", {}, fill) == make_once(tmp_path / "faces", {}, fill)
    DAMAGE[said](tmp_path / "faces" / name)
    rule = f"; remove {tmp_path / 'faces'} to make it anew$"
    with pytest.raises(DataError, match=f"^{tmp_path / 'faces' / name}: {said}.*{rule}"):
        make_once(tmp_path / "faces", {}, fill)


def test_large_records_are_compared_by_size_and_folders_of_earlier_versions_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed_files, "SUMMED_BYTES", 7)
    make_once(tmp_path / "faces", {}, fill)
    flip(tmp_path / "faces" / "train.rec")
    assert make_once(tmp_path / "faces", {}, fill) == {"images": 1}
    cut(tmp_path / "faces" / "train.rec")
    with pytest.raises(DataError, match=r"train\.rec: must have 8 bytes, got 7"):
        make_once(tmp_path / "faces", {}, fill)
    write_manifest(tmp_path / "faces", {"made_from": {}, "facts": {"images": 2}})
    assert make_once(tmp_path / "faces", {}, fill) == {"images": 2}


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_export_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"contents")
    write_export_manifest(tmp_path, ("model.onnx",))
    check_exported(path, CheckpointError)
    damage(path)
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        check_exported(path, CheckpointError)


@pytest.mark.parametrize("content", ["[]", "{", '{"format": "another"}', '{"files": {"model.onnx": 3}}'])
def test_other_manifests_beside_a_model_are_no_business_of_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"contents")
    check_exported(tmp_path / "model.onnx", CheckpointError)
    (tmp_path / MANIFEST).write_text(content)
    check_exported(tmp_path / "model.onnx", CheckpointError)


def test_a_damaged_list_of_an_export_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"contents")
    write_export_manifest(tmp_path, ("model.onnx",))
    manifest = tmp_path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"size": 8', '"size": 9'))
    with pytest.raises(CheckpointError, match=f"^{manifest}: damaged"):
        check_exported(tmp_path / "model.onnx", CheckpointError)
