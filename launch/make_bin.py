"""Build a verification set (.bin) or take one apart: `python launch/make_bin.py --help`."""

from __future__ import annotations

import sys

from partialkd.commands.make_bin import main

if __name__ == "__main__":
    sys.exit(main())
