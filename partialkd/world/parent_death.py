"""No rank outlives its launcher: one that goes on alone would write into the folder of the run that is started again.

torchrun ends its ranks itself, except when it is killed (kill -9, out of memory). Elsewhere than on Linux nothing is
done. A launcher that was killed before the call is not noticed: a rank does not know its number, and a process whose
parent is number 1 may be in a container. On one machine the store has gone with the launcher then, so that the rank
cannot join anything and fails when `dist.timeout_s` is over, before it has looked at a run's folder.
Call first thing, before imports that take seconds. Imports nothing that takes long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_launcher() -> None:
    """Have the system kill this process when the launcher that started it ends; without torchrun: do nothing."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
