"""Errors a user can act on. Each names what is wrong and where: the key, the file, the record, the rank."""

from collections.abc import Callable


class Where:
    """Where something is, worked out only when a message wants it: naming a record takes as long as reading it."""

    __slots__ = ("_at", "_name")

    def __init__(self, name: Callable[[int], str], at: int) -> None:
        self._name, self._at = name, at

    def __str__(self) -> str:
        return self._name(self._at)


class PartialKDError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class ConfigError(PartialKDError):
    """A configuration key is unknown, missing, mistyped, out of range, or contradicts another."""


class DataError(PartialKDError):
    """A data file, record or label is wrong."""


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
