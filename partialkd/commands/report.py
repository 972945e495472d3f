"""`launch/report.py`: the report of a run as one page of HTML, now, whether or not the run is finished.

Every finished run has one already (run.report). Errors: one line on the error output; status 2 for wrong options and
for what is no run's folder, 1 for a file in it that is something else. Nothing is written then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from partialkd.commands.results import add_json, show
from partialkd.errors import PartialKDError
from partialkd.report.run_report import write_report
from partialkd.world.command import CommandParser, say_error

EXAMPLES = ("partialkd report runs/first", "partialkd report runs/first --out first.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = CommandParser(examples=EXAMPLES, description="Write the report of a run, whether or not it is finished.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: report.html in the run's folder)")
    add_json(parser)
    options = parser.parse_args(arguments)
    try:
        path = write_report(options.run, options.out)
    except (PartialKDError, OSError) as error:
        say_error(error)
        return 2 if getattr(error, "permanent", False) else 1
    show(options.json, {"report": str(path)}, path)
    return 0
