"""Tensors that a method or a term keeps from step to step: saved in checkpoints, right at any number of ranks.

Two kinds. `state`: any shape, the same on every rank, since all ranks make it of the same global numbers; the
checkpoint has rank 0's. `rows`: a row for each class of this rank's shard, (len(shard), ...); saved with the centres,
in global coordinates, and cut anew at another number of ranks.

What a micro-step finds counts once the optimiser step is taken (`stepped`), so that a step that is left out
(health.py) leaves no trace (`skipped`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

PREFIX = "state."  # of the entries in a checkpoint, before the part's name and the tensor's


class Stateful:
    """A part with tensors of its own; none, unless a class says otherwise."""

    def state(self) -> dict[str, Tensor]:
        """Give the tensors that are equal on all ranks; not copies."""
        return {}

    def rows(self) -> dict[str, Tensor]:
        """Give the tensors (len(shard), ...) of this rank's classes; not copies."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` and `rows` of another had, in tensors of the same shapes."""
        for name, own in (self.state() | self.rows()).items():
            own.copy_(tensors[name])

    def stepped(self) -> None:
        """Keep what the micro-steps since the last call have found: their optimiser step has been taken."""

    def skipped(self) -> None:
        """Forget what the micro-steps since the last step have found."""


class States:
    """The parts of a phase that may have such tensors, by name."""

    def __init__(self, parts: Mapping[str, object]) -> None:
        """parts: those that are not `Stateful` have none."""
        self.parts = {name: part for name, part in parts.items() if isinstance(part, Stateful)}

    def state(self) -> dict[str, Tensor]:
        """Give all `state` tensors, as "state.<part>.<name>"."""
        return {f"{PREFIX}{part}.{name}": x for part, one in self.parts.items() for name, x in one.state().items()}

    def rows(self) -> dict[str, Tensor]:
        """Give all `rows` tensors, as "state.<part>.<name>"."""
        return {f"{PREFIX}{part}.{name}": x for part, one in self.parts.items() for name, x in one.rows().items()}

    def problem(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say what is missing or of another shape in what is to be loaded, or None."""
        for key, own in (self.state() | self.rows()).items():
            if key not in tensors:
                return f"{key}: not in the checkpoint"
            if tensors[key].shape != own.shape:
                return f"{key}: must have the shape {tuple(own.shape)}, got {tuple(tensors[key].shape)}"
        return None

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state` and `rows`, other entries left aside."""
        for part, one in self.parts.items():
            one.load_state(dict(_of(f"{PREFIX}{part}.", tensors)))

    def stepped(self) -> None:
        for part in self.parts.values():
            part.stepped()

    def skipped(self) -> None:
        for part in self.parts.values():
            part.skipped()


def without_states(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the entries of `States`: what the centres have themselves."""
    return {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in tensors.items() if key.startswith(prefix))
