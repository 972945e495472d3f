"""Records of MXNet's im2rec: with and without index and list, and lists that are those of other files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.format_cases import drawn, write_im2rec
from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.sources.im2rec import Im2recSource
from partialkd.errors import DataError

IMAGES = drawn()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_im2rec(tmp_path / "set", IMAGES)


@pytest.mark.parametrize("name", ["", "faces.rec", "faces.lst", "faces"])
def test_it_is_found_by_any_of_its_names(name: str, folder: Path) -> None:
    assert [Im2recSource(folder / name).read(index) for index in range(33)] == IMAGES


def test_without_an_index_records_are_in_the_order_of_the_file(folder: Path, tmp_path: Path) -> None:
    keys = [int(line.split("\t")[0]) for line in (folder / "faces.lst").read_text().splitlines()]
    (folder / "faces.idx").unlink()
    (folder / "faces.lst").unlink()
    for _ in range(2):  # the second from the cache
        source = Im2recSource(folder, tmp_path / "cache")
        assert [source.read(index) for index in range(33)] == [IMAGES[key] for key in keys]
    content = (folder / "faces.rec").read_bytes()
    for cut, says in ((content[:-9], r"no whole record at byte \d+ \(truncated"), (b"", r"holds no record")):
        (folder / "faces.rec").write_bytes(cut)
        with pytest.raises(DataError, match=rf"faces\.rec: {says}"):
            Im2recSource(folder)


def test_several_labels_and_parts(folder: Path) -> None:
    magic = b"\x0a\x23\xd7\xce"
    with open_writer(folder / "faces.rec", folder / "faces.idx") as writer:
        writer.write(5, pack_payload((1.0, 0.5), 5, b"abcd" + magic + b"efgh"))
        writer.write(9, pack_payload((0.0, 0.5), 9, b"image"))
    (folder / "faces.lst").write_text("9\t0.0\t0.5\ta b.jpg\n5\t1.0\t0.5\tc.jpg\n")
    for index in (True, False):
        if not index:
            (folder / "faces.idx").unlink()
            (folder / "faces.lst").unlink()
        source = Im2recSource(folder)
        assert [source.read(at) for at in range(2)] == [(b"abcd" + magic + b"efgh", 1), (b"image", 0)]


def test_what_im2rec_left_out_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (folder / "faces.lst").open("a") as lst:
        lst.write("77\t2.0\tbroken.jpg\n")
    assert len(Im2recSource(folder)) == 33
    assert "faces.lst: lists 34 images, 33 have a record" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("7\t", "77\t"), r"faces\.rec: key 7 at byte \d+: is not listed in .*faces\.lst; is it the list of another"),
        (("7\t{}.", "7\t9."), r"faces\.rec: key 7 at byte \d+: has label \d, .*faces\.lst says 9; is it the list of"),
        (("7\t{}.", "7\tx."), r"faces\.lst: line \d+: must be number<TAB>label<TAB>path, got '7"),
        (("7\t{}.000000", "7\t0.5"), r"faces\.lst: line \d+: label must be an integer in \[0, 16777216\), got 0\.5"),
    ],
)
def test_a_list_of_another_file(change: tuple[str, str], says: str, folder: Path) -> None:
    old, new = (text.replace("{}", str(IMAGES[7][1])) for text in change)
    lines = (folder / "faces.lst").read_text()
    (folder / "faces.lst").write_text(re.sub(rf"^{old}", new, lines, flags=re.MULTILINE))
    with pytest.raises(DataError, match=says) as caught:
        Im2recSource(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_several(folder: Path) -> None:
    (folder / "more.rec").touch()
    with pytest.raises(DataError, match=r"must hold one \.rec, holds 2; name one: faces\.rec, more\.rec"):
        Im2recSource(folder)
    with pytest.raises(DataError, match=r"other\.rec: cannot be read: No such file"):
        Im2recSource(folder / "other.rec")


def test_a_label_that_is_no_class_id(folder: Path) -> None:
    with open_writer(folder / "faces.rec", folder / "faces.idx") as writer:
        writer.write(0, pack_payload(0.5, 0, b"image"))
    with pytest.raises(DataError, match=r"key 0 at byte 0: label must be an integer in \[0, 16777216\), got 0\.5"):
        Im2recSource(folder)
