"""A run of arcface_torch taken over: files of 2 and 3 GPUs, gone on with on 1, 2 and 3 ranks, as torch would go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.arcface_torch_files import CLIP, DECAY, MARGIN, MODEL, MOMENTUM, RATES, SCALE, Dense
from helpers.jobs import job, tree
from helpers.ranks import run
from partialkd.checkpoint import newest
from partialkd.checkpoint.load import load
from partialkd.config.load import parse_config
from partialkd.data.images.decode import decode
from partialkd.data.packing.prepare import prepare
from partialkd.data.sources.open import open_source
from partialkd.errors import CheckpointError, ConfigError
from partialkd.run.arcface_torch import check_trains_the_same, read_part, take_over
from partialkd.training.phase_plan import plan_of
from partialkd.world.shard import shard_of
from partialkd.world.world import World

CLASSES, EPOCH, STEPS = 12, 1, 2  # 12 identities of 8 drawings; of the run that is gone on with, 2 more steps
OF_AN_EPOCH = 96 // 24
MOMENTS = {"sgd": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq"]}


def settings_of(folder: Path, optimizer: str) -> dict[str, Any]:
    settings = tree(folder)
    del settings["alone"], settings["evaluate"]
    own = {"name": optimizer, "lr": RATES[optimizer], "weight_decay": DECAY, "clip_norm": CLIP}
    own |= {"momentum": MOMENTUM} if optimizer == "sgd" else {}
    settings["student"] = {
        "model": MODEL.model_dump(exclude_unset=True), "epochs": 3, "global_batch": 24, "freeze_batchnorm": True,
        "method": {"name": "cosface", "scale": SCALE, "margin": MARGIN}, "optimizer": own,
        "schedule": {"name": "constant"}, "max_steps": EPOCH * OF_AN_EPOCH + STEPS,
    }  # fmt: skip
    settings["run"] |= {"log_every": 1, "tensorboard": False, "checkpoint_every": 0}
    return {**settings, "teacher": {"source": "none"}, "dist": {"device": "cpu"}}


def images_of(settings: dict[str, Any], epoch: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole global batch of a step, as one process reads it."""
    config = parse_config(settings)
    source = open_source(config.data)
    plan = plan_of("student", config.student, config, source, World())
    records = plan.indices(epoch, step)
    pixels = np.stack([decode(source.read(int(at))[0], "x") for at in records])
    flipped = np.where(plan.flips(epoch, records)[:, None, None, None], pixels[:, :, ::-1], pixels)
    images = torch.from_numpy(np.ascontiguousarray(flipped)).permute(0, 3, 1, 2).float()
    return (images - 127.5) / 127.5, torch.tensor([source.read(int(at))[1] for at in records])


Files = tuple[Path, dict[str, Any], Dense, list[float]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("arcface"), "sgd")


@pytest.fixture(scope="module")
def files_of_adamw(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("arcface_adamw"), "adamw")


def made(folder: Path, optimizer: str) -> Files:
    """Folder, settings, the state that was saved, and the losses of the steps that follow."""
    settings = settings_of(folder, optimizer)
    prepare(parse_config(settings).data)
    theirs = Dense(CLASSES, optimizer)
    for step in range(OF_AN_EPOCH):
        theirs.step(*images_of(settings, 0, step))
    for gpus in (2, 3):
        theirs.save(folder / f"of_{gpus}", gpus, EPOCH)
    saved = Dense(CLASSES, optimizer)
    saved.network.load_state_dict(theirs.network.state_dict())
    saved.rows.data.copy_(theirs.rows.data)
    return folder, settings, saved, [theirs.step(*images_of(settings, EPOCH, step)) for step in range(STEPS)]


def _take(world: World, settings: dict[str, Any], folder: str) -> str:
    return str(take_over(parse_config(settings), world, Path(folder)))


def named(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {**settings, "run": {**settings["run"], "name": name}}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("gpus", "ranks"), [(2, 1), (3, 2), (2, 3)])
def test_it_goes_on_as_torch_would(gpus: int, ranks: int, files: Files) -> None:
    """Losses of the steps that follow, against a dense reference that kept its own optimiser."""
    goes_on(gpus, ranks, files)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("gpus", "ranks"), [(3, 1), (2, 2)])
def test_with_both_moments_of_adamw_too(gpus: int, ranks: int, files_of_adamw: Files) -> None:
    goes_on(gpus, ranks, files_of_adamw)


def goes_on(gpus: int, ranks: int, files: Files) -> None:
    folder, settings, saved, expected = files
    settings = named(settings, f"of_{gpus}_on_{ranks}")
    path = Path(run(_take, ranks, settings, str(folder / f"of_{gpus}"))[0])
    assert path == newest(folder / "runs" / settings["run"]["name"] / "student" / "checkpoints")
    snapshot = load(path, World(), shard_of(CLASSES, 0, 1), CLASSES)
    first = read_part(folder / f"of_{gpus}" / "checkpoint_gpu_0.pt")
    for place, (name, value) in enumerate(saved.network.named_parameters()):
        assert torch.equal(snapshot.student[f"param.{name}"], value)
        for moment in MOMENTS[settings["student"]["optimizer"]["name"]]:
            theirs = first["state_optimizer"]["state"][place][moment]
            assert torch.equal(snapshot.student[f"moment.{moment}.{name}"], theirs)
    rows = snapshot.centres["unit"] * snapshot.centres["length"][:, None]
    torch.testing.assert_close(rows, saved.rows.detach(), rtol=1e-6, atol=1e-9)
    assert snapshot.progress["epoch"] == EPOCH
    run(job, ranks, settings, "auto")
    lines = (folder / "runs" / settings["run"]["name"] / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses == pytest.approx(expected, rel=2e-5)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_nothing_begun(files: Files, tmp_path: Path) -> None:
    folder, settings, *_ = files
    settings = named(settings, "refused")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "checkpoint_gpu_0.pt").write_bytes((folder / "of_2" / "checkpoint_gpu_0.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"the rows of 12 classes of 16 numbers are wanted; .* hold 6 of 16"):
        take_over(parse_config(settings), World(), tmp_path / "part")
    torch.save({"epoch": 1, "state_dict_backbone": {}}, tmp_path / "part" / "checkpoint_gpu_0.pt")
    with pytest.raises(CheckpointError, match="must hold 'state_dict_softmax_fc', as arcface_torch saves it"):
        take_over(parse_config(settings), World(), tmp_path / "part")
    assert not (folder / "runs" / "refused").exists()


def test_configurations_that_train_something_else_are_refused(files: Files) -> None:
    _, settings, *_ = files
    for key, value in (("ema_decay", 0.9), ("weights", "a.pt")):
        other = {**settings, "student": {**settings["student"], key: value}}
        with pytest.raises(ConfigError, match=rf"student.{key}: must be left out"):
            check_trains_the_same(parse_config(other))


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_nothing_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"epoch": _Trap()}, tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(CheckpointError, match="cannot be read: it holds objects that are not tensors"):
        read_part(tmp_path / "checkpoint_gpu_0.pt")
    assert capsys.readouterr().out == ""
