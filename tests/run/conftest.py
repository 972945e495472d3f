"""Fixtures of more than one test file of runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.jobs import job
from helpers.ranks import run
from helpers.started_jobs import alone, made


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over 12 identities, and data in which one is gone and three are new, at other class ids."""
    folder = tmp_path_factory.mktemp("start")
    made(folder)
    shutil.copytree(folder / "data", folder / "more")
    shutil.rmtree(folder / "more" / "person04")
    for name, source in (("anew", "person00"), ("person03b", "person05"), ("zed", "person07")):
        shutil.copytree(folder / "more" / source, folder / "more" / name)
    run(job, 2, alone(folder, "done"))
    return folder
