"""LMDBs of images in msgpack: what is read, and what is said of those that no training can use."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from helpers.bad_files import Run
from helpers.format_cases import drawn, write_database, write_lmdb
from partialkd.data.formats import lmdb_file
from partialkd.data.sources.lmdb_images import LmdbSource
from partialkd.errors import ConfigError, DataError

IMAGE = drawn(1)[0][0]


def database(path: Path, changes: dict[bytes, Any], subdir: bool = False) -> Path:
    """Two images of two classes, with other keys than numbers; a change to None leaves a key out."""
    content: dict[bytes, Any] = {
        b"anna": (IMAGE, 0), b"zo\xeb": (IMAGE, 1),
        b"__keys__": [b"zo\xeb", b"anna"], b"__len__": 2, b"__classnum__": 3,
    }  # fmt: skip
    content |= changes
    packed = {key: value if isinstance(value, bytes) else msgpack.packb(value) for key, value in content.items()}
    return write_database(path, {k: v for k, v in packed.items() if content[k] is not None}, subdir)


@pytest.mark.parametrize("subdir", [False, True])
def test_any_keys_in_their_order(subdir: bool, tmp_path: Path) -> None:
    path = database(tmp_path / "set.lmdb", {b"not listed": b"x"}, subdir)
    source = LmdbSource(path, tmp_path / "cache")
    again = LmdbSource(path, tmp_path / "cache")  # open at the same time
    for one in (source, again, pickle.loads(pickle.dumps(source))):
        assert [one.read(index) for index in range(2)] == [(IMAGE, 1), (IMAGE, 0)]
        assert (one.num_classes, one.labels().tolist()) == (3, [1, 0])
    assert source.name(0).endswith(r": key zo\xeb")
    assert source.fingerprint == again.fingerprint


def test_images_in_the_older_msgpack(tmp_path: Path) -> None:
    """Bytes as "raw", before msgpack told bytes from text; the number of classes by the highest class id."""
    old = {key: msgpack.packb((IMAGE, label), use_bin_type=False) for key, label in ((b"anna", 0), (b"zo\xeb", 1))}
    source = LmdbSource(database(tmp_path / "set.lmdb", old | {b"__classnum__": None, b"__len__": None}))
    assert [source.read(index) for index in range(2)] == [(IMAGE, 1), (IMAGE, 0)]
    assert source.num_classes == 2


def test_a_fork_reads_on(tmp_path: Path) -> None:
    images = drawn()
    source = LmdbSource(write_lmdb(tmp_path / "set.lmdb", images))
    child = os.fork()
    if child == 0:
        os._exit(0 if [source.read(index) for index in range(len(images))] == images else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert source.read(3) == images[3]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        LmdbSource(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


WRONG: dict[str, tuple[dict[bytes, Any], str]] = {
    "no list of keys": ({b"__keys__": None}, r"set\.lmdb: needs the list of keys under __keys__, has None there"),
    "keys that are numbers": ({b"__keys__": [0, 1]}, r"needs the list of keys under __keys__, has a list there"),
    "no image": ({b"__keys__": [], b"__len__": 0}, r"set\.lmdb: holds no image"),
    "another length": ({b"__len__": 3}, r"__len__ says 3 images, __keys__ lists 2"),
    "a key without record": ({b"anna": None}, r"key anna: is listed under __keys__, but has no record"),
    "no label": ({b"anna": (IMAGE,)}, r"key anna: must be \(encoded image, class id\), got a list"),
    "a map": ({b"anna": {"image": IMAGE, "label": 0}}, r"key anna: must be \(encoded image, class id\), got a dict"),
    "a path": ({b"anna": ("a.jpg", "b")}, r"key anna: label must be an integer in \[0, 16777216\), got a bytes"),
    "an empty image": ({b"anna": (b"", 0)}, r"key anna: the image is empty"),
    "a label that is none": ({b"anna": (IMAGE, 0.5)}, r"key anna: label must be an integer .*, got 0\.5"),
    "a negative label": ({b"anna": (IMAGE, -1)}, r"key anna: label must be an integer .*, got -1"),
    "a label past the classes": ({b"anna": (IMAGE, 3)}, r"anna: label must be an integer in \[0, 3\), as __classnum__"),
    "no number of classes": ({b"__classnum__": 0}, r"__classnum__ must be a positive number, got 0"),
    "a cut record": ({b"anna": msgpack.packb((IMAGE, 0))[:-9]}, r"key anna: not msgpack: "),
    "text": ({b"anna": b"text"}, r"key anna: not msgpack: "),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_record_that_is_wrong_is_named(what: str, tmp_path: Path) -> None:
    changes, says = WRONG[what]
    assert re.search(says, said := refused(database(tmp_path / "set.lmdb", changes))), said


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_unread(protocol: int, tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "all.lmdb", drawn(), lambda value: pickle.dumps(value, protocol))
    says = r"all\.lmdb: key __keys__: is a pickle, which can run commands and is not read; write it anew with msgpack"
    assert re.search(says, refused(path))
    path = database(tmp_path / "set.lmdb", {b"anna": pickle.dumps(Run(tmp_path), protocol)})
    assert "key anna: is a pickle" in refused(path)
    assert not (tmp_path / "was-run").exists()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    for content in (b"", b"text", bytes(10000), os.urandom(10000)):
        (tmp_path / "set.lmdb").write_bytes(content)
        assert "set.lmdb: not a database of LMDB that can be read: " in refused(tmp_path / "set.lmdb")
    assert re.search(r"data\.mdb: cannot be read: No such file", refused(tmp_path))


def test_a_database_cut_short(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "set.lmdb", drawn())
    size = path.stat().st_size
    shutil.copy(path, tmp_path / "cut.lmdb")
    os.truncate(tmp_path / "cut.lmdb", size - 4096)
    assert f"cut.lmdb: is cut short: it has {size - 4096} bytes of {size}" in refused(tmp_path / "cut.lmdb")
    source = LmdbSource(path)
    os.truncate(path, size // 2)
    with pytest.raises(DataError, match=rf"set\.lmdb: had {size} bytes when it was opened, now it has {size // 2}"):
        source.read(0)


@pytest.mark.parametrize("library", ["lmdb", "msgpack"])
def test_a_missing_library_is_named(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lmdb(tmp_path / "set.lmdb", drawn())
    lmdb_file._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"an LMDB needs {library}: pip install 'partialkd\[formats\]'"):
        LmdbSource(path)
