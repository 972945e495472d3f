"""Files that describe themselves: a saved model opens as it was; damage and descriptions without sense are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from helpers.network_cases import ONE_OF_EACH, pictures, small, warmed
from helpers.same_network import assert_same_network
from partialkd.config import ModelConfig
from partialkd.errors import CheckpointError
from partialkd.export.onnx import export
from partialkd.models import build_model
from partialkd.models.saved import describe, open_model, save_model
from partialkd.models.weights import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_saved_model_opens_as_it_was(name: str, tmp_path: Path) -> None:
    config = small(name, channels_last=True)
    model = warmed(config, 48)
    save_model(tmp_path / "deep" / "model.safetensors", model, config, 48)
    state = torch.get_rng_state()
    opened, read_config, size = open_model(tmp_path / "deep" / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)  # opening must not shift a run's random numbers
    assert (read_config, size, opened.training) == (config, 48, False)
    assert_same_network(opened, model, pictures(2, 48))
    assert [p.requires_grad for p in opened.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.safetensors"]


def test_a_saved_model_describes_itself(tmp_path: Path) -> None:
    config = small("vit_tiny")
    save_model(tmp_path / "m.safetensors", build_model(config, 32), config, 32)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["model"]) == config.model_dump()
    rest = {key: value for key, value in metadata.items() if key not in ("model", "crc32")}
    expected = {"format": "partialkd-model-1", "image_size": "32", "mean": "127.5", "std": "127.5", "colour": "rgb"}
    assert rest == expected


@pytest.mark.slow
def test_a_flipped_bit_of_a_saved_model_is_found(tmp_path: Path) -> None:
    """In header or tensors; a flip in the name of the checksum leaves a file without one, and this network."""
    path, config = tmp_path / "m.safetensors", small("mobilefacenet_gdc")
    save_model(path, build_model(config, 32), config, 32)
    content, state = path.read_bytes(), read_weights(path)
    header = 8 + int.from_bytes(content[:8], "little")
    unnoticed = 0
    for place in np.linspace(0, len(content) - 1, 300).astype(int).tolist() + list(range(8, header, 97)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_weights(path)
        except CheckpointError:
            continue
        unnoticed += 1
        assert place < header
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
    assert unnoticed <= len("crc32")
    damaged = bytearray(content)
    damaged[(header + len(content)) // 2] ^= 64
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: damaged: the checksum must be "):
        open_model(path)


def test_a_saved_model_without_checksum_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    path, config = tmp_path / "m.safetensors", small("vit_tiny")
    model = build_model(config, 32).eval()
    save_file(model.state_dict(), path, describe(config, 32))
    assert_same_network(open_model(path)[0], model, pictures(2, 32))


def test_a_network_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    config = ModelConfig(name="mobilefacenet_gdc", width=0.125, depth=0.2, embedding_dim=16)
    model = build_model(config, 32)
    name, variance = next((key, x) for key, x in model.named_buffers() if key.endswith("running_var"))
    variance[0] = torch.inf
    for act in (
        lambda: save_model(tmp_path / "model.safetensors", model, config, 32),
        lambda: export(model.state_dict(), config, 32, tmp_path),
    ):
        with pytest.raises(CheckpointError, match=rf"{tmp_path}\S*: not written: NaN or infinity in {name}$"):
            act()
    assert not list(tmp_path.iterdir())
    save_file(model.state_dict(), tmp_path / "m.safetensors", describe(config, 32))  # an earlier version did
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / 'm.safetensors'}: NaN or infinity in {name}$"):
        open_model(tmp_path / "m.safetensors")


def test_saving_under_a_wrong_description_keeps_the_old_file(tmp_path: Path) -> None:
    path, config = tmp_path / "m.safetensors", small("mobilefacenet_gdc")
    model = build_model(config, 32)
    save_model(path, model, config, 32)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="another shape"):
        save_model(path, model, config, 64)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    "metadata", [None, {"format": "other"}, {"format": "partialkd-model-1", "model": "{}", "image_size": "32"}]
)
def test_files_without_a_description_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: (does not describe|unreadable description)"):
        open_model(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        open_model(tmp_path / "absent.safetensors")
    (tmp_path / "g.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        open_model(tmp_path / "g.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", {"depth": 1e9}), ("model", {"width": 1e300}), ("image_size", "99999999999"), ("image_size", "0")],
)
def test_a_description_without_bounds_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    """Before anything of that size is built: it would take for ever, or all memory."""
    described = describe(small("mobilefacenet_gdc"), 32)
    described[key] = json.dumps({**json.loads(described["model"]), **value}) if key == "model" else value
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", described)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: unreadable description: "):
        open_model(tmp_path / "m.safetensors")
