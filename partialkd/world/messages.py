"""What a process says: on its standard streams, and in a file of its own in the run's folder.

Modules say it to `logging.getLogger(__name__)`. `begin` sends that to the standard streams: of rank 0 all that
`run.log_level` lets through, of other ranks only warnings and errors; `log_into` sends it to a file as well. Python's
warnings of this package (PartialKDWarning) are shown; those of libraries (FutureWarning and the like) go to the file.
Results that a command is asked for (a table) are printed without a time: `output`.

Nothing here ends a run. A standard stream that cannot be written to any more (the reader of a pipe has gone, a terminal
was closed, the disk of a log is full) is dropped, and so is the file; that is said once to what is left. Characters
that a stream cannot encode are written as escapes.
Every message is made printable (errors.py) and stands on one line; only an error of several lines keeps them.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TextIO

from partialkd.errors import PartialKDWarning, printable

PACKAGE = Path(__file__).parents[1]
LOGS = "logs"  # in a run's folder
ROOT = logging.getLogger("partialkd")
NOT_SHOWN = {"shown": False}  # `extra` of a record that is for the file alone
_EARLY = 1000  # records kept for a file that comes later

Stream = Literal["stdout", "stderr"]
_log = logging.getLogger(__name__)


def begin(level: str = "info", progress: Stream = "stdout") -> None:
    """Send messages to the standard streams; warnings and errors to stderr, the rest to `progress`.

    First thing in a program, before slow imports; another call changes the settings.
    """
    Screen.ended = False
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            _guarded[name] = _Guarded(stream, name)
            setattr(sys, name, _guarded[name])
    for handler in [one for one in ROOT.handlers if isinstance(one, _Console | _Early)]:
        ROOT.removeHandler(handler)
    ROOT.addHandler(_Console(progress))
    ROOT.addHandler(_Early())
    ROOT.propagate = False
    set_level(level)
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", PartialKDWarning)


def begun() -> bool:
    """Whether `begin` was called."""
    return any(isinstance(handler, _Console) for handler in ROOT.handlers)


def set_level(level: str) -> None:
    """Say from now on what is at least as important: "debug", "info", "warning" or "error"."""
    ROOT.setLevel(level.upper())


def log_into(path: Path) -> None:
    """Append every message of this process to `path` as well, also those said before; instead of an earlier file."""
    for handler in [one for one in ROOT.handlers if isinstance(one, _File)]:
        ROOT.removeHandler(handler)
        handler.close()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _File(path)
    except OSError as error:
        _log.warning(f"{path}: no log can be kept there ({error.strerror}); the run goes on")
        return
    for early in [one for one in ROOT.handlers if isinstance(one, _Early)]:
        for record in early.records:
            file.handle(record)
        ROOT.removeHandler(early)
    ROOT.addHandler(file)


def output(*lines: object) -> None:
    """Print what a command was asked for, on the standard output; every argument is a line. The log file has it too."""
    print(*(printable(str(line)) for line in lines), sep="\n", flush=True)
    for line in lines:
        _log.info(str(line), extra=NOT_SHOWN)


def rank() -> int:
    """The rank of this process, as torchrun says; 0 without it."""
    return int(os.environ.get("RANK", "0"))


class Screen:
    """The last line of the terminal, where a bar stands while something is going on; empty elsewhere."""

    line = ""
    begun = False  # a line of others is not at its end yet: nothing is drawn over it
    turn = threading.RLock()  # of who writes: the bar has a thread of its own
    ended = False  # an error has been shown, and nothing is to stand below it

    @classmethod
    def stream(cls) -> _Guarded | None:
        """Where progress goes, if that is a terminal that can move its cursor and this is rank 0."""
        console = next((one for one in ROOT.handlers if isinstance(one, _Console)), None)
        if console is None or cls.ended or not ROOT.isEnabledFor(logging.INFO):
            return None
        if rank() != 0 or os.environ.get("TERM") == "dumb":
            return None
        stream = _guarded.get(console.progress)
        return stream if stream is not None and stream.isatty() else None

    @classmethod
    def show(cls, line: str) -> None:
        """Replace the line; "" takes it away."""
        stream = cls.stream()
        if stream is not None:
            stream.draw(line)

    @staticmethod
    def width() -> int:
        """Characters that fit on the line."""
        return shutil.get_terminal_size().columns - 1


class _Guarded:
    """A standard stream that may be lost: it then takes everything and gives nothing, and no write to it fails."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        self._try(lambda: self._write(text))
        return len(text)

    def draw(self, bar: str) -> None:
        """Replace the bar, unless a line has begun where it would stand; "" takes it away."""
        self._try(lambda: self._draw(bar))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _write(self, text: str) -> None:
        bar, Screen.line = Screen.line, ""  # it is drawn again below what is written
        self._stream.write(("\r\x1b[K" if bar and self.isatty() else "") + text)
        if text and self.isatty():  # not what goes elsewhere
            Screen.begun = not text.endswith(("\n", "\r"))

    def _draw(self, bar: str) -> None:
        if (bar or Screen.line) and not Screen.begun:
            self._stream.write("\r\x1b[K" + bar)
            self._stream.flush()
            Screen.line = bar

    def _try(self, action: Callable[[], None]) -> None:
        """Do it, one thread at a time; what fails is said afterwards, as saying takes the locks of logging."""
        if self._lost:
            return
        try:
            with Screen.turn:
                action()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lost = True
            self._point_nowhere()
            what = {"stdout": "standard output", "stderr": "error output"}[self._name]
            _log.warning(f"the {what} cannot be written to any more ({_reason(error)}); this goes on without it")

    def _point_nowhere(self) -> None:
        """What is still in buffers, of C libraries too, and what they write later must not fail either."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines(logging.Formatter):
    """One printable line a message with its time; of an error several, of a fault of the program the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in self._lines(record))

    def _lines(self, record: logging.LogRecord) -> list[str]:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        lines = getattr(record, "lines", None) or [record.getMessage()]
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return [f"{self._start(record)}{level}{lines[0]}", *lines[1:], *trace]

    def _start(self, record: logging.LogRecord) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(record.created))


class _ConsoleLines(_Lines):
    """Lines for the standard streams: errors without a time, and on a terminal all without the date."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def _start(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.ERROR:
            return ""
        return time.strftime("%H:%M:%S ", time.localtime(record.created)) if self.terminal else super()._start(record)


class _Console(logging.Handler):
    """The standard streams, as they are when something is said."""

    def __init__(self, progress: Stream) -> None:
        super().__init__()
        self.progress: Stream = progress

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "shown", True) or (record.levelno < logging.WARNING and rank() != 0):
            return
        stream = _stream("stderr" if record.levelno >= logging.WARNING else self.progress)
        if stream is None:  # closed before the program began
            return
        try:
            stream.write(_ConsoleLines(stream.isatty()).format(record) + "\n")
            stream.flush()
        except Exception:
            self.handleError(record)


class _File(logging.FileHandler):
    """A log file; dropped when it cannot be written to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_Lines())

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        ROOT.removeHandler(self)
        with suppress(OSError):  # what it could not write before it cannot write now
            self.close()
        reason = _reason(error)
        _log.warning(f"{self.baseFilename}: cannot be written to any more ({reason}); the run goes on without it")


class _Early(logging.Handler):
    """What was said before there was a file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.records) < _EARLY:
            self.records.append(record)


_guarded: dict[str, _Guarded] = {}
os.register_at_fork(after_in_child=lambda: setattr(Screen, "turn", threading.RLock()))  # whoever had it is gone


def _stream(name: Stream) -> Any:
    """A standard stream, also while a library has put another in its place; None if it was closed from the start."""
    return _guarded.get(name) or getattr(sys, name)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    ours = issubclass(category, PartialKDWarning)
    text = str(message) if ours else f"{filename}, line {lineno}: {category.__name__}: {message}"
    _log.log(logging.WARNING if ours else logging.INFO, text, extra=None if ours else NOT_SHOWN)
