"""What a killed process leaves where it made a folder: the next one removes it, but nothing that may be in use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.places import ROOT
from partialkd.storage.atomic_files import hidden_name
from partialkd.storage.made_folder import making

MAKING = """
import sys
from pathlib import Path
from partialkd.storage.made_folder import making
with making(Path(sys.argv[1]), {}) as (folder, facts):
    (folder / "train.rec").write_bytes(b"half")
    print(folder, flush=True)
    input()
"""


@contextmanager
def maker(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process in the middle of making the folder, and where it does so."""
    command = [sys.executable, "-c", MAKING, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder, neighbour = tmp_path / "faces", tmp_path / "faces.2"
    with maker(folder) as (process, left), maker(neighbour) as (_, other):
        assert (left / "train.rec").exists()
        hidden_name(folder)
        assert left.exists()  # it is still being made
        process.kill()
        process.wait()
        with making(folder, {"kind": "test"}):
            assert not left.exists()
        assert other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["faces", other.name])
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_what_may_be_in_use_elsewhere_is_named_and_kept(tmp_path: Path) -> None:
    name = hidden_name(tmp_path / "faces").name
    process, born, _, number = name.removeprefix(".faces.").removesuffix(".partial").split("-")
    elsewhere = tmp_path / f".faces.{process}-{born}-0123456789ab-{number}.partial"
    for path in (elsewhere, tmp_path / ".faces.cache.partial"):  # the second: somebody else's
        path.mkdir()
    with pytest.warns(UserWarning, match=f"{elsewhere.name}: left by an earlier start, of another machine") as said:
        hidden_name(tmp_path / "faces")
    assert len(said) == 1
    assert len(list(tmp_path.iterdir())) == 2
