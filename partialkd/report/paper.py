"""Tables and drawings for a paper: LaTeX, Markdown and CSV with the sets in the papers' order, PDF and PNG.

    accuracy.tex  accuracy.md  accuracy.csv    a line for each recipe and network, the best of each column in bold
    differences.csv                            against the baseline, with both intervals
    roc_<set>.pdf .png    loss_<phase>.pdf .png

LFW, CFP-FP, AgeDB-30, CALFW, CPLFW (accuracy), IJB-B, IJB-C (TAR as published, template_scores.py) come first, under
their printed names; other sets follow.
Foreign strings are escaped for each format. In a CSV a cell that a spreadsheet would take for a formula begins with '.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from partialkd.errors import ConfigError, printable
from partialkd.report import plots
from partialkd.report.comparison import PAPER_SETS, Column, Comparison, plain, spread
from partialkd.report.comparison_page import differences_of, drawn_networks, drawn_runs, phases_shown
from partialkd.report.scores_section import MOST_SETS, roc_curve
from partialkd.report.training_section import logged, steps
from partialkd.storage.atomic_files import new_folder, refuse_existing

INKS = ("#1d5fc4", "#b93a06", "#0b6e62", "#9b1fb0", "#57606f", "#8a6100")
PRINTED = {
    "axes.edgecolor": "#555555", "axes.labelcolor": "black", "text.color": "black", "xtick.color": "black",
    "ytick.color": "black", "grid.color": "#dddddd", "font.size": 8.0, "pdf.fonttype": 42, "font.family": "serif",
}  # fmt: skip
SIZE = (3.4, 2.4)  # inches: a column of a two-column page
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def write_paper(out: Path, found: Comparison) -> None:
    """Write the folder, which must not be there; ConfigError without scores."""
    if not found.columns:
        raise ConfigError("--paper: none of these runs has scores yet")
    refuse_existing(out)
    with new_folder(out) as hidden:
        for name, text in {
            "accuracy.tex": latex(found), "accuracy.md": markdown(found), "accuracy.csv": accuracy_csv(found),
            "differences.csv": differences_csv(found),
        }.items():  # fmt: skip
            (hidden / name).write_text(text, encoding="utf-8")
        if plots.available():
            _draw_all(hidden, found)


def printed(column: Column) -> str:
    """A column's title as papers print it."""
    return replace(column, name=PAPER_SETS.get(plain(column.name), column.name)).title


def _cells(found: Comparison, bold: Callable[[str], str]) -> list[list[str]]:
    """Recipe, network, and a mean (± deviation) for each column."""
    rows = []
    for recipe, who in found.rows:
        cells = []
        for column in found.columns:
            values = column.values(recipe, who)
            deviation = spread(values)
            text = f"{100 * mean(values):.2f}" if values else ""
            text += f" ± {100 * deviation:.2f}" if deviation is not None else ""
            cells.append(bold(text) if text and found.best(column) == (recipe, who) and len(found.rows) > 1 else text)
        rows.append([recipe.name, who, *cells])
    return rows


def latex(found: Comparison) -> str:
    """A tabular that wants booktabs."""
    rows = _cells(found, lambda text: f"\x02{text}\x03")
    head = " & ".join(["Run", "Network", *(_for_latex(printed(column)) for column in found.columns)])
    body = "\n".join(" & ".join(map(_for_latex, row)) + r" \\" for row in rows)
    body = body.replace("\x02", r"\textbf{").replace("\x03", "}").replace("±", r"$\pm$")
    return (
        f"\\begin{{tabular}}{{ll{'c' * len(found.columns)}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _for_latex(text: str) -> str:
    kept = "".join(c if c in "\x02\x03" else printable(c) for c in text)
    return "".join(_LATEX.get(c, c) for c in kept)


def markdown(found: Comparison) -> str:
    """A table of GitHub's kind."""
    rows = [["run", "network", *(printed(column) for column in found.columns)], ["---"] * (2 + len(found.columns))]
    rows += [[_for_markdown(row[0]), *row[1:]] for row in _cells(found, lambda text: f"**{text}**")]
    rows[0] = [_for_markdown(cell) for cell in rows[0]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _for_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", printable(text))


def accuracy_csv(found: Comparison) -> str:
    """Means and deviations in columns of their own."""
    head = ["run", "network", "seeds"]
    for column in found.columns:
        head += [printed(column), f"{printed(column)} std"]
    rows = []
    for recipe, who in found.rows:
        row = [recipe.name, who, str(len(recipe.runs))]
        for column in found.columns:
            values = column.values(recipe, who)
            deviation = spread(values)
            row += [
                f"{100 * mean(values):.4f}" if values else "",
                "" if deviation is None else f"{100 * deviation:.4f}",
            ]
        rows.append(row)
    return _csv([head, *rows])


def differences_csv(found: Comparison) -> str:
    """Points against the baseline."""
    head = ["run", "network", "set", "points", "identity low", "identity high", "seed low", "seed high", "seeds"]
    limits = lambda pair: [f"{100 * x:.4f}" for x in pair] if pair else ["", ""]
    rows = [
        [
            recipe.name,
            who,
            printed(column),
            f"{100 * one.mean:.4f}",
            *limits(one.by_identity),
            *limits(one.by_seed),
            str(one.seeds),
        ]
        for recipe, who, column, one in differences_of(found)
    ]
    return _csv([head, *rows])


def _csv(rows: Sequence[Sequence[str]]) -> str:
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    for row in rows:
        table.writerow([_for_csv(cell) for cell in row])
    return lines.getvalue()


def _for_csv(text: str) -> str:
    number = re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not number else printable(text)


# ------------------------------------------------------------------------------------------------------- drawings


def _draw_all(folder: Path, found: Comparison) -> None:
    for name in found.sets[:MOST_SETS]:
        curves = [roc_curve(pairs, title) for title, pairs in drawn_networks(found, name).items()]
        if curves:
            _draw(folder / f"roc_{name}", curves, ("false accept rate", "true accept rate"), log_x=True)
    for phase in phases_shown(found):
        curves = [
            plots.Series(found.label(run), steps(run.lines[phase]), logged(run.lines[phase], "loss"))
            for run in drawn_runs(found) if run.lines.get(phase)
        ]  # fmt: skip
        if curves:
            _draw(folder / f"loss_{phase}", curves, ("optimiser step", "loss"))


def _draw(path: Path, curves: Sequence[plots.Series], labels: tuple[str, str], **settings: Any) -> None:
    with plots.drawing(SIZE, PRINTED) as (figure, axes):
        plots.lines(axes, curves, *labels, colours=INKS, **settings)
        figure.savefig(f"{path}.pdf", metadata={"CreationDate": None})
        figure.savefig(f"{path}.png", dpi=300)
