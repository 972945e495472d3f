"""How a run trained, as figures: curves over steps, where the time of a step went, speed and memory against the plan.

Numbers are those of metrics.jsonl (training/progress.py). The parts of a step are compared with the step itself, which
is measured apart: from the images a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from partialkd.config import AdaDistillConfig, Config, PhaseConfig
from partialkd.errors import PartialKDError
from partialkd.planner.advice import phases
from partialkd.planner.devices import device_named
from partialkd.planner.plan import Plan, Ranks, plan_phase
from partialkd.report import plots
from partialkd.report.page import Figure, Table
from partialkd.report.run_files import Line, RunFiles

TIME = "time/"
OWN = ("phase", "step", "epoch", "time", "loss", "lr", "images_per_s", "memory", "grad_norm", "skipped", "spikes")
MOST_ROWS = 12  # of a table beside a curve
TITLES = {
    "loss": "Loss", "lr": "Learning rate",
    "grad_norm": "Gradient norm, before clipping", "images_per_s": "Images a second",
    "cosine": "Cosine with the own centre", "margin": "Margin, mean over the batch (radians)",
    "teacher_cosine": "Teacher's cosine with the own centre", "accuracy": "Accuracy while training",
    "teacher_share": "Teacher's share of a step's time", "mfu": "Use of the device's full rate",
}  # fmt: skip


def logged(lines: Sequence[Line], name: str) -> np.ndarray:
    """A number over the lines (n,), NaN where it is missing or was not finite."""
    return np.array([np.nan if line.get(name) is None else float(line[name]) for line in lines])


def steps(lines: Sequence[Line]) -> np.ndarray:
    """Optimiser steps done (n,)."""
    return np.array([float(line["step"]) for line in lines])


def curve_figure(title: str, curves: Sequence[plots.Series], y: str, salt: str, log_y: bool = False) -> Figure:
    """Curves over steps with their words and numbers."""
    svg = plots.drawn(lambda axes: plots.lines(axes, curves, "optimiser step", y, log_y=log_y), salt)
    said = "; ".join(_said(curve) for curve in curves)
    return Figure(title, svg, f"{title}. {said}", _curve_table(title, curves))


def _said(curve: plots.Series) -> str:
    there = np.isfinite(curve.y)
    if not there.any():
        return f"{curve.name}: no finite number"
    x, y = curve.x[there], curve.y[there]
    gaps = "" if there.all() else f", {int((~there).sum())} not finite"
    if len(y) == 1:
        return f"{curve.name}: {y[0]:.4g} at step {x[0]:.0f}{gaps}"
    return (
        f"{curve.name}: from {y[0]:.4g} at step {x[0]:.0f} to {y[-1]:.4g} at step {x[-1]:.0f}, "
        f"lowest {y.min():.4g}, highest {y.max():.4g}{gaps}"
    )


def _curve_table(title: str, curves: Sequence[plots.Series]) -> Table:
    at = np.unique(np.concatenate([curve.x for curve in curves]))
    shown = at[np.unique(np.linspace(0, len(at) - 1, min(len(at), MOST_ROWS)).round().astype(int))]
    rows = []
    for step in shown:
        cells = []
        for curve in curves:
            found = np.flatnonzero(curve.x == step)
            cells.append(number(float(curve.y[found[0]])) if len(found) else "")
        rows.append([f"{step:.0f}", *cells])
    return Table(f"{title} at some steps", ["step", *(curve.name for curve in curves)], rows)


def number(value: float) -> str:
    """Four digits; what was not finite is said so."""
    return f"{value:.4g}" if np.isfinite(value) else "not finite"


def training_figures(run: RunFiles) -> list[Figure]:
    """Curves of all phases together: loss, learning rate, what the methods report, gradient norms, speed."""
    phases = {phase: lines for phase, lines in run.lines.items() if lines}
    names = list(dict.fromkeys(name for lines in phases.values() for line in lines for name in line))
    own = [name for name in names if name not in OWN and not name.startswith(TIME)]
    figures = []
    for name in ("loss", "lr", *own, "grad_norm", "images_per_s"):
        curves = [
            plots.Series(phase, steps(lines), logged(lines, name))
            for phase, lines in phases.items()
            if any(name in line for line in lines)
        ]
        if curves:
            title = _title(run.config, name)
            figures.append(curve_figure(title, curves, _axis(title), f"training {name}", log_y=name == "grad_norm"))
    return figures + judged_figures(run)


def _title(config: Config | None, name: str) -> str:
    if name == "alpha":
        method = config.student.method if config else None
        weighted = isinstance(method, AdaDistillConfig) and method.weighted
        return f"{'alpha′' if weighted else 'alpha'}: how much of a centre stays (AdaDistill)"
    return TITLES.get(name, name)


def _axis(title: str) -> str:
    return title.partition(":")[0].partition(",")[0].lower()


def judged_figures(run: RunFiles) -> list[Figure]:
    """Accuracies of checkpoints on the sets that training was judged by."""
    figures = []
    for phase, lines in run.judged.items():
        names = [name for name in lines[0] if name.startswith("accuracy/")][: plots.MOST_SERIES]
        curves = [plots.Series(name.partition("/")[2], steps(lines), logged(lines, name)) for name in names]
        if curves:
            figures.append(curve_figure(f"Accuracy while training: {phase}", curves, "accuracy", f"judged {phase}"))
    return figures


# ------------------------------------------------------------------------------------------------- time and memory


@dataclass(frozen=True)
class StepTimes:
    """Seconds of an optimiser step, means over a phase; the first logged line is left out: it has warming up in it."""

    phase: str
    parts: dict[str, float]
    step: float | None  # measured apart
    images_per_s: float
    memory: float | None  # bytes

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def apart(self) -> float | None:
        """How far the sum is from the step, as a share of it."""
        return self.total / self.step - 1 if self.step else None


def step_times(run: RunFiles) -> list[StepTimes]:
    """Times of each phase that has logged its parts."""
    found = []
    for phase, lines in run.lines.items():
        one = _step_times(phase, lines, _phase_config(run.config, phase))
        if one is not None:
            found.append(one)
    return found


def _phase_config(config: Config | None, phase: str) -> PhaseConfig | None:
    """The section of a phase; each of a chain of students has the student's."""
    if config is None:
        return None
    return {"teacher": config.teacher.train, "alone": config.alone}.get(phase, config.student)


def _step_times(phase: str, lines: Sequence[Line], config: PhaseConfig | None) -> StepTimes | None:
    done = steps(lines)
    covered = np.diff(done, prepend=0.0)
    first = 1 if len(lines) > 1 else 0
    every = list(zip(lines, covered, strict=True))[first:]
    kept = [(line, n) for line, n in every if n > 0 and line.get("images_per_s")]
    kept = [(line, n) for line, n in kept if any(name.startswith(TIME) for name in line)]
    if not kept:
        return None
    names = [name for name in kept[0][0] if name.startswith(TIME)]
    weights = np.array([n for _, n in kept])
    mean = lambda values: float((np.array(values) * weights).sum() / weights.sum())
    parts = {name.removeprefix(TIME): mean([line.get(name) or 0.0 for line, _ in kept]) for name in names}
    image = mean([1 / line["images_per_s"] for line, _ in kept])
    memory = [line["memory"] for line in lines if line.get("memory")]
    step = config.global_batch * image if config else None
    return StepTimes(phase, parts, step, 1 / image, max(memory, default=None))


def time_figure(times: Sequence[StepTimes]) -> Figure | None:
    """A bar for each phase."""
    if not times:
        return None
    names = [one.phase for one in times]
    parts = list(dict.fromkeys(part for one in times for part in one.parts))
    rows = [(part, [1000 * one.parts.get(part, 0.0) for one in times]) for part in parts]
    svg = plots.drawn(lambda axes: plots.stacked(axes, names, rows, "ms of an optimiser step"), "times")
    said = "; ".join(
        f"{one.phase}: {1000 * one.total:.1f} ms, most of it {max(one.parts, key=lambda part: one.parts[part])}"
        for one in times
    )
    table = Table("Parts of an optimiser step, ms (share)", ["part", *names], _time_rows(times, parts))
    return Figure("Where the time of a step went", svg, f"Where the time of a step went. {said}", table)


def _time_rows(times: Sequence[StepTimes], parts: Sequence[str]) -> list[list[str]]:
    cell = lambda one, part: f"{1000 * one.parts.get(part, 0.0):.2f} ({one.parts.get(part, 0.0) / one.total:.1%})"
    return [
        *([part, *(cell(one, part) for one in times)] for part in parts),
        ["sum of the parts", *(f"{1000 * one.total:.2f}" for one in times)],
        ["the step, measured apart", *(f"{1000 * one.step:.2f}" if one.step else "not known" for one in times)],
        ["sum against the step", *(f"{one.apart:+.1%}" if one.apart is not None else "" for one in times)],
    ]


def speed_table(run: RunFiles, times: Sequence[StepTimes]) -> Table | None:
    """Images a second, what of the device's products is used, peak memory against the plan."""
    if not times:
        return None
    start = run.starts[-1] if run.starts else {}
    plans = _plans(run, start)
    rows = []
    for one in times:
        plan = plans.get(one.phase)
        memory = f"{one.memory / 1e9:.2f} GB" if one.memory else "not measured"
        planned = f"{plan.peak / 1e9:.2f} GB" if plan else "not known"
        rows.append([one.phase, f"{one.images_per_s:.0f}", *_utilisation(one, plan, start), memory, planned])
    head = ["phase", "images/s", "computed", "of the device (MFU)", "peak memory of rank 0", "planned for a rank"]
    return Table("Speed and memory", head, rows)


def memory_note(run: RunFiles) -> str:
    """What the figures of memory and use are of."""
    start = run.starts[-1] if run.starts else {}
    if start.get("device_type") == "cuda":
        return "Use: products as planned against the device's dense bfloat16 rate. Memory: what CUDA's allocator held."
    return (
        "Use: products as planned against what this rank's threads reach in one large float32 product, measured at the "
        "start. Memory: of the whole process, its libraries (about half a GB) and earlier phases too; the plan counts "
        "tensors of one phase."
    )


def _plans(run: RunFiles, start: dict[str, object]) -> dict[str, Plan]:
    config, classes, size = run.config, start.get("identities"), start.get("world_size")
    if config is None or not isinstance(classes, int) or not isinstance(size, int) or min(classes, size) < 1:
        return {}
    ranks, found = Ranks.of(config, size, start.get("device_type") == "cuda"), {}
    for name, phase, teacher in phases(config):
        try:
            found[name.partition(".")[0]] = plan_phase(phase, config.data, classes, ranks, teacher)
        except (PartialKDError, ValueError):  # as with a batch that these ranks cannot share
            continue
    return found


def _utilisation(one: StepTimes, plan: Plan | None, start: dict[str, object]) -> tuple[str, str]:
    if plan is None or not one.step:
        return "not known", "not known"
    rate = sum(plan.flops.values()) / one.step
    device = device_named(str(start.get("device", "")))
    peak = device.flops if device else start.get("product_flops")
    used = f"{rate / peak:.0%}" if isinstance(peak, int | float) and peak > 0 else "not known"
    return f"{rate / 1e12:.3g} TFLOP/s a rank", used
