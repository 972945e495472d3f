"""Whether files do in their runtime what the network does here: on real images, one by one, and on a named set.

cosine      of each picture's embedding to the trained network's: the least over the pictures, at batches of 1 and,
            where the file takes any, of 5 and 16
spread      variance of the target's unit embeddings over that of the network's: a constant is none, however near its
            cosines are
tar         at FAR 1e-3 on the set (`.bin`: its pairs; a folder of identities: all pairs), with the mirrored image added
Bars: base.py. A network whose own embeddings have collapsed is refused.
Errors: ExportError, DataError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from partialkd.config import EvaluateConfig
from partialkd.data.formats.verification_bin import read_bin
from partialkd.data.images.decode import Wanted, decode
from partialkd.errors import ConfigError, DataError
from partialkd.evaluate.all_pairs import all_pairs
from partialkd.evaluate.embedding import embed_images
from partialkd.evaluate.identification_protocol import faces_below, read_identities, unit_rows
from partialkd.evaluate.rates import too_few
from partialkd.evaluate.verification import evaluate_sets
from partialkd.export.base import FAR, LEAST_COSINE, MOST_TAR, SPREAD, ExportError, Run, Target, planes
from partialkd.world.world import World

PICTURES = 256
BATCHES = (1, 5, 16)
LEAST_PICTURES = 16
LEAST_VARIANCE = 1e-6  # of the network's own unit embeddings
_CHUNK = 64


@dataclass(frozen=True)
class Parity:
    """How near a target comes to the network."""

    cosine_least: float
    cosine_mean: float
    spread: float
    tar: float
    tar_network: float
    accuracy: float | None  # of a .bin
    accuracy_network: float | None

    def problem(self, target: Target) -> str | None:
        """Say which bar is missed, if one is."""
        least = LEAST_COSINE[target.precision]
        if not self.cosine_least >= least:
            return f"cosine to the network must be at least {least:g} for each picture, got {self.cosine_least:.6f}"
        if not SPREAD[0] <= self.spread <= SPREAD[1]:
            return f"embeddings must vary as the network's do, got {self.spread:.2g} of that variance: they collapse"
        if not abs(self.tar - self.tar_network) <= MOST_TAR:
            points = f"{100 * self.tar:.2f} % instead of {100 * self.tar_network:.2f} %"
            return f"TAR at FAR {FAR:g} must be within {100 * MOST_TAR:g} points of the network's, got {points}"
        return None

    def facts(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


class Judge:
    """The trained network's own embeddings and rates, and the comparison of others with them."""

    def __init__(self, network: nn.Module, named_set: Path, image_size: int) -> None:
        self.network, self.set, self.image_size = network, named_set, image_size
        self.pictures = pictures_of(named_set, image_size)
        self.ours = _unit(torch_run(network), self.pictures, _CHUNK)
        if not _variance(self.ours) >= LEAST_VARIANCE:
            raise ExportError(
                f"{named_set}: the network gives all of its pictures the same embedding: it has collapsed"
            )
        self.tar, self.accuracy = self.rates(torch_run(network))

    def compare(self, run: Run, target: Target) -> Parity:
        """Run a target's file over pictures and set."""
        batches = BATCHES if target.any_batch else (1,)
        parts = np.array_split(np.arange(len(self.pictures)), len(batches))
        rows = [_unit(run, self.pictures[part], batch) for part, batch in zip(parts, batches, strict=True)]
        theirs = np.concatenate(rows)
        if theirs.shape != self.ours.shape:
            raise ExportError(f"{target.name}: gives embeddings of {theirs.shape[1]} numbers, not {self.ours.shape[1]}")
        cosines = (theirs * self.ours).sum(axis=1)
        least = float("nan") if not np.isfinite(cosines).all() else float(cosines.min())
        tar, accuracy = self.rates(run) if np.isfinite(least) and least > 0 else (float("nan"), None)
        spread = _variance(theirs) / _variance(self.ours)
        return Parity(least, float(cosines.mean()), spread, tar, self.tar, accuracy, self.accuracy)

    def rates(self, run: Run) -> tuple[float, float | None]:
        """TAR at FAR 1e-3 on the set, and the accuracy where it has pairs in folds."""
        embed = as_embed(run)
        if self.set.is_dir():
            names, identities, _ = read_identities(self.set)
            images = faces_below(self.set, names, self.image_size, resize=False)
            rows = unit_rows(embed_images(embed, images, self.image_size, _CHUNK, World()), flip=True)
            found = all_pairs(rows, identities, (FAR,))
            self._enough(found.impostors)
            return found.tar(FAR), None
        config = EvaluateConfig(sets=(str(self.set),), fars=(FAR,), batch=_CHUNK)
        scores = evaluate_sets(embed, config, self.image_size, False, World(), "--set of this size")[self.set.stem]
        self._enough(scores.impostors)
        return scores.tar_at_far[f"{FAR:g}"], scores.accuracy

    def _enough(self, impostors: int) -> None:
        if too_few(FAR, impostors):
            raise DataError(f"{self.set}: FAR {FAR:g} wants {1 / FAR:.0f} pairs of two people or more, got {impostors}")


def pictures_of(named_set: Path, image_size: int) -> np.ndarray:
    """Read the first distinct pictures of a set -> (n, S, S, 3) uint8."""
    if named_set.is_dir():
        names, *_ = read_identities(named_set)
        listed = faces_below(named_set, names, image_size, resize=False)
        places = np.linspace(0, listed.count - 1, min(PICTURES, listed.count)).astype(int)
        found = [listed.pixels(place) for place in places.tolist()]
    elif not named_set.is_file():
        raise ConfigError(f"--set {named_set}: no such file or folder")
    else:
        distinct = list(dict.fromkeys(read_bin(named_set).images))[:PICTURES]
        wanted = Wanted(image_size, option="--set of this size")
        found = [decode(one, f"{named_set}: image {k}", wanted=wanted) for k, one in enumerate(distinct)]
    if len(found) < LEAST_PICTURES:
        raise DataError(f"{named_set}: must have {LEAST_PICTURES} pictures or more, got {len(found)}")
    return np.stack(found)


def torch_run(network: nn.Module) -> Run:
    """Run the network itself as targets are run."""

    @torch.no_grad()
    def run(pictures: np.ndarray) -> np.ndarray:
        return np.asarray(network(torch.from_numpy(planes(pictures))))

    return run


def as_embed(run: Run) -> Callable[[Tensor], Tensor]:
    """Bring normalised images (b, 3, S, S) back to pixels, which is exact, and run them."""

    def embed(images: Tensor) -> Tensor:
        pixels = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
        return torch.from_numpy(run(pixels.permute(0, 2, 3, 1).contiguous().numpy()))

    return embed


def _unit(run: Run, pictures: np.ndarray, batch: int) -> np.ndarray:
    parts = [run(pictures[k : k + batch]).reshape(-1) for k in range(0, len(pictures), batch)]
    rows = np.concatenate(parts).reshape(len(pictures), -1).astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


def _variance(rows: np.ndarray) -> float:
    return float(rows.var(axis=0).sum())
