"""`launch/compare.py`: runs side by side: scores over seeds, differences with paired intervals, settings that differ.

Runs that differ in nothing but run.seed are seeds of one recipe. The first network of the first run is the baseline.
Errors: one line on the error output, and nothing is written; status 2 for wrong options, what is no run's folder, and
runs that cannot be compared (no evaluation set in common, or one whose pairs differ), 1 for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prettytable import PrettyTable

from partialkd.commands.results import add_json, show
from partialkd.errors import PartialKDError
from partialkd.report.comparison import Comparison, compare, read_runs
from partialkd.report.comparison_page import (
    comparison_html,
    comparison_json,
    differences_table,
    scores_table,
    settings_table,
    unscored,
)
from partialkd.report.page import Table
from partialkd.report.paper import write_paper
from partialkd.storage.atomic_files import write_text
from partialkd.world.command import CommandParser, say_error

EXAMPLES = (
    "partialkd compare runs/adadistill runs/arcdistill",
    "partialkd compare runs/adadistill runs/arcdistill --out comparison.html --json comparison.json",
    "partialkd compare runs/adadistill runs/arcdistill --paper paper",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = CommandParser(
        examples=EXAMPLES,
        description="Put runs side by side. Those that differ in nothing but run.seed are seeds of one recipe; the "
        "first network of the first run is what the others are compared with.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a page with curves there")
    parser.add_argument("--paper", type=Path, metavar="FOLDER", help="make a folder of tables and drawings for a paper")
    add_json(parser)
    options = parser.parse_args(arguments)
    try:
        found = compare(read_runs(options.runs))
        page = comparison_html(found) if options.out else ""
        if options.paper:
            write_paper(options.paper, found)
        if options.out:
            write_text(options.out, page)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 2 if getattr(error, "permanent", False) else 1
    written = [path for path in (options.out, options.paper) if path]
    show(options.json, comparison_json(found), *_told(found), *written)
    return 0


def _told(found: Comparison) -> list[str]:
    tables = [scores_table(found) if found.columns else None, differences_table(found), settings_table(found)]
    lines = [line for table in tables if table is not None for line in (f"{table.caption}:", *_lines(table))]
    return [*filter(None, [unscored(found)]), *lines]


def _lines(table: Table) -> list[str]:
    shown = PrettyTable(
        [f"{name}{' ' * at}" if name in table.head[:at] else name for at, name in enumerate(table.head)]
    )
    shown.align = "l"
    shown.add_rows([list(row) for row in table.rows])
    return str(shown.get_string()).splitlines()
