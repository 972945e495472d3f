"""One small data set in every format that is read, written by the formats' own libraries: the same bytes in each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import webdataset

from partialkd.data.formats.recordio import open_writer, pack_payload
from partialkd.data.images.decode import encode_jpeg

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


WRITERS: dict[str, Callable[[Path, Images], Path]] = {
    "lmdb": write_lmdb,
    "webdataset": write_webdataset,
}
