"""One small data set in every format that is read, written by the formats' own libraries: the same bytes in each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pyarrow
import pyarrow.parquet
import webdataset

from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.images.encode import encode_jpeg

SIZE, CLASSES = 16, 5
Images = list[tuple[bytes, int]]


def drawn(count: int = 33) -> Images:
    """JPEGs of noise, every class at least once, class ids in no order."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(count) % CLASSES).tolist()
    return [(encode_jpeg(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), 90), label) for label in labels]


def write_records(folder: Path, images: Images) -> Path:
    folder.mkdir()
    (folder / "property").write_text(f"{CLASSES},{SIZE},{SIZE}\n")
    with open_writer(folder / "train.rec", folder / "train.idx") as writer:
        for key, (image, label) in enumerate(images):
            writer.write(key, pack_payload(label, key, image))
    return folder


def write_im2rec(folder: Path, images: Images) -> Path:
    """As MXNet's im2rec: no `property`, no header, records in the order of a shuffled list."""
    folder.mkdir()
    lines = [f"{key}\t{label:f}\tperson {label}/{key}.jpg\n" for key, (_, label) in enumerate(images)]
    (folder / "faces.lst").write_text("".join(np.random.default_rng(0).permutation(lines).tolist()))
    with open_writer(folder / "faces.rec", folder / "faces.idx") as writer:
        for line in (folder / "faces.lst").read_text().splitlines():
            key = int(line.split("\t")[0])
            writer.write(key, pack_payload(float(images[key][1]), key, images[key][0]))
    return folder


def write_webdataset(folder: Path, images: Images) -> Path:
    """Two shards by webdataset's own writer, of which the second keeps class ids in .json."""
    folder.mkdir()
    for shard, part in enumerate((images[:20], images[20:])):
        with webdataset.TarWriter(str(folder / f"faces-{shard:06d}.tar")) as writer:
            for number, (image, label) in enumerate(part):
                labelled = {"json": {"label": label, "other": "é"}} if shard else {"cls": label}
                writer.write({"__key__": f"person {label}/{number:04d}", "jpg": image, **labelled})
    return folder


def write_lmdb(path: Path, images: Images, pack: Callable[[object], bytes] = msgpack.packb) -> Path:
    """As HaiyuWu's imagelist2lmdb.py, in one file."""
    records = {b"%d" % number: pack((image, label)) for number, (image, label) in enumerate(images)}
    heads = {b"__keys__": list(records), b"__len__": len(images), b"__classnum__": CLASSES}
    return write_database(path, records | {key: pack(value) for key, value in heads.items()})


def write_database(path: Path, content: dict[bytes, bytes], subdir: bool = False) -> Path:
    with (
        lmdb.open(str(path), subdir=subdir, map_size=1 << 24, lock=False) as database,
        database.begin(write=True) as to,
    ):
        for key, value in content.items():
            to.put(key, value)
    return path


def table(images: Images, names: list[str] | None = None, paths: list[str] | None = None) -> pyarrow.Table:
    """As `datasets` makes it of the features Image and ClassLabel."""
    structure = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    rows = [{"bytes": image, "path": None} for image, _ in images]
    columns = {"label": pyarrow.array([label for _, label in images]), "image": pyarrow.array(rows, structure)}
    if names is None:
        return pyarrow.table(columns)
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    said = json.dumps({"info": {"features": features}})
    return pyarrow.table(columns).replace_schema_metadata({"huggingface": said})


def write_stream(path: Path, content: pyarrow.Table, rows: int = 5) -> Path:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


def write_arrow(folder: Path, images: Images) -> Path:
    """Two files of a folder as save_to_disk lays it out."""
    folder.mkdir()
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, part in zip(names, (images[:20], images[20:]), strict=True):
        write_stream(folder / name, table(part, [f"person {label}" for label in range(CLASSES)]))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_parquet(folder: Path, images: Images) -> Path:
    folder.mkdir()
    for number, part in enumerate((images[:20], images[20:])):
        pyarrow.parquet.write_table(table(part), folder / f"train-{number:05d}-of-00002.parquet", row_group_size=7)
    return folder


WRITERS: dict[str, Callable[[Path, Images], Path]] = {
    "im2rec": write_im2rec,
    "lmdb": write_lmdb,
    "arrow": write_arrow,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
}
