"""Makers of folders of photographs, archives and lists of pairs that are wrong."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from helpers.bad_files import IMAGES, Action, Maker, put, train
from helpers.bad_images import SIZE, picture
from partialkd.config import ArchiveConfig, DataConfig
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.packing.archive import pack_archive


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


def pairs_csv(content: bytes) -> Maker:
    def make(folder: Path) -> Action:
        put(folder / "pairs.csv", content)
        put(folder / "faces" / "anna" / "1.jpg", encode_jpeg(picture(0)))
        faces, pairs = str(folder / "faces"), str(folder / "pairs.csv")
        config = ArchiveConfig(kind="archive", images=faces, pairs_images=faces, pairs=pairs)
        return lambda: pack_archive(config, DataConfig(path=str(folder / "made"), image_size=SIZE), folder / "made")

    return make
