"""Several teachers as one: the weighted mean of their normalised embeddings, each after a projection of its own.

Shapes: images (b, 3, S, S) -> sum_i (w_i / sum w) P_i e_i / |e_i|, (b, D) float32; e_i (b, d_i) of teacher i, P_i
(d_i, D). The P_i are the blocks of one fixed matrix of sum d_i rows: with orthonormal rows where sum d_i <= D, so that
no teacher gets into another's way, and the cosine of two images is exactly the mean of the teachers' cosines, weighted
with w_i^2; else with orthonormal columns, scaled by sqrt(sum d_i / D), and the cosine is that mean up to the error of a
random projection, about 1 / sqrt(D). Teachers live in spaces of their own, so embeddings are not added without:
coordinate 7 of one has nothing to do with coordinate 7 of the other.
D is `teacher.project_to`, else the dimension that all teachers share.
Source: Fukuda et al., "Efficient Knowledge Distillation from an Ensemble of Teachers", Interspeech 2017. Differs: there
the teachers' posteriors over one set of classes are averaged, or a teacher is drawn for each batch; embeddings have no
common classes, hence the projections.
Each teacher is fed as it wants (size, mean, std, colours), checked and judged alone as well.
Errors: as of a single teacher, naming its file; TeacherError naming `teacher.project_to` where it is needed.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialkd.config import EnsembleInputs, InputConfig, TeacherConfig
from partialkd.errors import TeacherError
from partialkd.teacher import network
from partialkd.teacher.network import GROUP, LARGEST_PART, Teacher, orthonormal


class Ensemble(Teacher):
    """Frozen teachers that embed as one. members: the teachers, in their order."""

    def __init__(self, members: list[Teacher], weights: list[float], project_to: int | None) -> None:
        dims = [member.embedding_dim for member in members]
        if project_to is None and len(set(dims)) > 1:
            found = ", ".join(f"{dim} of {member.origin}" for dim, member in zip(dims, members, strict=True))
            raise TeacherError(f"teacher.project_to is required where embeddings differ in length, got {found}")
        self.members, self.device, self.image_size = members, members[0].device, members[0].image_size
        self.network = nn.ModuleList([member.network for member in members]).eval()
        self.embedding_dim = project_to or dims[0]
        self.origin = f"the ensemble of {', '.join(member.origin for member in members)}"
        matrix = orthonormal(sum(dims), self.embedding_dim) * max(1.0, sum(dims) / self.embedding_dim) ** 0.5
        parts = matrix.split(dims)
        shares = [weight / sum(weights) for weight in weights]
        self._matrix = torch.cat([part * share for part, share in zip(parts, shares, strict=True)]).to(self.device)
        self.inputs = EnsembleInputs(members=tuple(member.accepts for member in members))
        self.fingerprint = _fingerprint([member.fingerprint for member in members], weights, project_to)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, S, S) -> (b, embedding_dim) float32 on the teachers' device, without gradient."""
        rows = torch.cat([F.normalize(member.embed(images)) for member in self.members], dim=1)
        with torch.autocast(rows.device.type, enabled=False):
            if self.device.type != "cpu" or not len(rows):
                return rows @ self._matrix
            # Products of one shape: on the CPU an embedding must not depend on the batch it comes in.
            filled = F.pad(rows, (0, 0, 0, -len(rows) % GROUP))
            return torch.cat([group @ self._matrix for group in filled.split(GROUP)])[: len(rows)]

    def project(self, rows: Tensor) -> Tensor:
        """Refuse: the rows of one teacher's classifier are no centres of all."""
        raise TeacherError(f"{self.origin}: has no classifier, got {len(rows)} rows to project")

    def check(self, images: Tensor) -> None:
        """Raise TeacherError if a teacher, or all together, emit what is not finite, zero, or always the same."""
        for member in self.members:
            member.check(images)
        super().check(images)


def open_teacher(
    config: TeacherConfig, image_size: int, device: torch.device | str, batch: int = LARGEST_PART
) -> Teacher:
    """Open the teacher of source "checkpoint" or "onnx", or several, checked on noise; arguments as of one."""
    if config.source != "ensemble":
        return network.open_teacher(config, image_size, device, batch)
    members = [network.open_teacher(one.alone, image_size, device, batch) for one in config.ensemble]
    together = Ensemble(members, [one.weight for one in config.ensemble], config.project_to)
    together.check(torch.empty(0, 3, image_size, image_size))
    return together


def described(config: TeacherConfig, image_size: int) -> tuple[str, InputConfig | EnsembleInputs]:
    """Read fingerprint and input of a teacher from its files alone; nothing runs."""
    if config.source != "ensemble":
        return network.described(config, image_size)
    facts = [network.described(one.alone, image_size) for one in config.ensemble]
    prints, weights = [fingerprint for fingerprint, _ in facts], [one.weight for one in config.ensemble]
    inputs = EnsembleInputs(members=tuple(accepts for _, accepts in facts))
    return _fingerprint(prints, weights, config.project_to), inputs


def _fingerprint(prints: list[str], weights: list[float], project_to: int | None) -> str:
    return hashlib.sha256(json.dumps(["ensemble", prints, weights, project_to]).encode()).hexdigest()
