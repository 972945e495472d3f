"""The network of a run that was stopped, of a checkpoint, of a finished phase: for evaluation and export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.old_run import unpack
from partialkd.checkpoint.folder import read_manifest
from partialkd.checkpoint.network import checkpoint_network, chosen
from partialkd.commands.evaluate import main
from partialkd.commands.export import described
from partialkd.commands.export import main as export
from partialkd.errors import CheckpointError
from partialkd.models.saved import open_model
from partialkd.storage.manifest import MANIFEST, write_manifest
from partialkd.storage.tensor_file import read_tensors

STEP = Path("checkpoints", "step_000000003")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run whose teacher is finished and whose student was stopped at step 3."""
    return unpack(tmp_path)


def test_what_a_path_stands_for(folder: Path) -> None:
    teacher, student = folder / "teacher", folder / "student"
    assert chosen(folder) == student / STEP  # there is no finished one
    assert chosen(folder, phase="teacher") == teacher / "model.safetensors"
    for which in ("last", "3"):
        assert chosen(folder, which, "teacher") == teacher / STEP
    for path in (student / STEP, teacher / "model.safetensors"):
        assert chosen(path) == path


@pytest.mark.parametrize(
    ("place", "which", "rule"),
    [
        ("", "best", "half/student: no checkpoint has a score: run.keep_best was off"),
        ("", "7", "half/student: has checkpoints of steps 3, not of 7"),
        ("", "lats", "half/student: has checkpoints of steps 3, not of lats"),
        ("student", None, "half/student: neither a run folder with a network in student/ nor a checkpoint"),
        ("student/checkpoints/step_000000003", "last", "best, last or a step can be chosen in a run folder only"),
    ],
)
def test_what_cannot_be_chosen(folder: Path, place: str, which: str | None, rule: str) -> None:
    with pytest.raises(CheckpointError, match=f"{rule}$"):
        chosen(folder / place, which)


def test_a_checkpoint_gives_its_network(folder: Path) -> None:
    """Parameters as they are, running statistics averaged over the two ranks that saved."""
    path = folder / "student" / STEP
    network, config, size = checkpoint_network(path)
    state, files = network.state_dict(), read_manifest(path).files
    assert (config.name, config.embedding_dim, size) == ("mobilefacenet_gdc", 8, 32)
    saved = read_tensors(path / "student.safetensors", files["student.safetensors"])
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, saved[f"param.{name}"])
    ranks = [read_tensors(path / name, files[name]) for name in ("local/00000.safetensors", "local/00001.safetensors")]
    name = next(key for key in state if key.endswith("running_var"))
    torch.testing.assert_close(state[name], sum(rank[f"buffer.{name}"] for rank in ranks) / 2)
    assert not torch.equal(ranks[0][f"buffer.{name}"], ranks[1][f"buffer.{name}"])
    weights, *_ = described(path)
    assert weights.keys() == state.keys()


def test_an_earlier_checkpoint_apart_from_its_run_is_refused(folder: Path) -> None:
    (folder / "config.toml").unlink()
    with pytest.raises(CheckpointError, match=r"step_000000003: does not say for which images its network is"):
        checkpoint_network(folder / "student" / STEP)


def test_damage_is_named(folder: Path) -> None:
    file = folder / "student" / STEP / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"student\.safetensors: damaged"):
        checkpoint_network(file.parent)


def test_a_stopped_run_is_evaluated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    sets, target = str(tmp_path / "data" / "faces.bin"), tmp_path / "scores.json"
    arguments = ["--sets", sets, "--folds", "2", "--fars", "0.1", "--device", "cpu", "--json", str(target)]
    assert main([str(folder), *arguments]) == 0
    found = json.loads(target.read_text())
    assert found["model"] == str(folder / "student" / STEP)
    assert 0 <= found["sets"]["faces"]["step_000000003"]["accuracy"] <= 1
    assert main([str(folder), "--checkpoint", "best", *arguments]) == 1


def score(checkpoint: Path, score: float, step: int = 3) -> None:
    """Give a checkpoint a score, as `run.keep_best` does."""
    facts = json.loads((checkpoint / MANIFEST).read_bytes())
    del facts["crc32"]
    write_manifest(checkpoint, {**facts, "score": score, "step": step})


@pytest.fixture
def scored(folder: Path) -> Path:
    """The same run with a later, worse checkpoint; lower scores are better."""
    best = folder / "student" / STEP
    later = shutil.copytree(best, best.with_name("step_000000004"))
    score(best, 0.2)
    score(later, 0.7, step=4)
    return folder


def test_the_best_checkpoint_is_evaluated(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert chosen(scored) == chosen(scored, "last") == scored / "student" / "checkpoints" / "step_000000004"
    sets, target = str(tmp_path / "data" / "faces.bin"), tmp_path / "scores.json"
    arguments = ["--sets", sets, "--folds", "2", "--fars", "0.1", "--device", "cpu", "--json", str(target)]
    assert main([str(scored), "--checkpoint", "best", *arguments]) == 0
    assert json.loads(target.read_text())["model"] == str(scored / "student" / STEP)


@pytest.mark.slow
def test_the_best_checkpoint_of_a_stopped_run_is_exported(scored: Path, tmp_path: Path) -> None:
    assert export([str(scored), str(tmp_path / "out"), "--checkpoint", "best"]) == 0
    exported, ours = (
        open_model(tmp_path / "out" / "model.safetensors")[0],
        checkpoint_network(scored / "student" / STEP)[0],
    )
    assert all(torch.equal(x, exported.state_dict()[name]) for name, x in ours.state_dict().items())
    assert (tmp_path / "out" / "model.onnx").is_file()
