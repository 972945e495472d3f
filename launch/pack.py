"""Pack photographs as the folder that training reads, or take one apart. `partialkd pack --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("pack"))
