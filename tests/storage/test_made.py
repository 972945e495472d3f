"""What a killed process leaves where it made a folder: the next one removes it, but nothing that may be in use."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT
from partialkd.errors import DataError
from partialkd.storage import claim
from partialkd.storage.atomic_files import hidden_name
from partialkd.storage.made_folder import make_once

MAKING = """
import sys
from pathlib import Path
from partialkd.storage.made_folder import make_once
def fill(folder, facts):
    (folder / "train.rec").write_bytes(b"half")
    print(folder, flush=True)
    input()
make_once(Path(sys.argv[1]), {}, fill)
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


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder, neighbour = tmp_path / "faces", tmp_path / "faces.2"
    with maker(folder) as (process, left), maker(neighbour) as (_, other):
        assert (left / "train.rec").exists()
        hidden_name(folder)
        assert left.exists()  # it is still being made
        process.kill()
        process.wait()
        make_once(folder, {"kind": "test"}, lambda *_: None)
        assert not left.exists()
        assert other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["faces", other.name, ".faces.2.owner"])
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("same", [True, False])
def test_a_second_job_waits_for_the_first_and_takes_what_is_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, same: bool
) -> None:
    monkeypatch.setattr(claim, "POLL_S", 0.01)
    monkeypatch.setattr(claim, "_log", logging.getLogger("of this test"))
    caplog.set_level("INFO")
    begun, go_on, made = threading.Event(), threading.Event(), []

    def fill(new: Path, facts: dict[str, Any]) -> None:
        begun.set()
        assert go_on.wait(60)
        facts["images"] = 7

    first = threading.Thread(target=lambda: made.append(make_once(tmp_path / "faces", {"seed": 1}, fill)))
    first.start()
    assert begun.wait(60)
    threading.Timer(0.1, go_on.set).start()
    if same:
        assert make_once(tmp_path / "faces", {"seed": 1}, never) == {"images": 7}
    else:
        with pytest.raises(DataError, match=r"was made from other settings; .*: seed is 1 there, 2 here"):
            make_once(tmp_path / "faces", {"seed": 2}, never)
    first.join()
    assert made == [{"images": 7}]
    assert re.search(rf"^{tmp_path}/faces: waiting for process \d+ on .*, which is making it$", caplog.messages[0])
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def never(new: Path, facts: dict[str, Any]) -> None:
    raise AssertionError("made twice")


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
