"""Build a verification set (.bin) or take one apart. `partialkd make_bin --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("make_bin"))
