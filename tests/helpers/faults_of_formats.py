"""Ways in which data in other programs' formats are wrong, and what is said of each."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pyarrow

from helpers.bad_files import Action, Fault, Maker
from helpers.format_cases import (
    drawn,
    table,
    write_database,
    write_im2rec,
    write_lmdb,
    write_parquet,
    write_stream,
    write_webdataset,
)
from partialkd.data.formats.arrow_file import parquet_labels
from partialkd.data.packing.verification_sets import build_from_pixels
from partialkd.data.sources.arrow_table import ArrowSource
from partialkd.data.sources.im2rec import Im2recSource
from partialkd.data.sources.lmdb_images import LmdbSource
from partialkd.data.sources.parquet_table import ParquetSource
from partialkd.data.sources.source import Source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.data.sources.webdataset import WebDatasetSource
from partialkd.errors import TeacherError
from partialkd.teacher.npz_embeddings import NpzEmbeddings

IMAGE = drawn(1)[0][0]


def shards(spoil: Callable[[Path], object]) -> Maker:
    """Two shards, the folder of which is spoilt."""

    def make(folder: Path) -> Action:
        place = write_webdataset(folder / "set", drawn())
        spoil(place)
        return lambda: WebDatasetSource(place)

    return make


def _sample(files: dict[str, bytes]) -> Maker:
    """A shard of one sample."""

    def make(folder: Path) -> Action:
        (folder / "set").mkdir()
        with tarfile.open(folder / "set" / "a.tar", "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return lambda: WebDatasetSource(folder / "set" / "a.tar")

    return make


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(change((place / name).read_bytes()))


def database(*records: object, **heads: object) -> Maker:
    """An LMDB of these records, msgpack where they are no bytes."""

    def make(folder: Path) -> Action:
        packed = [one if isinstance(one, bytes) else msgpack.packb(one) for one in records]
        content = {b"%d" % number: one for number, one in enumerate(packed)}
        said = {"keys": list(content), "len": len(content), **heads}
        (folder / "set").mkdir()
        path = write_database(
            folder / "set" / "a.lmdb",
            content | {f"__{name}__".encode(): msgpack.packb(value) for name, value in said.items()},
        )
        return lambda: LmdbSource(path)

    return make


def _cut_database(folder: Path) -> Action:
    (folder / "set").mkdir()
    path = write_lmdb(folder / "set" / "a.lmdb", drawn())
    os.truncate(path, path.stat().st_size - 4096)
    return lambda: LmdbSource(path)


def arrow(content: Callable[[], pyarrow.Table], change: Callable[[bytes], bytes] = lambda b: b) -> Maker:
    def make(folder: Path) -> Action:
        (folder / "set").mkdir()
        path = write_stream(folder / "set" / "a.arrow", content())
        path.write_bytes(change(path.read_bytes()))
        return lambda: ArrowSource(path)

    return make


def _labels(values: list[object]) -> pyarrow.Table:
    return table([(IMAGE, 0)] * len(values)).set_column(0, "label", [values])


def _parquet_without_a_file(folder: Path) -> Action:
    place = write_parquet(folder / "set", drawn())
    (place / "train-00001-of-00002.parquet").unlink()
    return lambda: ParquetSource(place, folder / "cache")


def _cut_parquet(folder: Path) -> Action:
    path = write_parquet(folder / "set", drawn()) / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    return lambda: parquet_labels(path)


def _another_list(folder: Path) -> Action:
    place = write_im2rec(folder / "set", drawn())
    (place / "faces.lst").write_text("".join(f"{key}\t9.0\ta.jpg\n" for key in range(33)))
    return lambda: Im2recSource(place)


def _npz(**arrays: np.ndarray) -> Maker:
    def make(folder: Path) -> Action:
        (folder / "set").mkdir()
        np.savez(folder / "set" / "a.npz", **arrays)
        source: Source = SyntheticSource(2, 4, 16)
        return lambda: NpzEmbeddings(folder / "set" / "a.npz", source)

    return make


def _bcolz(folder: Path) -> Action:
    (folder / "set" / "lfw" / "meta").mkdir(parents=True)
    (folder / "set" / "lfw" / "meta" / "sizes").write_text(json.dumps({"shape": [2, 3, 16, 16]}))
    np.save(folder / "set" / "lfw_list.npy", np.array([True]))
    return lambda: build_from_pixels(folder / "set" / "lfw_list.npy", folder / "set" / "lfw", folder / "lfw.bin")


def _wids(place: Path, *counts: int, before: str = "") -> None:
    shards = [{"url": f"{before}faces-{n:06d}.tar", "nsamples": count} for n, count in enumerate(counts)]
    (place / "index.json").write_text(json.dumps({"wids_version": 1, "shardlist": shards}))


LAST = "faces-000001.tar"
FORMATS = (
    Fault("shard cut inside an image", shards(changed(LAST, lambda b: b[:1800])), r"is cut short: the archive"),
    Fault("shard cut between two files", shards(changed(LAST, lambda b: b[:1024])), r"is cut short: no end mark"),
    Fault("compressed shard", shards(changed(LAST, gzip.compress)), r"is compressed \(gzip\)"),
    Fault("shard of junk", shards(changed(LAST, lambda _: b"junk" * 500)), r"not a tar archive"),
    Fault("sample without a class id", _sample({"a.jpg": IMAGE}), r"sample a: has no class id"),
    Fault("sample without an image", _sample({"a.cls": b"0"}), r"sample a: a sample must have one image"),
    Fault("sample whose class id is a name", _sample({"a.jpg": IMAGE, "a.cls": b"anna"}), r"a\.cls: label must be an"),
    Fault("wids index that disagrees", shards(lambda p: _wids(p, 20, 12)), r"holds 13 samples, its index says 12"),
    Fault("wids index of remote shards", shards(lambda p: _wids(p, 1, before="http://host/")), r"must be local files"),
    Fault("LMDB of pickles", database(pickle.dumps((IMAGE, 0), 4)), r"key 0: is a pickle, which can run commands"),
    Fault("LMDB cut short", _cut_database, r"a\.lmdb: is cut short: it has \d+ bytes of \d+"),
    Fault("LMDB with a record without class id", database([IMAGE]), r"key 0: must be \(encoded image, class id\)"),
    Fault("LMDB with a class id past its classes", database((IMAGE, 2), classnum=2), r"key 0: label must be an"),
    Fault("LMDB without a list of keys", database((IMAGE, 0), keys=None), r"needs the list of keys under __keys__"),
    Fault("Arrow file cut short", arrow(lambda: _labels([0, 1]), lambda b: b[:-8]), r"is cut short: no end mark"),
    Fault("Arrow file with a row without label", arrow(lambda: _labels([0, None])), r"row 1: has no label"),
    Fault("Arrow file whose labels are names", arrow(lambda: _labels(["anna"])), r"labels must be integers"),
    Fault("Parquet file cut short", _cut_parquet, r"parquet: cannot be read: "),
    Fault("Parquet files of which one is missing", _parquet_without_a_file, r"is missing, one of 2 files"),
    Fault("im2rec's list of another file", _another_list, r"faces\.rec: key \d+ at byte \d+: has label"),
    Fault(".npz of another number of images", _npz(embeddings=np.ones((3, 2))), r"each of the 4 images", TeacherError),
    Fault(".npz of objects", _npz(embeddings=np.array([[{}]])), r"array embeddings: cannot be read", TeacherError),
    Fault("verification set in bcolz", _bcolz, r"lfw: is a folder of bcolz, which is not read"),
)
