"""Additive terms: loss = that of the method + sum of weight_k * term_k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from partialkd.config import EmbeddingTermConfig, TermSection
from partialkd.config.terms import (
    AngularTermConfig,
    AttentionTermConfig,
    CckdTermConfig,
    DarkRankTermConfig,
    EkdTermConfig,
    FitNetsTermConfig,
    GkdTermConfig,
    LogitKdTermConfig,
    MarginTTermConfig,
    NstTermConfig,
    RkdTermConfig,
    SpTermConfig,
    TripletTermConfig,
    UnifiedTermConfig,
)
from partialkd.methods.base import Outcome
from partialkd.methods.terms.angular import Angular
from partialkd.methods.terms.attention import AttentionTransfer
from partialkd.methods.terms.base import GlobalBatch, MapPair, Term, TermInputs, TermSetting
from partialkd.methods.terms.cckd import CorrelationCongruence
from partialkd.methods.terms.darkrank import DarkRank
from partialkd.methods.terms.ekd import EvaluationOriented
from partialkd.methods.terms.embedding import EmbeddingDistance
from partialkd.methods.terms.fitnets import FitNets
from partialkd.methods.terms.nst import NeuronSelectivity
from partialkd.methods.terms.rkd import Rkd
from partialkd.methods.terms.soft import GroupKD, LogitKD
from partialkd.methods.terms.sp import SimilarityPreserving
from partialkd.methods.terms.triplet import TripletDistillation
from partialkd.methods.terms.unified import Unified

TERMS: dict[type[TermSection], Callable[[Any, TermSetting], Term]] = {
    EmbeddingTermConfig: EmbeddingDistance,
    RkdTermConfig: Rkd,
    SpTermConfig: SimilarityPreserving,
    CckdTermConfig: CorrelationCongruence,
    DarkRankTermConfig: DarkRank,
    EkdTermConfig: EvaluationOriented,
    TripletTermConfig: TripletDistillation,
    LogitKdTermConfig: LogitKD,
    MarginTTermConfig: LogitKD,
    GkdTermConfig: GroupKD,
    UnifiedTermConfig: Unified,
    FitNetsTermConfig: FitNets,
    AttentionTermConfig: AttentionTransfer,
    NstTermConfig: NeuronSelectivity,
    AngularTermConfig: Angular,
}


class Terms:
    """The terms of a phase, in the order of its configuration, by the name that is logged: `term_0_embedding`."""

    def __init__(self, configs: Sequence[TermSection], setting: TermSetting | None = None) -> None:
        setting = setting or TermSetting()
        made = [TERMS[type(config)](config, setting) for config in configs]
        self.named: dict[str, Term] = {f"term_{at}_{term.config.name}": term for at, term in enumerate(made)}

    def added_to(self, outcome: Outcome, inputs: TermInputs) -> Outcome:
        """The method's outcome with the terms in its loss, and their values (without weights) among those logged."""
        loss, values = outcome.loss, dict(outcome.values)
        for name, term in self.named.items():
            value = term.loss(inputs)
            loss = loss + term.config.weight * value
            values[name] = value.detach()
        return Outcome(loss, values)


__all__ = ["TERMS", "GlobalBatch", "MapPair", "Term", "TermInputs", "TermSetting", "Terms"]
