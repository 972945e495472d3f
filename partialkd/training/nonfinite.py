"""Finding where NaN or infinity in a step came from: rank, samples, centres or parameter, told after the fact.

While a step runs nothing here waits for the device: per micro-step it keeps which images, embeddings of teacher and
student, and rows of the loss's gradient were not finite (4, b), and a sum for the gradient of every parameter (P,).
A micro-step with any of it passes NaN on as its gradient: the reduction over ranks, which there is anyway, then carries
it to all of them, and the norm of the student's gradient says on every rank alike that the step is bad.

Told is the earliest cause that any rank has, in the order of `CAUSES`. Live BatchNorm makes a whole micro-step's
embeddings NaN when one image is, so the image is named; a parameter's gradient is the first of the backward pass.
In a compiled network all gradients come together, in no order: the one named is then any that is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from partialkd.centres import CentreStore
from partialkd.centres.broken_rows import centre_problem
from partialkd.data.batch import FaceBatch
from partialkd.data.sources.source import Source
from partialkd.storage.finite import first_few
from partialkd.world.world import World

CAUSES = ("image", "teacher's embedding", "student's embedding", "centres", "loss", "gradient", "nothing")
_PER_SAMPLE = ("image", "teacher's embedding", "student's embedding", "loss")


@dataclass(frozen=True)
class MicroStep:
    """Traces of one micro-step of this rank, kept until its step is known to be good."""

    records: Tensor  # (b,) int64, CPU
    broken: Tensor  # (4, b) bool, rows as _PER_SAMPLE, on the device
    names: list[str]  # parameters in the order of the backward pass; filled by it
    sums: list[Tensor]  # () each, of their gradients before the reduction; not finite where one is not


class GradientWatch:
    """Sees every parameter's gradient of this rank, before any reduction."""

    def __init__(self, network: nn.Module) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []
        parameters = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._handles = [p.register_hook(partial(self._see, name)) for name, p in parameters]

    def next_into(self, names: list[str], sums: list[Tensor]) -> None:
        """Note the coming backward pass in these lists."""
        self._names, self._sums = names, sums

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, name: str, gradient: Tensor) -> None:
        self._names.append(name)
        self._sums.append(gradient.detach().sum())


def watched(
    batch: FaceBatch, student: Tensor, teacher: Tensor | None, loss: Tensor, gradient: Tensor
) -> tuple[MicroStep, Tensor]:
    """Embeddings (b, D), the loss () and its gradient (b, D) -> what to keep, the gradient or NaN in its place."""
    with torch.no_grad():
        images = batch.images.flatten(1).sum(1).isfinite()
        finite = [images, torch.ones_like(images) if teacher is None else _rows(teacher), _rows(student)]
        broken = ~torch.stack([*finite, _rows(gradient)])
        bad = broken.any() | ~loss.isfinite()
        return MicroStep(batch.records, broken, [], []), gradient.masked_fill(bad, torch.nan)


def _rows(x: Tensor) -> Tensor:
    return x.detach().isfinite().all(1)


def explain(micro_steps: Sequence[MicroStep], source: Source, store: CentreStore, world: World) -> str:
    """Name the earliest cause, and the ranks that have it; collective."""
    found = world.gather_objects(_cause(micro_steps, source, store))
    earliest = min(found, key=lambda one: CAUSES.index(one[0]))[0]
    if earliest == "nothing":
        return "every rank's own gradient is finite; their sum or its norm is not"
    return "; ".join(f"rank {rank}: {text}" for rank, (cause, text) in enumerate(found) if cause == earliest)


def _cause(micro_steps: Sequence[MicroStep], source: Source, store: CentreStore) -> tuple[str, str]:
    """(one of CAUSES, its description) of this rank."""
    samples = _broken_samples(micro_steps, source)
    for cause in CAUSES:
        if cause in samples:
            return cause, f"the {cause} of {samples[cause]}"
        if cause == "centres" and (problem := centre_problem(store)):
            return cause, problem
    for one in micro_steps:
        bad = [name for name, finite in zip(one.names, _finite(one.sums), strict=True) if not finite]
        if bad:
            near = first_few(source.name(int(record)) for record in one.records)
            return "gradient", f"the gradient of {bad[0]}, in the backward pass of {near}"
    return "nothing", ""


def _broken_samples(micro_steps: Sequence[MicroStep], source: Source) -> dict[str, str]:
    samples = {}
    for row, cause in enumerate(_PER_SAMPLE):
        records = torch.cat([one.records[one.broken[row].cpu()] for one in micro_steps])
        if len(records):
            samples[cause] = first_few(source.name(record) for record in records.tolist())
    return samples


def _finite(sums: list[Tensor]) -> list[bool]:
    return torch.stack(sums).isfinite().tolist() if sums else []
