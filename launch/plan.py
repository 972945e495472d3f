"""Will it fit, how many identities would, and what does a step cost at least. `partialkd plan --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("plan"))
