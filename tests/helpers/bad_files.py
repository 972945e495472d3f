"""Makers of files of data that are wrong, each with the action that meets them; `test_bad_files.py` runs them all.

A maker writes into an empty folder and returns what a user would do with it. Sets of records have six images of two
identities, 32 x 32 pixels, with header and identity records; record 3 is the one that is spoilt.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from partialkd.config import ArchiveConfig, DataConfig
from partialkd.config.load import load_config
from partialkd.data.formats.insightface_folder import pack_records
from partialkd.data.formats.recordio import RecordWriter, open_writer, pack_payload
from partialkd.data.images.decode import encode_jpeg
from partialkd.data.loading.loader import open_loader
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.packing.archive import pack_archive
from partialkd.data.sources.open import open_source
from partialkd.errors import DataError, PartialKDError
from partialkd.training.outlets import drop_later_lines

SIZE, IMAGES, CLASSES = 32, 6, 2
Action = Callable[[], Any]
Maker = Callable[[Path], Action]
RECORD = r"train\.rec: key 3 at byte \d+: "
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fault:
    """What is wrong, how such a file comes about, and what is said."""

    what: str
    maker: Maker
    says: str
    kind: type[PartialKDError] = DataError


class Run:
    """Pickles as a call of os.system that leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / 'was-run'}"

    def __reduce__(self) -> object:
        return os.system, (self.command,)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def file(name: str, content: bytes, read: Callable[[Path], object]) -> Maker:
    """A file of its own, and what reads it."""

    def make(folder: Path) -> Action:
        path = put(folder / name, content)
        return lambda: read(path)

    return make


# ------------------------------------------------------------------------------------------------- images


def picture(number: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(form: str, mode: str = "RGB", size: int = SIZE, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0, size)).convert(mode).save(file, form, **options)
    return file.getvalue()


def lying(number: int, how: int, form: str = "JPEG") -> bytes:
    """A picture with a note in EXIF on how to turn it."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = how
    Image.fromarray(picture(number)).save(file, form, exif=exif)
    return file.getvalue()


def oblong(height: int, width: int) -> bytes:
    return encode_jpeg(np.zeros((height, width, 3), np.uint8))


def many_scans(count: int, side: int = SIZE) -> bytes:
    """A valid progressive JPEG, grey all over, in at most 896 scans: coefficient by coefficient, bit by bit."""
    segment = lambda marker, content: b"\xff" + marker + struct.pack(">H", len(content) + 2) + content
    table = bytes([1, *[0] * 15, 0])  # one code of one bit: nothing follows
    jpeg = b"\xff\xd8" + segment(b"\xdb", b"\0" + b"\1" * 64) + segment(b"\xc4", b"\0" + table + b"\x10" + table)
    jpeg += segment(b"\xc2", b"\x08" + struct.pack(">HH", side, side) + b"\1\1\x11\0")
    coefficients = ((at, bit) for at in range(64) for bit in range(13, -1, -1))
    for (at, bit), _ in zip(coefficients, range(count), strict=False):
        before = 0 if bit == 13 else bit + 1
        jpeg += segment(b"\xda", bytes([1, 1, 0, at, at, before << 4 | bit])) + bytes((((side + 7) // 8) ** 2 + 7) // 8)
    return jpeg + b"\xff\xd9"


def animated(form: str) -> bytes:
    return encoded(form, save_all=True, append_images=[Image.fromarray(picture(1))])


def png(width: int, height: int, data: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = (head, *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    body = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def sized_jpeg(side: int) -> bytes:
    """A JPEG of SIZE x SIZE pixels whose header says another size."""
    jpeg = encoded("JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]


def damaged_middle() -> bytes:
    jpeg = encoded("JPEG", quality=95)
    return jpeg[: len(jpeg) // 2] + bytes(30) + jpeg[len(jpeg) // 2 + 30 :]


def deep() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(0)[..., 0].astype(np.uint16) * 257).save(file, "PNG")
    return file.getvalue()


def transparent() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.dstack([picture(0), picture(1)[..., 0]])).save(file, "PNG")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------- records


def training_set(folder: Path, third: bytes | None = None) -> Path:
    images = [encode_jpeg(picture(number)) for number in range(IMAGES)]
    if third is not None:
        images[2] = third
    pack_records(folder, ((image, number // 3) for number, image in enumerate(images)), CLASSES, SIZE)
    return folder


def train(folder: Path, **settings: Any) -> Action:
    """Open the set and read an epoch."""

    def read() -> object:
        data = DataConfig(path=str(folder), loader="jpeg", image_size=SIZE, **settings)
        source = open_source(data)
        return list(open_loader(data, source, TrainingPlan(len(source), BatchCut(2), seed=0, flip=True), CPU).epoch(0))

    return read


def image(content: bytes, **settings: Any) -> Maker:
    """The image of record 3 is this."""
    return lambda folder: train(training_set(folder / "set", content), **settings)


def spoilt(name: str, change: Callable[[bytes], bytes], **settings: Any) -> Maker:
    """A file of the set is changed."""

    def make(folder: Path) -> Action:
        path = training_set(folder / "set") / name
        path.write_bytes(change(path.read_bytes()))
        return train(folder / "set", **settings)

    return make


def removed(name: str) -> Maker:
    """A file of the set is missing."""

    def make(folder: Path) -> Action:
        (training_set(folder / "set") / name).unlink()
        return train(folder / "set")

    return make


def index_line(key: int, offset: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """In the .idx, another offset for a key."""

    def change(text: bytes) -> bytes:
        pairs = [tuple(map(int, line.split())) for line in text.decode().splitlines()]
        return "".join(f"{k}\t{offset(at) if k == key else at}\n" for k, at in pairs).encode()

    return change


def at_third(change: Callable[[bytearray, int], None]) -> Maker:
    """Bytes of the third image's record in the .rec are changed: (file, where the record begins)."""

    def make(folder: Path) -> Action:
        path = training_set(folder / "set")
        offsets = dict(map(int, line.split()) for line in (path / "train.idx").read_text().splitlines())
        content = bytearray((path / "train.rec").read_bytes())
        change(content, offsets[3])
        (path / "train.rec").write_bytes(content)
        return train(path)

    return make


def word(index: int, value: int) -> Callable[[bytearray, int], None]:
    """Word `index` of a record: 0 the magic number, 1 kind and length, 2 the flag, 3 the label."""
    return lambda content, at: struct.pack_into("<I", content, at + 4 * index, value)


def labels(*values: float | Sequence[float], classes: int = CLASSES) -> Maker:
    """A set without header record with these labels."""

    def make(folder: Path) -> Action:
        put(folder / "set" / "property", f"{classes},{SIZE},{SIZE}")
        with open_writer(folder / "set" / "train.rec", folder / "set" / "train.idx") as writer:
            for key, label in enumerate(values):
                writer.write(key, pack_payload(label, key, encode_jpeg(picture(key))))
        return train(folder / "set")

    return make


def header(first: float, second: float) -> Maker:
    """A header record with these numbers before two images."""

    def make(folder: Path) -> Action:
        put(folder / "set" / "property", f"{CLASSES},{SIZE},{SIZE}")
        with open_writer(folder / "set" / "train.rec", folder / "set" / "train.idx") as writer:
            writer.write(0, pack_payload((first, second), 0))
            for key in (1, 2):
                writer.write(key, pack_payload(key - 1, key, encode_jpeg(picture(key))))
        return train(folder / "set")

    return make


def index_of_another(folder: Path) -> Action:
    """Both are whole; the other has larger images."""
    other = folder / "other"
    pack_records(other, ((encode_jpeg(picture(n, 48)), n // 3) for n in range(IMAGES)), CLASSES, 48)
    path = training_set(folder / "set")
    (path / "train.idx").write_bytes((other / "train.idx").read_bytes())
    return train(path)


def empty_image(folder: Path) -> Action:
    path = training_set(folder / "set")
    with (path / "train.rec").open("ab") as file:
        at, writer = file.tell(), RecordWriter(file)
        writer.write(3, pack_payload(0.0, 3))
    return spoil_index(path, at)


def spoil_index(path: Path, at: int) -> Action:
    index = path / "train.idx"
    index.write_bytes(index_line(3, lambda _: at)(index.read_bytes()))
    return train(path)


# ------------------------------------------------------------------------------------------------- folders, archives


def photographs(change: Callable[[Path], object]) -> Maker:
    """`<identity>/<image>` files, read as they are."""

    def make(folder: Path) -> Action:
        for number in range(IMAGES):
            put(folder / "set" / f"person{number // 3}" / f"{number}.jpg", encode_jpeg(picture(number)))
        change(folder / "set")
        return train(folder / "set", source="folder")

    return make


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def archive(*members: tuple[str, bytes] | tarfile.TarInfo, tail: bytes | None = None) -> Maker:
    """Prepared for training. tail: follows in place of the archive's end."""

    def make(folder: Path) -> Action:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for member in (("anna/1.jpg", encode_jpeg(picture(0))), *members):
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                else:
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    tar.addfile(info, io.BytesIO(member[1]))
            end = tar.offset
        put(folder / "faces.tar", file.getvalue() if tail is None else file.getvalue()[:end] + tail)
        return prepare(folder)

    return make


def compressed_archive(kind: bytes, megabytes: int = 64) -> Maker:
    """A .tar.gz of some kilobytes whose second member has a header of so many megabytes."""

    def make(folder: Path) -> Action:
        with gzip.open(folder / "faces.tar", "wb") as file:
            info, content = tarfile.TarInfo("anna/1.jpg"), encode_jpeg(picture(0))
            info.size = len(content)
            file.write(info.tobuf() + content + bytes(-len(content) % 512))
            file.write(member("././@LongLink", kind, megabytes << 20).tobuf(tarfile.GNU_FORMAT))
            for _ in range(megabytes):
                file.write(bytes(1 << 20))
        return prepare(folder)

    return make


def prepare(folder: Path) -> Action:
    config = ArchiveConfig(kind="archive", images=str(folder / "faces.tar"))
    data = DataConfig(path=str(folder / "made"), image_size=SIZE)
    return lambda: pack_archive(config, data, folder / "made")


def archive_file(content: bytes) -> Maker:
    def make(folder: Path) -> Action:
        put(folder / "faces.tar", content)
        return prepare(folder)

    return make


def member(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, "/etc/passwd" if kind in b"12" else "", size
    return info


# ------------------------------------------------------------------------------------------------- text


def pairs_csv(content: bytes) -> Maker:
    def make(folder: Path) -> Action:
        put(folder / "pairs.csv", content)
        put(folder / "faces" / "anna" / "1.jpg", encode_jpeg(picture(0)))
        faces, pairs = str(folder / "faces"), str(folder / "pairs.csv")
        config = ArchiveConfig(kind="archive", images=faces, pairs_images=faces, pairs=pairs)
        return lambda: pack_archive(config, DataConfig(path=str(folder / "made"), image_size=SIZE), folder / "made")

    return make


def identities_map(content: bytes) -> Maker:
    def make(folder: Path) -> Action:
        put(folder / "map.txt", content)
        return train(training_set(folder / "set"), label_map=str(folder / "map.txt"))

    return make


def config_file(content: bytes) -> Maker:
    return file("run.toml", content, load_config)


def metrics(content: bytes) -> Maker:
    return file("metrics.jsonl", content, lambda path: drop_later_lines(path, "student", 1))
