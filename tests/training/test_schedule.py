"""Learning-rate factors against values worked out by hand, and against torch's own schedulers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from partialkd.config import ArcFaceConfig, ModelConfig, PhaseConfig, ScheduleConfig
from partialkd.errors import ConfigError
from partialkd.training.schedule import Schedule


def _schedule(total: int = 100, per_epoch: int = 10, **settings: Any) -> Schedule:
    return Schedule(ScheduleConfig(**settings), per_epoch, total)


def _phase(schedule: ScheduleConfig, epochs: float = 4.0, accumulation: int = 2) -> PhaseConfig:
    return PhaseConfig(
        model=ModelConfig(name="iresnet18"), method=ArcFaceConfig(name="arcface"), schedule=schedule,
        epochs=epochs, global_batch=12, accumulation=accumulation,
    )  # fmt: skip


def test_warmup_never_starts_at_full_rate_and_ends_there() -> None:
    schedule = _schedule(name="constant", warmup_steps=3)
    assert [schedule.factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_poly_by_hand() -> None:
    schedule = _schedule(total=12, name="poly", power=2.0, warmup_steps=2)
    got = [schedule.factor(step) for step in (0, 1, 2, 7, 11, 12, 40)]
    assert got == pytest.approx([1 / 3, 2 / 3, 1.0, 0.25, 0.01, 0.0, 0.0])
    assert _schedule(total=10, name="poly", power=1.0, final=0.5).factor(5) == pytest.approx(0.75)


def test_milestones_in_epochs_and_in_steps_agree() -> None:
    epochs = _schedule(name="step", milestone_epochs=(2, 5), factor=0.1)
    steps = _schedule(name="step", milestone_steps=(20, 50), factor=0.1)
    for step, expected in ((0, 1.0), (19, 1.0), (20, 0.1), (49, 0.1), (50, 0.01), (99, 0.01)):
        assert epochs.factor(step) == pytest.approx(expected)
        assert steps.factor(step) == epochs.factor(step)


@pytest.mark.parametrize("name", ["cosine", "poly", "step"])
def test_agrees_with_torch(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs: Any = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.1),
        "poly": lambda: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=30, power=3.0),
        "step": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5, 20], gamma=0.5),
    }[name]()
    settings: dict[str, Any] = {
        "cosine": {"final": 0.1}, "poly": {"power": 3.0}, "step": {"milestone_steps": (5, 20), "factor": 0.5},
    }[name]  # fmt: skip
    ours = _schedule(total=30, name=name, **settings)
    for step in range(30):
        assert ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["constant", "step", "poly", "cosine"])
def test_factor_stays_in_unit_interval(name: str) -> None:
    schedule = _schedule(name=name, warmup_steps=7, milestone_steps=(30,) if name == "step" else ())
    factors = [schedule.factor(step) for step in range(150)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] == pytest.approx(1 / 8)
    assert all(late <= early + 1e-12 for early, late in pairwise(factors[7:]))


def test_length_counts_optimiser_steps() -> None:
    schedule = Schedule.of_phase(_phase(ScheduleConfig(), epochs=2.5, accumulation=3), micro_steps=31)
    assert (schedule.steps_per_epoch, schedule.total_steps) == (10, 25)
    assert Schedule.of_phase(_phase(ScheduleConfig(), epochs=0.01), micro_steps=10).total_steps == 1


@pytest.mark.parametrize(
    ("schedule", "micro_steps", "message"),
    [
        (
            ScheduleConfig(name="poly", milestone_steps=(3,)),
            10,
            r'alone\.schedule\.milestone_steps: only with .* got "poly"',
        ),
        (ScheduleConfig(name="step"), 10, r"alone\.schedule\.milestone_epochs: .* got none"),
        (
            ScheduleConfig(warmup_steps=20),
            10,
            r"alone\.schedule\.warmup_steps: must be below the 20 steps of the run, got 20",
        ),
        (ScheduleConfig(), 1, r"alone\.global_batch: an epoch must hold at least one global batch, got 12"),
    ],
)
def test_settings_without_effect_are_errors(schedule: ScheduleConfig, micro_steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.of_phase(_phase(schedule), micro_steps, key="alone")
