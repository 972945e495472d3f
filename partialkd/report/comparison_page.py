"""A comparison as a page, as JSON, and as lines for a terminal."""

from __future__ import annotations

import re
from itertools import zip_longest
from statistics import mean
from typing import Any

import numpy as np

from partialkd.evaluate.verification import ScoredPairs
from partialkd.report import plots
from partialkd.report.comparison import Column, Comparison, Difference, Recipe, difference, spread
from partialkd.report.page import Figure, Table, escaped, figures_html, page_html, paragraph, table_html
from partialkd.report.run_files import RunFiles, network_order
from partialkd.report.run_report import NO_DRAWINGS
from partialkd.report.scores_section import MOST_SETS, roc_figure
from partialkd.report.training_section import curve_figure, logged, steps

MOST_DIFFERENCES = 30  # of a figure; their table has all
_PHASE = re.compile(r"student|alone|teacher|generation_\d{1,4}")  # others a damaged file may have
CURVES = ("loss", "alpha", "margin", "grad_norm", "images_per_s")


def scores_table(found: Comparison) -> Table:
    """A line for each recipe and network: the mean over seeds in each column; the best is marked."""
    best = {column: found.best(column) for column in found.columns}
    rows = []
    for row in found.rows:
        cells = []
        for column in found.columns:
            mark = " (best)" if best[column] == row and len(found.rows) > 1 else ""
            cells.append(f"{_mean(column, *row)}{mark}" if column.values(*row) else "")
        rows.append([row[0].name, row[1], str(len(row[0].runs)), *cells])
    what = "Accuracy, TAR@FAR as published, %"
    title = f"{what}: mean ± standard deviation over seeds; of one run [95 % by identity]"
    return Table(title, ["run", "network", "seeds", *(column.title for column in found.columns)], rows)


def _mean(column: Column, recipe: Recipe, who: str) -> str:
    values = column.values(recipe, who)
    deviation = spread(values)
    if deviation is not None:
        return f"{100 * mean(values):.2f} ± {100 * deviation:.2f}"
    limits = next(column.interval(run, who) for run in recipe.runs if column.value(run, who) is not None)
    return f"{100 * values[0]:.2f}" + (f" [{100 * limits[0]:.1f}, {100 * limits[1]:.1f}]" if limits else "")


def differences_of(found: Comparison) -> list[tuple[Recipe, str, Column, Difference]]:
    """Every network in every column against the baseline."""
    cells = [(*row, column) for row in found.rows for column in found.columns]
    rows = [(*cell, difference(found, *cell)) for cell in cells]
    return [(recipe, who, column, one) for recipe, who, column, one in rows if one is not None]


def differences_table(found: Comparison) -> Table | None:
    """How many points better than the baseline."""
    rows = [
        [
            recipe.name,
            who,
            column.title,
            f"{100 * one.mean:+.2f}",
            _points(one.by_identity),
            _points(one.by_seed),
            str(one.seeds),
        ]
        for recipe, who, column, one in differences_of(found)
    ]
    if not rows:
        return None
    base, who = found.rows[0]
    head = ["run", "network", "set", "points", "95 % by identity", "95 % by seed", "seeds in common"]
    return Table(f"Against {who} of {base.name}, points of accuracy or, of templates, TAR", head, rows)


def _points(limits: tuple[float, float] | None) -> str:
    return f"[{100 * limits[0]:+.2f}, {100 * limits[1]:+.2f}]" if limits else "—"


def settings_table(found: Comparison) -> Table | None:
    """Keys in which the recipes differ."""
    if not found.settings:
        return None
    rows = [[key, *values] for key, values in found.settings.items()]
    return Table("Settings that differ", ["key", *(recipe.name for recipe in found.recipes)], rows)


def drawn_runs(found: Comparison) -> list[RunFiles]:
    """The runs that have curves: the first of every recipe, then the second, as many as a figure has colours for."""
    turns = zip_longest(*(recipe.runs for recipe in found.recipes))
    return [run for turn in turns for run in turn if run is not None][: plots.MOST_SERIES]


def drawn_networks(found: Comparison, name: str) -> dict[str, ScoredPairs]:
    """The networks that have a ROC on a set: of the first run of each recipe, all students before any other network."""
    networks: dict[str, ScoredPairs] = {}
    for who in sorted(found.networks, key=network_order):
        for recipe in found.recipes:
            pairs = recipe.runs[0].pairs_of(name)
            if who in pairs and len(networks) < plots.MOST_SERIES:
                networks[f"{found.label(recipe.runs[0])}: {who}"] = pairs[who]
    return networks


def unscored(found: Comparison) -> str:
    """Which recipes have no scores to be compared, or nothing."""
    there = {recipe.name for recipe, _ in found.rows}
    names = [recipe.name for recipe in found.recipes if recipe.name not in there]
    return f"Without scores: {', '.join(names)}." if names else ""


def left_out(found: Comparison) -> str:
    """What the figures leave out, or nothing."""
    runs, most = sum(len(recipe.runs) for recipe in found.recipes), plots.MOST_SERIES
    said = []
    if len(found.rows) > most:
        said.append(f"ROC curves are of {most} networks of first runs, students first.")
    if runs > most:
        said.append(f"Curves of training are of {most} of {runs} runs, the first of each recipe first.")
    return f"{' '.join(said)} The tables have all." if said else ""


def phases_shown(found: Comparison) -> list[str]:
    """The phases that have curves."""
    named = {phase for run in drawn_runs(found) for phase, lines in run.lines.items() if lines}
    return sorted(filter(_PHASE.fullmatch, named), key=network_order)


def curve_figures(found: Comparison) -> list[Figure]:
    """Curves of the runs, one figure for each phase and number."""
    figures = []
    for phase in phases_shown(found):
        for name in CURVES:
            lines = [(found.label(run), run.lines.get(phase, ())) for run in drawn_runs(found)]
            curves = [
                plots.Series(run, steps(own), logged(own, name))
                for run, own in lines
                if any(name in line for line in own)
            ]
            if curves:
                figures.append(curve_figure(f"{name}: {phase}", curves, name, f"compared {phase} {name}"))
    return figures


def roc_figures(found: Comparison) -> list[Figure]:
    """ROC on each set."""
    drawn = [(name, drawn_networks(found, name)) for name in found.sets[:MOST_SETS]]
    return [roc_figure(name, networks) for name, networks in drawn if networks]


def difference_figure(found: Comparison) -> Figure | None:
    """Differences with their intervals by identity."""
    every = [one for one in differences_of(found) if one[3].by_identity is not None]
    rows = every[:MOST_DIFFERENCES]
    table = differences_table(found)
    if not rows or table is None:
        return None
    names = [f"{found.label(recipe.runs[0])}: {who}, {column.title}" for recipe, who, column, _ in rows]
    places = np.arange(len(rows), dtype=float)
    middle = np.array([100 * one.mean for *_, one in rows])
    limits = np.array([one.by_identity for *_, one in rows], dtype=float) * 100
    series = [plots.Series("difference, 95 % by identity", places, middle, (places, limits[:, 0], limits[:, 1]))]

    def draw(axes: Any) -> None:
        plots.intervals(axes, names, series, "points of accuracy")
        axes.axvline(0, color=plots.INK, linewidth=0.8)

    base, who = found.rows[0]
    title = f"Accuracy against {who} of {base.name}"
    title += f" (the first {len(rows)} of {len(every)})" if len(every) > len(rows) else ""
    said = "; ".join(f"{name}: {value:+.2f}" for name, value in zip(names, middle, strict=True))
    return Figure(
        title, plots.drawn(draw, "differences", (plots.SIZE[0], 1.2 + 0.3 * len(rows))), f"{title}. {said}", table
    )


def comparison_html(found: Comparison) -> str:
    """The page."""
    scores = [table_html(scores_table(found))] if found.columns else []
    if (table := differences_table(found)) is not None:
        scores.append(table_html(table))
    figures = [figure for figure in [difference_figure(found), *roc_figures(found)] if figure is not None]
    settings = settings_table(found)
    alike = paragraph("In nothing: they are runs of the same seeds.") if len(found.recipes) > 1 else ""
    told = table_html(settings) if settings else alike
    lead = paragraph(_counted(found))
    lead += "" if plots.available() else paragraph(NO_DRAWINGS)
    members = "".join(
        f"<li>{escaped(recipe.name)}: "
        f"{escaped(', '.join(f'{found.label(run)} (seed {run.seed})' for run in recipe.runs))}</li>"
        for recipe in found.recipes
    )
    sections = [
        ("Scores", "".join(scores) + figures_html(figures)),
        ("Settings that differ", told),
        ("Training", figures_html(curve_figures(found))),
        ("Runs", f"<ul>{members}</ul>"),
    ]
    return page_html("Comparison of runs", lead, sections)


def _counted(found: Comparison) -> str:
    runs, recipes = sum(len(recipe.runs) for recipe in found.recipes), len(found.recipes)
    counted = f"{runs} run{'s' * (runs != 1)}, {recipes} recipe{'s' * (recipes != 1)}."
    return " ".join(filter(None, [counted, unscored(found), left_out(found)]))


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
            {**_cell(recipe, who, column), _measure(column): mean(values), "std": spread(values), "seeds": values}
            for recipe, who in found.rows for column in found.columns if (values := column.values(recipe, who))
        ],
        "differences": [
            {
                **_cell(recipe, who, column), _measure(column): one.mean,
                "by_identity": one.by_identity, "by_seed": one.by_seed, "seeds": one.seeds,
            }
            for recipe, who, column, one in differences_of(found)
        ],
        "best": {
            column.title: {"recipe": best[0].name, "network": best[1]}
            for column in found.columns if (best := found.best(column))
        },
        "settings": found.settings,
    }  # fmt: skip


def _cell(recipe: Recipe, who: str, column: Column) -> dict[str, Any]:
    far = {} if column.far is None else {"far": column.far}
    return {"recipe": recipe.name, "network": who, "set": column.name, **far}


def _measure(column: Column) -> str:
    return "accuracy" if column.far is None else "tar_published"
