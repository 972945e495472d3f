"""What cannot be prepared is named, and nothing half-made is left."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from helpers.prepare_cases import EVALUATED, TRAINING, add_member, picture, prepare_config, write_folder, write_tar
from partialkd.data.formats.image_tree import list_images
from partialkd.data.packing.prepare import prepare
from partialkd.errors import DataError


def test_an_identity_that_is_not_utf_8_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add_member(archive, os.fsdecode(b"zo\xeb/1.jpg"), b"no image")
    with pytest.raises(
        DataError, match=r"train\.tar: class 0: identity name must be UTF-8 text; rename the folder, got"
    ):
        prepare(prepare_config(tmp_path, images=tmp_path / "train.tar"))


def test_sizes_of_pairs_are_checked_too(tmp_path: Path, inputs: dict[str, Any]) -> None:
    inputs["pairs_images"] = write_tar(tmp_path / "small.tar.gz", EVALUATED, size=20)
    with pytest.raises(DataError, match=r"small\.tar\.gz: zoe/1\.jpg: must be 24 x 24 pixels.*got 20 x 20"):
        prepare(prepare_config(tmp_path, **inputs))


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
        prepare(prepare_config(tmp_path, **inputs))
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
        add_member(archive, "anna/1.jpg", picture("anna", 1))
        add_member(archive, "anna/._1.jpg", b"of another system")
        add_member(archive, name, picture("anna", 0))
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
    folder = write_folder(tmp_path / "folder", TRAINING)
    (folder / "carl" / "1.jpg").write_bytes(picture("carl", 1)[:300])
    with pytest.raises(DataError, match=r"carl/1\.jpg: broken JPEG"):
        prepare(prepare_config(tmp_path, images=folder))
    assert not (tmp_path / "made").exists()


def test_excluding_everybody(tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no identity is left of 5.*'too_few_images': 5"):
        prepare(prepare_config(tmp_path, **inputs, min_images=9))
