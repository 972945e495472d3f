"""What is known of a phase before anything is trained: its section, its batch over the ranks, its records' order."""

from __future__ import annotations

from partialkd.config import Config, PhaseConfig
from partialkd.data.order.orders import check_positives, make_order
from partialkd.data.order.plan import BatchCut, TrainingPlan
from partialkd.data.order.readahead import make_plan
from partialkd.data.sources.source import Source
from partialkd.errors import ConfigError
from partialkd.training.schedule import Schedule
from partialkd.world.world import World


def plan_of(name: str, phase: PhaseConfig, config: Config, source: Source, world: World) -> TrainingPlan:
    """Plan the order of a phase's records; ConfigError naming the key if its batches or its schedule do not fit."""
    key, data = key_of(name), config.data
    check_batch(key, phase, world.size)
    order = make_order(data, source, phase.global_batch, config.run.seed)
    if any(term.samplers for term in phase.terms):
        check_positives(order)
    try:
        cut = BatchCut(phase.global_batch, phase.accumulation, world.rank, world.size)
        plan = make_plan(data, source, order, cut, config.run.seed)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error
    Schedule.of_phase(phase, plan.micro_steps, key)
    return plan


def check_batch(key: str, phase: PhaseConfig, size: int) -> None:
    """Raise ConfigError naming the key if `size` ranks cannot share the batch, or BatchNorm cannot train on a part."""
    batch, accumulation = phase.global_batch, phase.accumulation
    single = phase.sync_batchnorm or phase.freeze_batchnorm  # whether a rank may have a single image
    if batch % (accumulation * size):
        each = batch // accumulation
        fitting = ", ".join(str(n) for n in range(1, each + 1) if each % n == 0 and (single or each > n))
        raise ConfigError(
            f"{key}.global_batch must be divisible by accumulation x world size ({accumulation} x {size} = "
            f"{accumulation * size}), got {batch}; with this batch and accumulation the world size may be {fitting}"
        )
    parts = accumulation if phase.sync_batchnorm else accumulation * size
    if batch == parts and not phase.freeze_batchnorm:  # a variance of one image is none
        sharing = "" if phase.sync_batchnorm or size == 1 else f" x world size {size}"
        raise ConfigError(
            f"{key}.global_batch must be at least {2 * parts} (2 images x accumulation {accumulation}{sharing}): "
            f"BatchNorm cannot train on a single image, got {batch}"
        )


def key_of(name: str) -> str:
    """Name the section of the configuration that has this phase."""
    return {"teacher": "teacher.train", "alone": "alone"}.get(name, "student")  # also of the generations before it
