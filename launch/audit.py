"""Look through a data set by its teacher's embeddings. `partialkd audit --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("audit"))
