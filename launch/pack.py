"""Pack photographs as the folder that training reads, or take one apart: `python launch/pack.py --help`."""

from __future__ import annotations

import sys

from partialkd.commands.pack import main

if __name__ == "__main__":
    sys.exit(main())
