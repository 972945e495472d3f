"""The launcher of ranks: torchrun, ending with a line of its own instead of a traceback.

`python -m partialkd.world.launcher ARGUMENTS OF TORCHRUN`. Exit status: 75 where the ranks were stopped and have saved;
that of the rank that failed first (1, 2: wrong configuration), or 1 where a signal ended it; 128 + n where signal n
stopped the ranks before there was anything to save. A rank that a signal ended cannot say so itself: it is named here.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from partialkd.storage.launcher_notes import LAUNCHED_AS, NOTES, STOPPED_NOTE, shrunk, with_options
from partialkd.world.command import FAILED, command

STOPPED = 75
_MEANING = {
    signal.SIGKILL: "the system does that when memory runs out",
    signal.SIGBUS: "a file that it had mapped into memory became shorter, its disk failed, or /dev/shm is full",
}
_log = logging.getLogger("partialkd.world.launcher")  # not __name__: this is the program itself


def main() -> int:
    """Run torchrun with the arguments of the command line -> exit status."""
    with tempfile.TemporaryDirectory(prefix="partialkd_") as folder:
        os.environ[NOTES] = folder
        status = _run(Path(folder))
        stopped = Path(folder) / STOPPED_NOTE
        if not stopped.exists():
            return status
        words = shlex.split(os.environ.get(LAUNCHED_AS, shlex.join([sys.executable, *sys.argv])))
        print(f"to go on: {shlex.join(with_options(words, stopped.read_text().split()))}", file=sys.stderr, flush=True)
        return STOPPED


def _run(folder: Path) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun(["--log-dir", os.devnull, *sys.argv[1:]])
    except ChildFailedError as error:
        return _failed(error.failures, error.get_first_failure()[1].exitcode, folder)
    except SignalException as stop:
        if not (folder / STOPPED_NOTE).exists():
            _log.error(f"ended by {stop.sigval.name} before there was anything to save")
        return 128 + stop.sigval
    return 0


def _failed(failures: dict[int, Any], first: int, folder: Path) -> int:
    """Name the ranks that a signal ended, other than those that torchrun ended for another's sake -> status."""
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and (failure.exitcode != -signal.SIGTERM or failure.exitcode == first):
            number = signal.Signals(-failure.exitcode)
            why = shrunk(folder, rank) if number == signal.SIGBUS else ""
            why = why or _MEANING.get(number, "")
            _log.error(f"rank {rank} (process {failure.pid}) was ended by {number.name}{why and ': '}{why}")
    return first if first > 0 else FAILED


if __name__ == "__main__":
    raise SystemExit(command(main))
