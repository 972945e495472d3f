"""The example that compares two photographs: drawn faces pasted into pictures, found by a real detector."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.edge_cases import CONFIG
from helpers.places import FACES, ROOT
from partialkd.commands.evaluate import main as evaluate
from partialkd.commands.model_card import main as publish
from partialkd.data.packing.face_drawing import draw_jpegs
from partialkd.export.base import planes
from partialkd.models import build_model
from partialkd.models.network import Network
from partialkd.models.saved import save_model

YUNET = FACES / "yunet_detector.onnx"
EXAMPLE = ROOT / "examples" / "verify_two_photos.py"


def photograph(path: Path, who: int, side: int, corner: tuple[int, int]) -> Path:
    face = Image.open(io.BytesIO(draw_jpegs(0, 112, [(who, 0)])[0]))
    picture = Image.new("RGB", (400, 300), (90, 110, 130))
    picture.paste(face.resize((side, side)), corner)
    picture.save(path)
    return path


def student() -> Network:
    """Trained for eighty steps to tell thirty drawn people apart: softmax over cosines."""
    torch.manual_seed(0)
    keys = [(who, at) for who in range(100, 130) for at in range(8)]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(face))) for face in draw_jpegs(0, 32, keys)])
    images, labels = torch.from_numpy(planes(pictures)), torch.tensor([who - 100 for who, _ in keys])
    made, centres = build_model(CONFIG, 32), torch.nn.Parameter(torch.randn(30, CONFIG.embedding_dim))
    optimizer = torch.optim.Adam([*made.parameters(), centres], lr=3e-3)
    for _ in range(80):
        batch = torch.randperm(len(keys))[:60]
        cosines = torch.nn.functional.normalize(made(images[batch])) @ torch.nn.functional.normalize(centres).T
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(16 * cosines, labels[batch]).backward()
        optimizer.step()
    return made.eval()


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.slow
@pytest.mark.faces
def test_two_photographs_are_compared(tmp_path: Path) -> None:
    if not YUNET.exists():
        pytest.skip(f"no {YUNET}")
    pytest.importorskip("cv2")
    model, folder = tmp_path / "model.safetensors", tmp_path / "published"
    save_model(model, student(), CONFIG, 32)
    for who in range(12):
        (tmp_path / "set" / f"p{who:02d}").mkdir(parents=True)
        for at, face in enumerate(draw_jpegs(0, 32, [(500 + who, at) for at in range(6)])):
            (tmp_path / "set" / f"p{who:02d}" / f"{at}.jpg").write_bytes(face)
    assert evaluate([str(model), "--all-pairs", str(tmp_path / "set"), "--card", str(tmp_path / "card.json")]) == 0
    assert publish([str(model), str(folder), "--card", str(tmp_path / "card.json")]) == 0
    one = photograph(tmp_path / "one.png", 0, 180, (60, 40))
    again = photograph(tmp_path / "again.png", 0, 210, (120, 60))
    other = photograph(tmp_path / "other.png", 3, 180, (90, 50))
    empty = tmp_path / "empty.png"
    Image.new("RGB", (400, 300), (90, 110, 130)).save(empty)
    assert said(folder, one, again).startswith("same person: cosine 0.")
    assert said(folder, one, other).startswith("not the same person: cosine ")
    assert "empty.png: no face found" in said(folder, one, empty)
    assert said(folder, one, tmp_path / "absent.png").splitlines()[-1].endswith("absent.png'")
    assert "strangers enough for a FAR of [0.001], not for 1e-06" in said(folder, one, other, "--far", "1e-6")


def said(folder: Path, one: Path, other: Path, *options: str) -> str:
    command = [sys.executable, EXAMPLE, folder, YUNET, one, other, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout + done.stderr
