"""Augmentations of training batches."""

from __future__ import annotations

from partialkd.config import DataConfig

OPERATIONS = ("crop", "rand", "colour", "blur", "low_resolution", "occlusion")  # in their order


def augments(data: DataConfig) -> tuple[str, ...]:
    """What changes images besides the mirror, by the names of the keys: of data.augment, and `grey` (data.grey)."""
    active = tuple(name for name in OPERATIONS if getattr(data.augment, name) > 0)
    return ("grey", *active) if data.grey > 0 else active
