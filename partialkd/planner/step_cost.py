"""What a rank sends and computes in an optimiser step, from the configuration: bytes by ring algorithms, and flops."""

from __future__ import annotations

from collections.abc import Sequence

from partialkd.config import PhaseConfig, sampled_share
from partialkd.planner.network_cost import NetworkCost
from partialkd.planner.soft_cost import products_of, soft_wire
from partialkd.planner.term_cost import term_wire

FLOAT = 4


def wire_of(phase: PhaseConfig, parameters: int, local: int, ranks: int) -> dict[str, int]:
    """Bytes that a rank sends in an optimiser step by ring algorithms: (W - 1) parts of what it gathers or reduces."""
    centres = {name: phase.accumulation * sent for name, sent in centre_wire(phase, local, ranks).items()}
    if gathered := term_wire(phase, local, ranks):
        centres["all_gather of whole-batch terms"] = gathered
    passes = 3 if phase.zero_stage == 3 else 2
    return {**centres, "gradients of the student": passes * parameters * FLOAT * (ranks - 1) // ranks}


def centre_wire(phase: PhaseConfig, local: int, ranks: int) -> dict[str, int]:
    """Bytes that a rank sends for the centres in a micro-step of `local` samples per rank."""
    dim, others = phase.model.embedding_dim, ranks - 1
    both = 2 if phase.method.centre_kind == "ema" else 1  # which send the teacher's
    counts = phase.centres.importance_correction and phase.centres.sample_rate < 1
    wire = {
        "all_gather of embeddings": others * local * (both * dim * FLOAT + 8),
        "reduce_scatter of sums": others * local * (2 * dim + 2 + 2 * counts) * FLOAT,
    }
    if (margin := phase.method.named_margin) and margin.numbers_sent:
        wire["collectives of the margin"] = others * local * margin.numbers_sent * FLOAT
    if phase.method.centre_kind == "trainable":
        wire["all_gather of row weights"] = others * local * 2 * FLOAT
    return wire | soft_wire(phase, local, others)


def flops_of(
    phase: PhaseConfig,
    rows: int,
    local: int,
    ranks: int,
    cuda: bool,
    student: NetworkCost,
    teachers: Sequence[NetworkCost],
    teacher_calls: float,
) -> dict[str, int]:
    """Floating-point operations of an optimiser step on one rank, by part.

    The teachers' traced batch fits `teacher_calls` times into the local one. Where rows are sampled, the classes of the
    batch that were not are multiplied with as well: on CUDA one row for each of the N samples, whoever owns it; on the
    CPU the rank's own, some N / W.
    """
    sampled, batch = phase.centres.sample_rate < 1, local * ranks
    used = max(1, int(rows * sampled_share(phase.centres.sample_rate)))
    own = (batch if cuda else local) * sampled
    sums, gradients = products_of(phase)
    multiplied = sums * (used + own) + gradients * (used + phase.accumulation * own)
    flops = {"student": student.flops, "centres": 2 * batch * multiplied * phase.model.embedding_dim}
    if teachers:
        flops["teacher"] = int(sum(one.flops for one in teachers) * teacher_calls)
    return {name: phase.accumulation * count for name, count in flops.items()}
