"""Write a run's network as a folder to publish. `partialkd model_card --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("model_card"))
