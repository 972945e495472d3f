"""Write a trained network as files for other runtimes. `partialkd export --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("export"))
