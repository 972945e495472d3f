"""What a term of soft targets (logit_kd, margin_t, gkd) adds to a phase: rows, memory, bytes on the wire, products.

D the student's embedding, D' the teacher's, N global batch of a micro-step, b local batch. The teacher's is counted as
long as the student's where no network of it is known.
"""

from __future__ import annotations

from partialkd.config import PhaseConfig
from partialkd.config.terms import GkdTermConfig

FLOAT = 4


def teacher_row_bytes(phase: PhaseConfig, numbers: int, dim: int) -> int:
    """Bytes that a class's centre of the teacher's takes, 0 where it is the student's; numbers: bytes of a number."""
    if not phase.teacher_rows:
        return 0
    return dim * numbers + FLOAT + 1 + FLOAT * (phase.centres.store == "int8")


def soft_memory(phase: PhaseConfig, batch: int, dim: int, ranks: int) -> int:
    """Bytes that the pass needs beside what the cross-entropy's alone would; its chunks take as much as that one's.

    The teacher's embeddings gathered and times the scale; O of both and what is sent of them. With groups the rest's,
    and the largest logits: found, taken with a chunk's, and gathered.
    """
    term = phase.soft_term
    if term is None:
        return 0
    own, matrix = phase.model.embedding_dim, batch * FLOAT
    needs = (3 * dim + 6 * own) * matrix
    if isinstance(term, GkdTermConfig):
        needs += (3 * own + (3 + ranks) * term.most) * matrix
    return needs


def soft_wire(phase: PhaseConfig, local: int, others: int) -> dict[str, int]:
    """Bytes that a rank sends in a micro-step for the soft targets; others: ranks but this one."""
    term, dim = phase.soft_term, phase.model.embedding_dim
    if term is None:
        return {}
    groups = isinstance(term, GkdTermConfig)
    sent = dim + 2 * dim + 4 + groups * (dim + 2 + 2 * 2 + 1)  # the all_reduce sends its two numbers twice
    if isinstance(term, GkdTermConfig):
        sent += term.most * (others + 1)  # of all samples, by every rank
    if phase.method.centre_kind == "trainable":
        sent += 2 + groups
    return {"collectives of soft targets": others * local * sent * FLOAT}


def products_of(phase: PhaseConfig) -> tuple[int, int]:
    """Count the products of N x R x D of the sums of a micro-step, and of the rows' gradients."""
    gradients = 2 if phase.method.centre_kind == "trainable" else 0
    if phase.soft_term is None:
        return 2, gradients
    return 7 if isinstance(phase.soft_term, GkdTermConfig) else 5, gradients + gradients // 2
