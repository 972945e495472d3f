"""Score a network on verification sets. `partialkd evaluate --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("evaluate"))
