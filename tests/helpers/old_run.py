"""The run that an earlier commit left half done; tests/run/test_before_the_house.py says what is in it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from helpers.places import TESTS

ARCHIVE = TESTS / "run" / "before_the_house.tar.gz"
RUN = Path("runs", "half")  # below the folder it is unpacked in


def unpack(folder: Path) -> Path:
    """Unpack into a folder -> the run's folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / RUN
