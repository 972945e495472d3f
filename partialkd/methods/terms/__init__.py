"""Additive terms: loss = that of the method + sum of weight_k * term_k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from partialkd.config import EmbeddingTermConfig, TermSection
from partialkd.methods.base import Outcome
from partialkd.methods.terms.base import Term, TermInputs
from partialkd.methods.terms.embedding import EmbeddingDistance

TERMS: dict[type[TermSection], Callable[[Any], Term]] = {
    EmbeddingTermConfig: EmbeddingDistance,
}


class Terms:
    """The terms of a phase, in the order of its configuration."""

    def __init__(self, configs: Sequence[TermSection]) -> None:
        self._terms = [TERMS[type(config)](config) for config in configs]

    def added_to(self, outcome: Outcome, inputs: TermInputs) -> Outcome:
        """The method's outcome with the terms in its loss, and their values (without weights) among those logged."""
        loss, values = outcome.loss, dict(outcome.values)
        for at, term in enumerate(self._terms):
            value = term.loss(inputs)
            loss = loss + term.config.weight * value
            values[f"term_{at}_{term.config.name}"] = value.detach()
        return Outcome(loss, values)


__all__ = ["TERMS", "Term", "TermInputs", "Terms"]
