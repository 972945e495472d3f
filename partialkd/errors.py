"""Errors a user can act on. Each names what is wrong and where: the key, the file, the record, the rank.

Names of files and records come from other people and may hold line ends, terminal escapes or characters that reverse
the direction of writing. `printable` makes them visible. Errors apply it to their text, and so does whatever else ends
in a message or a list of names.
"""

import errno
from collections.abc import Callable

_JOINERS = "\u200c\u200d"  # not printable to Python, but letters of Persian and Indic names take their shape from them


def printable(text: str) -> str:
    """The text on one line, with every character that is not a visible one written as an escape like \\n or \\x1b.

    Bytes that are not UTF-8 (which Python keeps in file names as lone surrogates) become \\xff and the like. What has
    been made printable once is not changed by doing so again.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _JOINERS else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python writes a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


class Where:
    """Where something is, worked out only when a message wants it: naming a record takes as long as reading it."""

    __slots__ = ("_at", "_name")

    def __init__(self, name: Callable[[int], str], at: int) -> None:
        self._name, self._at = name, at

    def __str__(self) -> str:
        return self._name(self._at)


class PartialKDError(Exception):
    """Base of every error that is the input's fault, not the program's: one argument for each line of its text."""

    permanent = False  # whether the same command, started again as it is, would fail in the same way

    def __init__(self, *lines: object) -> None:
        super().__init__(*(printable(str(line)) for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class PartialKDWarning(UserWarning):
    """Something a user should know that stops nothing."""


class ConfigError(PartialKDError):
    """A configuration key is unknown, missing, mistyped, out of range, or contradicts another."""

    permanent = True


class DataError(PartialKDError):
    """A data file, record or label is wrong."""


class StorageError(PartialKDError):
    """A file or folder cannot be written or removed: the disk is full, or not to be written to (then for good)."""

    @classmethod
    def of(cls, path: object, done: str, error: OSError) -> "StorageError":
        """Name what could not be done to a path, and why."""
        found = cls(f"{path}: cannot be {done}: {error.strerror or error}")
        found.permanent = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        return found


class InUse(PartialKDError):
    """A folder belongs to another job that is at work in it."""

    permanent = True  # as long as that job lives: ranks need not be started again


class TeacherError(PartialKDError):
    """A teacher (or the centres made from it) cannot be used."""


class CheckpointError(PartialKDError):
    """A checkpoint is missing, incomplete, or belongs to another run."""


class RankLost(PartialKDError):
    """A rank died, was stopped, or cannot be reached, and the others cannot go on without it."""


class OutOfMemory(PartialKDError):
    """A rank has not the memory that the configuration asks for."""


class Preempted(Exception):
    """The run was asked to stop and has saved; start it again with --resume auto."""


def text_of(error: PartialKDError | OSError) -> str:
    """What a command says of an error: for those of the system, the file and what is the matter with it."""
    if not isinstance(error, OSError):
        return str(error)
    files = [printable(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*files, error.strerror or printable(str(error))])
