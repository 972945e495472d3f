"""GhostFaceNetV1 from Keras files: the same embeddings, and what is said of files that are others or broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.keras_ghostfacenets import Drawn, write_h5
from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.models import build_model, load_weights
from partialkd.models.network import Network
from partialkd.models.weights import read_weights

SIZE, DIM = 40, 24  # maps of 40, 20, 10, 5 and 3 places a side, at stride 1
h5py: Any = pytest.importorskip("h5py", reason="needs h5py (the extra keras)")


def network(stride: int, width: float) -> Network:
    name = f"ghostfacenet_v1_s{stride}"
    config = ModelConfig.model_validate({"name": name, "width": width, "embedding_dim": DIM})
    return build_model(config, SIZE).eval()


@pytest.mark.parametrize(
    ("stride", "width", "epsilon", "bias", "whole"), [(1, 0.25, 1e-3, True, True), (2, 0.325, 1e-5, False, False)]
)
def test_embeddings_are_those_of_the_published_definition(
    stride: int, width: float, epsilon: float, bias: bool, whole: bool, tmp_path: Path
) -> None:
    images = torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    published = Drawn(epsilon)
    expected = published.network(images, width, stride, DIM, bias)
    path = write_h5(tmp_path / "w.h5", published.layers, epsilon if whole else None)
    ours = network(stride, width)
    load_weights(ours, path)
    with torch.no_grad():
        found = ours.double()(images.permute(0, 3, 1, 2).double())
    scale = float(expected.std(0).mean())  # by how much images differ
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * scale)


def changed(path: Path, change: Callable[[Any], object]) -> Path:
    made = Drawn(1e-5)
    made.network(torch.zeros(1, SIZE, SIZE, 3), 0.25, 1, DIM, True)
    write_h5(path, made.layers, 1e-5)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def names(group: Any) -> list[str]:
    return [name if isinstance(name, str) else name.decode() for name in group.attrs["layer_names"]]


def without(layer: str) -> Callable[[Any], object]:
    def change(file: Any) -> None:
        group = file["model_weights"]
        group.attrs["layer_names"] = [name.encode() for name in names(group) if name != layer]

    return change


def of_nan(file: Any) -> None:
    file["model_weights/conv2d_3/conv2d_3/kernel:0"][0, 0, 0, 0] = float("nan")


def linked(file: Any) -> None:
    del file["model_weights/GDC_dw"]
    file["model_weights/GDC_dw"] = h5py.ExternalLink("secret.h5", "/w")


def of_keras_3(file: Any) -> None:
    file["model_weights"].attrs["keras_version"] = b"3.1.0"


def of_v2(file: Any) -> None:
    group = file["model_weights"]
    group.copy("conv2d", "stem_conv")
    group["stem_conv"].attrs["weight_names"] = [b"conv2d/kernel:0"]
    group.attrs["layer_names"] = [name.encode() for name in (*names(group), "stem_conv")]


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "no layer": (without("conv2d_7"), "must have 53 layers conv2d with weights, .*, got 52, without conv2d_7$"),
    "no head": (without("GDC_conv"), "has no layer GDC_conv$"),
    "another": (without("GDC_dw"), "must be a GhostFaceNetV1, .*holds a model 'GhostNet', 218 layers .*: conv2d, "),
    "NaN": (of_nan, "conv2d_3/kernel:0: must be finite, holds NaN or infinity$"),
    "a link": (linked, "GDC_dw: must lie in the file itself, got a link to another$"),
    "Keras 3": (of_keras_3, "must be of Keras 2, .*, got Keras 3.1.0$"),
    "V2": (of_v2, "must be a GhostFaceNetV1: V2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_wrong_is_named_with_its_layer(what: str, tmp_path: Path) -> None:
    change, said = WRONG[what]
    with pytest.raises(CheckpointError, match=rf"w\.h5: {said}"):
        read_weights(changed(tmp_path / "w.h5", change))


def test_a_file_cut_short_and_one_of_another_kind(tmp_path: Path) -> None:
    path = changed(tmp_path / "w.h5", lambda file: None)
    os.truncate(path, 9000)
    (tmp_path / "page.h5").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match=r"w\.h5: cannot be read as weights: .*truncated"):
        read_weights(path)
    with pytest.raises(CheckpointError, match=r"page\.h5: cannot be read as weights: it is a web page"):
        read_weights(tmp_path / "page.h5")


def test_a_head_of_another_size(tmp_path: Path) -> None:
    path = changed(tmp_path / "w.h5", lambda file: None)
    config = ModelConfig.model_validate({"name": "ghostfacenet_v1_s1", "width": 0.25, "embedding_dim": 32})
    with pytest.raises(CheckpointError, match=r"w\.h5: does not fit .*features\.0\.weight \(24, 128\) instead of"):
        load_weights(build_model(config, SIZE), path)
