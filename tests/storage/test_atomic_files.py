"""Files and folders that appear whole or not at all, also on a full disk, and whatever a path turns out to be."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.errors import CheckpointError, StorageError
from partialkd.storage.atomic_files import (
    hidden_name,
    new_folder,
    remove_folder,
    replace_folder,
    replacing,
    write_bytes,
    write_json,
)
from partialkd.storage.manifest import MANIFEST, read_manifest, write_manifest


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file can grow past `size` bytes: as on a full disk, a write fails, and the next one too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [10_000, 1_000_000], ids=["smaller than the buffer", "larger"])
def test_a_full_disk_is_one_error_naming_the_file_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    write_bytes(path, b"good")
    with files_limited_to(4096), pytest.raises(StorageError, match=f"^{path}: cannot be written: File too large$"):
        write_bytes(path, bytes(size))
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_for_the_second_file_leaves_neither(tmp_path: Path) -> None:
    rec, idx = tmp_path / "a.rec", tmp_path / "a.idx"

    def write_both() -> None:
        with replacing(rec, idx) as (first, second):
            first.write(b"short")
            second.write(bytes(10_000))

    with files_limited_to(4096), pytest.raises(StorageError, match=f"^{idx}: cannot be written"):
        write_both()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_bytes, Path.write_bytes])
def test_a_full_disk_leaves_no_half_made_folder(tmp_path: Path, write: Callable[[Path, bytes], None]) -> None:
    said, folder = "faces.*: cannot be written: File too large", tmp_path / "faces"
    with files_limited_to(4096), pytest.raises(StorageError, match=said), new_folder(folder) as hidden:
        write(hidden / "train.rec", bytes(10_000))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", str(tmp_path)], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        (tmp_path / "ballast").write_bytes(bytes(56 << 10))
        with pytest.raises(StorageError, match=r"result\.json: cannot be written: No space left on device"):
            write_json(tmp_path / "result.json", list(range(10_000)))
        assert [path.name for path in tmp_path.iterdir()] == ["ballast"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"absent/a\.json: cannot be written: No such file or directory"):
        write_json(tmp_path / "absent" / "a.json", {})
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken: cannot be written: Is a directory"):
        write_json(tmp_path / "taken", {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_a_killed_process_left_of_a_file_is_swept_up(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    killed = (
        "import os, signal, sys; from pathlib import Path; from partialkd.storage.atomic_files import replacing\n"
        "with replacing(Path(sys.argv[1])) as (stream,):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(path)], cwd=ROOT, check=False)
    assert len(list(tmp_path.glob(".result.json.*.partial"))) == 1
    write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    file, folder = tmp_path / "result.json", tmp_path / "faces"
    file.symlink_to(tmp_path / "disk" / "result.json")
    folder.symlink_to(tmp_path / "disk" / "faces")
    write_json(file, {})
    with new_folder(folder) as hidden:
        assert hidden.parent == tmp_path / "disk"
        (hidden / "a").write_text("1")
    with new_folder(tmp_path / "next") as hidden:
        (hidden / "a").write_text("2")
    replace_folder(tmp_path / "next", folder)
    assert file.is_symlink()
    assert folder.is_symlink()
    assert (tmp_path / "disk" / "result.json").read_text() == "{}\n"
    assert (tmp_path / "disk" / "faces" / "a").read_text() == "2"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["faces", "result.json"]


def test_a_folder_that_cannot_be_published_leaves_the_one_before(tmp_path: Path) -> None:
    with new_folder(tmp_path / "faces") as hidden:
        (hidden / "a").write_text("first")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "faces") as hidden:
        (hidden / "a").write_text("second")
    assert (tmp_path / "faces" / "a").read_text() == "first"
    with pytest.raises(StorageError, match="faces: cannot be written"):
        replace_folder(hidden_name(tmp_path / "faces"), tmp_path / "faces")  # there is nothing to put there
    assert (tmp_path / "faces" / "a").read_text() == "first"
    remove_folder(tmp_path / "faces")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new"), [(b"made", b"mode"), (b"{", b"["), (b"12", b"1" * 5000), (b"{", b"[" * 100_000)]
)
def test_a_damaged_manifest_is_named(tmp_path: Path, old: bytes, new: bytes) -> None:
    facts = {"made_from": {"size": 12}}
    write_manifest(tmp_path, facts)
    assert read_manifest(tmp_path, CheckpointError) == facts
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(CheckpointError, match=f"^{path}: damaged"):
        read_manifest(tmp_path, CheckpointError)


def test_a_manifest_of_an_earlier_version_has_no_checksum(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 1}')
    assert read_manifest(tmp_path, CheckpointError) == {"format": 1}
    with pytest.raises(CheckpointError, match="format must be 2, got 1"):
        read_manifest(tmp_path, CheckpointError, form=2, required=True)
    with pytest.raises(CheckpointError, match=r"damaged: its checksum \(crc32\) is missing"):
        read_manifest(tmp_path, CheckpointError, form=1, required=True)
