"""Text as other systems write it: byte order marks, line ends, other forms of one name; what is said of the rest."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from helpers.bad_images import picture
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.name_lookup import NameLookup
from partialkd.data.formats.pair_lists import read_csv, read_pair_list
from partialkd.data.formats.property_file import read_property
from partialkd.data.formats.record_index import read_index
from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.formats.text_file import read_lines, read_text
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.errors import CheckpointError, DataError
from partialkd.models.mxnet.graph import read_graph

LINES = ["anna", "", "zoë \u2028 a line separator is no line end", "  ", "c"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_are_numbered_whatever_ends_them(tmp_path: Path, mark: str, ending: str) -> None:
    (tmp_path / "list.txt").write_bytes((mark + ending.join(LINES)).encode())
    assert read_lines(tmp_path / "list.txt") == [(1, LINES[0]), (3, LINES[2]), (5, LINES[4])]
    assert read_text(tmp_path / "list.txt") == "\n".join(LINES)


def test_indices_and_symbols_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes("\ufeff1\t0\r\n2\t64\r\n".encode())
    keys, offsets = read_index(tmp_path / "a.idx")
    assert (list(keys), offsets.tolist()) == ([1, 2], [0, 64])
    (tmp_path / "a.json").write_bytes("\ufeff{}".encode())
    with pytest.raises(CheckpointError, match=r"a\.json: not an MXNet symbol: KeyError: 'nodes'"):  # JSON it is
        read_graph(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anna\r\nzo\xeb\r\n", "line 2: must be UTF-8 text, got byte 0xeb"),
        (b"anna\nb\0\n", "line 2: must be text, got a zero byte"),
        ("anna".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        (b"\xfe\xff\0a", "is text in UTF-16; save it as UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_text(tmp_path / "list.txt")
    assert str(caught.value) == f"{tmp_path / 'list.txt'}: {message}"


def test_pair_lists_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes("\ufeffa,b,same\r\nx/1.jpg,x/2.jpg,1\r\n".encode())
    assert [(pair.first, pair.same) for pair in read_csv(tmp_path / "pairs.csv")] == [("x/1.jpg", True)]
    (tmp_path / "pairs.txt").write_bytes("\ufeff1\r\nx 1 2\r\nx 1 y 1\r\n".encode())
    assert [pair.where for pair in read_pair_list("lfw", tmp_path / "pairs.txt")] == [
        f"{tmp_path}/pairs.txt: line {number}" for number in (2, 3)
    ]


# ------------------------------------------------------------------------------------------------- names


def test_names_are_found_where_only_one_can_be_meant() -> None:
    zoe = unicodedata.normalize("NFD", "Zoë")
    lookup = NameLookup([zoe, "anna", "Bob", "bob", "carl"])
    assert [lookup.find(name) for name in ("Zoë", "anna", "ANNA/", "carl.jpg", "Bob")] == [
        zoe, "anna", "anna", "carl", "Bob",
    ]  # fmt: skip
    assert [lookup.find(name) for name in ("BOB", "dora\x1b[2J", "")] == [None, None, None]
    assert lookup.counts() == "5 of 8 names found (3 written otherwise)"
    assert lookup.summary(Path("list.txt")) == "list.txt: 5 of 8 names found (3 written otherwise), not 'BOB'"


# ---------------------------------------------------------------------------------------------- property


@pytest.mark.parametrize("text", ["85742,112,96\n", "85742,112,96\n5822653\n", "\ufeff85742, 112, 96\r\nx\r\n"])
def test_the_first_line_of_property_counts(tmp_path: Path, text: str) -> None:
    """InsightFace's RecBuilder writes the number of records behind it."""
    (tmp_path / "property").write_bytes(text.encode())
    assert read_property(tmp_path / "property") == (85742, 112, 96)


def _as_im2rec(folder: Path, labels: list[float], size: int = 32) -> Path:
    """Neither `property` nor a header record."""
    folder.mkdir()
    with open_writer(folder / "train.rec", folder / "train.idx") as writer:
        for key, label in enumerate(labels):
            writer.write(key, pack_payload(label, key, encode_jpeg(picture(key, size))))
    return folder


def test_what_to_write_where_property_is_missing(tmp_path: Path) -> None:
    folder = _as_im2rec(tmp_path / "set", [0, 1, 1, 4])
    with pytest.raises(DataError) as caught:
        RecordIOSource(folder)
    form = "is missing; make it a text file of one line `classes,height,width`"
    assert str(caught.value) == f"{folder}/property: {form}. By its records: `5,32,32`"
    (folder / "property").write_text("5,32,32")
    assert RecordIOSource(folder).labels().tolist() == [0, 1, 1, 4]
    for labels in ([0.5, 1], [-1.0], [float("nan")]):
        with pytest.raises(DataError) as caught:
            RecordIOSource(_as_im2rec(tmp_path / f"set{labels[0]}", labels))
        assert str(caught.value).endswith(form)


def test_where_property_is_missing_in_a_packed_set_its_header_records_do_not_count(tmp_path: Path) -> None:
    pack_records(tmp_path / "set", [(encode_jpeg(picture(0, 24)), 0), (encode_jpeg(picture(1, 24)), 1)], 2, 24)
    (tmp_path / "set/property").unlink()
    with pytest.raises(DataError, match="By its records: `2,24,24`"):
        RecordIOSource(tmp_path / "set")
