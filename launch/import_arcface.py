"""Take over configurations and runs of InsightFace's arcface_torch. `partialkd import_arcface --help`."""

from __future__ import annotations

from partialkd.commands.console import run

if __name__ == "__main__":
    raise SystemExit(run("import_arcface"))
