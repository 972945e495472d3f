"""The trainer: resume in the middle of an epoch, the same losses at any world size, signals, what is refused."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ranks import RankFailure, run
from partialkd import checkpoint
from partialkd.centres.store import CentreStore
from partialkd.checkpoint import saver as checkpoint_saver
from partialkd.checkpoint.network import checkpoint_network
from partialkd.checkpoint.snapshot import write_own
from partialkd.config import Config
from partialkd.config.load import parse_config
from partialkd.context import RunContext
from partialkd.data.formats.verification_bin import write_bin
from partialkd.data.sources.open import open_source
from partialkd.data.sources.synthetic import SyntheticSource
from partialkd.errors import DataError, Preempted
from partialkd.models import build_model
from partialkd.teacher.network import wrap_teacher
from partialkd.training import trainer
from partialkd.training.progress import MEASURED
from partialkd.world import stop_signals as stopping
from partialkd.world.shard import shard_of
from partialkd.world.world import World

STEPS, IMAGES, BATCH, CLASSES = 9, 60, 12, 11  # five steps an epoch: nine end in the second
SCHEDULE = {"name": "cosine", "warmup_steps": 2}
METHOD: dict[str, dict[str, Any]] = {
    "arcface": {"name": "arcface", "scale": 16.0},
    "adadistill": {"name": "adadistill", "scale": 16.0, "initial_centres": "exclude"},
    "margindistillation": {"name": "margindistillation", "scale": 16.0},
}

pytestmark = pytest.mark.distributed


def config_of(method: str, folder: Path, **changes: Any) -> Config:
    phase = {
        "model": {"name": "iresnet18", "embedding_dim": 16, "width": 0.125, "depth": 0.5, "dropout": 0.2},
        "method": METHOD[method], "epochs": 2, "max_steps": STEPS, "global_batch": BATCH, "schedule": SCHEDULE,
        "optimizer": {"lr": 0.05}, **changes,
    }  # fmt: skip
    tree: dict[str, Any] = {
        "run": {"name": "trial", "folder": str(folder), "log_every": 1, "tensorboard": False, "keep_checkpoints": 9},
        "data": {
            "source": "synthetic", "path": "none", "image_size": 32, "loader": "jpeg", "workers": 1,
            "synthetic_identities": CLASSES, "synthetic_images": IMAGES,
        },
        "teacher": {"source": "onnx", "path": "none", "embedding_dim": 16},
        "student": phase,
    }  # fmt: skip
    return parse_config(tree)


class Interrupted(trainer.Trainer):
    """Gets a signal, twice, on its last rank, when it has done some steps."""

    def micro_step(self, batch: Any) -> Any:
        if self.student.steps == 6 and self.world.rank == self.world.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().micro_step(batch)


def make_trainer(
    kind: type[trainer.Trainer], world: World, config: Config, stop: stopping.StopSignals, teacher_seed: int = 3
) -> trainer.Trainer:
    torch.manual_seed(teacher_seed)
    teacher = wrap_teacher(build_model(config.student.model, 32).eval(), 32, world.device)
    shard = shard_of(CLASSES, world.rank, world.size)
    averaged = config.student.method.centre_kind == "ema"
    store = CentreStore.random(shard, CLASSES, 16, torch.float32, world.device, seed=2, skip_unseen=averaged)
    context = RunContext(config, world, open_source(config.data), Path(config.run.folder), stop)
    return kind("student", config.student, context, store, teacher)


def train(
    world: World, config: Config, interrupt: bool = False, resume: bool = False, teacher_seed: int = 3
) -> list[dict[str, Any]]:
    """-> the lines of metrics.jsonl; signal handlers are put back."""
    stop = stopping.StopSignals()
    run_ = make_trainer(Interrupted if interrupt else trainer.Trainer, world, config, stop, teacher_seed)
    try:
        if interrupt:
            stopping.HEED_S = 0.0
            with pytest.raises(Preempted, match="saved at step 7"):
                run_.run()
        else:
            run_.run(resume)
    finally:
        stopping.HEED_S = 1.0
        run_.close()
        stop.forget()
    world.barrier()
    return [json.loads(line) for line in (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()]


def same_lines(a: list[dict[str, Any]], b: list[dict[str, Any]], tolerance: float = 0.0) -> None:
    assert [line["step"] for line in a] == list(range(1, STEPS + 1))
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in (key for key in x if not key.startswith(MEASURED)):
            assert x[key] == (
                y[key] if isinstance(x[key], str) else pytest.approx(y[key], abs=tolerance, rel=tolerance)
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("arcface", {"zero_stage": 1, "centres": {"sample_rate": 0.5}}),
        ("arcface", {"accumulation": 2, "optimizer": {"name": "adamw", "lr": 0.01}}),
        ("adadistill", {"zero_stage": 3}),
        ("margindistillation", {"zero_stage": 2, "precision": "bf16"}),
    ],
    ids=["arcface-sampled", "arcface-adamw-accumulated", "adadistill-zero3", "margindistillation-bf16"],
)
def test_resumed_run_is_the_undisturbed_run(method: str, changes: dict[str, Any], tmp_path: Path) -> None:
    straight, broken = config_of(method, tmp_path / "a", **changes), config_of(method, tmp_path / "b", **changes)
    undisturbed = run(train, 2, straight)[0]
    run(train, 2, broken, True)
    resumed = run(train, 2, broken, False, True)[0]
    same_lines(undisturbed, resumed)
    final = [checkpoint.newest(tmp_path / name / "student" / "checkpoints") for name in "ab"]
    assert [path.name for path in final if path] == [f"step_{STEPS:09d}"] * 2
    first, second = (run(_load, 2, path) for path in final)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}")


def _in_the_background(
    world: World, config: Config, kind: type[trainer.Trainer], error: type[Exception] | None
) -> list[str]:
    """Run with a disk that takes its time -> the checkpoints that are there at the very end of `run`."""
    stop, root = stopping.StopSignals(), Path(config.run.folder) / "student" / "checkpoints"
    one = make_trainer(kind, world, config, stop)

    def late(*args: Any) -> Any:
        time.sleep(0.5)
        return write_own(*args)

    stopping.HEED_S = 0.0
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_saver, "write_own", late)
            patch.setattr(checkpoint_saver, "GRACE_S", 10.0 if kind is Failing else 0.0)
            with pytest.raises(error) if error else nullcontext():
                one.run()
            return sorted(path.name for path in checkpoint.complete(root))
    finally:
        stopping.HEED_S = 1.0
        world.barrier()
        one.close()
        stop.forget()


class Failing(trainer.Trainer):
    """Fails while the checkpoint of the step before is being written."""

    def micro_step(self, batch: Any) -> Any:
        if self.student.steps == 4:
            raise DataError("no more")
        return super().micro_step(batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "newest"),
    [(trainer.Trainer, None, STEPS), (Interrupted, Preempted, 7), (Failing, DataError, 4)],
    ids=["end", "preemption", "failure"],
)
def test_the_last_save_in_the_background_is_waited_for(
    kind: type[trainer.Trainer], error: type[Exception] | None, newest: int, tmp_path: Path
) -> None:
    config = config_of("arcface", tmp_path).model_dump(mode="json")
    config["run"] |= {"checkpoint_async": True, "checkpoint_every": 4}
    found = run(_in_the_background, 2, parse_config(config), kind, error)
    assert found[0][-1] == f"step_{newest:09d}"  # rank 0 publishes it


class StoppedAtTheEnd(trainer.Trainer):
    """Gets a signal, on its last rank, when its last step is being scored."""

    def _score(self) -> float | None:
        if self.world.rank == self.world.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super()._score()


def _stopped_and_resumed(world: World, config: Config) -> list[tuple[str, bool]]:
    """-> the checkpoints after a signal in the last scoring, and after the resumed run: their names, whether scored."""
    root, found = Path(config.run.folder) / "student" / "checkpoints", []
    stopping.HEED_S = 0.0
    for kind, end in ((StoppedAtTheEnd, pytest.raises(Preempted, match="saved at step 2, not scored yet")),
                      (trainer.Trainer, nullcontext())):  # fmt: skip
        stop = stopping.StopSignals()
        one = make_trainer(kind, world, config, stop)
        with end:
            trained = one.run(resume=True).state_dict()
            newest = checkpoint.newest(root)
            assert newest is not None
            torch.testing.assert_close(checkpoint_network(newest)[0].state_dict(), trained)
        one.close()
        stop.forget()
        world.barrier()
        found += [(path.name, checkpoint.read_manifest(path).score is not None) for path in checkpoint.complete(root)]
    stopping.HEED_S = 1.0
    return found


@pytest.mark.slow
def test_a_last_step_that_was_not_scored_is_scored_on_resume(tmp_path: Path) -> None:
    images = [SyntheticSource(CLASSES, IMAGES, 32).read(index)[0] for index in range(40)]
    write_bin(tmp_path / "pairs.bin", images, [True, False] * 10)
    config = config_of("arcface", tmp_path, max_steps=2).model_dump(mode="json")
    config["run"]["keep_best"] = True
    config["evaluate"] = {"sets": [str(tmp_path / "pairs.bin")], "folds": 2, "fars": [0.5], "batch": 8}
    found = run(_stopped_and_resumed, 2, parse_config(config))
    assert found[0] == [("step_000000002", False), ("step_000000002-2", True)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]  # nothing was trained twice
    (scored,) = [line for line in lines if "loss" not in line]
    best = checkpoint.best(tmp_path / "student" / "checkpoints")
    assert best is not None
    assert scored["step"] == 2
    assert 1 - scored["accuracy/pairs"] == checkpoint.read_manifest(best).score
    assert {"phase", "epoch", "time", "auc/pairs", "scoring_s"} < scored.keys()


def _load(world: World, path: Path) -> dict[str, torch.Tensor]:
    loaded = checkpoint.load(path, world, shard_of(CLASSES, world.rank, world.size), CLASSES)
    return {**loaded.student, **loaded.local, **loaded.centres}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["arcface", "adadistill", "margindistillation"])
def test_losses_do_not_depend_on_the_world_size(method: str, tmp_path: Path) -> None:
    """With frozen BatchNorm; live BatchNorm normalises per rank."""
    model = {"name": "iresnet18", "embedding_dim": 16, "width": 0.125, "depth": 0.5}
    lines = []
    for size in (1, 2, 3):
        config = config_of(method, tmp_path / str(size), model=model, freeze_batchnorm=True)
        lines.append(run(train, size, config)[0])
    same_lines(lines[0], lines[1], 2e-4)
    same_lines(lines[0], lines[2], 2e-4)
    assert lines[0][0]["loss"] != lines[0][-1]["loss"]


@pytest.mark.slow
def test_first_step_is_not_at_full_rate_and_values_are_logged(tmp_path: Path) -> None:
    lines = run(train, 1, config_of("adadistill", tmp_path))[0]
    assert lines[0]["lr"] == pytest.approx(0.05 / 3)
    assert {"phase", "step", "epoch", "loss", "lr", "images_per_s", "alpha"} <= lines[0].keys()
    assert [line["epoch"] for line in lines] == [0] * 5 + [1] * 4
    assert all(0 <= line["alpha"] <= 1 for line in lines)


@pytest.mark.slow
def _order_of_a_step(world: World, config: Config) -> list[str]:
    """What happens in the first micro-step, of the sending of embeddings and the teacher's forward."""
    stop, done = stopping.StopSignals(), []
    run_ = make_trainer(trainer.Trainer, world, config, stop)
    assert run_.teacher is not None
    send, embed = world.start_all_gather, run_.teacher.embed

    def sending(x: torch.Tensor) -> Any:
        done.append("begun")
        wait = send(x)
        return lambda: (done.append("waited for"), wait())[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "start_all_gather", lambda _, x: sending(x))
        patch.setattr(run_.teacher, "embed", lambda images: (done.append("teacher"), embed(images))[1])
        run_.micro_step(next(iter(run_.loader.epoch(0))))
    run_.close()
    stop.forget()
    return done


def test_embeddings_travel_while_the_teacher_embeds(tmp_path: Path) -> None:
    """Where the centres do not need the teacher's: moving averages do, and theirs travel in the same all_gather."""
    found = run(_order_of_a_step, 1, config_of("margindistillation", tmp_path))[0]
    assert found == ["begun", "teacher", "waited for"]
    assert run(_order_of_a_step, 1, config_of("adadistill", tmp_path))[0] == ["teacher", "begun", "waited for"]


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(train, 1, config_of("arcface", tmp_path, max_steps=1))
    with pytest.raises(RankFailure, match=r"CheckpointError: .*made with global_batch = 12, this run has 6"):
        run(train, 1, config_of("arcface", tmp_path, global_batch=6), False, True)


@pytest.mark.slow
def test_another_teacher_is_refused(tmp_path: Path) -> None:
    config = config_of("adadistill", tmp_path, max_steps=1)
    run(train, 1, config)
    with pytest.raises(RankFailure, match=r"CheckpointError: .*made with teacher = "):
        run(train, 1, config, False, True, 4)


@pytest.mark.slow
def test_a_term_is_learned_logged_and_part_of_the_run(tmp_path: Path) -> None:
    """A method that asks for no teacher, with a term that does: the student comes to look like the teacher."""
    terms = ({"name": "embedding", "distance": "cosine", "weight": 20.0},)
    config = config_of("arcface", tmp_path, terms=terms)
    lines = run(train, 2, config)[0]
    distances = [line["term_0_embedding"] for line in lines]
    assert len(distances) == STEPS
    assert distances[-1] < distances[0] - 0.1
    with pytest.raises(
        RankFailure, match=r"CheckpointError: .*made with terms = \[.*'weight': 20.0.*this run has \[\]"
    ):
        run(train, 2, config_of("arcface", tmp_path), False, True)
