"""Load batches together with the teacher's kept embeddings of their records."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from partialkd.data.batch import FaceBatch
from partialkd.data.loading.ordered import Loader
from partialkd.data.ordered_threads import in_order
from partialkd.teacher.cache import KeptEmbeddings


class TaughtLoader(Loader):
    """A loader whose batches carry the teacher's embeddings; they are looked up while earlier batches are trained on.

    Batches come at most two earlier out of the loader below than they are handed on.
    """

    def __init__(self, loader: Loader, kept: KeptEmbeddings, device: torch.device) -> None:
        super().__init__(loader.plan)
        self.loader, self.kept, self.device = loader, kept, device

    def _batches(self, epoch: int, steps: range) -> Generator[FaceBatch, None, None]:
        images = cast(Generator[FaceBatch, None, None], self.loader.epoch(epoch, steps.start))
        with closing(images), closing(in_order(self._look, images, 1)) as found:
            for batch, rows in found:
                yield replace(batch, teacher=rows.to(self.device, non_blocking=True))

    def _look(self, batch: FaceBatch) -> Tensor:
        rows = self.kept.rows(batch.records, batch.flipped)
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def close(self) -> None:
        """End the thread that looks up, and the loader below."""
        super().close()
        self.loader.close()
