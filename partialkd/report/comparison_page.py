"""A comparison as a page, as JSON, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from partialkd.evaluate.verification import ScoredPairs
from partialkd.report import plots
from partialkd.report.comparison import Comparison, Difference, Recipe, accuracy, difference, spread
from partialkd.report.page import Figure, Table, escaped, figures_html, page_html, paragraph, table_html
from partialkd.report.run_report import NO_DRAWINGS
from partialkd.report.scores_section import MOST_SETS, roc_figure
from partialkd.report.training_section import column, curve_figure, steps

PHASES_SHOWN = ("student", "alone", "teacher")
CURVES = ("loss", "alpha", "margin", "grad_norm", "images_per_s")


def scores_table(found: Comparison) -> Table:
    """A line for each recipe and network: mean accuracy over seeds on each set; the best is marked."""
    best = {name: found.best(name) for name in found.sets}
    rows = []
    for recipe, who in found.rows:
        cells = []
        for name in found.sets:
            scores = recipe.scores(name, who)
            mark = " (best)" if scores and best[name] == (recipe, who) and len(found.rows) > 1 else ""
            cells.append(f"{_accuracy(scores)}{mark}" if scores else "")
        rows.append([recipe.name, who, str(len(recipe.runs)), *cells])
    return Table("Accuracy, %: mean ± standard deviation over seeds; of one run [95 % by identity]",
                 ["run", "network", "seeds", *found.sets], rows)  # fmt: skip


def _accuracy(scores: Sequence[Any]) -> str:
    deviation = spread(scores)
    if deviation is not None:
        return f"{100 * accuracy(scores):.2f} ± {100 * deviation:.2f}"
    limits = scores[0].interval.get("accuracy")
    return f"{100 * scores[0].accuracy:.2f}" + (f" [{100 * limits[0]:.1f}, {100 * limits[1]:.1f}]" if limits else "")


def differences_of(found: Comparison) -> list[tuple[Recipe, str, str, Difference]]:
    """Every network on every set against the baseline."""
    rows = [
        (recipe, who, name, difference(found, recipe, who, name)) for recipe, who in found.rows for name in found.sets
    ]
    return [(recipe, who, name, one) for recipe, who, name, one in rows if one is not None]


def differences_table(found: Comparison) -> Table | None:
    """How many points better than the baseline."""
    rows = [
        [
            recipe.name,
            who,
            name,
            f"{100 * one.mean:+.2f}",
            _points(one.by_identity),
            _points(one.by_seed),
            str(one.seeds),
        ]
        for recipe, who, name, one in differences_of(found)
    ]
    if not rows:
        return None
    base, who = found.rows[0]
    head = ["run", "network", "set", "points", "95 % by identity", "95 % by seed", "seeds in common"]
    return Table(f"Accuracy against {who} of {base.name}, points", head, rows)


def _points(limits: tuple[float, float] | None) -> str:
    return f"[{100 * limits[0]:+.2f}, {100 * limits[1]:+.2f}]" if limits else "—"


def settings_table(found: Comparison) -> Table | None:
    """Keys in which the recipes differ."""
    if not found.settings:
        return None
    rows = [[key, *values] for key, values in found.settings.items()]
    return Table("Settings that differ", ["key", *(recipe.name for recipe in found.recipes)], rows)


def curve_figures(found: Comparison) -> list[Figure]:
    """Curves of all runs, one figure for each phase and number."""
    runs = [run for recipe in found.recipes for run in recipe.runs][: plots.MOST_SERIES]
    figures = []
    for phase in PHASES_SHOWN:
        for name in CURVES:
            lines = [(run.name, run.lines.get(phase, ())) for run in runs]
            curves = [
                plots.Series(run, steps(own), column(own, name))
                for run, own in lines
                if any(name in line for line in own)
            ]
            if curves:
                figures.append(curve_figure(f"{name}: {phase}", curves, name, f"compared {phase} {name}"))
    return figures


def roc_figures(found: Comparison) -> list[Figure]:
    """ROC of the students (else of whatever network) of the first run of each recipe."""
    figures = []
    for name in found.sets[:MOST_SETS]:
        networks: dict[str, ScoredPairs] = {}
        for recipe, who in found.rows:
            pairs = recipe.runs[0].pairs_of(name)
            if who in pairs and len(networks) < plots.MOST_SERIES:
                networks[f"{recipe.runs[0].name}: {who}"] = pairs[who]
        if networks:
            figures.append(roc_figure(name, networks))
    return figures


def difference_figure(found: Comparison) -> Figure | None:
    """Differences with their intervals by identity."""
    rows = [one for one in differences_of(found) if one[3].by_identity is not None][:30]
    table = differences_table(found)
    if not rows or table is None:
        return None
    names = [f"{recipe.runs[0].name}: {who}, {name}" for recipe, who, name, _ in rows]
    places = np.arange(len(rows), dtype=float)
    middle = np.array([100 * one.mean for *_, one in rows])
    limits = np.array([one.by_identity for *_, one in rows], dtype=float) * 100
    series = [plots.Series("difference, 95 % by identity", places, middle, (places, limits[:, 0], limits[:, 1]))]

    def draw(axes: Any) -> None:
        plots.intervals(axes, names, series, "points of accuracy")
        axes.axvline(0, color=plots.INK, linewidth=0.8)

    base, who = found.rows[0]
    title = f"Accuracy against {who} of {base.name}"
    said = "; ".join(f"{name}: {value:+.2f}" for name, value in zip(names, middle, strict=True))
    return Figure(
        title, plots.drawn(draw, "differences", (plots.SIZE[0], 1.2 + 0.3 * len(rows))), f"{title}. {said}", table
    )


def comparison_html(found: Comparison) -> str:
    """The page."""
    scores = [table_html(scores_table(found))] if found.sets else []
    if (table := differences_table(found)) is not None:
        scores.append(table_html(table))
    figures = [figure for figure in [difference_figure(found), *roc_figures(found)] if figure is not None]
    settings = settings_table(found)
    several = len(found.recipes) > 1
    told = table_html(settings) if settings else paragraph("In nothing but the seed.") if several else ""
    lead = paragraph(f"{sum(len(recipe.runs) for recipe in found.recipes)} runs, {len(found.recipes)} recipes.")
    lead += "" if plots.available() else paragraph(NO_DRAWINGS)
    members = "".join(
        f"<li>{escaped(recipe.name)}: {escaped(', '.join(f'{run.name} (seed {run.seed})' for run in recipe.runs))}</li>"
        for recipe in found.recipes
    )
    sections = [
        ("Scores", "".join(scores) + figures_html(figures)),
        ("Settings that differ", told),
        ("Training", figures_html(curve_figures(found))),
        ("Runs", f"<ul>{members}</ul>"),
    ]
    return page_html("Comparison of runs", lead, sections)


def comparison_json(found: Comparison) -> dict[str, Any]:
    """The same as JSON; shares in [0, 1]."""
    base, who = found.rows[0] if found.rows else (found.recipes[0], None)
    return {
        "baseline": {"recipe": base.name, "network": who},
        "recipes": [
            {"name": recipe.name, "runs": [{"folder": str(run.folder), "seed": run.seed} for run in recipe.runs]}
            for recipe in found.recipes
        ],
        "scores": [
            {
                "recipe": recipe.name, "network": who, "set": name, "accuracy": accuracy(scores), "std": spread(scores),
                "seeds": [one.accuracy for one in scores],
            }
            for recipe, who in found.rows for name in found.sets if (scores := recipe.scores(name, who))
        ],
        "differences": [
            {
                "recipe": recipe.name, "network": who, "set": name, "accuracy": one.mean,
                "by_identity": one.by_identity, "by_seed": one.by_seed, "seeds": one.seeds,
            }
            for recipe, who, name, one in differences_of(found)
        ],
        "best": {
            name: {"recipe": best[0].name, "network": best[1]} for name in found.sets if (best := found.best(name))
        },
        "settings": found.settings,
    }  # fmt: skip
