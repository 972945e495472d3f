"""Taps of a phase's terms: hooks in student and teacher, and the trained adapters between them.

Adapters are 1x1 convolutions from the channels of the student's map to those of the teacher's. They run inside the
student's forward pass, right after the block that they are tapped from, and are a part `adapters` of the network in
training: DeepSpeed shards, steps and saves them like the rest. `Student.network()` leaves them out.

As the embeddings, the maps are cut off from the network's graph: terms give gradients to the cut maps, and `carried`
hands them to the one backward pass. So nothing of a term happens inside of DeepSpeed.
Errors: ConfigError naming the key, before the first step (`wires_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from partialkd.config import PhaseConfig, TermSection
from partialkd.methods.terms import MapPair
from partialkd.models.network import ADAPTERS, Network
from partialkd.models.taps import Taps, tapped_channels
from partialkd.teacher.network import Teacher


class Wire(NamedTuple):
    """A pair of taps of one term."""

    term: TermSection
    student: str  # names of blocks
    teacher: str
    student_channels: int
    teacher_channels: int
    adapted: bool


def wires_of(phase: PhaseConfig, key: str, student: Network, teacher: nn.Module) -> list[Wire]:
    """List the pairs of taps that a phase's terms ask for, each looked at in both networks; nothing is computed.

    key: of the phase in the configuration.
    """
    wires = []
    for at, term in enumerate(phase.terms):
        if term.taps is None or term in phase.terms[:at]:  # an equal one has the same
            continue
        where, taps = f"{key}.terms.{at}", term.taps
        assert isinstance(teacher, Network)  # the configuration has it so
        names = taps.student or tuple(student.stage_ends[stage] for stage in taps.stages)
        others = taps.teacher or tuple(teacher.stage_ends[stage] for stage in taps.stages)
        own = tapped_channels(student, names, f"{where}.student_taps", training=True)
        taught = tapped_channels(teacher, others, f"{where}.teacher_taps", training=False)
        made = zip(names, others, own, taught, strict=True)
        wires += [Wire(term, *facts, taps.adapted) for facts in made]
    return wires


class Tapping:
    """All pairs of taps of a phase, from the student's forward pass to its backward pass."""

    def __init__(self, wires: Sequence[Wire], teacher: nn.Module) -> None:
        """Draws the adapters' weights from torch's global generator."""
        self._wires = wires
        adapted = [wire for wire in wires if wire.adapted]
        convolutions = [nn.Conv2d(wire.student_channels, wire.teacher_channels, 1) for wire in adapted]
        self.adapters = nn.ModuleList(convolutions)
        self._teacher = Taps(teacher, [wire.teacher for wire in wires])
        self._cut: list[tuple[Tensor, Tensor]] = []  # maps of the student, and the same cut off

    def attach(self, network: nn.Module, device: torch.device) -> None:
        """Make the adapters a part of the network, which is on this device, and hook them in."""
        network.add_module(ADAPTERS, self.adapters.to(device))
        adapters = iter(self.adapters)
        then = [next(adapters) if wire.adapted else None for wire in self._wires]
        self._student = Taps(network, [wire.student for wire in self._wires], then)

    def clear(self) -> None:
        """Forget maps that came to nothing, before another forward pass."""
        self._student.clear()
        self._teacher.clear()
        self._cut = []

    def pairs(self, count: int) -> dict[TermSection, list[MapPair]]:
        """Give the maps of the last forward pass of both networks, over `count` images, by term."""
        maps = [given.float() for given in self._student.take(count)]
        self._cut = [(given, given.detach().requires_grad_()) for given in maps]
        found: dict[TermSection, list[MapPair]] = {}
        for wire, (_, cut), taught in zip(self._wires, self._cut, self._teacher.take(count), strict=True):
            found.setdefault(wire.term, []).append(MapPair(cut, taught))
        return found

    def carried(self) -> Tensor:
        """Give what carries the maps' gradients into the student: (), and forget the maps."""
        cut, self._cut = self._cut, []
        return torch.stack([(given * own.grad).sum() for given, own in cut if own.grad is not None]).sum()

    def close(self) -> None:
        """Take the hooks off both networks."""
        self._student.close()
        self._teacher.close()


def tapping_of(phase: PhaseConfig, key: str, student: Network, teacher: Teacher | None) -> Tapping | None:
    """Make the taps of a phase's terms, if they have some; key: of the phase in the configuration."""
    wires = wires_of(phase, key, student, teacher.network) if teacher else []
    if teacher is None or not wires:
        return None
    teacher.show_maps()
    return Tapping(wires, teacher.network)
