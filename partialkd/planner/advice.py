"""What to change when a rank has too little memory: single changes, each with what a rank would need then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from partialkd.config import METHODS_WITH_TEACHER, Config, DataConfig, ModelConfig, PhaseConfig
from partialkd.planner.plan import Plan, Ranks, plan_phase

GB = 10**9


def memory_advice(
    key: str, phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: ModelConfig | None
) -> str:
    """For a rank that ran out of memory: what it was planned to need, its largest items, what would lower it.

    `key`: the phase's name in the configuration.
    """
    plan = plan_phase(phase, data, classes, ranks, teacher)
    items = {**plan.resident, "activations": plan.activations, **plan.needs, "gradients of rows": plan.update}
    largest = sorted(items.items(), key=lambda item: -item[1])[:4]
    changes = [
        f"{change if change.endswith('ranks') else f'{key}.{change}'} ({_size(then.peak)})"
        for change, then in savings(phase, data, classes, ranks, teacher, memory=plan.peak - 1)
    ]
    held = f"the plan for {plan.rows} of {classes} centres a rank is {_size(plan.peak)}: "
    held += ", ".join(f"{name} {_size(size)}" for name, size in largest)
    return f"{held}; any of these lowers it: {', '.join(changes)}" if changes else held


def savings(
    phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: ModelConfig | None, memory: float
) -> Iterator[tuple[str, Plan]]:
    """(what to set, the plan then) for each single change that makes a rank need less.

    The last one is the smallest number of ranks at which `memory` bytes do, or the largest that the batch allows.
    """
    now = plan_phase(phase, data, classes, ranks, teacher).peak
    for change, changed in _changes(phase, ranks.size):
        plan = plan_phase(changed, data, classes, ranks, teacher)
        if plan.peak < now:
            yield change, plan
    size = 2 * ranks.size
    while phase.global_batch % (phase.accumulation * size) == 0:
        plan = plan_phase(phase, data, classes, Ranks(size, ranks.cuda), teacher)
        if plan.peak <= memory or phase.global_batch % (2 * phase.accumulation * size):
            yield f"{size} ranks", plan
            return
        size *= 2


def _changes(phase: PhaseConfig, size: int) -> Iterator[tuple[str, PhaseConfig]]:
    def having(**update: Any) -> PhaseConfig:
        return phase.model_copy(update=update)

    trainable = phase.method.name not in METHODS_WITH_TEACHER
    stores = ("fp32", "bf16") if trainable else ("fp32", "bf16", "int8")
    for store in stores[stores.index(phase.centres.store) + 1 :]:
        yield f'centres.store = "{store}"', having(centres=phase.centres.model_copy(update={"store": store}))
    if trainable and phase.centres.moments == "fp32":
        yield 'centres.moments = "bf16"', having(centres=phase.centres.model_copy(update={"moments": "bf16"}))
    if not phase.model.activation_checkpointing:
        model = phase.model.model_copy(update={"activation_checkpointing": True})
        yield "model.activation_checkpointing = true", having(model=model)
    if phase.global_batch % (2 * phase.accumulation * size) == 0:
        yield f"accumulation = {2 * phase.accumulation}", having(accumulation=2 * phase.accumulation)
    if phase.zero_stage < 2 and size > 1:
        yield "zero_stage = 2", having(zero_stage=2)
    if phase.precision == "fp32":
        yield 'precision = "bf16"', having(precision="bf16")


def phases(config: Config) -> Iterator[tuple[str, PhaseConfig, ModelConfig | None]]:
    """(key, phase, the network of ours that teaches in it) of every phase of a run."""
    if config.teacher.source == "train" and config.teacher.train:
        yield "teacher.train", config.teacher.train, None
    yield "student", config.student, beside_student(config)
    if config.alone:
        yield "alone", config.alone, None


def beside_student(config: Config) -> ModelConfig | None:
    """The network of ours that runs beside the student; None for a foreign one, or kept embeddings."""
    source = config.teacher
    if source.cache is not None or source.source not in ("train", "checkpoint"):
        return None
    return source.train.model if source.source == "train" and source.train else source.model


def _size(size: int) -> str:
    return f"{size / GB:.2f} GB" if size >= 10**7 else f"{size / 10**6:.2f} MB"
