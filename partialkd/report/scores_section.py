"""How good a run's networks are, as figures: ROC with intervals, histograms, accuracy per set, the hardest pairs.

Curves are of the pairs that the run has kept (evaluate/kept_pairs.py); photographs of the sets' own files, if they are
still where the configuration says. Sets beyond `MOST_SETS` have their numbers in the table alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partialkd.data.formats.verification_bin import VerificationSet, read_bin
from partialkd.errors import DataError
from partialkd.evaluate import intervals
from partialkd.evaluate.intervals import Impostors
from partialkd.evaluate.pairs import PairScores, fold_accuracies
from partialkd.evaluate.rates import share_above, strict_threshold
from partialkd.evaluate.verification import ScoredPairs
from partialkd.evaluate.verification_tables import Results, results_table
from partialkd.report import plots
from partialkd.report.page import Figure, Table, escaped, figures_html, paragraph, picture, section_html, table_html
from partialkd.report.run_files import RunFiles

MOST_SETS = 6  # with figures
MOST_ACCURACIES = 30  # sets in one figure
HARDEST = 6  # pairs of each kind
POINTS, BAND_POINTS = 120, 14  # of a ROC curve, and with an interval


def scores_table(results: Results) -> Table:
    """The table of launch/evaluate.py."""
    table = results_table(results)
    head = [str(name) for name in table.field_names]
    rows = [[str(cell) for cell in row] for row in table.rows]
    return Table("Scores; brackets: intervals of 95 % by identity", head, rows)


def accuracy_figure(results: Results) -> Figure:
    """A dot for each set and network."""
    names = list(results)[:MOST_ACCURACIES]
    networks = list(dict.fromkeys(who for name in names for who in results[name]))
    rows = []
    for who in networks:
        there = [at for at, name in enumerate(names) if who in results[name]]
        found = [results[names[at]][who] for at in there]
        limits = [one.interval.get("accuracy") or (one.accuracy, one.accuracy) for one in found]
        low, high = (np.array([100 * limit[side] for limit in limits]) for side in (0, 1))
        middle = np.array([100 * one.accuracy for one in found])
        rows.append(plots.Series(who, np.array(there, dtype=float), middle, (middle, low, high)))
    size = (plots.SIZE[0], 1.2 + 0.34 * len(names))
    svg = plots.drawn(lambda axes: plots.intervals(axes, names, rows, "accuracy, %"), "accuracy", size)
    best = [f"{name}: best is {max(results[name], key=lambda who: results[name][who].accuracy)}" for name in names]
    more = f" {len(results) - len(names)} further sets are in the table." if len(results) > len(names) else ""
    table = Table("Accuracy, %", ["set", *networks], [
        [name, *(_share(results[name].get(who)) for who in networks)] for name in names
    ])  # fmt: skip
    return Figure("Accuracy on each set", svg, f"Accuracy on each set. {'; '.join(best[:8])}.{more}", table)


def _share(one: PairScores | None) -> str:
    if one is None:
        return ""
    limits = one.interval.get("accuracy")
    return f"{100 * one.accuracy:.2f}" + (f" [{100 * limits[0]:.1f}, {100 * limits[1]:.1f}]" if limits else "")


# ------------------------------------------------------------------------------------------------------- curves


def roc_curve(pairs: ScoredPairs, name: str) -> plots.Series:
    """TAR over FAR (log-spaced), with intervals of 95 % by identity at some of the rates."""
    genuine, impostor = np.sort(pairs.cosines[pairs.same]), np.sort(pairs.cosines[~pairs.same])
    least = 1 / len(impostor)
    rates = np.geomspace(least, 1.0, POINTS)
    shares = np.array([share_above(genuine, strict_threshold(impostor, far)) for far in rates])
    found, of = Impostors(pairs.cosines[~pairs.same], pairs.people[~pairs.same]), pairs.people[pairs.same]
    some = np.geomspace(min(2 * least, 1.0), 0.9, BAND_POINTS)
    limits = np.array([intervals.tar(pairs.cosines[pairs.same], of, found, far) for far in some])
    return plots.Series(name, rates, shares, (some, limits[:, 0], limits[:, 1]))


def roc_figure(name: str, networks: dict[str, ScoredPairs]) -> Figure:
    """Curves of all networks on one set."""
    curves = [roc_curve(pairs, who) for who, pairs in networks.items()]
    title = f"ROC: {name}"
    far, tar = "false accept rate", "true accept rate"
    svg = plots.drawn(lambda axes: plots.lines(axes, curves, far, tar, log_x=True), f"roc {name}")
    some = [rate for rate in (1e-4, 1e-3, 1e-2, 1e-1) if all(rate >= curve.x[0] for curve in curves)]
    rows = [[f"{rate:g}", *(_tar_cell(pairs, rate) for pairs in networks.values())] for rate in some]
    said = "; ".join(f"{curve.name}: {np.interp(0.1, curve.x, curve.y):.1%} at 0.1" for curve in curves)
    return Figure(
        title, svg, f"{title}. True accept rate over false accept rate, with 95 % bands. {said}.",
        Table("True accept rate, % [95 % by identity]", ["false accept rate", *networks], rows),
    )  # fmt: skip


def _tar_cell(pairs: ScoredPairs, far: float) -> str:
    genuine, impostor = pairs.cosines[pairs.same], np.sort(pairs.cosines[~pairs.same])
    found = Impostors(pairs.cosines[~pairs.same], pairs.people[~pairs.same])
    low, high = intervals.tar(genuine, pairs.people[pairs.same], found, far)
    share = share_above(np.sort(genuine), strict_threshold(impostor, far))
    return f"{100 * share:.2f} [{100 * low:.1f}, {100 * high:.1f}]"


def histogram_figure(name: str, who: str, pairs: ScoredPairs, folds: int) -> Figure:
    """Cosines of genuine and impostor pairs of one network on one set."""
    genuine, impostor = pairs.cosines[pairs.same], pairs.cosines[~pairs.same]
    threshold = float(fold_accuracies(pairs.cosines, pairs.same, folds)[1].mean())
    title = f"Cosines of {who}: {name}"
    svg = plots.drawn(lambda axes: plots.histograms(axes, genuine, impostor, threshold), f"histogram {name} {who}")
    said = (
        f"genuine pairs {genuine.mean():.3f} ± {genuine.std():.3f}, "
        f"impostors {impostor.mean():.3f} ± {impostor.std():.3f}, threshold {threshold:.3f}"
    )
    quantiles = (0, 0.01, 0.1, 0.5, 0.9, 0.99, 1)
    rows = [[f"{q:.0%}", f"{np.quantile(genuine, q):.3f}", f"{np.quantile(impostor, q):.3f}"] for q in quantiles]
    return Figure(
        title, svg, f"{title}: {said}.", Table(f"Quantiles; {said}", ["quantile", "genuine", "impostor"], rows)
    )


# ------------------------------------------------------------------------------------------------------- hardest pairs


def hardest(pairs: ScoredPairs, count: int = HARDEST) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the least alike genuine pairs and of the most alike impostor pairs, the hardest first."""
    order = np.argsort(pairs.cosines, kind="stable")
    return order[pairs.same[order]][:count], order[::-1][~pairs.same[order[::-1]]][:count]


def hardest_html(name: str, networks: dict[str, ScoredPairs], images: VerificationSet | None, why_not: str) -> str:
    """The hardest pairs of the first network, with the cosines of all."""
    who, pairs = next(iter(networks.items()))
    parts = [] if images else [paragraph(f"The photographs cannot be shown: {why_not}")]
    for kind, numbers in zip(("least alike genuine pairs", "most alike impostor pairs"), hardest(pairs), strict=True):
        items = "".join(_pair_html(int(at), networks, images) for at in numbers)
        parts.append(f'<h4>{escaped(f"{who}: {kind}")}</h4><ul class="pairs">{items}</ul>')
    return section_html(f"Hardest pairs: {name}", "".join(parts), level=3)


def _pair_html(at: int, networks: dict[str, ScoredPairs], images: VerificationSet | None) -> str:
    shown = ""
    if images:
        shown = "".join(picture(images.images[2 * at + side], f"pair {at}, image {side + 1}") for side in (0, 1))
    cosines = ", ".join(f"{who} {pairs.cosines[at]:.3f}" for who, pairs in networks.items())
    return f"<li>{shown}<br>{escaped(f'pair {at}: {cosines}')}</li>"


def _set_file(run: RunFiles, name: str, pairs: ScoredPairs) -> tuple[VerificationSet | None, str]:
    """The set's file with the images of these pairs; or why there is none."""
    paths = [Path(path) for path in run.config.evaluation.sets if Path(path).stem == name] if run.config else []
    if not paths:
        return None, "the configuration does not say where they are"
    try:
        found = read_bin(paths[0])
    except DataError as error:
        return None, str(error)
    if len(found.same) != len(pairs.same) or (found.same != pairs.same).any():
        return None, f"{paths[0]} is another set by now"
    return found, ""


def scores_html(run: RunFiles) -> str:
    """All of a run's scores."""
    results = run.scores
    if not results:
        return ""
    parts = [table_html(scores_table(results)), figures_html([accuracy_figure(results)])]
    sets = [name for name in results if any(name in found for found in run.pairs.values())]
    folds = run.config.evaluate.folds if run.config else 10
    for name in sets[:MOST_SETS]:
        networks = run.pairs_of(name)
        figures = [roc_figure(name, networks)]
        figures += [histogram_figure(name, who, pairs, folds) for who, pairs in networks.items()]
        hard = hardest_html(name, networks, *_set_file(run, name, next(iter(networks.values()))))
        parts += [section_html(f"Set {name}", figures_html(figures), level=3), hard]
    if len(sets) > MOST_SETS:
        more = f"Figures are of the first {MOST_SETS} sets; numbers of all {len(results)} are in the table."
        parts.append(paragraph(more))
    elif not sets:
        parts.append(paragraph("No pairs were kept (an earlier version): there are no curves."))
    return "".join(parts)


def tiles(results: Results) -> Sequence[tuple[str, str]]:
    """The first set's accuracies, for the top of the page."""
    if not results:
        return []
    name, networks = next(iter(results.items()))
    return [(f"{who} on {name}", f"{100 * one.accuracy:.2f} %") for who, one in networks.items()]
