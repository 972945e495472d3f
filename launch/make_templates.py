"""Make a small set of templates from aligned faces. `partialkd make_templates --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("make_templates"))
