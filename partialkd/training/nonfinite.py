"""Finding where NaN or infinity in a step came from: rank, samples, centres or parameter, told after the fact.

While a step runs nothing here waits for the device: per micro-step it keeps which images, embeddings of teacher and
student, and rows of the loss's gradient were not finite (4, b), and the norm of every parameter's gradient (P,), of
many gradients in one call. At ZeRO 0 and 1 that is one call behind the backward pass, of what has accumulated so far;
ZeRO 2 and 3 drop gradients during it, so there each is handed over by a hook and waits for its call with others.
A micro-step with any of it passes NaN on as its gradient: the reduction over ranks, which there is anyway, then carries
it to all of them, and the norm of the student's gradient says on every rank alike that the step is bad.

Told is the earliest cause that any rank has, in the order of `CAUSES`. Live BatchNorm makes a whole micro-step's
embeddings NaN when one image is, so the image is named; a parameter's gradient is the first of the backward pass, at
ZeRO 0 and 1 of one that goes through the parameters from the last to the first.
In a compiled network at ZeRO 2 all gradients come together, in no order: the one named is then any that is not finite.
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
TOGETHER, MOST_NUMBERS = 64, 1 << 23  # gradients, and their numbers, that wait for one call: 32 MB that stay longer
_PER_SAMPLE = ("image", "teacher's embedding", "student's embedding", "loss")


@dataclass(frozen=True)
class MicroStep:
    """Traces of one micro-step of this rank, kept until its step is known to be good."""

    records: Tensor  # (b,) int64, CPU
    broken: Tensor  # (4, b) bool, rows as _PER_SAMPLE, on the device
    names: list[str]  # parameters in the order of the backward pass; filled by it
    norms: list[Tensor]  # () each, of their gradients before the reduction; not finite where one is not


class GradientWatch:
    """Measures every parameter's gradient of this rank, before any reduction."""

    def __init__(self, network: nn.Module, dropped: bool) -> None:
        """dropped: gradients are reduced and dropped during the backward pass, as ZeRO 2 and 3 do."""
        self._last_first = [(name, p) for name, p in network.named_parameters() if p.requires_grad][::-1]
        self._into: MicroStep | None = None
        self._waiting: list[tuple[str, Tensor]] = []
        self._numbers = 0  # of them
        parameters = self._last_first if dropped else []
        self._handles = [p.register_hook(partial(self._see, name)) for name, p in parameters]

    def next_into(self, step: MicroStep) -> None:
        """Note the coming backward pass in this micro-step."""
        self._into = step

    def finish(self) -> None:
        """Measure what is there and not measured yet; to be called between a backward pass and its reduction."""
        if not self._handles:
            self._waiting = [(name, p.grad) for name, p in self._last_first if p.grad is not None]
        self._measure()
        self._into = None

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, name: str, gradient: Tensor) -> None:
        self._waiting.append((name, gradient.detach()))
        self._numbers += gradient.numel()
        if len(self._waiting) >= TOGETHER or self._numbers >= MOST_NUMBERS:
            self._measure()

    def _measure(self) -> None:
        """Take the Euclidean norms, as of all parameters together: what overflows there does so here."""
        if self._waiting and self._into is not None:
            self._into.names.extend(name for name, _ in self._waiting)
            self._into.norms.extend(torch._foreach_norm([gradient for _, gradient in self._waiting]))
        self._waiting, self._numbers = [], 0


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
        bad = [name for name, finite in zip(one.names, _finite(one.norms), strict=True) if not finite]
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


def _finite(norms: list[Tensor]) -> list[bool]:
    return torch.stack(norms).isfinite().tolist() if norms else []
