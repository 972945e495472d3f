"""Load batches together with the teacher's kept embeddings of their records."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import cast
from weakref import WeakSet

import torch

from partialkd.data.batch import FaceBatch
from partialkd.data.loading.loader import Loader
from partialkd.data.ordered_threads import ahead
from partialkd.teacher.cache import KeptEmbeddings


class TaughtLoader:
    """A loader whose batches carry the teacher's embeddings; they are looked up while earlier batches are trained on.

    Batches come at most two earlier out of the loader below than they are handed on.
    """

    def __init__(self, loader: Loader, kept: KeptEmbeddings, device: torch.device) -> None:
        self.loader, self.kept, self.device = loader, kept, device
        self.micro_steps = loader.micro_steps
        self._open: WeakSet[Generator[FaceBatch, None, None]] = WeakSet()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FaceBatch]:
        """As the loader's own."""
        batches = self._batches(epoch, start)
        self._open.add(batches)
        return batches

    def _batches(self, epoch: int, start: int) -> Generator[FaceBatch, None, None]:
        with closing(cast(Generator[FaceBatch, None, None], self.loader.epoch(epoch, start))) as batches:
            look = lambda batch: self.kept.rows(batch.records, batch.flipped)
            with closing(ahead(look, batches, 1)) as found:
                for batch, rows in found:
                    yield replace(batch, teacher=rows.to(self.device, non_blocking=True))

    def close(self) -> None:
        """As the loader's own: the thread that looks up ends, too."""
        for batches in list(self._open):
            batches.close()
        self.loader.close()
