"""An MXNet teacher as a network of this project, and its classifier's rows for teacher.classifier."""

from __future__ import annotations

from partialkd.world.command import command


def main() -> int:
    """Exit status."""
    from partialkd.commands.import_mxnet import main

    return main()


if __name__ == "__main__":
    raise SystemExit(command(main, progress="stderr"))
