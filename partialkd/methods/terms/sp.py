"""Similarity-preserving knowledge distillation (SP, ICCV 2019, arXiv:1907.09682): |G_s - G_t|_F^2 / N^2.

row_normalised, the paper's: G = F F^T with each row divided by its length.
cosine: G of normalised embeddings, as EKD's code for faces has it (Tencent/TFace at 82c9cbb, tasks/ekd).
Differs from the paper: of the embeddings, not of an inner layer's activations.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from partialkd.config.terms import SpTermConfig
from partialkd.methods.terms.base import Term, TermInputs, TermSetting
from partialkd.methods.terms.relations import cosines


class SimilarityPreserving(Term):
    """Mean squared difference of the two matrices over the global batch."""

    def __init__(self, config: SpTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.similarity = row_normalised if config.similarity == "row_normalised" else cosines

    def loss(self, inputs: TermInputs) -> Tensor:
        batch = inputs.gathered
        assert batch.teacher is not None
        return F.mse_loss(self.similarity(batch.student), self.similarity(batch.teacher))


def row_normalised(x: Tensor) -> Tensor:
    """(N, D) -> (N, N)."""
    return F.normalize(x @ x.T)
