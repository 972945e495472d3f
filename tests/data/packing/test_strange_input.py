"""Packing what people bring: lists and names of other systems, lying pictures, what is no file, litter beside them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.packing_cases import jpegs, make_folder, packed
from partialkd.commands.pack import main
from partialkd.data.formats.image_tree import list_images
from partialkd.data.formats.insightface_folder import read_names
from partialkd.data.images.decode import decode
from partialkd.data.packing.pack import PackError, PackOptions, pack
from partialkd.errors import DataError


@pytest.mark.slow
def test_class_ids_without_images_are_refused_or_renumbered(tmp_path: Path) -> None:
    files = make_folder(tmp_path)
    ids = {"anna": 3, "bob": 3, "zoë": 6900307}
    (tmp_path / "list.txt").write_text("".join(f"{path},{ids[path.split('/')[0]]}\n" for path in files))
    rule = r"2 of the class ids 0 to 6900307 have images, the first without is 0; --renumber .*, --keep-gaps"
    with pytest.raises(DataError, match=rf"list\.txt: {rule}"):
        pack(tmp_path / "list.txt", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    pack(tmp_path / "list.txt", tmp_path / "set", PackOptions(gaps="renumber"))
    assert [label for _, label in packed(tmp_path / "set")] == [0, 0, 0, 0, 0, 1, 1]
    assert read_names(tmp_path / "set/identities.txt", 2) == ["3", "6900307"]  # the ids of the list are not lost
    (tmp_path / "from_one.txt").write_text("anna/0.jpg,1\nbob/1.jpg,2\n")
    with pytest.raises(DataError, match="2 of the class ids 0 to 2 have images, the first without is 0"):
        pack(tmp_path / "from_one.txt", tmp_path / "other")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_list_file_as_other_systems_write_it(tmp_path: Path, encoding: str, ending: str) -> None:
    files = make_folder(tmp_path)
    text = ending.join(f"{path}\t{('anna', 'bob', 'zoë').index(path.split('/')[0])}" for path in files)
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    pack(tmp_path / "list.txt", tmp_path / "set")
    assert [image for image, _ in packed(tmp_path / "set")] == list(files.values())


def test_an_identity_that_is_not_utf_8_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    os.rename(tmp_path / "images/zoë", os.fsencode(tmp_path / "images") + b"/zo\xeb")
    rule = r"class 2: identity name must be UTF-8 text; rename the folder, got b'zo\\xeb'"
    with pytest.raises(DataError, match=rf"images: {rule}"):
        pack(tmp_path / "images", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_skipped_file_that_is_not_utf_8_is_listed(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    (tmp_path / "images/anna" / os.fsdecode(b"\xeb\n.jpg")).write_bytes(b"no image")
    pack(tmp_path / "images", tmp_path / "set", PackOptions(skip_unreadable=True))
    assert (tmp_path / "set/skipped.txt").read_text().startswith("anna/\\xeb\\n.jpg\tnot an image of PNG")


def _with_exif(image: np.ndarray, form: str, how: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = how
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    Image.fromarray(image).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def test_lying_pictures_are_packed_upright(tmp_path: Path) -> None:
    """So that readers who do not look at EXIF see the same as those who do."""
    pixels = decode(jpegs(1)[0][0], "")
    for name, form, how in (("0.jpg", "JPEG", 6), ("1.png", "PNG", 8), ("2.jpg", "JPEG", 1)):
        (tmp_path / "images/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/a" / name).write_bytes(_with_exif(pixels, form, how))
    pack(tmp_path / "images", tmp_path / "set")
    images = [image for image, _ in packed(tmp_path / "set")]
    plain = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int) for image in images]
    assert np.abs(plain[0] - np.rot90(pixels, -1)).mean() < 4
    np.testing.assert_array_equal(plain[1], np.rot90(pixels))
    assert images[2] == (tmp_path / "images/a/2.jpg").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "below a file", "too long", "endless link"])
def test_what_is_no_file_is_a_problem_not_a_wait(tmp_path: Path, kind: str) -> None:
    make_folder(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("link")
    paths = {"pipe": "pipe", "folder": "anna", "device": "/dev/zero", "below a file": "file/x.jpg",
             "too long": "a" * 300, "endless link": "link"}  # fmt: skip
    (tmp_path / "list.txt").write_text(f"{paths[kind]},0\nanna/0.jpg,1\n")
    for size in (None, 32):
        with pytest.raises(PackError, match=rf"^{paths[kind]}: cannot be read: \S"):
            pack(tmp_path / "list.txt", tmp_path / "set", PackOptions(size=size))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pack", "none", "out"), "none: cannot be read: No such file or directory"),
        (("pack", "images", "file"), "file: File exists"),
        (("pack", "images", "file/out"), "file/out: Not a directory"),
        (("pack", "images", "link"), "link: File exists"),
        (("pack", "images", "a" * 300), "File name too long"),
        (("unpack", "none", "out"), "none/property: cannot be read: No such file or directory"),
        (("unpack", "file", "out"), "file/property: cannot be read: Not a directory"),
        (("unpack", "images", "out"), "images/property: is missing"),
        (("pack", "images", "out", "--workers", "-1"), "pack.workers: must be in 1..1024, got -1"),
        (("unpack", "images", "out", "--workers", "-1"), "pack.workers: must be in 1..1024, got -1"),
    ],
)
def test_the_command_says_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    make_folder(tmp_path / "images")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("link")
    before = sorted(tmp_path.rglob("*"))
    assert main([arguments[0], *(str(tmp_path / one) for one in arguments[1:3]), *arguments[3:]]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "packing" not in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_systems_leave_beside_pictures_is_passed_over(tmp_path: Path) -> None:
    files = make_folder(tmp_path / "images")
    for name in ("anna/Thumbs.db", "bob/desktop.ini", "bob/.DS_Store", "__MACOSX/anna/0.jpg", "anna/@eaDir/0.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"no image")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(tmp_path / "images", ".")
    assert pack(tmp_path / "images", tmp_path / "set") == (7, [])
    assert [image for image, _ in packed(tmp_path / "set")] == list(files.values())
    assert {f"{who}/{name}" for who, names in list_images(tmp_path / "images.tar").items() for name in names} == set(
        files
    )


def test_endings_that_browsers_and_windows_give(tmp_path: Path) -> None:
    make_folder(tmp_path / "images")
    for ending in ("JPG", "jfif", "jpe"):
        (tmp_path / f"images/bob/x.{ending}").write_bytes(jpegs(1)[0][0])
    assert pack(tmp_path / "images", tmp_path / "set") == (10, [])
