"""Ways in which files are wrong: what is said, that nothing is written or run, and whether the run stops or goes on.

The tables of docs/errors.md, "What each error means", have a line for each of these, which says what is said. The
ways are in faults_of_*.py; bad_files.py, bad_images.py, bad_archives.py and bad_models.py make the files.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import bad_files as make
from helpers import bad_images, error_table
from helpers.bad_files import RECORD, Fault
from helpers.faults_of_bins import BINS
from helpers.faults_of_folders import FOLDERS_AND_TEXT
from helpers.faults_of_formats import FORMATS
from helpers.faults_of_models import TEACHERS
from helpers.faults_of_records import GOOD, IMAGES, RECORDS
from partialkd.errors import DataError
from partialkd.world.messages import begin

FAULTS = {fault.what: fault for fault in (*RECORDS, *BINS, *TEACHERS, *FOLDERS_AND_TEXT, *FORMATS)}


def _there(folder: Path) -> dict[str, int]:
    """Every file, and its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


def _refused(fault: Fault, folder: Path) -> None:
    action = fault.maker(folder)
    before = _there(folder)
    with pytest.raises(fault.kind, match=fault.says) as caught:
        action()
    assert type(caught.value) is fault.kind
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert _there(folder) == before
    row = error_table.rows()[fault.what]
    assert error_table.says(row, str(caught.value), folder), f"docs/errors.md says {row.says!r}, it is {caught.value}"


def test_there_are_enough() -> None:
    assert len(FAULTS) == len(RECORDS) + len(BINS) + len(TEACHERS) + len(FOLDERS_AND_TEXT) + len(FORMATS)
    assert len(FAULTS) + len(IMAGES) >= 40


def test_the_documented_errors_are_these() -> None:
    then = dict.fromkeys(FAULTS, "stops") | dict.fromkeys(IMAGES, "stops, or goes on")
    assert {what: row.then for what, row in error_table.rows().items()} == then
    good = error_table.PAGE.read_text(encoding="utf-8").rpartition("Odd but good, and read: ")[2].replace("\n", " ")
    assert good.strip() == f"{', '.join(GOOD)}."


def test_a_row_that_says_something_else_is_noticed(tmp_path: Path) -> None:
    row = error_table.Row("train.rec: key 3 at byte 6304: the image is empty", "stops")
    said = f"{tmp_path}/set/train.rec: key 3 at byte 77: the image is empty"
    assert error_table.says(row, said, tmp_path)
    for other in (f"{said}.", said.replace("key 3", "key 4"), said.replace("is empty", "is broken")):
        assert not error_table.says(row, other, tmp_path)
    assert not error_table.says(row._replace(says="the image is ..."), said, tmp_path)
    assert error_table.says(row._replace(says="train.rec: key 3 at byte 1: the ..."), said, tmp_path)
    ours = error_table.Row("r50.pt: cannot be read: it holds objects that are not tensors", "stops")
    assert not error_table.says(ours, "r50.pt: cannot be read: truncated", tmp_path)
    library = error_table.Row("train.rec: broken JPEG: premature end", "stops")
    assert error_table.says(library, "train.rec: broken JPEG: early end", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("what", FAULTS)
def test_it_stops_with_the_file_named_and_nothing_written(what: str, tmp_path: Path) -> None:
    _refused(FAULTS[what], tmp_path)


@pytest.mark.parametrize("what", IMAGES)
def test_an_image_stops_the_run_with_its_record_named(what: str, tmp_path: Path) -> None:
    content, says = IMAGES[what]
    _refused(Fault(what, make.image(content), RECORD + says), tmp_path)


@pytest.mark.parametrize("what", IMAGES)
def test_an_image_is_skipped_where_the_run_is_to_go_on(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin()
    content, says = IMAGES[what]
    batches = make.image(content, on_corrupt="skip")(tmp_path)()
    assert [len(batch.images) for batch in batches] == [2, 2, 2]
    assert 2 not in [record for batch in batches for record in batch.records.tolist()]
    assert re.search(f"warning: rank 0: .*{RECORD}{says}.*; replaced by others", capsys.readouterr().err)


@pytest.mark.parametrize("what", GOOD)
def test_odd_but_good(what: str, tmp_path: Path) -> None:
    batches = GOOD[what](tmp_path)()
    assert sorted(record for batch in batches for record in batch.records.tolist()) == list(range(make.IMAGES))


def test_more_identities_than_float32_counts_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be in 1\.\.16777216 \(labels are float32\), got 16777217"):
        make.pack_records(tmp_path / "set", [(b"x", 0)], (1 << 24) + 1, bad_images.SIZE)
    assert not list(tmp_path.iterdir())
