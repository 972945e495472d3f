"""Teachers from checkpoints open; useless ones and those that do not fit are refused; a real one on real faces."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.places import FACES
from helpers.teacher_cases import CONFIG, CPU, checkpoint, pictures
from partialkd.config import InputConfig, TeacherConfig
from partialkd.data.images.decode import decode
from partialkd.data.images.tensors import to_tensor
from partialkd.errors import TeacherError
from partialkd.models.saved import save_model
from partialkd.teacher.network import open_teacher, wrap_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


# ----------------------------------------------------------------------------------------------- checkpoints


def test_checkpoint_teachers_open(network: nn.Module, tmp_path: Path) -> None:
    expected = network(pictures(3))
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "t.pth")
    save_model(tmp_path / "t.safetensors", network, CONFIG, 32)
    described = TeacherConfig(source="checkpoint", path=str(tmp_path / "t.safetensors"))
    for config in (checkpoint(tmp_path / "t.pth"), checkpoint(tmp_path / "t.safetensors"), described):
        teacher = open_teacher(config, 32, "cpu")
        # The same weights; a product's last bits hang on memory layout and threads, on some processors.
        torch.testing.assert_close(teacher.embed(pictures(3)), expected, rtol=1e-5, atol=1e-6)
        teacher.check(pictures(3))
    assert open_teacher(described, 48, CPU).embed(pictures(2, 48)).shape == (2, 16)  # the file knows its 32 pixels


@pytest.mark.slow
def test_checkpoints_that_do_not_fit_are_refused(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_model(path, network, CONFIG, 32)
    other = CONFIG.model_copy(update={"name": "iresnet18"})
    bare = tmp_path / "bare.safetensors"
    save_file(network.state_dict(), bare)
    cases = [
        (checkpoint(tmp_path / "absent.pt"), "no such file"),
        (checkpoint(path, model=other), "does not fit the network"),
        (checkpoint(path, input=InputConfig(size=64)), "instead of"),
        (checkpoint(path, model=None, input=InputConfig(size=64)), "32 pixels, but teacher.input.size is 64"),
        (checkpoint(path, embedding_dim=32), "teacher.embedding_dim is 32, but the network emits 16"),
        (checkpoint(bare, model=None), "does not describe its network"),
        (TeacherConfig(), "teacher.source must be"),
    ]
    for config, message in cases:
        with pytest.raises(TeacherError, match=message):
            open_teacher(config, 32, CPU)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("output_layer.linear.weight", float("nan"), "2 of 2 embeddings hold NaN or infinity"),
        ("output_layer.linear.weight", float("inf"), "NaN or infinity"),
        ("conv1.bn.weight", 0.0, "same embedding for every image"),
        ("output_layer.linear.weight", 0.0, "same embedding|zeros"),
    ],
)
def test_useless_teachers_are_refused(network: nn.Module, tmp_path: Path, key: str, value: float, message: str) -> None:
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state[key].fill_(value)
    torch.save(state, tmp_path / "t.pt")
    with pytest.raises(TeacherError, match=message):
        open_teacher(checkpoint(tmp_path / "t.pt"), 32, CPU)


class Fragile(nn.Module):
    """Breaks on dark images only."""

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return torch.where(means < -0.9, torch.nan, means)


class Shifting(nn.Module):
    """Emits another dimension for dark images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : 10 if images.amin() < -1 else 4]


def test_check_sees_what_the_data_does_to_the_teacher() -> None:
    fragile = wrap_teacher(Fragile(), 32, CPU)
    fragile.check(pictures(2))
    with pytest.raises(TeacherError, match="1 of 5 embeddings hold NaN"):
        fragile.check(torch.cat([pictures(2), -torch.ones(1, 3, 32, 32)]))
    with pytest.raises(TeacherError, match=r"shape \(3, 4\), got \(3, 10\)"):
        wrap_teacher(Shifting(), 32, CPU).check(-2 * torch.ones(1, 3, 32, 32))
    with pytest.raises(TeacherError, match=r"must emit \(b, D\) embeddings, got \(16, 3, 32, 32\) for 16"):
        wrap_teacher(nn.Identity(), 32, CPU)


# ------------------------------------------------------------------------------------------------ real faces


@pytest.mark.slow
@pytest.mark.faces
def test_real_teacher_tells_real_people_apart() -> None:
    if not (FACES / "sface_128d.onnx").is_file():
        pytest.skip(f"no real faces in {FACES}")
    with (FACES / "lfw_pairs.csv").open() as file:
        pairs = list(csv.DictReader(file))
    same = [pair for pair in pairs if pair["same"] == "1"][:12]
    different = [pair for pair in pairs if pair["same"] == "0"][:12]
    names = sorted({pair[side] for pair in same + different for side in "ab"})
    images = lfw_images(set(names))
    config = TeacherConfig(
        source="onnx",
        path=str(FACES / "sface_128d.onnx"),
        embedding_dim=128,
        input=InputConfig(size=112, mean=0.0, std=1.0),
    )
    teacher = open_teacher(config, 112, CPU)
    batch = to_tensor([decode(images[name], name) for name in names], 112)
    teacher.check(batch[:4])
    rows = dict(zip(names, nn.functional.normalize(teacher.embed(batch)), strict=True))
    scores = [[float(rows[pair["a"]] @ rows[pair["b"]]) for pair in group] for group in (same, different)]
    assert np.mean(scores[0]) > np.mean(scores[1]) + 0.3
    assert sum(high > low for high in scores[0] for low in scores[1]) >= 0.95 * 144


def lfw_images(names: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(FACES / "lfw112.tar.gz") as archive:
        for member in archive:
            key = member.name.removeprefix("./")
            match = next((name for name in (key, key.partition("/")[2]) if name in names), None)
            if match is not None:
                content = archive.extractfile(member)
                assert content is not None
                found[match] = io.BytesIO(content.read()).getvalue()
    return found
