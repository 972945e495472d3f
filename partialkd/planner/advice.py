"""What to change when a rank has too little memory, with what it would need then, and how many identities fit.

Changes are single ones, and one of two keys: rows that few of a step are sampled of, kept in the host's memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from partialkd.config import Config, DataConfig, ModelConfig, PhaseConfig
from partialkd.planner.plan import Beside, Plan, Ranks, plan_phase

GB = 10**9
STORES = ("fp32", "bf16", "int8")  # from large to small
RATES = (0.3, 0.1)
AT_ONCE = "run.checkpoint_async = false"
WITH = " with "  # between the keys of one change
WORTH = 0.99  # of the peak, at most, is left by a change that is named
Part = TypeVar("Part", bound=BaseModel)


def memory_advice(
    key: str, phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: Beside | None
) -> str:
    """The message for a rank that ran out of memory: what was planned, its largest items, what would lower it.

    `key`: the phase's name in the configuration.
    """
    plan = plan_phase(phase, data, classes, ranks, teacher)
    items = {**plan.resident, "activations": plan.activations, **plan.needs, **plan.update}
    largest = sorted(items.items(), key=lambda item: -item[1])[:4]
    changes = [
        f"{_under(key, change)} ({_size(then.peak)})"
        for change, then in savings(phase, data, classes, ranks, teacher, memory=plan.peak - 1)
    ]
    held = f"the plan for {plan.rows} of {classes} centres a rank is {_size(plan.peak)}: "
    held += ", ".join(f"{name} {_size(size)}" for name, size in largest)
    if plan.host:
        held += f", and {_size(sum(plan.host.values()))} of the host's memory"
        freed = behind_the_step(phase, data, classes, ranks, teacher)
        held += f" ({_size(freed)} less with {AT_ONCE})" if freed else ""
    return f"{held}; any of these lowers it: {', '.join(changes)}" if changes else held


def savings(
    phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: Beside | None, memory: float
) -> Iterator[tuple[str, Plan]]:
    """Changes that are allowed and make a rank need at least 1 % less, each with the plan then.

    The last one is the smallest number of ranks at which `memory` bytes do, or the largest that the batch allows.
    """
    now = plan_phase(phase, data, classes, ranks, teacher).peak
    at_once = plan_phase(phase, data, classes, replace(ranks, checkpoint_async=False), teacher)
    if at_once.peak <= WORTH * now:
        yield AT_ONCE, at_once
    for change, changed in _changes(phase, ranks.size):
        plan = plan_phase(changed, data, classes, ranks, teacher)
        if plan.peak <= WORTH * now:
            yield change, plan
    size = 2 * ranks.size
    while _divides(phase, phase.accumulation * size):
        plan = plan_phase(phase, data, classes, replace(ranks, size=size), teacher)
        if plan.peak <= memory or not _divides(phase, 2 * phase.accumulation * size):
            yield f"{size} ranks", plan
            return
        size *= 2


def behind_the_step(phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: Beside | None) -> int:
    """Bytes of the host's memory that a GPU's rank would not need if it wrote its checkpoints in the step."""
    plans = [plan_phase(phase, data, classes, how, teacher) for how in (ranks, replace(ranks, checkpoint_async=False))]
    return sum(plans[0].host.values()) - sum(plans[1].host.values())


def sampling(
    phase: PhaseConfig, data: DataConfig, classes: int, ranks: Ranks, teacher: Beside | None
) -> Iterator[tuple[str, Plan]]:
    """Lower sample rates with the plan then, where most of a step's products are those of the centres."""
    flops = plan_phase(phase, data, classes, ranks, teacher).flops
    if 2 * flops["centres"] <= sum(flops.values()):
        return
    for rate in RATES:
        if rate < phase.centres.sample_rate:
            changed = _having(phase, "centres.sample_rate", rate)
            yield f"centres.sample_rate = {rate}", plan_phase(changed, data, classes, ranks, teacher)


def identities_that_fit(
    phase: PhaseConfig, data: DataConfig, ranks: Ranks, teacher: Beside | None, memory: float
) -> int:
    """The most identities for which `memory` bytes per rank suffice: a multiple of the ranks, 0 if none does."""

    def fits(rows: int) -> bool:
        return plan_phase(phase, data, rows * ranks.size, ranks, teacher).peak <= memory

    most, too_many = 0, 1
    while fits(too_many):
        most, too_many = too_many, 2 * too_many
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    return most * ranks.size


def _changes(phase: PhaseConfig, size: int) -> Iterator[tuple[str, PhaseConfig]]:
    for values in _values(phase, size):
        changed = phase
        try:
            for key, value in values.items():
                changed = _having(changed, key, value)
        except ValidationError:  # the configuration refuses it beside what else is set
            continue
        yield WITH.join(f"{key} = {json.dumps(value)}" for key, value in values.items()), changed


def _values(phase: PhaseConfig, size: int) -> Iterator[dict[str, str | float]]:
    """Keys that may save memory, with the value to try."""
    centres = phase.centres
    for store in STORES[STORES.index(centres.store) + 1 :]:
        yield {"centres.store": store}
    if centres.moments == "fp32" and phase.method.centre_kind == "trainable":
        yield {"centres.moments": "bf16"}
    if centres.backend in ("auto", "graphed"):
        yield {"centres.backend": "chunked"}
    if centres.memory == "device":
        yield {"centres.memory": "host"}
    for rate in RATES:
        if rate < centres.sample_rate:
            yield {"centres.sample_rate": rate}
    if centres.memory == "device" and centres.sample_rate > RATES[-1]:
        yield {"centres.sample_rate": RATES[-1], "centres.memory": "host"}
    if not phase.model.activation_checkpointing:
        yield {"model.activation_checkpointing": True}
    if _divides(phase, 2 * phase.accumulation * size):
        yield {"accumulation": 2 * phase.accumulation}
    if phase.zero_stage < 2 and size > 1:
        yield {"zero_stage": 2}
    if phase.precision == "fp32":
        yield {"precision": "bf16"}


def _having(section: Part, key: str, value: str | float) -> Part:
    """The section with one key changed; ValidationError where the configuration does not allow it."""
    name, _, rest = key.partition(".")
    part = _having(getattr(section, name), rest, value) if rest else value
    return type(section).model_validate({**dict(section), name: part})


def _divides(phase: PhaseConfig, parts: int) -> bool:
    """Whether so many parts of a batch have two images or more each: BatchNorm does not train with one."""
    return phase.global_batch % parts == 0 and phase.global_batch >= 2 * parts


def phases(config: Config) -> Iterator[tuple[str, PhaseConfig, Beside | None]]:
    """Every phase of a run: its name in the configuration or of its folder, its section, and what teaches in it.

    Of a chain of students the first, and those that follow, which are alike, as one.
    """
    if config.teacher.source == "train" and config.teacher.train:
        yield "teacher.train", config.teacher.train, None
    first, *later = config.student.names
    yield first, config.student, beside_student(config)
    if later:
        own = None if config.teacher.cache == "auto" else Beside.of(config.student.model)
        yield " to ".join(dict.fromkeys((later[0], later[-1]))), config.student, own
    if config.alone:
        yield "alone", config.alone, None


def beside_student(config: Config) -> Beside | None:
    """What of ours runs beside the student; None for foreign networks, or kept embeddings."""
    source = config.teacher
    if source.cache is not None:
        return None
    found: dict[str, list[ModelConfig | None]] = {
        "train": [source.train.model if source.train else None],
        "checkpoint": [source.model],
        "ensemble": [one.model for one in source.ensemble],
    }
    networks = tuple(one for one in found.get(source.source, []) if one is not None)
    return Beside(networks, source.known_dim or networks[0].embedding_dim) if networks else None


def _under(key: str, change: str) -> str:
    """The change with the phase's name before each of its keys."""
    if change == AT_ONCE or change.endswith("ranks"):
        return change
    return WITH.join(f"{key}.{part}" for part in change.split(WITH))


def _size(size: int) -> str:
    return f"{size / GB:.2f} GB" if size >= 10**7 else f"{size / 10**6:.2f} MB"
