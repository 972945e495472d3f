"""Verification sets: embed their images with all ranks, score the pairs.

Shapes: images (b, 3, H, W) as in data/decode.py -> embeddings (b, D) -> cosines (n,), float64.
With `flip` an image's embedding is embedding(image) + embedding(mirrored), neither normalised before (InsightFace's
protocol). An image that occurs in several pairs is embedded once. Ranks share out whole batches, the same ones at
any world size, so scores do not depend on it; every rank returns the same.
Errors: `DataError` on every rank, naming file and image, for a set that is missing, unreadable, has images of
another size (unless `resize`), or gets a NaN or zero embedding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partialkd.config import EvaluateConfig
from partialkd.data.formats.verification_bin import VerificationSet, read_bin
from partialkd.data.images.decode import RESIZE, Wanted, decode
from partialkd.data.images.tensors import to_tensor
from partialkd.data.ordered_threads import in_order
from partialkd.errors import DataError
from partialkd.evaluate import intervals
from partialkd.evaluate.intervals import People, identities_of_pairs
from partialkd.evaluate.pairs import PairScores, check_cosines, check_pairs, fold_accuracies, right_pairs, score_pairs
from partialkd.evaluate.rates import too_few
from partialkd.world.passes import counted, of_rank
from partialkd.world.shard import shard_of
from partialkd.world.world import World

Embed = Callable[[Tensor], Tensor]
LOOK_AHEAD = 256  # images: small jobs, so that threads do not wait for the one that counts them


def open_sets(config: EvaluateConfig) -> dict[str, Path]:
    """Name -> file of the configured sets, each read once now: at start-up, not after hours of training."""
    paths: dict[str, Path] = {}
    for path in map(Path, config.sets):
        if path.stem in paths:
            raise DataError(f"evaluate.sets: two files are called {path.stem!r}: {paths[path.stem]} and {path}")
        paths[path.stem] = path
    for path in paths.values():
        _open_set(path, config)
    return paths


def look_at_sets(
    config: EvaluateConfig, image_size: int, resize: bool, world: World, option: str = RESIZE
) -> dict[str, Path]:
    """Collective. Decode every image of the configured sets once, shared out among the ranks' threads.

    Before the training, so that no image is found broken after it. Returns name -> file, as `open_sets` does.
    """
    paths = world.together(lambda: open_sets(config))
    looker = _Embedder(lambda images: images, config, image_size, resize, world, option)
    for path in paths.values():
        world.together(partial(looker.look_at_share, path))
    return paths


def evaluate_sets(
    embed: Embed, config: EvaluateConfig, image_size: int, resize: bool, world: World, option: str = RESIZE
) -> dict[str, PairScores]:
    """Collective. Scores of every configured set; `embed` is a network in eval mode on this rank's device.

    option: what an error names to have images of another size resized.
    """
    found = pairs_of_sets(embed, config, image_size, resize, world, option)
    return {name: pairs.scores(config) for name, pairs in found.items()}


def pairs_of_sets(
    embed: Embed, config: EvaluateConfig, image_size: int, resize: bool, world: World, option: str = RESIZE
) -> dict[str, ScoredPairs]:
    """Collective. The pairs of every configured set with their cosines; arguments as of `evaluate_sets`."""
    embedder = _Embedder(embed, config, image_size, resize, world, option)
    return {path.stem: _scored(embedder, path) for path in map(Path, config.sets)}


def _open_set(path: Path, config: EvaluateConfig) -> VerificationSet:
    pairs = read_bin(path)
    try:
        check_pairs(pairs.same, config.folds)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return pairs


@dataclass(frozen=True)
class ScoredPairs:
    """The pairs of a set as one network sees them: (n,) each."""

    cosines: np.ndarray
    same: np.ndarray  # bool
    people: People

    def scores(self, config: EvaluateConfig) -> PairScores:
        """Judge them by the protocol of the configuration."""
        return score_pairs(self.cosines, self.same, config.folds, config.fars, self.people)


def _scored(embedder: _Embedder, path: Path) -> ScoredPairs:
    config, world = embedder.config, embedder.world

    def read_and_embed() -> tuple[VerificationSet, _Distinct, Tensor]:
        pairs = _open_set(path, config)
        distinct = _Distinct.of(pairs.images)
        return pairs, distinct, embedder.share_of(distinct, path)

    pairs, distinct, share = world.together(read_and_embed)
    embeddings = _gather(share, world).cpu().double().numpy()
    cosines = _cosines(embeddings[distinct.places])
    try:
        check_cosines(cosines, pairs.same)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    people = identities_of_pairs(distinct.places[0::2], distinct.places[1::2], pairs.same)
    return ScoredPairs(cosines, pairs.same, people)


def compare_sets(
    networks: tuple[tuple[Embed, int], tuple[Embed, int]], config: EvaluateConfig, resize: bool, world: World
) -> dict[str, dict[str, Any]]:
    """Collective. How much better the first of two networks is than the second on each set, with paired intervals.

    networks: each with the pixels per side of its input.
    """
    one, other = (_Embedder(embed, config, size, resize, world, "--resize") for embed, size in networks)
    return {path.stem: compared(_scored(one, path), _scored(other, path), config) for path in map(Path, config.sets)}


def compared(one: ScoredPairs, other: ScoredPairs, config: EvaluateConfig) -> dict[str, Any]:
    """Say how much better `one` is on the same pairs: accuracy and TAR, each {"difference", "interval"}."""
    right = []
    for scored in (one, other):
        _, thresholds = fold_accuracies(scored.cosines, scored.same, config.folds)
        right.append(right_pairs(scored.cosines, scored.same, thresholds))
    found = {"accuracy": intervals.mean_difference(right[0], right[1], one.people)}
    for far in config.fars:
        rate = intervals.tar_difference(one.cosines, other.cosines, one.same, one.people, far)
        found[f"tar_at_far {far:g}"] = rate
    differences: dict[str, dict[str, Any]] = {
        name: {"difference": value, "interval": list(interval)} for name, (value, interval) in found.items()
    }
    impostors = int((~one.same).sum())
    for far in config.fars:
        differences[f"tar_at_far {far:g}"]["too_few_impostors"] = too_few(far, impostors)
    return differences


@dataclass(frozen=True)
class _Distinct:
    """The images of a set, each once, in the order of their first place."""

    images: list[bytes]
    first: np.ndarray  # (u,) first place in the file, the number an error names
    places: np.ndarray  # (2n,) -> index in `images`

    @classmethod
    def of(cls, images: Sequence[bytes]) -> _Distinct:
        index: dict[bytes, int] = {}
        places = np.array([index.setdefault(image, len(index)) for image in images])
        return cls(list(index), np.unique(places, return_index=True)[1], places)


@dataclass(frozen=True)
class _Embedder:
    """How the images of a set become embeddings on this rank."""

    embed: Embed
    config: EvaluateConfig
    image_size: int
    resize: bool
    world: World
    option: str

    def look_at_share(self, path: Path) -> None:
        """Decode this rank's images of a set; DataError naming the first that cannot be used."""
        distinct = _Distinct.of(_open_set(path, self.config).images)
        mine = shard_of(len(distinct.images), self.world.rank, self.world.size)
        look = lambda i: self._decode(distinct.images[i], f"{path}: image {distinct.first[i]}") is None
        looks = in_order(look, mine, max(1, (os.cpu_count() or 1) // self.world.size), LOOK_AHEAD)
        for _ in counted(looks, f"looking at {path.name}", len(mine), "images"):
            pass

    @torch.no_grad()
    def share_of(self, distinct: _Distinct, path: Path) -> Tensor:
        """This rank's batches -> (rows, D); (0, 0) if it has none."""
        count, batch = len(distinct.images), self.config.batch
        batches = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
        mine = shard_of(len(batches), self.world.rank, self.world.size)
        own = [batches[number] for number in mine]
        doing = of_rank(f"embedding {path.stem}", self.world.rank, self.world.size)
        rows = [
            self._embed_batch(distinct, batch, path) for batch in counted(own, doing, sum(map(len, own)), "images", len)
        ]
        return torch.cat(rows) if rows else torch.empty(0, 0, device=self.world.device)

    def _embed_batch(self, distinct: _Distinct, batch: range, path: Path) -> Tensor:
        decoded = [self._decode(distinct.images[i], f"{path}: image {distinct.first[i]}") for i in batch]
        images = to_tensor(decoded, self.image_size, device=self.world.device)
        rows = self.embed(images).float()
        return rows + self.embed(images.flip(3)).float() if self.config.flip else rows

    def _decode(self, encoded: bytes, where: str) -> np.ndarray:
        return decode(encoded, where, wanted=Wanted(self.image_size, self.resize, self.option))


def _gather(share: Tensor, world: World) -> Tensor:
    """Shares (rows, D) of different lengths -> (all rows, D), in the order of ranks."""
    shapes = world.gather_objects(tuple(share.shape))
    longest, width = (max(sizes) for sizes in zip(*shapes, strict=True))
    padded = share.new_zeros(longest, width)
    padded[: share.shape[0], : share.shape[1]] = share
    parts = world.all_gather(padded).split(longest)
    return torch.cat([part[:rows] for part, (rows, _) in zip(parts, shapes, strict=True)])


def _cosines(embeddings: np.ndarray) -> np.ndarray:
    """(2n, D) float64, pairs next to each other -> (n,); not finite where an embedding is zero or not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (unit[0::2] * unit[1::2]).sum(axis=1)
