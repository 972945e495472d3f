"""All terms with what they are compared with, for tests/methods/test_term_values.py. A new term adds its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from helpers import relational_references as relational
from helpers.relational_references import cosine, each, length
from helpers.term_batch import Batch
from helpers.unified_reference import unified


@dataclass(frozen=True)
class Case:
    """A term's settings, and its reference: (settings, batches of consecutive steps) -> the term's value in each."""

    settings: dict[str, Any]
    reference: Callable[[dict[str, Any], list[Batch]], list[Tensor]]


def embedding(settings: dict[str, Any], batch: Batch) -> Tensor:
    pairs = list(zip(batch.student, batch.teacher, strict=True))
    if settings.get("distance") == "cosine":
        return sum((1 - cosine(s, t) for s, t in pairs), pairs[0][0].sum() * 0) / len(pairs)
    return sum((length(s - t) ** 2 for s, t in pairs), pairs[0][0].sum() * 0) / len(pairs)


CASES = {
    "embedding_l2": Case({"name": "embedding"}, each(embedding)),
    "embedding_cosine": Case({"name": "embedding", "distance": "cosine"}, each(embedding)),
    "rkd": Case({"name": "rkd"}, each(relational.rkd)),
    "rkd_distance": Case({"name": "rkd", "distance_weight": 3.0, "angle_weight": 0.0}, each(relational.rkd)),
    "rkd_angle": Case({"name": "rkd", "distance_weight": 0.0, "angle_weight": 7.0}, each(relational.rkd)),
    "sp": Case({"name": "sp"}, each(relational.sp)),
    "sp_cosine": Case({"name": "sp", "similarity": "cosine"}, each(relational.sp)),
    "cckd": Case({"name": "cckd"}, each(relational.cckd)),
    "cckd_third": Case({"name": "cckd", "gamma": 0.7, "order": 3}, each(relational.cckd)),
    "darkrank": Case({"name": "darkrank"}, each(relational.darkrank)),
    "darkrank_all": Case({"name": "darkrank", "length": 11, "alpha": 1.5, "beta": 1.0}, each(relational.darkrank)),
    "darkrank_soft": Case({"name": "darkrank", "kind": "soft", "length": 4, "beta": 2.0}, each(relational.darkrank)),
    "ekd": Case({"name": "ekd"}, relational.ekd),
    "ekd_wide": Case({"name": "ekd", "temperature": 0.3, "update": 0.4, "hardest": 20}, relational.ekd),
    "triplet": Case({"name": "triplet"}, each(relational.triplet)),
    "triplet_wide": Case({"name": "triplet", "semi_hard": 1.5, "margin_max": 0.9}, each(relational.triplet)),
    "triplet_angle": Case({"name": "triplet", "distance": "angle"}, each(relational.triplet)),
    "unified": Case({"name": "unified"}, unified),
    "unified_mined": Case({"name": "unified", "bank": 7, "hardest": 3, "relation_weight": 5.0}, unified),
}

# Terms that look at more than embeddings and labels, by the test that compares them.
ELSEWHERE = {
    "logit_kd": "centres/test_soft_targets.py",
    "margin_t": "centres/test_soft_targets.py",
    "gkd": "centres/test_soft_targets.py",
    "angular": "methods/test_tapped_terms.py",
    "fitnets": "methods/test_tapped_terms.py",
    "nst": "methods/test_tapped_terms.py",
    "attention": "methods/test_tapped_terms.py",
}
