"""Packing from every format, to records and to WebDataset: order, bytes, names, and nothing half-written."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import webdataset
import wids

from helpers.format_cases import CLASSES, SIZE, WRITERS, Images, drawn, table, write_lmdb, write_records
from helpers.places import ROOT
from partialkd.config.data import PartSource
from partialkd.data.packing.pack import PackError, PackOptions, pack
from partialkd.data.sources.insightface import RecordIOSource
from partialkd.data.sources.source import Source
from partialkd.data.sources.webdataset import WebDatasetSource
from partialkd.errors import ConfigError, DataError

IMAGES = drawn()
ALL: dict[str, Callable[[Path, Images], Path]] = {"recordio": write_records, **WRITERS}


def contents(source: Source) -> Images:
    return [source.read(index) for index in range(len(source))]


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_to_records(name: PartSource, tmp_path: Path) -> None:
    path = ALL[name](tmp_path / "set", IMAGES)
    assert pack(path, tmp_path / "out", PackOptions(workers=2), name) == (33, [])
    source = RecordIOSource(tmp_path / "out")
    assert (contents(source), source.num_classes, source.height) == (IMAGES, CLASSES, SIZE)
    assert there(tmp_path / "out") == ["identities.txt", "property", "train.idx", "train.rec"]
    assert set(there(tmp_path)) <= {"out", "set", "set-lock"}
    names = [f"person {label}" if name == "arrow" else str(label) for label in range(CLASSES)]
    assert source.names.known() == names


@pytest.mark.parametrize("name", ALL)
def test_to_webdataset(name: PartSource, tmp_path: Path) -> None:
    """As our source reads it, and webdataset and wids do."""
    path = ALL[name](tmp_path / "set", IMAGES)
    assert pack(path, tmp_path / "out", PackOptions(to="webdataset", shard_images=12), name) == (33, [])
    shards = [f"shard-00000{number}.tar" for number in range(3)]
    assert there(tmp_path / "out") == ["identities.txt", "index.json", *shards]
    for place in (tmp_path / "out", tmp_path / "out" / "index.json"):
        source = WebDatasetSource(place)
        assert (contents(source), source.num_classes) == (IMAGES, CLASSES)
    urls = [str(tmp_path / "out" / shard) for shard in shards]
    plain = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).to_tuple("jpg", "cls")
    assert [(image, int(label)) for image, label in plain] == IMAGES
    indexed = wids.ShardListDataset(
        str(tmp_path / "out" / "index.json"), cache_dir=str(tmp_path / "wids"), keep=True, transformations=[]
    )
    samples = [indexed[index] for index in (0, 11, 12, 32)]
    assert [(s[".jpg"].read(), int(s[".cls"].read())) for s in samples] == [IMAGES[n] for n in (0, 11, 12, 32)]


def test_from_one_to_the_other_and_back(tmp_path: Path) -> None:
    """Class ids that ascend: records with header and identity records, byte for byte the same again."""
    images = sorted(IMAGES, key=lambda item: item[1])
    pack(write_records(tmp_path / "set", images), tmp_path / "a", form="recordio")
    pack(tmp_path / "a", tmp_path / "b", PackOptions(to="webdataset"), "recordio")
    pack(tmp_path / "b", tmp_path / "c", form="webdataset")
    for name in there(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert RecordIOSource(tmp_path / "a").reader.first_header().flags[0] == 2
    pack(tmp_path / "c", tmp_path / "d", PackOptions(to="webdataset"), "recordio")
    assert (tmp_path / "b" / "shard-000000.tar").read_bytes() == (tmp_path / "d" / "shard-000000.tar").read_bytes()
    assert json.loads((tmp_path / "d" / "index.json").read_text())["name"] == "d"


@pytest.mark.parametrize("to", ["rec", "webdataset"])
def test_an_image_that_is_none(to: str, tmp_path: Path) -> None:
    """Named by its record; nothing is written, or it is left out and listed."""
    broken = [*IMAGES[:7], (b"no image", 0), *IMAGES[7:]]
    path = write_lmdb(tmp_path / "set.lmdb", broken)
    before = there(tmp_path)
    with pytest.raises(PackError, match=r"set\.lmdb: key 7: not an image .*\n1 images cannot be packed; nothing was"):
        pack(path, tmp_path / "out", PackOptions(to=to), "lmdb")  # type: ignore[arg-type]
    assert not list((tmp_path / "out").glob("*"))
    assert [name for name in there(tmp_path) if name != "out"] == before
    options = PackOptions(to=to, skip_unreadable=True)  # type: ignore[arg-type]
    count, (problem,) = pack(path, tmp_path / "out", options, "lmdb")
    assert (count, problem.path) == (33, f"{path}: key 7")
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith(f"{path}: key 7\tnot an image")
    source = RecordIOSource(tmp_path / "out") if to == "rec" else WebDatasetSource(tmp_path / "out")
    assert contents(source) == IMAGES


def test_a_source_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(table(IMAGES), path, row_group_size=7)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 500] = bytes(500)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.parquet: cannot be read: "):
        pack(path, tmp_path / "out", form="parquet")
    assert there(tmp_path) == ["set.parquet"]


def test_what_is_there_stays(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "set.lmdb", IMAGES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(DataError, match=r"out: already exists"):
        pack(path, tmp_path / "out", PackOptions(to="webdataset"), "lmdb")
    assert there(tmp_path / "out") == ["mine"]
    with pytest.raises(ConfigError, match=r"pack\.shard_images: must be in 1\.\.1000000000, got 0"):
        PackOptions(shard_images=0)


def test_class_ids_without_images(tmp_path: Path) -> None:
    images = [(image, 3 * (label > 1)) for image, label in IMAGES]
    path = write_lmdb(tmp_path / "set.lmdb", images)
    with pytest.raises(
        DataError, match=r"set\.lmdb: 2 of the class ids 0 to 4 have images, the first without is 1; --"
    ):
        pack(path, tmp_path / "out", form="lmdb")
    pack(path, tmp_path / "kept", PackOptions(gaps="keep"), "lmdb")
    assert contents(RecordIOSource(tmp_path / "kept")) == images
    pack(path, tmp_path / "anew", PackOptions(gaps="renumber"), "lmdb")
    source = RecordIOSource(tmp_path / "anew")
    assert source.labels().tolist() == [label // 3 for _, label in images]
    assert source.names.known() == ["0", "3"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lmdb(tmp_path / "set.lmdb", IMAGES)
    words = ["pack", str(path), str(tmp_path / "out"), "--from", "lmdb", "--to", "webdataset", "--shard-images", "30"]
    monkeypatch.setattr(sys, "argv", ["pack.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "launch" / "pack.py"), run_name="__main__")
    assert ended.value.code in (0, None)
    assert f"33 images packed into {tmp_path}/out, 0 skipped" in capsys.readouterr().out
    assert len(WebDatasetSource(tmp_path / "out").files) == 2
