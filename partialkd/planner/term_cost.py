"""What terms of the whole batch hold and send: relations between all N images of a global batch, on every rank."""

from __future__ import annotations

from partialkd.config import DataConfig, PhaseConfig, TermSection
from partialkd.config.terms import RkdTermConfig, TripletTermConfig
from partialkd.methods.terms.rkd import ENTRIES

FLOAT = 4
MATRICES = 10  # (N, N) of the student and the teacher, and their slopes
ANGLES = 8  # of each block of angles
TRIPLETS = 8  # (pairs, N), of which a batch of P x K has N (K - 1)


def term_bytes(phase: PhaseConfig, data: DataConfig) -> int:
    """Bytes held from the loss to its gradient; 0 without such terms. Takes the teacher's dimension for the student's.

    With data.sampler = "half_pk" the half that is drawn at random is taken for one without pairs.
    """
    batch = phase.global_batch  # they refuse accumulation
    terms = [term for term in phase.terms if term.whole_batch]
    gathered = 8 * batch * phase.model.embedding_dim * bool(terms)
    return FLOAT * (gathered + sum(_numbers(term, batch, data) for term in terms))


def _numbers(term: TermSection, batch: int, data: DataConfig) -> int:
    angles = ANGLES * max(ENTRIES, batch**2) if isinstance(term, RkdTermConfig) and term.angle_weight else 0
    others = (data.images_per_identity - 1) * (0.5 if data.sampler == "half_pk" else 1.0)
    triplets = int(TRIPLETS * others * batch**2) if isinstance(term, TripletTermConfig) else 0
    return MATRICES * batch**2 + angles + triplets


def term_wire(phase: PhaseConfig, local: int, ranks: int) -> int:
    """Bytes that a rank sends in an optimiser step: both networks' embeddings and the labels, in one all_gather."""
    both = 2 * phase.model.embedding_dim * FLOAT + 8
    return (ranks - 1) * local * both * any(term.whole_batch for term in phase.terms)
