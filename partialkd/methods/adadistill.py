"""AdaDistill (ECCV 2024, arXiv:2407.01332): margin softmax over moving averages of teacher embeddings.

Before the logits, each class of the batch moves towards its teacher embedding,

    w_y <- a w_y + (1 - a) f_t,   a = <f_s, f_t>  or  a' = <f_s, f_t> <w_y, f_t>,

clipped as the authors' code does it or as their poster prints it (partialkd.centres.moving_average.momentum), with w_y
in a' taken before the update; then the loss of ArcDistill or CosDistill over the moved centres, or that with a named
margin. No loss weight, no further term. f_t is normalised, also where it is averaged. What happens when a class occurs
several times in a batch, or for the first time: partialkd.centres.moving_average.move_ema. With gradient accumulation
the centres move at every micro-step, so an accumulated step is not exactly the step of the larger batch.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from partialkd.centres import Centres
from partialkd.centres.gathered import OwnRows
from partialkd.centres.moving_average import LEAST, certainty, move_ema
from partialkd.config import AdaDistillConfig, AdaFaceMarginConfig
from partialkd.methods.base import Outcome
from partialkd.methods.margin_softmax import MarginSoftmax
from partialkd.methods.margins import MarginInputs


class AdaDistill(MarginSoftmax):
    """Moves the centres, then compares with them.

    Reports alpha (or alpha'), which is near 0.87 (0.67) late in the published training.
    """

    def __init__(self, config: AdaDistillConfig) -> None:
        super().__init__(config)
        named = config.named_margin
        self.geometry = isinstance(named, AdaFaceMarginConfig) and named.geometry > 0
        self.move_centres = partial(
            move_ema,
            weighted=config.weighted,
            first_sight=config.first_sight,
            renormalise=config.renormalise,
            clip=config.clip,
        )

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Outcome:
        assert teacher is not None
        look = self._look_and_move if self.geometry else self.move_centres
        found = centres.contrast(student, labels, teacher, look, self.margin.bending)
        if not self.geometry:
            return self.outcome(MarginInputs(found, student, centres), {"alpha": found.looked.mean()})
        alpha, sure = found.looked.unbind(1)
        lag = behind(student.detach(), teacher, sure)
        return self.outcome(MarginInputs(found, student, centres, lag), {"alpha": alpha.mean(), "lag": lag.mean()})

    def _look_and_move(self, own: OwnRows) -> Tensor:
        sure = certainty(own)  # before the centres move
        return torch.stack([self.move_centres(own), sure], dim=1)


def behind(student: Tensor, teacher: Tensor, sure: Tensor) -> Tensor:
    """Embeddings (b, D), the teacher's cosine with its class's centre (b,) -> relu(l - <f_s, f_t>) l (b,).

    l = clip(sure, 1e-6, 1): large where the teacher is sure and the student is not where the teacher is.
    """
    sure = sure.clamp(LEAST, 1)
    return (sure - F.cosine_similarity(student, teacher.to(student.dtype)).to(sure.dtype)).relu() * sure
