"""Judge a network by templates: 1:1 and 1:N as IJB-B and IJB-C do, in all eight settings.

The set: data/formats/ijb_folder.py; how images become templates: templates.py; what the numbers mean: rates.py and
identification.py. Photographs are aligned by the landmarks of the set on the way to the network.
1:N, published: all galleries as one. Strict: each gallery by itself, so that probes of the others' subjects are those
without a mate; the mean over the galleries (NIST, IJB-B).
Intervals are by identity (intervals.py); whom templates show is taken from genuine pairs. That of a published TPIR is
at its threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
from prettytable import PrettyTable

from partialkd.align.template import aligned
from partialkd.data.formats.ijb_folder import Listed, TemplateSet
from partialkd.data.images.decode import Wanted, check_head, decode
from partialkd.errors import DataError
from partialkd.evaluate.cells import rate_cell, share_cell
from partialkd.evaluate.embedding import Images
from partialkd.evaluate.identification import (
    Searches,
    published_count,
    rank_shares,
    search,
    tpir_published,
    tpir_strict,
)
from partialkd.evaluate.intervals import (
    Impostors,
    Interval,
    People,
    identities_of_pairs,
    joined,
    share,
    share_of,
    tar,
)
from partialkd.evaluate.rates import points_of_sorted, too_few
from partialkd.evaluate.templates import SETTINGS, Setting, pair_scores, pooled_images
from partialkd.storage.checksum import crc32, hexadecimal

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)


@dataclass(frozen=True)
class Asked:
    """Which numbers are wanted."""

    fars: Sequence[float] = FARS
    ranks: Sequence[int] = RANKS
    fpirs: Sequence[float] = FPIRS
    settings: Sequence[Setting] = SETTINGS


def faces_of(found: TemplateSet, image_size: int) -> Images:
    """List the set's images as the network is to see them."""
    wanted = Wanted(image_size, option="a network of that input size") if found.aligned else None

    def pixels(image: int) -> np.ndarray:
        decoded = decode(found.encoded(image), str(found.path(image)), wanted=wanted)
        return decoded if found.aligned else aligned(decoded, found.landmarks[image], image_size)

    name = lambda image: str(found.path(image))
    look = lambda image: check_head(found.encoded(image), name(image), wanted)
    return Images(len(found.names), pixels, name, f"embedding {found.folder.name}", look)


def check_set(found: TemplateSet, asked: Asked) -> None:
    """DataError for what cannot be scored whatever the network says, and for the first image that is not there."""
    if found.pairs is not None and not 0 < (genuine := int(found.pairs[2].sum())) < len(found.pairs[2]):
        rule = "its pairs of templates must be of both kinds"
        raise DataError(f"{found.folder}: {rule}, got {genuine} of one person among {len(found.pairs[2])}")
    counts = np.unique(found.templates[found.scores > 0])
    if len(nothing := np.flatnonzero(~np.isin(found.templates, counts))):
        rule = f"template {found.templates[nothing[0]]} has no image with a detector's score above 0"
        raise DataError(f"{found.line(nothing[0])}: {rule}")
    if found.probes is not None:
        _check_searches(found, found.probes, max(published_count(len(found.probes.subjects), x) for x in asked.fpirs))
    if found.stored is not None:
        return
    for image in range(len(found.names)):
        if not found.path(image).is_file():
            of = f"{found.line(image)}, of template {found.templates[image]}"
            raise DataError(f"{found.path(image)}: no such image ({of})")


def _check_searches(found: TemplateSet, probes: Listed, wanted: int) -> None:
    enrolled = np.concatenate([one.subjects for one in found.galleries.values()])
    if not np.isin(probes.subjects, enrolled).any():
        raise DataError(f"{found.folder}: no probe shows a subject of the galleries")
    who, sizes = np.unique(enrolled, return_counts=True)
    at = np.minimum(np.searchsorted(who, probes.subjects), len(who) - 1)
    others = len(enrolled) * len(probes.subjects) - int(sizes[at][who[at] == probes.subjects].sum())
    if others < wanted:
        raise DataError(f"{found.folder}: too small for 1:N: {others} scores of two people, at least {wanted} needed")


def score_templates(embeddings: np.ndarray, found: TemplateSet, asked: Asked) -> dict[str, Any]:
    """Embeddings (2, n, D) of the images and their mirror images -> {setting: {"verification", "identification"}}."""
    people = None if found.pairs is None else _people(*found.pairs)
    return {setting.name: _scored(embeddings, found, setting, asked, people) for setting in asked.settings}


def _people(first: np.ndarray, second: np.ndarray, same: np.ndarray) -> People:
    """Whom the pairs of templates show, by the templates' places among those that occur."""
    known = np.union1d(np.unique(first), np.unique(second))
    return identities_of_pairs(_places(known, first), _places(known, second), same)


def _places(known: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Where templates (p,) stand among the known ones, (p,) int32: of eight million pairs half the memory."""
    return np.searchsorted(known, templates).astype(np.int32)


def _scored(
    embeddings: np.ndarray, found: TemplateSet, setting: Setting, asked: Asked, people: People | None
) -> dict[str, Any]:
    images = embeddings[0], embeddings[1], found.scores
    numbers, templates = pooled_images(*images, setting, found.templates, found.media)
    results: dict[str, Any] = {}
    if found.pairs is not None and people is not None:
        first, second, same = found.pairs
        scored = pair_scores(templates, _places(numbers, first), _places(numbers, second))
        genuine, other = scored[same], scored[~same]
        del scored  # eight million numbers
        results["verification"] = _verified(genuine, people[same], Impostors(other, people[~same]), asked.fars)
    if found.probes is not None:
        rows_of = lambda listed: templates[np.searchsorted(numbers, listed.templates)]
        results["identification"] = _identified(rows_of(found.probes), found, rows_of, asked)
    return results


def _verified(genuine: np.ndarray, of: People, between: Impostors, fars: Sequence[float]) -> dict[str, Any]:
    points = points_of_sorted(np.sort(genuine), between.ordered, fars)
    rates = {f"{far:g}": asdict(point) for far, point in points.items()}
    for far, point in points.items():
        rates[f"{far:g}"] |= {
            "threshold": _finite(point.threshold),
            "interval": list(tar(genuine, of, between, far)),
            "interval_published": list(_published(genuine, of, between, far, point.tar_published)),
            "too_few_impostors": too_few(far, len(between.scores)),
        }
    return {"tar_at_far": rates, "genuine": len(genuine), "impostors": len(between.scores)}


def _published(genuine: np.ndarray, of: People, between: Impostors, far: float, rate: float) -> Interval:
    """Interval of the share of genuine pairs that the published point accepts: the highest of them."""
    accepted = np.zeros(len(genuine))
    accepted[np.argsort(-genuine, kind="stable")[: round(rate * len(genuine))]] = 1
    return joined(genuine, rate, share(accepted, of), between.limits(far))


def _identified(probes: np.ndarray, found: TemplateSet, rows_of: Any, asked: Asked) -> dict[str, Any]:
    assert found.probes is not None
    subjects = found.probes.subjects
    most = max(published_count(len(probes), fpir) for fpir in asked.fpirs)
    together = Listed(*(np.concatenate([getattr(one, part) for one in found.galleries.values()]) for part in _PARTS))
    whole = search(probes, rows_of(together), subjects, together.subjects, most)
    each = [search(probes, rows_of(one), subjects, one.subjects) for one in found.galleries.values()]
    places, of = whole.before[whole.mated], subjects[whole.mated]
    return {
        "rank": {str(rank): share for rank, share in rank_shares(whole, asked.ranks).items()},
        "interval": {"rank": {str(rank): list(share_of(places < rank, of)) for rank in asked.ranks}},
        "tpir_at_fpir": {f"{fpir:g}": _tpir(whole, each, subjects, fpir) for fpir in asked.fpirs},
        "probes": len(probes),
        "gallery": len(together.subjects),
    }


def _tpir_interval(found: Searches, subjects: np.ndarray, fpir: float) -> Interval:
    mated, other = People.single(subjects[found.mated]), People.single(subjects[~found.mated])
    return tar(found.mate[found.mated], mated, Impostors(found.other[~found.mated], other), fpir)


_PARTS = ("templates", "subjects")


def _tpir(whole: Searches, each: Sequence[Searches], subjects: np.ndarray, fpir: float) -> dict[str, Any]:
    published, threshold = tpir_published(whole, fpir)
    found = share_of(whole.mate[whole.mated] > threshold, subjects[whole.mated])
    open_sets = [one for one in each if one.mated.any() and not one.mated.all()]
    strict = mean(tpir_strict(one, fpir)[0] for one in open_sets) if open_sets else None
    unmated = min((int((~one.mated).sum()) for one in open_sets), default=0)
    few = too_few(fpir, unmated)
    ends = np.array([_tpir_interval(one, subjects, fpir) for one in open_sets])
    interval = ends.mean(0).tolist() if open_sets else None  # of each gallery; that of their mean is narrower
    return {
        "tpir": strict,
        "interval": interval,
        "too_few_impostors": few,
        "impostors": unmated,  # probes without a mate, in the gallery where they are fewest
        "tpir_published": published,
        "interval_published": list(found),  # at this threshold
        "impostors_published": len(whole.mate),  # all probes: of these it takes the share
        "threshold_published": threshold,
    }


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None


def verification_table(results: dict[str, Any], name: str) -> PrettyTable:
    """Strict and published shares in per cent, a line a setting; a dash where there are too few impostors."""
    rows = {setting: one["verification"]["tar_at_far"] for setting, one in results.items() if "verification" in one}
    fars = list(next(iter(rows.values()), {}))
    table = PrettyTable([name, *(f"TAR % @ FAR {far}" for far in fars)])
    for setting, rates in rows.items():
        impostors = results[setting]["verification"]["impostors"]
        for of, name in ((setting, ""), (f"{setting} as published", "_published")):
            shown = ((rates[far][f"tar{name}"], rates[far][f"interval{name}"], float(far), impostors) for far in fars)
            table.add_row([of, *(rate_cell(*one) for one in shown)])
    return table


def identification_table(results: dict[str, Any], name: str) -> PrettyTable:
    """Ranks and identification rates in per cent, a line a setting."""
    rows = {setting: one["identification"] for setting, one in results.items() if "identification" in one}
    one = next(iter(rows.values()))
    ranks, fpirs = list(one["rank"]), list(one["tpir_at_fpir"])
    columns = [f"TPIR % @ FPIR {fpir}{how}" for fpir in fpirs for how in ("", " as published")]
    table = PrettyTable([name, *(f"rank-{rank} %" for rank in ranks), *columns])
    for setting, found in rows.items():
        shares = [
            rate_cell(rate[f"tpir{how}"], rate[f"interval{how}"], float(fpir), rate[f"impostors{how}"])
            for fpir, rate in found["tpir_at_fpir"].items()
            for how in ("", "_published")
        ]
        table.add_row([setting, *(share_cell(found["rank"][k], found["interval"]["rank"][k]) for k in ranks), *shares])
    return table


def facts_of(found: TemplateSet) -> dict[str, Any]:
    """Describe the images, for embeddings that are kept."""
    text = "\n".join(found.names).encode() + found.landmarks.tobytes()
    return {"images": len(found.names), "list": hexadecimal(crc32(text)), "aligned": found.aligned}
