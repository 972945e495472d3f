"""What every program of launch/ has in common: messages, their level, Ctrl-C, and errors that no part has explained.

`raise SystemExit(command(body))`, where `body` imports what is slow: from then on Ctrl-C is one line and status 130,
not the traceback of an import. Light: imports nothing slow itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from partialkd.errors import PartialKDError, text_of
from partialkd.storage.launcher_notes import launched
from partialkd.world.messages import NOT_SHOWN, PACKAGE, Screen, Stream, begin, begun, rank, set_level

FAILED, INTERRUPTED = 1, 130
LEVELS = ("debug", "info", "warning", "error")
_log = logging.getLogger(__name__)


def command(body: Callable[[], int], progress: Stream = "stdout") -> int:
    """Run `body` -> its exit status. `progress`: where messages go that are no warnings and not the result itself."""
    begin(progress=progress)
    interrupts = _Interrupts()
    try:
        return body()
    except KeyboardInterrupt:
        return interrupts.end()
    except Exception as error:
        if interrupts.seen:  # a library made another error of it
            return interrupts.end()
        say_error(error)
        return FAILED
    finally:
        interrupts.forget()


class CommandParser(argparse.ArgumentParser):
    """The parser of a command: examples below its help, and `--log-level`, which holds from where it is read on."""

    program: ClassVar[str | None] = None  # what it was called as, where the name of the script does not say so

    def __init__(self, examples: Sequence[str] = (), **settings: Any) -> None:
        if examples:
            settings["epilog"] = "\n  ".join(["examples:", *examples])
        settings.setdefault("prog", self.program)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)
        self.add_argument(
            "--log-level", choices=LEVELS, action=_SetLevel, help='what is said beside the result (default "info")'
        )


class _SetLevel(argparse.Action):
    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, _option: str | None = None) -> None:
        set_level(value)
        setattr(namespace, self.dest, value)


class _Interrupts:
    """Ctrl-C as Python does it, and whether there was one. An inherited ignore stands: a job in the background."""

    def __init__(self) -> None:
        self.seen, self._before = False, signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def forget(self) -> None:
        """Put the earlier handler back, if nothing has taken the place of this one's."""
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def end(self) -> int:
        """One line, of rank 0, and the end: threads of libraries need not be waited for."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if rank() == 0 and not launched():  # the launcher says it
            _log.error("interrupted")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def say_error(error: BaseException, where: str = "") -> None:
    """Show an error: what a user can act on in its lines, a fault of the program with its traceback.

    where: the rank, named where the error does not do so itself. The log file has the traceback of either.
    """
    if not begun():
        begin()
    Screen.show("")
    Screen.ended = True
    lines = explained(error, where)
    if lines is None:
        _log.error(f"{where or 'this program'} failed, which is a fault of the program:", exc_info=error)
        return
    _log.error(lines[0], extra={"lines": lines})
    _log.info("where this error comes from:", exc_info=error, extra=NOT_SHOWN)


def explained(error: BaseException, where: str = "") -> list[str] | None:
    """The lines of an error that is not the program's fault; None of any other."""
    start = f"{where}: " if where else ""
    if isinstance(error, PartialKDError):
        return str(error).split("\n")
    if isinstance(error, OSError):
        return [start + ("" if error.filename is not None else f"in {place_of(error)}: ") + text_of(error)]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        said = (str(error).strip() or "no memory left").splitlines()[0]
        return [f"{start}out of memory in {place_of(error)}: {said}"]
    return None


def place_of(error: BaseException, but: tuple[str, ...] = ("world.py", "launch.py", "command.py")) -> str:
    """The function of ours in which it was raised; `but`: files that only pass it on."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if PACKAGE in Path(frame.filename).parents]
    ours = [frame for frame in frames if Path(frame.filename).name not in but]
    return f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "the job"
