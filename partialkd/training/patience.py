"""When a phase is judged while it is trained, and when it has stopped getting better.

A judgement is one number: by how much a metric, averaged over the sets, falls short of one. Every `evaluate.every`
optimiser steps, and where a checkpoint is scored, the student is judged; after `evaluate.patience` judgements in a row
none of which was the best so far, the phase ends. What a run needs to go on from a checkpoint as if it had not stopped
is its best judgement, how many have come since, and the step of the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

from partialkd.config import EvaluateConfig
from partialkd.evaluate.pairs import PairScores


def shortfall(scores: Mapping[str, PairScores], metric: str) -> float:
    """Scores by set -> one minus the metric's mean over the sets; metric: "accuracy", "auc" or "tar@<far>"."""
    return 1 - mean(_value(score, metric) for score in scores.values())


def _value(score: PairScores, metric: str) -> float:
    name, _, far = metric.partition("@")
    return score.tar_at_far[f"{float(far):g}"] if name == "tar" else getattr(score, name)


class Patience:
    """Counts judgements since the best."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self.best, self.since, self.judged_at = math.inf, 0, 0

    def due(self, step: int) -> bool:
        """Whether a judgement is due after this step that has not been made."""
        every = self._config.every
        return every > 0 and step > 0 and step % every == 0 and step > self.judged_at

    def hear(self, step: int, judgement: float) -> None:
        """Take a judgement made after this step."""
        if judgement < self.best:
            self.best, self.since = judgement, 0
        else:
            self.since += 1
        self.judged_at = step

    @property
    def over(self) -> bool:
        """Whether the phase has been given its time."""
        return 0 < self._config.patience <= self.since

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of it; JSON has no infinity."""
        best = self.best if math.isfinite(self.best) else None
        return {"judged": {"by": self._config.metric, "best": best, "since": self.since, "at": self.judged_at}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; checkpoints of before have none, and what another metric said is not compared with."""
        found = state.get("judged")
        if found is None or found["by"] != self._config.metric:
            return
        self.best = math.inf if found["best"] is None else float(found["best"])
        self.since, self.judged_at = int(found["since"]), int(found["at"])
