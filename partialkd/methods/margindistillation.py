"""MarginDistillation (arXiv:2003.02586): the teacher's fixed centres, and a margin per sample from its own angle.

    c_i = <f_t, w_y>,   m_i = m_min + (m_max - m_min) * clip(c_i, 0, 1) / D_max,   D_max = max_i c_i,

target logit s * cos(theta_i + m_i): samples the teacher is sure of get the larger margin. Differs from the published
code in two ways. D_max is the maximum over the *global* batch (at least 1e-6): theirs is taken per device, so that the
loss changes with the number of GPUs (`per_rank_maximum = true` for parity). And a negative c_i counts as 0 here, so
that no margin is below m_min; theirs then falls below it, down to negative margins.

The global maximum costs one more collective, of one number; and gradient accumulation is refused by the configuration,
since a micro-step is not the global batch. The teacher's embeddings stay on their rank: w_y comes to them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from partialkd.centres import Centres
from partialkd.config import MarginDistillationConfig, MethodSection
from partialkd.methods.base import Outcome
from partialkd.methods.margins import arc_margin, margin_softmax


class MarginDistillation:
    """Margin softmax with a margin per sample; reports the margins used."""

    def __init__(self, config: MarginDistillationConfig) -> None:
        self.config: MethodSection = config
        self.low, self.high = config.margin_min, config.margin_max
        self.per_rank_maximum = config.per_rank_maximum

    def loss(self, centres: Centres, student: Tensor, labels: Tensor, teacher: Tensor | None) -> Outcome:
        assert teacher is not None
        found = centres.contrast(student, labels)
        certainty = (F.normalize(teacher.to(found.centre.dtype)) * found.centre).sum(1)
        margin = self.margins(centres, certainty)
        loss = margin_softmax(found.negative, arc_margin(found.target, margin), self.config.scale)
        values = {
            "margin": margin.mean(),
            "teacher_cosine": certainty.mean(),
            "cosine": found.target.detach().mean(),
        }
        return Outcome(loss, values)

    def margins(self, centres: Centres, certainty: Tensor) -> Tensor:
        """The margins m (b,) in radians of cosines c (b,)."""
        largest = certainty.nan_to_num(0.0, 0.0, 0.0).max()  # what is not finite is one sample's, not the batch's
        if not self.per_rank_maximum:
            largest = centres.world.max(largest)
        return self.low + (self.high - self.low) * certainty.clamp(0, 1) / largest.clamp_min(1e-6)
