"""Drawings as SVG, by matplotlib, in colours that the page's style sheet gives: so they follow light and dark.

matplotlib and not a library for browsers: its SVG needs no script, is small (some 10 kB; a bundled plotly.js is 4 MB),
and the same calls write the PDF and PNG of `compare.py --paper`. Where it is not installed (the extra `report`) there
are no drawings, and "" is returned; the pages then show the numbers alone.
Series are told apart by their dashes, too. Numbers that are not finite are gaps.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

INK, SOFT, LINE = "#0000f1", "#0000f2", "#0000f3"  # stand for the variables of the style sheet
MOST_SERIES = 6
SERIES = tuple(f"#0000a{i}" for i in range(MOST_SERIES))
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)))
SIZE = (4.5, 2.9)  # inches; at 72 points each, a phone's width shows them as they are
MOST_POINTS = 500  # of a line
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(SERIES)
}
_STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.0, "text.parse_math": False,
    "axes.edgecolor": LINE, "axes.labelcolor": INK, "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True, "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False, "axes.unicode_minus": True,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A line (n,), perhaps with a band around some of its points."""

    name: str
    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # x, low, high


def available() -> bool:
    """Whether anything can be drawn."""
    return find_spec("matplotlib") is not None


@contextmanager
def drawing(size: tuple[float, float] = SIZE, style: dict[str, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, in our style."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**_STYLE, **(style or {})}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size)
        yield figure, figure.subplots()


def to_svg(figure: Any, salt: str) -> str:
    """The drawing for a page: no size of its own, colours of the page, names that no other drawing has."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for size in ("width", "height"):
        text = re.sub(rf'(<svg [^>]*?) {size}="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # every drawing has a figure_1
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", text)


def drawn(draw: Callable[[Any], None], salt: str, size: tuple[float, float] = SIZE) -> str:
    """Draw on axes -> SVG; "" where nothing can draw."""
    if not available():
        return ""
    with drawing(size) as (figure, axes):
        draw(axes)
        return to_svg(figure, salt)


def lines(
    axes: Any, series: Sequence[Series], x: str, y: str, log_x: bool = False, log_y: bool = False, colours: Any = SERIES
) -> None:
    """Lines over a common axis."""
    for at, one in enumerate(series):
        colour, dash = colours[at % len(colours)], DASHES[at % len(DASHES)]
        xs, ys = thinned(one.x, one.y)
        marker = "o" if np.isfinite(ys).sum() == 1 else ""
        axes.plot(xs, ys, color=colour, linestyle=dash, marker=marker, markersize=4, label=one.name)
        if one.band is not None:
            axes.fill_between(*one.band, color=colour, alpha=0.16, linewidth=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_powers)
        axes.xaxis.set_minor_formatter("")
    if log_y and _decades(series) >= 2:  # else there are too few powers of ten to be read
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_powers)
        axes.yaxis.set_minor_formatter("")
    legend(axes)


def _decades(series: Sequence[Series]) -> float:
    """How many powers of ten the lines span; 0 where some number is not positive."""
    values = np.concatenate([one.y[np.isfinite(one.y)] for one in series])
    return math.log10(values.max() / values.min()) if len(values) and values.min() > 0 else 0.0


def legend(axes: Any) -> None:
    """Above the drawing, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside upper left", ncols=3, handlelength=2.2, columnspacing=1.2)


def _powers(value: float, _: Any = None) -> str:
    return f"{value:g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def histograms(axes: Any, genuine: np.ndarray, impostor: np.ndarray, threshold: float) -> None:
    """Cosines of both kinds of pairs, as densities, and the threshold between them."""
    edges = np.linspace(min(genuine.min(), impostor.min()), max(genuine.max(), impostor.max()) + 1e-9, 49)
    for values, name, at, hatch in ((genuine, "genuine", 0, ""), (impostor, "impostor", 1, "////")):
        axes.hist(
            values, bins=edges, density=True, histtype="stepfilled", alpha=0.35, color=SERIES[at], hatch=hatch,
            edgecolor=SERIES[at], label=name,
        )  # fmt: skip
    axes.axvline(threshold, color=INK, linestyle=DASHES[1], linewidth=1.2, label=f"threshold {threshold:.3f}")
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("cosine")
    axes.set_ylabel("density")
    legend(axes)


def intervals(axes: Any, names: Sequence[str], rows: Sequence[Series], x: str) -> None:
    """A dot with its interval for each name and series, names from top to bottom; band: (positions, low, high)."""
    for at, one in enumerate(rows):
        places = one.x + (at - (len(rows) - 1) / 2) * 0.22
        colour = SERIES[at % MOST_SERIES]
        if one.band is not None:
            axes.hlines(places, one.band[1], one.band[2], color=colour, linewidth=2)
        axes.plot(one.y, places, linestyle="", marker="osD^v<"[at % 6], color=colour, markersize=5, label=one.name)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(x)
    legend(axes)


def stacked(axes: Any, names: Sequence[str], parts: Sequence[tuple[str, Sequence[float]]], x: str) -> None:
    """A bar for each name, made of parts; each part has a colour and a hatching of its own."""
    left = np.zeros(len(names))
    for at, (part, values) in enumerate(parts):
        hatch = "" if at < MOST_SERIES else "////"
        axes.barh(
            range(len(names)), values, left=left, height=0.62, color=SERIES[at % MOST_SERIES], label=part, hatch=hatch,
            edgecolor=LINE, linewidth=0.6,
        )  # fmt: skip
        left += np.asarray(values)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(x)
    legend(axes)


def shortened(text: str, most: int = 22) -> str:
    """A name as long as there is room for."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points: means of neighbours, where there are more; a gap only where all of them are gaps."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most)
    finite = [y[part][np.isfinite(y[part])] for part in parts]
    means = [float(values.mean()) if len(values) else math.nan for values in finite]
    return np.array([x[part[-1]] for part in parts]), np.array(means)
