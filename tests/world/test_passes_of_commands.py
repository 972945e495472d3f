"""What takes long says how far it is: here, with nothing too short to be told."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.images.encode import encode_jpeg
from partialkd.data.packing.verification_sets import extract_bin
from partialkd.teacher import classifier
from partialkd.teacher.classifier import own_rows
from partialkd.world import passes


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(passes, "SHORT_S", 0.0)
    caplog.set_level(logging.INFO, logger="partialkd")
    return caplog


def test_taking_a_set_apart(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    faces = [encode_jpeg(np.full((8, 8, 3), level, np.uint8)) for level in range(4)]
    write_bin(tmp_path / "a.bin", faces, [True, False])
    extract_bin(tmp_path / "a.bin", tmp_path / "out")
    assert "reading a.bin: took 0:00:00" in told.text
    assert "writing images: 4 images in 0:00:00" in told.text


def test_reading_a_classifier(tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, which together are the rows of this rank's classes."""
    monkeypatch.setattr(classifier, "AT_ONCE", 2)
    rows = torch.randn(9, 4)
    np.save(tmp_path / "rows.npy", rows.numpy())
    (tmp_path / "map.txt").write_text("".join(f"{label}\n" for label in (3, -1, 0, 6, 2, 1, 7, 5, 4)))
    read = own_rows(
        tmp_path / "rows.npy", str(tmp_path / "map.txt"), range(2, 8), 8, 4, lambda x: x, torch.device("cpu")
    )
    assert read[0].tolist() == [1, 4, 0, 5, 3, 2]
    assert torch.equal(read[1], rows[[0, 3, 4, 6, 7, 8]])
    assert "reading the classifier: 6 rows in" in told.text
