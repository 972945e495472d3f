"""How often intervals hold the truth: synthetic scores of known truth, and held-out identities of real embeddings.

    python benchmarks/intervals.py [--sets 2000] [--out FILE]
    python benchmarks/intervals.py --keep FOLDER --identities LIST      # besides: splits of embeddings that are kept

Scores: genuine of person i = m + u_i + e, impostor of i and j = v_i + v_j + e, all normal, so that thresholds and
rates at any FAR are known in closed form. Two designs: `listed` has few pairs a person, as LFW has; `all` compares
every image with every other one. Reported: the share of sets whose interval holds the truth; 0.95 is asked for.
`difference` is that of two networks with equal genuine scores in truth, on the same people.

Splits: embeddings kept by `launch/evaluate.py --all-pairs FACES --keep FOLDER` (FOLDER/<name>_all_pairs here), and the
folder FACES that they are of. A card is made of 800 identities, drawn `--splits` times; it holds where the threshold at
the FAR of all other identities lies in the card's interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from measure import machine
from prettytable import PrettyTable

from partialkd.evaluate import intervals
from partialkd.evaluate.embedding import PIECE, Kept
from partialkd.evaluate.identification_protocol import read_identities, unit_rows
from partialkd.evaluate.intervals import Impostors, Interval, People
from partialkd.evaluate.rates import strict_threshold
from partialkd.storage.atomic_files import write_json

FARS = (1e-1, 1e-2, 1e-3)
GENUINE_MEAN, PERSON, PAIR = 4.0, 0.7, 1.0  # standard deviations of u and of e
BLAME = 0.5  # that of v
CARD = 800  # identities


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=2000, help="synthetic sets of each design")
    parser.add_argument("--keep", type=Path, help="folder of kept embeddings of all pairs")
    parser.add_argument("--faces", type=Path, help="the folder of faces that they are of")
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    return parser.parse_args()


def listed() -> tuple[People, People]:
    """Who is in the genuine and impostor pairs of a list: 600 people, two genuine pairs each, 1200 impostor pairs."""
    who, rng = np.repeat(np.arange(600), 2), np.random.default_rng(0)
    first = rng.integers(0, 600, 1200)
    return People.single(who), People(first, (first + rng.integers(1, 600, 1200)) % 600)


def everything() -> tuple[People, People]:
    """Of 80 people with three images each, every pair."""
    who = np.repeat(np.arange(80), 3)
    a, b = np.triu_indices(len(who), 1)
    same = who[a] == who[b]
    return People.single(who[a[same]]), People(who[a[~same]], who[b[~same]])


DESIGNS = {"listed": listed, "all": everything}


def truths() -> dict[str, float]:
    """What the intervals ought to hold."""
    genuine = NormalDist(GENUINE_MEAN, (PERSON**2 + PAIR**2) ** 0.5)
    impostor = NormalDist(0, (2 * BLAME**2 + PAIR**2) ** 0.5)
    thresholds = {far: impostor.inv_cdf(1 - far) for far in FARS}
    difference = NormalDist(genuine.mean, (genuine.variance + impostor.variance) ** 0.5)
    return {
        "auc": 1 - difference.cdf(0),
        "difference": 0.0,
        **{f"threshold {far:g}": at for far, at in thresholds.items()},
        **{f"tar {far:g}": 1 - genuine.cdf(at) for far, at in thresholds.items()},
        "share": 1 - genuine.cdf(3.0),
    }


def found(of: People, between: People, rng: np.random.Generator) -> dict[str, Interval]:
    """Draw one set; the intervals of all numbers."""
    people = 1 + int(max(of.first.max(), between.second.max(), between.first.max()))
    u, v = rng.normal(0, PERSON, people), rng.normal(0, BLAME, people)
    draw = lambda: GENUINE_MEAN + u[of.first] + rng.normal(0, PAIR, len(of.first))
    genuine, other = draw(), draw()
    impostor = v[between.first] + v[between.second] + rng.normal(0, PAIR, len(between.first))
    same = np.repeat([True, False], [len(genuine), len(impostor)])
    both = People(np.concatenate([of.first, between.first]), np.concatenate([of.second, between.second]))
    impostors = Impostors(impostor, between)
    scores = [np.concatenate([one, impostor]) for one in (genuine, other)]
    return {
        "auc": intervals.auc(genuine, of, impostor, between),
        "difference": intervals.tar_difference(scores[0], scores[1], same, both, 1e-2)[1],
        **{f"threshold {far:g}": impostors.limits(far) for far in FARS},
        **{f"tar {far:g}": intervals.tar(genuine, of, impostors, far) for far in FARS},
        "share": intervals.share((genuine > 3.0).astype(float), of),
    }


def coverage(design: str, sets: int) -> dict[str, float]:
    """Share of sets whose interval holds the truth."""
    of, between = DESIGNS[design]()
    truth, rng = truths(), np.random.default_rng(1)
    held = dict.fromkeys(truth, 0)
    for _ in range(sets):
        for name, (low, high) in found(of, between, rng).items():
            held[name] += low <= truth[name] <= high
    return {name: count / sets for name, count in held.items()}


def kept_rows(folder: Path, count: int) -> np.ndarray:
    """Unit rows of kept embeddings."""
    kept = Kept(folder, {})
    pieces = [kept.read(number) for number in range(-(-count // PIECE))]
    return unit_rows(np.concatenate(pieces, axis=1), flip=True)


def splits(rows: np.ndarray, identities: np.ndarray, times: int) -> dict[str, int]:
    """How many of the cards hold the threshold of all other identities."""
    rng, held = np.random.default_rng(2), dict.fromkeys((f"{far:g}" for far in FARS[1:]), 0)
    people = np.unique(identities)
    for _ in range(times):
        inside = np.isin(identities, rng.choice(people, CARD, replace=False))
        scores, between = impostors(rows[inside], identities[inside])
        outside, _ = impostors(rows[~inside], identities[~inside])
        ordered = np.sort(outside)
        for far in FARS[1:]:
            low, high = intervals.threshold(scores, between, far)
            held[f"{far:g}"] += low <= strict_threshold(ordered, far) <= high
    return held


def impostors(rows: np.ndarray, identities: np.ndarray) -> tuple[np.ndarray, People]:
    """Scores of all pairs of two identities, one image of each at most: the first."""
    who, first = np.unique(identities, return_index=True)
    a, b = np.triu_indices(len(who), 1)
    scores = (rows[first] @ rows[first].T)[a, b]
    return scores, People(a, b)


def main() -> None:
    args = parse_args()
    result: dict[str, Any] = {"machine": machine(torch.device("cpu")), "sets": args.sets}
    result["coverage"] = {design: coverage(design, args.sets) for design in DESIGNS}
    table = PrettyTable(["number", *DESIGNS])
    for name in truths():
        table.add_row([name, *(f"{100 * result['coverage'][design][name]:.1f} %" for design in DESIGNS)])
    print(table)
    if args.keep:
        names, identities, _ = read_identities(args.faces)
        rows = kept_rows(args.keep, len(names))
        result["splits"] = {"times": args.splits, "card": CARD, "held": splits(rows, identities, args.splits)}
        print(json.dumps(result["splits"]))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
