"""Scoring of a student in training, for `run.keep_best` and `evaluate.every`. Its time is told apart: no training."""

from __future__ import annotations

import time
from contextlib import suppress

import torch
from torch import nn

from partialkd.context import RunContext
from partialkd.errors import Preempted
from partialkd.evaluate.pairs import PairScores
from partialkd.evaluate.verification import evaluate_sets


class Scoring:
    """Scores of one phase's student on the sets that training is judged by."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.seconds = 0.0  # of all scorings of this start

    def scores(self, network: nn.Module) -> tuple[dict[str, PairScores] | None, float]:
        """Score a network in eval mode, collectively -> scores by set (None: asked to stop meanwhile), seconds."""
        context, data = self.context, self.context.config.data
        if context.world.device.type == "cuda":
            torch.cuda.synchronize(context.world.device)  # what is still to be computed is training
        start = time.perf_counter()
        embed = context.stop.listen(context.world).guarding(network, "scoring a checkpoint")
        found: dict[str, PairScores] | None = None
        with suppress(Preempted):  # heard on all ranks, and again after the next step, or when the last one is saved
            config = context.config.evaluation.while_training
            found = evaluate_sets(embed, config, data.image_size, data.resize, context.world)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        return found, seconds
