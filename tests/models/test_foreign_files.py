"""Files that people bring as weights: what each is told to be, and which network a state_dict looks like."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from partialkd.config import ModelConfig, TeacherConfig
from partialkd.errors import CheckpointError, TeacherError
from partialkd.models.build import FAMILIES, build_empty
from partialkd.models.recognise import looks_like
from partialkd.models.weights import load_weights, read_weights
from partialkd.teacher.classifier import read_matrix

SQUARE = torch.eye(4)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def exported(path: Path) -> None:
    """As torch.export.save lays it out, without what is in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/archive_format", "pt2")
        archive.writestr("w/models/model.json", "{}")


def holding(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "TorchScript": (scripted, "it is a TorchScript archive, which holds code and is not run: save the module's state"),
    "torch.export": (exported, "it is an archive of torch.export, which is not run"),
    "empty": (holding(b""), "it is empty$"),
    "web page": (holding(b"\n<!DOCTYPE html><html>"), "it is a web page: what was downloaded was not the file itself"),
    "git lfs": (holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "it is a pointer of Git LFS"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_said_to_be_one(kind: str, tmp_path: Path) -> None:
    make, said = FILES[kind]
    make(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=rf"w\.pt: cannot be read as weights: {said}") as weights:
        read_weights(tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=rf"w\.pt: cannot be read: {said}"):
        read_matrix(tmp_path / "w.pt")
    assert "weights_only" not in str(weights.value)  # torch's advice to unpickle whatever is in it


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (SQUARE.to_sparse(), r"sparse \(torch\.sparse_coo\)"),
        (SQUARE.to_sparse_csr(), r"sparse \(torch\.sparse_csr\)"),
        (SQUARE.to("meta"), r"without values \(meta\)"),
        (torch.quantize_per_tensor(SQUARE, 0.1, 0, torch.qint8), r"quantised \(torch\.qint8\)"),
        (SQUARE.to(torch.complex64), r"of complex numbers \(torch\.complex64\)"),
    ],
    ids=["sparse", "csr", "meta", "quantised", "complex"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tensor: Tensor, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"fc.weight": tensor}, path)
    with pytest.raises(CheckpointError, match=rf"w\.pt: 'fc\.weight': must be a dense tensor .*, got one {kind}$"):
        read_weights(path)
    with pytest.raises(TeacherError, match=rf"w\.pt: a classifier is a dense matrix of real numbers, got one {kind}$"):
        read_matrix(path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    """As a quantised network's look whose scales are kept elsewhere."""
    model = build_empty(ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.2), 32).to_empty(device="cpu")
    state = {key: value.to(torch.int8) for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: does not fit the network: \d+ keys of whole numbers: conv1"):
        load_weights(model, tmp_path / "w.pt")


def empty(name: str, image_size: int = 112, **changes: Any) -> dict[str, Tensor]:
    return build_empty(ModelConfig.model_validate({"name": name, **changes}), image_size).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_each_published_network_is_recognised(name: str) -> None:
    assert name in str(looks_like(empty(name), 112)).split(" or ")


def test_what_differs_from_the_published_network_is_said() -> None:
    assert looks_like(empty("iresnet18", embedding_dim=256), 112) == "iresnet18 with embedding_dim = 256"
    assert looks_like(empty("iresnet34", width=0.5), 112) == "iresnet34 of another width or image size"
    assert looks_like(empty("vit_tiny", width=0.5), 112) == "vit_tiny or vit_small of another width or image size"
    assert looks_like({"fc.weight": torch.empty(2, 2)}, 112) is None


def test_weights_of_another_network_say_of_which(tmp_path: Path) -> None:
    state = {key: torch.zeros(x.shape, dtype=x.dtype) for key, x in empty("iresnet18", 32).items()}
    torch.save(state, tmp_path / "r18.pt")
    model = build_empty(ModelConfig(name="iresnet50"), 32)
    with pytest.raises(CheckpointError, match=r"r18\.pt: does not fit the network: .*; it looks like iresnet18$"):
        load_weights(model, tmp_path / "r18.pt")


def test_an_onnx_file_as_a_checkpoint_says_which_source_takes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'source must be "onnx" for a file like t\.onnx, got "checkpoint"'):
        TeacherConfig(source="checkpoint", path="t.onnx")
    with pytest.raises(ValueError, match=r'source must be "checkpoint" for a file like t\.pt, got "onnx"'):
        TeacherConfig(source="onnx", path="t.pt", embedding_dim=8)
    (tmp_path / "t.onnx").write_bytes(b"\x08\x09")
    with pytest.raises(CheckpointError, match=r't\.onnx: cannot be read as weights: .*teacher\.source = "onnx" takes'):
        read_weights(tmp_path / "t.onnx")
