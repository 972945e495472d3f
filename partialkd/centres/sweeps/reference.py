"""Sweep with one materialised logits matrix, logsumexp and autograd: slow, and what all others are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from partialkd.centres.store import CentreStore
from partialkd.centres.sweeps.base import MicroStep, Queries, RowGradient, Sweep
from partialkd.centres.sweeps.bend import offset_with


class ReferenceSweep(Sweep):
    """Autograd through the logits (N, R) of all rows, in the precision of the operands. For tests."""

    bends = True

    def sums(self, store: CentreStore, queries: Queries) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = queries.embeddings.detach().requires_grad_()
            negative = self._negative(x, store.directions(slice(None)), queries)
            (slope,) = torch.autograd.grad(negative.sum(), x)  # scale * O / Z
        partition = (negative.detach() - offset_with(self.scale, queries.bend)).exp()
        return slope.nan_to_num() * partition[:, None] / self.scale, partition

    def row_gradients(self, store: CentreStore, batches: Sequence[MicroStep]) -> Iterator[RowGradient]:
        used = torch.stack([queries.filter.keep(0, len(store.shard)) for queries, _, _ in batches]).any(0)
        with torch.enable_grad():
            unit = store.directions(slice(None)).detach().requires_grad_()
            loss = unit.sum() * 0
            for queries, weight, target_gradient in batches:
                logits = self._masked(queries.embeddings, unit, queries)
                terms = (logits - offset_with(self.scale, queries.bend)).exp()
                cosine = (queries.embeddings * unit[queries.row]).sum(1) * queries.owned if len(unit) else weight * 0
                loss = loss + (weight[:, None] * terms).sum() / self.scale + (target_gradient * cosine).sum()
            (gradient,) = torch.autograd.grad(loss, unit)
        rows = used.nonzero().squeeze(1)
        if len(rows):
            yield RowGradient(rows, gradient[rows])

    def _negative(self, x: Tensor, unit: Tensor, queries: Queries) -> Tensor:
        if not len(unit):
            return x.sum(1) * 0 - torch.inf
        return self._masked(x, unit, queries).logsumexp(1)

    def _masked(self, x: Tensor, unit: Tensor, queries: Queries) -> Tensor:
        """Logits (N, R), -inf at rows not kept and at each sample's own class."""
        cosine = x @ unit.T
        logits = self.scale * (queries.bend.bent(cosine) if queries.bend else cosine)
        own = torch.zeros_like(logits, dtype=torch.bool)
        samples = queries.owned.nonzero().squeeze(1)
        own[samples, queries.row[samples]] = True
        return logits.masked_fill(own | ~queries.filter.keep(0, len(unit)), -torch.inf)
