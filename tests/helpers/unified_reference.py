"""The term "unified", image by image and pair by pair, in float64."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from helpers.relational_references import cosine
from helpers.term_batch import Batch


def unified(settings: dict[str, Any], batches: list[Batch]) -> list[Tensor]:
    """Values in consecutive steps: the bank has what the steps before have brought, the newest `bank` images."""
    bank: list[Tensor] = []
    values = []
    for batch in batches:
        apart = [1 - cosine(s, t) for s, t in zip(batch.student, batch.teacher, strict=True)]
        middle = sum(d.item() for d in apart) / len(apart)
        hard = [d for d in apart if d.item() >= middle]
        value = settings.get("instance_weight", 1.0) * sum(hard) / len(hard)
        for s, t in zip(batch.student, batch.teacher, strict=True):
            gaps = [(cosine(s, m) - cosine(t, m)) ** 2 for m in bank]
            worst = sorted(gaps, key=lambda gap: gap.item(), reverse=True)[: settings.get("hardest", 64)]
            if worst:
                value = value + settings.get("relation_weight", 1.0) * sum(worst) / len(worst) / len(batch.labels)
        values.append(value)
        bank = [*bank, *batch.teacher.detach()][-settings.get("bank", 4096) :]
    return values
