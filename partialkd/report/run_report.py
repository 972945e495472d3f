"""The report of one run: a page in its folder that opens from the disk, whatever has become of the run.

It says what there is: of a run that goes on, was stopped or has died, what it wrote until now.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partialkd.context import REPORT
from partialkd.report import plots
from partialkd.report.page import Table, escaped, figures_html, page_html, paragraph, table_html
from partialkd.report.run_files import RunFiles, read_run
from partialkd.report.scores_section import scores_html, tiles
from partialkd.report.settings import settings_tables
from partialkd.report.training_section import memory_note, speed_table, step_times, time_figure, training_figures
from partialkd.storage.atomic_files import write_text

NO_DRAWINGS = "matplotlib is not installed (pip install 'partialkd[report]'), so the figures are tables here."
MOST_SECONDS = 1e12  # more is a damaged file


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run's folder -> where; the errors of read_run, and StorageError."""
    path = out or folder / REPORT
    write_text(path, report_html(read_run(folder)))
    return path


def report_html(run: RunFiles) -> str:
    """The page."""
    sections = [
        ("Scores", scores_html(run)),
        ("Training", figures_html(training_figures(run))),
        ("Time and memory", _time_html(run)),
        ("Warnings", _warnings_html(run)),
        ("Configuration", _settings_html(run)),
        ("Starts", _starts_html(run)),
    ]
    return page_html(f"Run {run.name}", _lead(run), sections)


def _lead(run: RunFiles) -> str:
    facts = [*tiles(run.scores), *_facts(run)]
    items = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts)
    missing = "" if plots.available() else paragraph(NO_DRAWINGS)
    return f'{paragraph(_state(run))}<dl class="facts">{items}</dl>{missing}'


def _state(run: RunFiles) -> str:
    if run.result and not run.begun_again:
        return "This run is finished."
    last = _last_line(run)
    if last is None:
        return "This run has not logged a step yet."
    said = f"{last['step']} of {last['phase']}, at {last.get('time', '')}"
    if run.begun_again:
        return f"This run was finished and was begun again since. Scores are of before; the last logged step is {said}."
    return f"This run is not finished: its last logged step is {said}."


def _last_line(run: RunFiles) -> dict[str, object] | None:
    lines = [lines[-1] for lines in run.lines.values() if lines]
    return max(lines, key=lambda line: str(line.get("time", "")), default=None)


def _facts(run: RunFiles) -> Sequence[tuple[str, str]]:
    start = {**(run.starts[-1] if run.starts else {}), **run.result}
    facts = []
    seconds = [start["seconds"]] if "seconds" in start else [one.get("seconds") for one in run.times]
    if total := sum(one for one in seconds if isinstance(one, int | float) and 0 <= one < MOST_SECONDS):
        facts.append(("time of all starts", _duration(total)))
    if "world_size" in start:
        facts.append(("ranks", f"{start['world_size']}"))
    if "device" in start:
        facts.append(("device", str(start["device"])))
    if "identities" in start:
        facts.append(("trained on", f"{start['identities']} identities, {start.get('images')} images"))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _time_html(run: RunFiles) -> str:
    found = step_times(run)
    figure, table = time_figure(found), speed_table(run, found)
    if figure is None or table is None:
        return paragraph("No times of parts were logged yet.") if run.lines else ""
    words = (
        "Means over the ranks and over the logged steps but the first. Waiting for other ranks counts to collectives; "
        "“other” is logging, checks and saving."
    )
    return paragraph(words) + figures_html([figure]) + table_html(table) + paragraph(memory_note(run))


def _warnings_html(run: RunFiles) -> str:
    if not run.warnings:
        return paragraph("None.")
    return f'<ul class="warnings">{"".join(f"<li>{escaped(line)}</li>" for line in run.warnings)}</ul>'


def _settings_html(run: RunFiles) -> str:
    if not run.tree:
        return paragraph(run.config_problem)
    changed, every = settings_tables(run)
    parts = []
    if run.config_problem:
        parts.append(paragraph(f"Not read as a configuration of this version: {run.config_problem}"))
    if changed is not None:
        parts.append(table_html(changed))
    parts.append(f"<details><summary>All settings</summary>{table_html(every)}</details>")
    return f'<div class="settings">{"".join(parts)}</div>'


def _starts_html(run: RunFiles) -> str:
    if not run.starts:
        return ""
    keys = ["time", "world_size", "device", "torch", "python", "version", "commit"]
    rows = [[str(at), *(str(one.get(key, "")) for key in keys)] for at, one in enumerate(run.starts, start=1)]
    return table_html(Table("Starts of this run", ["start", *keys], rows))
