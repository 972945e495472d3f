"""Make a teacher cache in one distributed pass of the teacher over all records (cache.py).

The blocks that are still missing are dealt out in consecutive ranges, one per rank, so that each rank reads and
writes one stretch of the files; after every block the ranks look whether all of them are well. Killed at any moment
and started again, on any number of ranks, the pass goes on with the blocks that are not there yet.
Each image is decoded once and embedded plain and mirrored. What is written is the same, byte for byte, at any number of
ranks: on the CPU because a teacher's embedding does not depend on the batch there.
The class means are taken from what was written, so they cost no second pass over images.
Errors: TeacherError or DataError naming the record, on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from partialkd.config import DataConfig
from partialkd.data.batch import FaceBatch
from partialkd.data.loading.loader import open_loader
from partialkd.data.sources.source import Source
from partialkd.errors import TeacherError
from partialkd.teacher.cache_writer import CacheWriter, Unfinished
from partialkd.teacher.centres import mean_rows
from partialkd.world.passes import counted, of_rank
from partialkd.world.shard import shard_of
from partialkd.world.world import World

Embed = Callable[[Tensor], Tensor]


@dataclass
class BlockPlan:
    """Plans one rank's part: the records of its blocks, in order, as they are. A micro-step is a part of one block."""

    writer: CacheWriter
    blocks: list[int]
    local_batch: int
    rank: int = 0
    seed: int | None = None  # nothing about a record is left to chance

    def __post_init__(self) -> None:
        self.steps = [step for block in self.blocks for step in self.steps_of(self.writer.records(block))]
        self.micro_steps, self.micro_batch = len(self.steps), self.local_batch  # each rank is on its own

    def steps_of(self, records: range) -> list[range]:
        """Cut the records of a block into micro-steps."""
        starts = range(records.start, records.stop, self.local_batch)
        return [range(start, min(start + self.local_batch, records.stop)) for start in starts]

    def indices(self, epoch: int, micro_step: int) -> np.ndarray:  # noqa: ARG002 (one signature for all plans)
        """Return the records of a micro-step (b,) int64."""
        step = self.steps[micro_step]
        return np.arange(step.start, step.stop, dtype=np.int64)

    def flips(self, epoch: int, indices: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return (b,) bool, all False."""
        return np.zeros(len(indices), dtype=bool)

    greys = flips


def embed_records(
    writer: CacheWriter,
    embed: Embed,
    data: DataConfig,
    source: Source,
    batch: int,
    world: World,
    unfinished: Unfinished,
    heed: Callable[[range], Iterator[int]],
) -> None:
    """Collective. Make the cache that `writer` is for, or go on with it; `batch`: images per forward pass.

    heed: gives the turns of the ranks' common loop back one by one, as `StopSignals.heeding` does.
    """
    world.on_main(lambda: writer.begin(unfinished))
    todo = world.on_main(writer.missing)
    own = [todo[place] for place in shard_of(len(todo), world.rank, world.size)]
    plan = BlockPlan(writer, own, batch, world.rank)
    loader = open_loader(data, source, plan, world.device)
    records = sum(len(writer.records(block)) for block in own)
    try:
        doing = of_rank("the teacher embeds the records", world.rank, world.size)
        batches = counted(loader.epoch(0), doing, records, "records", len)
        for turn in heed(range(-(-len(todo) // world.size))):
            mine = own[turn : turn + 1]  # none, on a rank that has one block fewer
            world.together(partial(_make, plan, mine, batches, embed, source))
    finally:
        loader.close()
    _write_means(writer, source, world)
    world.on_main(writer.finish)


def _make(plan: BlockPlan, blocks: list[int], batches: Iterator[FaceBatch], embed: Embed, source: Source) -> None:
    """Embed the records of these blocks and write them."""
    writer = plan.writer
    for block in blocks:
        records = writer.records(block)
        rows = torch.zeros(len(records), 2, writer.facts.dim)
        for _ in plan.steps_of(records):
            batch = next(batches)
            found = torch.stack([embed(batch.images), embed(batch.images.flip(3))], dim=1)
            found = found.cpu()
            zero = torch.nonzero(~found.any(2).all(1))
            if len(zero):
                raise TeacherError(f"{source.name(int(batch.records[zero[0]]))}: its embedding is zero")
            rows[batch.records - records.start] = found  # a record that cannot be read stays zero
        writer.write_block(block, rows, source.name)


def _write_means(writer: CacheWriter, source: Source, world: World) -> None:
    """Collective. Write the class means of what was written; every rank has the classes of its shard."""
    facts, size = writer.facts, world.size
    shard = shard_of(facts.classes, world.rank, size)

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        turns = range(0, writer.blocks, size)
        for first in counted(turns, "class means of the teacher", len(turns), "blocks"):
            block = first + world.rank
            records = writer.records(min(block, writer.blocks))
            labels = torch.from_numpy(source.labels(records.start, records.stop)).to(world.device)
            kept = writer.read_block(block)[:, 0] if len(records) else torch.empty(0, facts.dim)
            there = kept.any(1)
            yield kept[there].to(world.device), labels[there.to(world.device)]

    means = mean_rows(shard, facts.dim, rows(), writer.block_records, world)
    world.together(lambda: writer.write_means(shard, means))
