"""The distance of each student embedding to the teacher's of the same image: plain embedding distillation.

l2: mean over images of |f_s - f_t|^2, of the embeddings as the networks give them, so that their lengths count.
cosine: mean over images of 1 - <f_s, f_t> / (|f_s| |f_t|).
Gradient: to the student. The usual baseline of face distillation ("vanilla KD" of AdaDistill, arXiv:2407.01332).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from partialkd.config import EmbeddingTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting


class EmbeddingDistance(Term):
    """Mean distance over this rank's images."""

    def __init__(self, config: EmbeddingTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.distance = l2 if config.distance == "l2" else cosine

    def loss(self, inputs: TermInputs) -> Tensor:
        assert inputs.teacher is not None
        return self.distance(inputs.student, inputs.teacher.to(inputs.student.dtype)).mean()


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """(b, D), (b, D) -> squared Euclidean distances (b,)."""
    return (student - teacher).square().sum(1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """(b, D), (b, D) -> one minus the cosines (b,)."""
    return 1 - (F.normalize(student) * F.normalize(teacher)).sum(1)
