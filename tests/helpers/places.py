"""Where the repository and the photographs lie."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FACES = Path(os.environ.get("PARTIALKD_FACES") or ROOT.parent / "shared" / "data")  # real faces, not in the repository
