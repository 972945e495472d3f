"""Write the report of a run. `partialkd report --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("report"))
