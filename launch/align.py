"""Photographs to aligned faces: `python launch/align.py --help`."""

from __future__ import annotations

import sys

from partialkd.commands.align import main

if __name__ == "__main__":
    sys.exit(main())
