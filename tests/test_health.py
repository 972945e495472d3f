"""Numbers gone wrong, put there on purpose: each is found, named, and either ends all ranks or changes nothing."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from partialkd import checkpoint, trainer
from partialkd.centres.shard import shard_of
from partialkd.centres.store import CentreStore
from partialkd.config import Config
from partialkd.config_files import parse_config
from partialkd.data.sources import open_source
from partialkd.dist import World
from partialkd.drift import CentreSweep, bit_sums
from partialkd.errors import PartialKDError
from partialkd.health import Spikes
from partialkd.methods import METHODS
from partialkd.models import build_model
from partialkd.models.teacher import wrap_teacher
from partialkd.stopping import StopSignals

CLASSES, IMAGES, STEPS = 11, 48, 5
METHOD: dict[str, dict[str, Any]] = {
    "arcface": {"name": "arcface", "scale": 16.0},
    "adadistill": {"name": "adadistill", "scale": 16.0, "initial_centres": "exclude"},
}
BAD = 2  # optimiser steps done when the injection comes: the third step is the bad one

Injection = Callable[["Injected", Any], Any]

pytestmark = pytest.mark.distributed


def config_of(
    folder: Path,
    method: str = "arcface",
    health: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    **phase: Any,
) -> Config:
    often = {"log_every": 1, "checkpoint_every": 1}
    tree: dict[str, Any] = {
        "run": {"name": "trial", "folder": str(folder), "tensorboard": False, **often, **(run or {})},
        "data": {
            "source": "synthetic", "path": "none", "image_size": 16, "loader": "jpeg", "workers": 1,
            "synthetic_identities": CLASSES, "synthetic_images": IMAGES,
        },
        "teacher": {"source": "onnx", "path": "none", "embedding_dim": 8},
        "student": {
            "model": {"name": "iresnet18", "embedding_dim": 8, "width": 0.0625, "depth": 0.5},
            "method": METHOD[method], "epochs": 3, "max_steps": STEPS, "global_batch": 12, "optimizer": {"lr": 0.05},
            "schedule": {"name": "constant"}, **phase,
        },
        "health": health or {},
    }  # fmt: skip
    return parse_config(tree)


class Injected(trainer.Trainer):
    """Something is done to it on its last rank: before the micro-step number BAD * accumulation + `late`, and `times`
    micro-steps from there."""

    injection: Injection | None = None
    late = 0
    times = 1
    seen = 0

    def micro_step(self, batch: Any) -> Any:
        due = 0 <= self.seen - BAD * self.phase.accumulation - self.late < self.times
        self.seen += 1
        if due and self.injection and self.world.rank == self.world.size - 1:
            batch = type(self).injection(self, batch) or batch  # type: ignore[misc]
        return super().micro_step(batch)


def make(world: World, config: Config, injection: Injection | None = None, **when: int) -> tuple[Injected, StopSignals]:
    torch.manual_seed(3)
    teacher = wrap_teacher(build_model(config.student.model, 16).eval(), 16, world.device)
    store = CentreStore.random(
        shard_of(CLASSES, world.rank, world.size), CLASSES, 8, torch.float32, world.device, seed=2
    )
    store.skip_unseen = METHODS[config.student.method.name].kind == "ema"
    source, folder, stop = open_source(config.data), Path(config.run.folder) / "student", StopSignals()
    kind = type("Once", (Injected,), {"injection": injection, **when})
    return kind("student", config.student, config, world, source, store, teacher, folder, stop), stop


def train(world: World, config: Config, injection: Injection | None, when: dict[str, int]) -> dict[str, Any]:
    """-> what the run was at its end (student, moments, buffers, centres), and its metrics."""
    one, stop = make(world, config, injection, **when)
    if injection is None and when:
        one.loader.epoch = partial(without, one.loader.epoch, config.student.accumulation)  # type: ignore[method-assign]
    try:
        one.run(False)
        state = {**one.student.state(), **one.student.local_state(), **one.store.state()}
        state = {key: value.clone() for key, value in state.items()}
    finally:
        one.close()
        stop.forget()
    world.barrier()
    lines = (Path(config.run.folder) / "metrics.jsonl").read_text().splitlines()
    return {"state": state, "lines": [json.loads(line) for line in lines]}


def without(epoch: Any, accumulation: int, number: int, first: int = 0) -> Any:
    """The batches of an epoch but for those of the bad step, which is in epoch 0."""
    for place, batch in enumerate(epoch(number, first), start=first):
        if number or place // accumulation != BAD:
            yield batch


def stopped_by(config: Config, size: int, injection: Injection, **when: int) -> str:
    """Train and fail -> the error, which every rank must have raised; no centre took part in it."""
    found = run(caught, size, config, injection, when)
    assert len(set(found)) == 1, found
    problem, finite = found[0]
    assert finite == (injection is not bad_centre)
    return problem


def caught(world: World, config: Config, injection: Injection, when: dict[str, int]) -> tuple[str, bool]:
    one, stop = make(world, config, injection, **when)
    try:
        with pytest.raises(PartialKDError) as error:
            one.run(False)
    finally:
        one.close()
        stop.forget()
    finite = all(bool(value.isfinite().all()) for value in one.store.state().values())
    return str(error.value), all(world.gather_objects(finite))


# -------------------------------------------------------------------------------------------------- injections


def bad_image(one: Injected, batch: Any) -> Any:
    images = batch.images.clone()
    images[1, 0, 3, 4] = float("nan")
    return replace(batch, images=images)


def bad_teacher(one: Injected, batch: Any) -> None:
    assert one.teacher is not None
    real = one.teacher.embed

    def embed(images: Tensor) -> Tensor:
        one.teacher.embed = real
        rows = real(images).clone()
        rows[2, 0] = float("inf")
        return rows

    one.teacher.embed = embed


PARAMETER = "layer3.0.conv1.weight"


class Overflow(torch.autograd.Function):
    """Hands its input on; its gradient is infinite in one place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        gradient.view(-1)[3] = float("inf")
        return gradient


def bad_gradient(one: Injected, batch: Any) -> None:
    """In the middle of the network, on this rank only: everything before it in the backward pass is finite."""
    module = one.student.engine.module.get_submodule(PARAMETER.removesuffix(".weight"))

    def once(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        handle.remove()
        return Overflow.apply(output)

    handle = module.register_forward_hook(once)


def flipped_parameter(one: Injected, batch: Any) -> None:
    parameter = one.student.engine.module.get_parameter(PARAMETER)
    parameter.data.view(-1).view(torch.int32)[5] ^= 1


def other_teacher(one: Injected, batch: Any) -> None:
    """As a network in training mode would, but past torch's own count of writes."""
    assert one.teacher is not None
    next(iter(one.teacher.network.buffers())).data.view(-1)[0] += 1e-3


def bad_centre(one: Injected, batch: Any) -> None:
    one.store.unit[1, 3] = float("inf")


# ------------------------------------------------------------------------------------------------------- stop


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_stop_names_step_rank_records_and_checkpoint(stage: int, tmp_path: Path) -> None:
    """With live BatchNorm one bad image makes all embeddings of its rank NaN; the image is named."""
    problem = stopped_by(config_of(tmp_path, zero_stage=stage), 2, bad_image)
    what = (
        rf"student: loss or gradient of step {BAD + 1} not finite: rank 1: the image of synthetic image \d+; last good"
    )
    assert re.match(what, problem)
    saved = checkpoint.newest(tmp_path / "student" / "checkpoints")
    assert saved is not None
    assert saved.name == f"step_{BAD:09d}"
    assert problem.endswith(f"last good checkpoint: {saved}")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["arcface", "adadistill"])
def test_what_is_found_late_is_told_as_it_was_and_never_saved(method: str, tmp_path: Path) -> None:
    """Stage 0 goes on for some steps, all of them NaN: the first is named, and centres of both kinds stay finite."""
    config = config_of(tmp_path, method, run={"log_every": 50, "checkpoint_every": 0})
    problem = stopped_by(config, 1, bad_image if method == "arcface" else bad_teacher)
    cause = "image" if method == "arcface" else "teacher's embedding"
    assert f"step {BAD + 1} not finite: rank 0: the {cause} of synthetic image" in problem
    assert problem.endswith("last good checkpoint: none yet")
    assert not list((tmp_path / "student").glob("checkpoints/step_*"))


@pytest.mark.slow
def test_a_gradient_that_overflows_names_rank_parameter_and_records(tmp_path: Path) -> None:
    problem = stopped_by(config_of(tmp_path), 3, bad_gradient)
    where = f"rank 2: the gradient of {PARAMETER}, in the backward pass of"
    assert re.search(rf"step {BAD + 1} not finite: {where} synthetic image \d+, synthetic image \d+", problem)


@pytest.mark.slow
def test_a_centre_that_is_not_finite_names_rank_and_class(tmp_path: Path) -> None:
    problem = stopped_by(config_of(tmp_path), 2, bad_centre)  # rank 1 has the classes 6 to 10
    assert f"step {BAD + 1} not finite: rank 1: NaN or infinity in the centres of classes 7;" in problem


# ------------------------------------------------------------------------------------------------------- skip

ADAMW = {"name": "adamw", "lr": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "injection", "when", "phase", "size"),
    [
        ("arcface", "bad_image", {}, {"zero_stage": 0}, 1),
        ("arcface", "bad_gradient", {}, {"zero_stage": 0, "optimizer": ADAMW}, 2),
        ("arcface", "bad_image", {"late": 1}, {"zero_stage": 1, "accumulation": 2, "optimizer": ADAMW}, 2),
        ("adadistill", "bad_teacher", {"late": 1}, {"zero_stage": 2, "accumulation": 2}, 2),
        ("adadistill", "bad_gradient", {}, {"zero_stage": 3}, 2),
    ],
)
def test_skip_leaves_the_step_out(
    method: str, injection: str, when: dict[str, int], phase: dict[str, Any], size: int, tmp_path: Path
) -> None:
    """The run is, bit for bit, the one whose data lack that step's samples: the last micro-step's fault undoes all."""
    health = {"on_nonfinite": "skip"}
    skipped = run(train, size, config_of(tmp_path / "a", method, health, **phase), globals()[injection], when)
    never = run(train, size, config_of(tmp_path / "b", method, health, **phase), None, {"late": 0})
    for a, b in zip(skipped, never, strict=True):
        assert a["state"].keys() == b["state"].keys()
        for key, value in a["state"].items():
            torch.testing.assert_close(value, b["state"][key], rtol=0, atol=0, msg=lambda m, key=key: f"{key}: {m}")
    assert [line["loss"] for line in skipped[0]["lines"]] == [line["loss"] for line in never[0]["lines"]]
    assert [line.get("skipped") for line in skipped[0]["lines"]] == [None] * BAD + [1.0] * (STEPS - BAD)
    assert not any("skipped" in line for line in never[0]["lines"])


@pytest.mark.slow
def test_skipping_is_bounded_also_over_a_resume(tmp_path: Path) -> None:
    health = {"on_nonfinite": "skip", "max_skipped": 2}
    problem = stopped_by(config_of(tmp_path, health=health), 1, bad_image, times=3)
    assert problem.endswith("; health.max_skipped = 2 such steps were left out")
    run(train, 1, config_of(tmp_path / "b", health=health), bad_image, {"times": 2})
    assert run(skipped_after_resume, 1, config_of(tmp_path / "b", health=health)) == [2]


def skipped_after_resume(world: World, config: Config) -> int:
    one, stop = make(world, config)
    one.resume()
    one.close()
    stop.forget()
    return one.health.skipped


# --------------------------------------------------------------------------------------------- what must not move


@pytest.mark.slow
@pytest.mark.parametrize(("size", "who"), [(3, "rank 2 from the other 2"), (2, "2 ranks, no 2 of them alike")])
def test_students_that_drift_apart_are_named(size: int, who: str, tmp_path: Path) -> None:
    """One bit of one parameter. BatchNorm's buffers differ all the while."""
    problem = stopped_by(config_of(tmp_path, health={"check_every": 1}), size, flipped_parameter)
    found = f"student: at step {BAD + 1}: the student's parameters differ between ranks: {who}, first in "
    assert problem.startswith(found)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_students_that_drift_apart_at_stages_1_and_2(stage: int, tmp_path: Path) -> None:
    problem = run(drifted, 2, config_of(tmp_path, zero_stage=stage))[0]
    assert f"2 ranks, no 2 of them alike, first in {PARAMETER}; last good checkpoint: none yet" in problem


def drifted(world: World, config: Config) -> str:
    one, stop = make(world, config)
    one.health.check()
    if world.rank:
        flipped_parameter(one, None)
    with pytest.raises(PartialKDError) as error:
        one.health.check()
    one.close()
    stop.forget()
    return str(error.value)


@pytest.mark.slow
def test_a_teacher_that_changes_is_found(tmp_path: Path) -> None:
    problem = stopped_by(config_of(tmp_path, "adadistill", {"check_every": 1}), 2, other_teacher)
    found = rf"student: at step {BAD + 1}: rank 1: the teacher changed while the student was trained: \S+running_mean; "
    assert re.match(found, problem)


def test_a_shard_that_is_not_finite_is_found_before_it_can_do_harm(tmp_path: Path) -> None:
    first, second = run(spoiled, 2, config_of(tmp_path))
    where = "student: at step 0: rank 1: NaN or infinity in the centres of classes 7; last good checkpoint: none yet"
    assert first == second == [where] * 2


def spoiled(world: World, config: Config) -> list[str]:
    """Found by the look at slices, and by that before saving."""
    one, stop = make(world, config)
    one.health.check(everything=True)
    if world.rank:
        bad_centre(one, None)

    def go_on() -> None:
        for _ in range(config.health.check_every):
            one.student.norm = torch.zeros(())
            one.health.stepped()  # at step 0 each of them looks

    found = []
    for looking in (go_on, one.save):
        with pytest.raises(PartialKDError) as error:
            looking()
        found.append(str(error.value))
    one.close()
    stop.forget()
    return found


def test_every_row_of_a_shard_is_looked_at_in_check_every_steps() -> None:
    for row in range(10):
        store = CentreStore.random(range(20, 30), 40, 4, torch.float32, torch.device("cpu"), 0)
        store.moments["momentum"] = torch.zeros(10, 4)
        sweep = CentreSweep(store, 4)
        for tensor in (store.unit, store.length[:, None], store.moments["momentum"]):
            before = tensor[row].clone()
            assert sweep.problem(everything=False) is None
            tensor[row, -1] = float("nan")
            for _ in range(4):
                sweep.step()
            assert sweep.problem(everything=False) == f"NaN or infinity in the centres of classes {20 + row}"
            assert sweep.problem(everything=True) is not None
            tensor[row] = before


def test_one_bit_changes_the_checksum() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool):
        x = torch.ones(3, 5).to(dtype)
        before = bit_sums([x])
        x[1, 2] = 0
        assert bit_sums([x]) != before


# ------------------------------------------------------------------------------------------------------- alarm


def test_a_spike_is_an_alarm_and_a_drop_is_not() -> None:
    spikes = Spikes(10.0)
    losses = [20.0 + 0.1 * (step % 5) for step in range(12)]
    assert [spikes.look(loss) for loss in losses] == [None] * 12
    assert spikes.look(3.0) is None
    assert spikes.look(22.1) is None  # a deviation counts at least 1 % of the median
    assert "more than 10 deviations above" in (spikes.look(23.0) or "")
    assert spikes.count == 1
    off = Spikes(0.0)
    assert not any(off.look(loss) for loss in [1.0] * 20 + [1e9])
    assert [Spikes(1.0).look(loss) for loss in (1.0, 9.0)] == [None, None]  # too few to compare with


def test_a_spike_is_logged(tmp_path: Path) -> None:
    counters, said = run(logged, 1, config_of(tmp_path, health={"spike_factor": 5.0}))[0]
    assert counters == [{}] * 8 + [{"spikes": 1.0}]
    assert "warning: student: the loss of step 0 is 4, more than 5 deviations above 2" in said


def logged(world: World, config: Config) -> tuple[list[dict[str, float]], str]:
    one, stop = make(world, config)
    with redirect_stderr(io.StringIO()) as said:
        counters = [one.health.logged(loss) for loss in [2.0] * 8 + [4.0]]
    one.close()
    stop.forget()
    return counters, said.getvalue()


# ------------------------------------------------------------------------------------------------------- cost

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")  # what makes a host wait for its device


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_healthy_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    first, second = run(waits, 1, config_of(tmp_path, health={"check_every": 2}))[0]
    assert first == []
    assert "_local_scalar_dense" in second  # the check of every second step does


def waits(world: World, config: Config) -> list[list[str]]:
    one, stop = make(world, config)
    batch = next(iter(one.loader.epoch(0, 0)))
    rows = torch.randn(len(batch), 8)
    one.student.norm = torch.tensor(1.0)
    found = []
    for step in (1, 2):
        one.student.steps = step
        with Waits() as seen:
            one.health.watch(batch, rows, None, torch.tensor(1.0), rows)
            one.health.stepped()
        found.append(seen.found)
    one.close()
    stop.forget()
    return found
