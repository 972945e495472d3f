"""An MXNet teacher as a network of this project. `partialkd import_mxnet --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("import_mxnet"))
