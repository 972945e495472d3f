"""A teacher cache damaged while it is made or used, or of images decoded otherwise: named, or made anew."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from partialkd.data.images.decode import DECODING
from partialkd.errors import StorageError, TeacherError
from partialkd.teacher.cache import CacheFacts, TeacherCache
from partialkd.teacher.cache_writer import CacheWriter

RECORDS, IDENTITIES, DIM, BLOCK = 96, 12, 16, 20
FACTS = CacheFacts("teacher", "data", {"decoding": DECODING, "size": 32}, RECORDS, IDENTITIES, DIM, "fp16")


def written(folder: Path) -> None:
    """A whole cache of ones."""
    writer = CacheWriter(folder, FACTS, BLOCK)
    writer.begin("refuse")
    for block in writer.missing():
        writer.write_block(block, torch.ones(len(writer.records(block)), 2, DIM), str)
    writer.write_means(range(IDENTITIES), torch.ones(IDENTITIES, DIM))
    writer.finish()


def damaged(name: str, act: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(act((folder / name).read_bytes()))

    return damage


def test_a_cache_cut_while_in_use_is_named_and_kills_nobody(tmp_path: Path) -> None:
    written(tmp_path / "cache")
    cache, plain = TeacherCache(tmp_path / "cache"), torch.zeros(1, dtype=torch.bool)
    for name in ("embeddings.bin", "class_means.bin"):
        os.truncate(tmp_path / "cache" / name, 0)
    with pytest.raises(TeacherError, match=r"embeddings\.bin: must have 6144 bytes, .*got 0: it was changed while in"):
        cache.rows(torch.tensor([95]), plain)
    with pytest.raises(TeacherError, match=r"class_means\.bin: must have 768 bytes, .*got 0: it was changed while in"):
        cache.class_means(range(12))
    with pytest.raises(TeacherError, match=r"class_means\.bin: must have 768 bytes"):
        cache.verify()


UNFINISHED: dict[str, tuple[Any, str]] = {
    "facts cut": (damaged("facts.json", lambda content: content[:-9]), r"facts\.json: damaged: JSONDecodeError"),
    "facts a list": (damaged("facts.json", lambda _: b"[1]"), r"facts\.json: damaged: TypeError"),
    "facts no text": (damaged("facts.json", lambda _: b"\xff\xfe{"), r"facts\.json: damaged: UnicodeDecodeError"),
    "facts too deep": (damaged("facts.json", lambda _: b"[" * 10**5), r"facts\.json: damaged: RecursionError"),
    "facts of another": (
        damaged("facts.json", lambda content: content.replace(b'"fp16"', b'"bf16"')),
        r"an unfinished cache of something else \(different: dtype\)",
    ),
    "blocks cut": (damaged("blocks.bin", lambda content: content[:-4]), r"blocks\.bin: must have 40 bytes, got 36"),
    "blocks gone": (lambda place: (place / "blocks.bin").unlink(), r"blocks\.bin: must have 40 bytes, got no file"),
    "rows cut": (damaged("embeddings.bin", lambda content: content[:-1]), r"embeddings\.bin: must have 6144 bytes"),
    "rows gone": (lambda place: (place / "embeddings.bin").unlink(), r"embeddings\.bin: must have 6144 .*got no file"),
    "means gone": (lambda place: (place / "class_means.bin").unlink(), r"class_means\.bin: must have 768 .*no file"),
}


@pytest.mark.parametrize("damage", UNFINISHED)
def test_a_damaged_unfinished_cache_is_refused_or_begun_anew(damage: str, tmp_path: Path) -> None:
    act, said = UNFINISHED[damage]
    writer = CacheWriter(tmp_path / "cache", FACTS, BLOCK)
    writer.begin("refuse")
    writer.write_block(1, torch.ones(BLOCK, 2, DIM), str)
    writer.begin("resume")
    assert writer.missing() == [0, 2, 3, 4]
    act(writer.place)
    with pytest.raises(TeacherError, match=rf"{said}.*; remove {writer.place}$"):
        writer.begin("resume")
    writer.begin("replace")
    assert writer.missing() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["embeddings.bin", "class_means.bin", "blocks.bin"])
def test_files_that_vanish_while_a_cache_is_made_are_named(name: str, tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", CacheFacts("t", "d", {}, 2, 1, DIM), 2)
    writer.begin("refuse")
    (writer.place / name).unlink()

    def make() -> None:
        writer.write_block(0, torch.ones(2, 2, DIM), str)
        writer.write_means(range(1), writer.read_block(0)[:1, 0])
        writer.finish()

    with pytest.raises(StorageError, match=rf"{name}: cannot be written: No such file"):
        make()
    assert not writer.folder.exists()


def test_a_cache_of_another_decoding_is_refused_and_one_that_does_not_say_is_read(tmp_path: Path) -> None:
    for place, decoding in (("older", {"decoding": DECODING - 1}), ("silent", {})):
        written(tmp_path / place)
        said = json.loads((tmp_path / place / "manifest.json").read_text())
        del said["crc32"], said["made_from"]["preprocessing"]["decoding"]  # as earlier versions wrote it
        said["made_from"]["preprocessing"] |= decoding
        (tmp_path / place / "manifest.json").write_text(json.dumps(said))
    wanted = replace(FACTS, preprocessing={"decoding": DECODING, "size": 32})
    TeacherCache(tmp_path / "silent").check(wanted)
    with pytest.raises(TeacherError, match="was made with another preprocessing of the images"):
        TeacherCache(tmp_path / "older").check(wanted)
