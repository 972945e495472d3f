"""One rank's class centres: unit rows, their lengths, which have been seen, and their optimiser's moments.

A centre w is kept as its direction and its length, w = length * unit. Cosines need the direction only, so a
sweep over the rows reads them as they lie, without a normalisation; an update reads length * unit, moves it
and splits it again. Shapes: unit (R, D) float32 or bfloat16, length (R,) float32, seen (R,) bool, moments
(R, D) or (R,) float32; R = len(shard), possibly 0.

Random centres depend on (seed, class id) alone: not on the rank, the world size or the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

INITIAL_STD = 0.01  # of random centres, as AdaDistill and arcface_torch publish
_BLOCK = 1024  # class ids that share one generator
TINY = 1e-12  # a shorter centre has no direction

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class CentreStore:
    """The rows `shard` of `num_classes` centres."""

    shard: range
    num_classes: int
    unit: Tensor
    length: Tensor
    seen: Tensor
    skip_unseen: bool = False  # centres not seen yet are no negatives
    moments: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, shard: range, num_classes: int, dim: int, dtype: torch.dtype, device: torch.device) -> CentreStore:
        """Zero centres, none seen."""
        rows = len(shard)
        return cls(
            shard=shard,
            num_classes=num_classes,
            unit=torch.zeros(rows, dim, dtype=dtype, device=device),
            length=torch.zeros(rows, dtype=_length_dtype(dtype), device=device),
            seen=torch.zeros(rows, dtype=torch.bool, device=device),
        )

    @classmethod
    def random(
        cls, shard: range, num_classes: int, dim: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> CentreStore:
        """Centres drawn from N(0, 0.01^2), none seen."""
        store = cls.empty(shard, num_classes, dim, dtype, device)
        for ids, block in random_blocks(shard, dim, seed):
            rows = torch.arange(ids.start - shard.start, ids.stop - shard.start, device=device)
            store.write(rows, block.to(device))
        return store

    @property
    def dim(self) -> int:
        return self.unit.shape[1]

    @property
    def device(self) -> torch.device:
        return self.unit.device

    def read(self, rows: Tensor | slice) -> Tensor:
        """Centres (n, D) of these rows, unnormalised, in the precision of the lengths (float32)."""
        return self.unit[rows].to(self.length.dtype) * self.length[rows, None]

    def write(self, rows: Tensor | slice, centres: Tensor) -> None:
        """Replace these rows by centres (n, D)."""
        self.replace(rows, centres.clone())

    def replace(self, rows: Tensor | slice, centres: Tensor) -> None:
        """As `write`, with the memory of `centres`, which may be the rows' own."""
        length = centres.norm(dim=1)
        put_rows(self.unit, rows, centres.div_(length.clamp_min(TINY)[:, None]))
        put_rows(self.length, rows, length)

    def renormalise(self, rows: Tensor) -> None:
        """Bring these centres to length one."""
        self.length[rows] = 1.0

    @property
    def everything_seen(self) -> bool:
        """True when every row may be a negative. Asks the device only until no centre is missing any more."""
        self.skip_unseen = self.skip_unseen and not bool(self.seen.all())
        return not self.skip_unseen

    def state(self) -> dict[str, Tensor]:
        """Every tensor, leading dimension R, for a checkpoint."""
        moments = {f"moment.{key}": value for key, value in self.moments.items()}
        return {"unit": self.unit, "length": self.length, "seen": self.seen, **moments}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over tensors of this shard, moments included. Rows kept in another precision are converted."""
        if state["unit"].dtype == self.unit.dtype:
            self.unit.copy_(state["unit"])
            self.length.copy_(state["length"])
        else:  # split again, since a row that was rounded is not quite of unit length
            length = state["length"].to(self.length)
            self.replace(slice(None), state["unit"].to(length) * length[:, None])
        self.seen.copy_(state["seen"])
        for key, value in state.items():
            if key.startswith("moment."):
                self.moments[key.removeprefix("moment.")] = value.to(self.device)


def put_rows(tensor: Tensor, rows: Tensor | slice, values: Tensor) -> None:
    """tensor[rows] = values, without a copy where `values` is that view already."""
    if not (isinstance(rows, slice) and values.dtype == tensor.dtype and values.data_ptr() == tensor[rows].data_ptr()):
        tensor[rows] = values.to(tensor.dtype)


def random_blocks(shard: range, dim: int, seed: int) -> Iterator[tuple[range, Tensor]]:
    """(class ids, their random centres (n, D) float32 on the CPU), block by block over the shard.

    Blocks are cut at multiples of a fixed number of global class ids, each with a generator of its own, so
    that a shard draws the same centres wherever it begins.
    """
    if not shard:
        return
    for block in range(shard.start // _BLOCK, (shard.stop - 1) // _BLOCK + 1):
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + block * 0x85EBCA77 + 1) % 2**63)
        rows = torch.randn(_BLOCK, dim, generator=generator) * INITIAL_STD
        first = block * _BLOCK
        ids = range(max(shard.start, first), min(shard.stop, first + _BLOCK))
        yield ids, rows[ids.start - first : ids.stop - first]


def _length_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
