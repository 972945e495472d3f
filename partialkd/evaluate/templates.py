"""Templates: one face representation made of several images and video frames of a person (IJB-B, IJB-C).

Images of one medium (a video) are averaged, the media of a template added up, and the sum brought to length one. What
an image counts for is decided before, by three switches (InsightFace's N, D and F):

norm      the embedding keeps its length, which is small for what is hardly a face; else it is brought to length one
detector  it is multiplied by the detector's score
flip      the embedding of the mirrored image is added

Shapes: embeddings (n, D) of either kind, templates and media (n,) int64 -> unit rows (t, D) float64 of the t templates.
Source: deepinsight/insightface, recognition/_evaluation_/ijb/ijb_11.py (the protocol, not the code).
Differs: that file divides a zero template by zero; here it is a `DataError` naming the template.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from partialkd.errors import DataError


@dataclass(frozen=True)
class Setting:
    """Which of the three switches are on."""

    norm: bool = True
    detector: bool = True
    flip: bool = True

    @property
    def name(self) -> str:
        """Like N1D1F1."""
        return f"N{self.norm:d}D{self.detector:d}F{self.flip:d}"


BLOCK = 1 << 13  # images pooled at a time, or a few more
SETTINGS = tuple(Setting(*switches) for switches in product((True, False), repeat=3))


def weighted_images(plain: np.ndarray, mirrored: np.ndarray, scores: np.ndarray, setting: Setting) -> np.ndarray:
    """Embeddings (n, D) of images and of their mirror images, detector's scores (n,) -> what is pooled, float64."""
    rows = plain.astype(np.float64)
    if setting.flip:
        rows += mirrored
    if not setting.norm:
        with np.errstate(divide="ignore", invalid="ignore"):  # a zero row is found when its template is not finite
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if setting.detector:
        rows *= scores.astype(np.float64)[:, None]
    return rows


def pooled(rows: np.ndarray, templates: np.ndarray, media: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pool images by medium, media by template -> templates' numbers (t,) rising, unit rows (t, D)."""
    order = np.lexsort((media, templates))
    template, medium = templates[order], media[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (template[1:] != template[:-1]) | (medium[1:] != medium[:-1])
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(order)))
    means = np.add.reduceat(rows[order], starts, axis=0) / sizes[:, None]
    numbers, firsts = np.unique(template[starts], return_index=True)
    sums = np.add.reduceat(means, firsts, axis=0)
    lengths = np.linalg.norm(sums, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise DataError(f"template {numbers[wrong[0]]}: its images add up to no direction (length {lengths[wrong[0]]})")
    return numbers, sums / lengths[:, None]


def pooled_images(
    plain: np.ndarray,
    mirrored: np.ndarray,
    scores: np.ndarray,
    setting: Setting,
    templates: np.ndarray,
    media: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Pool embeddings (n, D) in a setting, some templates at a time: what is held beside them is the result."""
    order = np.argsort(templates, kind="stable")
    firsts = np.flatnonzero(np.diff(templates[order], prepend=templates[order[0]] - 1))
    parts = []
    for images in np.split(order, firsts[np.searchsorted(firsts, range(BLOCK, len(order), BLOCK)) - 1]):
        if len(images):
            rows = weighted_images(plain[images], mirrored[images], scores[images], setting)
            parts.append(pooled(rows, templates[images], media[images]))
    numbers, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    return numbers, rows


def pair_scores(rows: np.ndarray, first: np.ndarray, second: np.ndarray, block: int = 1 << 11) -> np.ndarray:
    """Cosines (p,) of pairs of unit rows (t, D) by index (p,), a block at a time."""
    scores = np.empty(len(first))
    for start in range(0, len(first), block):
        part = slice(start, start + block)
        np.einsum("pd,pd->p", rows[first[part]], rows[second[part]], out=scores[part])
    return scores
