"""Is this machine fit for a run, and the run for this machine. `partialkd doctor --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("doctor"))
