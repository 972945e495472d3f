"""Recognition of the published network that a state_dict belongs to, for an error that says so."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from torch import Tensor

from partialkd.config import ModelConfig
from partialkd.models.build import FAMILIES, build_empty


def looks_like(state: dict[str, Tensor], image_size: int) -> str | None:
    """Name the networks whose parameters these are, and what differs from the published one; None if none fits."""
    keys = _without_counters(state)
    dims = {x.shape[0] for x in state.values() if x.dim() == 2 and 8 <= x.shape[0] <= 4096} or {512}
    same: dict[int, list[str]] = {}
    resembling, parts = [], _parts(keys)
    for name in FAMILIES:
        if _parts_of_network(name) != parts:
            continue  # most are not worth building whole
        own = _of_network(name, 512, image_size)
        if own.keys() != keys.keys():
            continue
        resembling.append(name)
        for dim in sorted(dims):
            if _of_network(name, dim, image_size) == keys:
                same.setdefault(dim, []).append(name)
    for dim, names in same.items():  # of networks that differ in what has no parameters, a shuffle, any may be meant
        return " or ".join(names) + (f" with embedding_dim = {dim}" if dim != 512 else "")
    if not resembling:
        return None
    return f"{' or '.join(resembling)} of another width or image size"


def _parts(keys: Iterable[str]) -> set[str]:
    return {key.partition(".")[0] for key in keys}


@cache
def _parts_of_network(name: str) -> set[str]:
    """Name what the network consists of, which its smallest form tells."""
    config = ModelConfig.model_validate({"name": name, "width": 0.01, "depth": 0.01, "embedding_dim": 8})
    return _parts(build_empty(config, 32).state_dict())


@cache
def _of_network(name: str, embedding_dim: int, image_size: int) -> dict[str, tuple[int, ...]]:
    config = ModelConfig.model_validate({"name": name, "embedding_dim": embedding_dim})
    return _without_counters(build_empty(config, image_size).state_dict())


def _without_counters(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(x.shape) for key, x in state.items() if not key.endswith(".num_batches_tracked")}
