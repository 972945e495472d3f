"""Numbers gone wrong, put there on purpose: each is found, named, and either ends all ranks or changes nothing."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import health_cases
from helpers.health_cases import (
    BAD,
    PARAMETER,
    STEPS,
    bad_centre,
    bad_gradient,
    bad_image,
    bad_teacher,
    bad_variance,
    config_of,
    make,
    stopped_by,
    train,
)
from helpers.ranks import run
from partialkd import checkpoint
from partialkd.config import Config
from partialkd.models.compiled import compile_in_place
from partialkd.training.health import Spikes
from partialkd.training.nonfinite import GradientWatch, MicroStep
from partialkd.world.world import World

pytestmark = pytest.mark.distributed


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
@pytest.mark.parametrize(
    ("size", "phase"),
    [
        (3, {"zero_stage": 0}),
        (2, {"zero_stage": 0, "accumulation": 2}),
        (2, {"zero_stage": 1, "accumulation": 2}),
        (3, {"zero_stage": 2}),
        (2, {"zero_stage": 2, "accumulation": 2}),
        (2, {"zero_stage": 3}),
    ],
    ids=str,
)
def test_a_gradient_that_overflows_names_rank_parameter_and_records(
    size: int, phase: dict[str, Any], tmp_path: Path
) -> None:
    """In the last micro-step of a step."""
    late = phase.get("accumulation", 1) - 1
    problem = stopped_by(config_of(tmp_path, **phase), size, bad_gradient, late=late)
    where = f"rank {size - 1}: the gradient of {PARAMETER}, in the backward pass of"
    assert re.search(rf"step {BAD + 1} not finite: {where} synthetic image \d+, synthetic image \d+", problem)


@pytest.mark.slow
def test_a_centre_that_is_not_finite_names_rank_and_class(tmp_path: Path) -> None:
    problem = stopped_by(config_of(tmp_path), 2, bad_centre)  # rank 1 has the classes 6 to 10
    assert f"step {BAD + 1} not finite: rank 1: NaN or infinity in the centres of classes 7;" in problem


@pytest.mark.slow
def test_running_statistics_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """At the last step of a phase, which a resumed run would load for ever."""
    problem = stopped_by(config_of(tmp_path, max_steps=BAD + 1), 2, bad_variance)
    assert re.fullmatch(rf"rank 1: saving step {BAD + 1}: NaN or infinity in buffer\.\S*running_var", problem)
    newest = checkpoint.newest(tmp_path / "student" / "checkpoints")
    assert newest is not None
    assert newest.name == f"step_{BAD:09d}"


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
        ("arcface", "bad_gradient", {}, {"terms": ({"name": "ekd"},), "data": {"sampler": "pk"}}, 2),
        ("adaface", "bad_gradient", {}, {"zero_stage": 0}, 2),
        ("curricular", "bad_image", {"late": 1}, {"zero_stage": 0, "accumulation": 2}, 2),
    ],
)
def test_skip_leaves_the_step_out(
    method: str, injection: str, when: dict[str, int], phase: dict[str, Any], size: int, tmp_path: Path
) -> None:
    """The run is, bit for bit, the one whose data lack that step's samples: the last micro-step's fault undoes all."""
    health = {"on_nonfinite": "skip"}
    skipped = run(
        train, size, config_of(tmp_path / "a", method, health, **phase), getattr(health_cases, injection), when
    )
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
    rule = "the loss of step 0 is 4, more than 5 deviations above 2, the recent median"
    assert said == [f"WARNING: student: {rule}"]


def logged(world: World, config: Config) -> tuple[list[dict[str, float]], list[str]]:
    one, stop = make(world, config)
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(f"{record.levelname}: {record.getMessage()}")
    logging.getLogger("partialkd").addHandler(handler)
    counters = [one.health.logged(loss) for loss in [2.0] * 8 + [4.0]]
    logging.getLogger("partialkd").removeHandler(handler)
    one.close()
    stop.forget()
    return counters, said


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


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


LAYERS = 75  # 150 parameters


def watched_pass(network: nn.Module, dropped: bool | None) -> tuple[MicroStep, Counter[str]]:
    """Watch a backward pass -> what was kept, and the operations that it took; dropped = None: nothing is watched."""
    kept = MicroStep(torch.zeros(0), torch.zeros(0), [], [])
    watch = GradientWatch(network, dropped) if dropped is not None else None
    loss = network(torch.ones(2, 4)).square().sum()
    with Operations() as seen:
        if watch:
            watch.next_into(kept)
        loss.backward()
        if watch:
            watch.finish()
    if watch:
        watch.close()
    return kept, seen.found


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_measured_in_a_few_calls(dropped: bool) -> None:
    """One for all where gradients stay; a view and its share of a call for each where they are dropped."""
    networks = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(LAYERS))) for _ in range(2)]
    _, before = watched_pass(networks[0], None)
    kept, found = watched_pass(networks[1], dropped)
    few = {"_foreach_norm": 3, "detach": 2 * LAYERS} if dropped else {"_foreach_norm": 1}
    assert found - before == few
    parameters = dict(networks[1].named_parameters())
    assert sorted(kept.names) == sorted(parameters)
    assert {name.split(".")[0] for name in kept.names[:2]} == {str(LAYERS - 1)}
    for name, norm in zip(kept.names, kept.norms, strict=True):
        gradient = parameters[name].grad
        assert gradient is not None
        torch.testing.assert_close(norm, gradient.norm())


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_of_a_compiled_network_are_measured(dropped: bool) -> None:
    network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    network.get_parameter("2.weight").register_hook(lambda gradient: gradient.masked_fill(gradient > -1e9, torch.inf))
    compile_in_place(network, torch.device("cpu"), "student.compile")
    kept, _ = watched_pass(network, dropped)
    assert len(kept.names) == 10
    assert [name for name, norm in zip(kept.names, kept.norms, strict=True) if not norm.isfinite()] == ["2.weight"]


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
