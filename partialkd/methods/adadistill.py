"""AdaDistill (ECCV 2024, arXiv:2407.01332): margin softmax over moving averages of teacher embeddings.

Before the logits, each class of the batch moves towards its teacher embedding,

    w_y <- a w_y + (1 - a) f_t,   a = <f_s, f_t>  or  a' = <f_s, f_t> <w_y, f_t>,

clipped as the authors' code does it or as their poster prints it (partialkd.centres.moving_average.momentum), with w_y
in a' taken before the update; then the loss of ArcDistill or CosDistill over the moved centres. No loss weight, no
further term. f_t is normalised, also where it is averaged. What happens when a class occurs several times in a batch,
or for the first time: partialkd.centres.moving_average.move_ema. With gradient accumulation the centres move at every
micro-step, so an accumulated step is not exactly the step of the larger batch.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from partialkd.centres import Centres
from partialkd.centres.moving_average import move_ema
from partialkd.config import AdaDistillConfig, MethodSection
from partialkd.methods.base import Outcome
from partialkd.methods.margins import arc_margin, cos_margin, margin_softmax


class AdaDistill:
    """Moves the centres, then compares with them.

    Reports alpha (or alpha'), which is near 0.87 (0.67) late in the published training.
    """

    def __init__(self, config: AdaDistillConfig) -> None:
        self.config: MethodSection = config
        self.margin = config.margin
        self.moved = arc_margin if config.kind == "arc" else cos_margin
        self.move_centres = partial(
            move_ema,
            weighted=config.weighted,
            first_sight=config.first_sight,
            renormalise=config.renormalise,
            clip=config.clip,
        )

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None) -> Outcome:
        assert teacher is not None
        found = centres.contrast(student, labels, teacher, look=self.move_centres)
        loss = margin_softmax(found.negative, self.moved(found.target, self.margin), self.config.scale)
        return Outcome(loss, {"alpha": found.looked.mean(), "cosine": found.target.detach().mean()})
