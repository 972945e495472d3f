"""What to change when a rank has too little memory: single changes, each with what a rank would need then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from partialkd.config import DataConfig, ModelConfig, PhaseConfig
from partialkd.planner.plan import Plan, Ranks, plan_phase

GB = 10**9


def advice(
    phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: ModelConfig | None, memory: float
) -> Iterator[str]:
    """A line for each single change that makes a rank need less: what to set, and what a rank needs then."""

    def line(change: str, plan: Plan) -> str:
        return f"{change}: {plan.peak / GB:.2f} GB a rank{', fits' if plan.peak <= memory else ''}"

    now = plan_phase(phase, data, classes, ranks, teacher).peak
    for change, changed in _changes(phase, ranks.size):
        plan = plan_phase(changed, data, classes, ranks, teacher)
        if plan.peak < now:
            yield line(change, plan)
    size = 2 * ranks.size
    while phase.global_batch % (phase.accumulation * size) == 0:  # the fewest that fit, or the most there can be
        plan = plan_phase(phase, data, classes, Ranks(size, ranks.cuda), teacher)
        if plan.peak <= memory or phase.global_batch % (2 * phase.accumulation * size):
            yield line(f"{size} ranks", plan)
            return
        size *= 2


def _changes(phase: PhaseConfig, size: int) -> Iterator[tuple[str, PhaseConfig]]:
    def having(**update: Any) -> PhaseConfig:
        return phase.model_copy(update=update)

    if phase.centres.store == "fp32":
        yield 'centres.store = "bf16"', having(centres=phase.centres.model_copy(update={"store": "bf16"}))
    if not phase.model.activation_checkpointing:
        model = phase.model.model_copy(update={"activation_checkpointing": True})
        yield "model.activation_checkpointing = true", having(model=model)
    if phase.global_batch % (2 * phase.accumulation * size) == 0:
        yield f"accumulation = {2 * phase.accumulation}", having(accumulation=2 * phase.accumulation)
    if phase.zero_stage < 2 and size > 1:
        yield "zero_stage = 2", having(zero_stage=2)
    if phase.precision == "fp32":
        yield 'precision = "bf16"', having(precision="bf16")
