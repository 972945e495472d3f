"""Distillation of the distribution over all classes, at any number of them: logit_kd, margin_t, gkd.

z_j = scale * <x, u_j> / T are the student's logits over the temperature, z'_j = teacher_scale * <f, v_j> / T the
teacher's; p = softmax(z), p' = softmax(z'); y the own class. Every term is the mean over images of T^2 times

logit_kd   KL(p' || p): Hinton et al., arXiv:1503.02531, section 2.1, plain; the T^2 is theirs: the gradient keeps
           its size whatever T is. `margin` (ours) puts scale * cos(theta_y + margin) in the place of the student's z_y.
margin_t   KL(p' || p) with cos(theta_y + margin) in the place of both own cosines: the intent of "margin based with T",
           Nekhaev et al., as of the code of MarginDistillation (arXiv:2003.02586). Differs: that code makes the
           teacher's logits and then never uses them (it divides the labels by T instead), and has no T^2. Its loss
           (1 - a) CE + a KD, a = 0.95, is here CE + weight * term at a learning rate 1 - a times as large.
gkd        KL of (mass of the primary classes, mass of the rest) + beta * KL among the primary classes, normalised by
           their mass: Zhao et al., GKD, arXiv:2304.04462. Primary: the own class, and those that the student finds most
           probable at T = 1 until their probabilities reach `share` (at most `most`). Differs from the published code,
           which takes the same number of classes for all images, found on the batch's summed probabilities, and whose
           weight grows by epochs (`ramp_steps`). The divergence among the rest is left out, as theirs is.

Gradient: to the student's embeddings, and to trained centres; none to the teacher's. With sampled rows p and p' are
over the same sample. Classes without a centre of the teacher's (they have no record) are in neither distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from partialkd.centres.logit_noise import LogitNoise
from partialkd.centres.soft_targets import SoftContrast, SoftTargets
from partialkd.centres.store import CentreStore
from partialkd.config import PhaseConfig
from partialkd.config.terms import GkdTermConfig, LogitKdTermConfig, MarginTTermConfig, SoftTargetSection
from partialkd.methods.margins import arc_margin
from partialkd.methods.terms.base import Term, TermInputs, TermSetting


def soft_targets(
    phase: PhaseConfig, teacher: CentreStore | None, noise: LogitNoise | None = None
) -> SoftTargets | None:
    """Say what soft targets a phase's terms ask for, if any. teacher: its centres; None: they are the student's own."""
    for term in phase.terms:
        if isinstance(term, SoftTargetSection):
            scale = term.teacher_scale or phase.method.scale
            share, most = (term.share, term.most) if isinstance(term, GkdTermConfig) else (None, 0)
            return SoftTargets(term.temperature, scale, teacher, share, most, noise)
    return None


def divergence(found: SoftContrast, student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p' || p) (b,) over the own class, whose logits over T are these (b,), and the other (primary) ones."""
    all_student, all_teacher = torch.logaddexp(found.student, student), torch.logaddexp(found.teacher, teacher)
    own, others = (teacher - all_teacher).exp(), (found.teacher - all_teacher).exp()
    return own * (teacher - student) + others * (found.logits - found.crossed) - all_teacher + all_student


def group_divergence(found: SoftContrast, student: Tensor, teacher: Tensor) -> Tensor:
    """KL of the masses of the primary classes and of the rest (b,); student, teacher: the own class's logits over T."""
    assert found.rest is not None
    assert found.rest_teacher is not None
    primary = torch.logaddexp(found.student, student), torch.logaddexp(found.teacher, teacher)
    total = torch.logaddexp(primary[0], found.rest), torch.logaddexp(primary[1], found.rest_teacher)
    gap = total[0] - total[1]  # log Z - log Z'
    there = found.rest_teacher.isfinite()  # a rest of no class
    rest = torch.where(there, found.rest_teacher - found.rest, 0) + gap
    mass = (primary[1] - total[1]).exp()
    return mass * (primary[1] - primary[0] + gap) + (found.rest_teacher - total[1]).exp() * rest


class LogitKD(Term):
    """KL of the distributions; with a margin in the student's own logit, or (margin_t) in both."""

    def __init__(self, config: LogitKdTermConfig | MarginTTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.margins = config.margin, config.margin * isinstance(config, MarginTTermConfig)  # student's, teacher's
        self.temperature = config.temperature

    def loss(self, inputs: TermInputs) -> Tensor:
        found, student, teacher = softened(inputs, self.margins, self.temperature)
        return self.temperature**2 * divergence(found, student, teacher).mean()


class GroupKD(Term):
    """KL of the masses of two groups of classes, and among the primary ones; counts steps for its ramp."""

    def __init__(self, config: GkdTermConfig, setting: TermSetting) -> None:
        super().__init__(config, setting)
        self.temperature, self.beta, self.ramp = config.temperature, config.beta, config.ramp_steps
        self.steps = torch.zeros(1, dtype=torch.float64)

    def loss(self, inputs: TermInputs) -> Tensor:
        found, student, teacher = softened(inputs, (0.0, 0.0), self.temperature)
        values = group_divergence(found, student, teacher) + self.beta * divergence(found, student, teacher)
        return self.temperature**2 * self.ramped() * values.mean()

    def ramped(self) -> float:
        """Factor of the term's value at this step, in [0, 1]."""
        return min(1.0, self.steps.item() / self.ramp) if self.ramp else 1.0

    def state(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def stepped(self) -> None:
        self.steps += 1


def softened(
    inputs: TermInputs, margins: tuple[float, float], temperature: float
) -> tuple[SoftContrast, Tensor, Tensor]:
    """Take what the method's pass over the centres has left of soft targets, and the own class's logits over T (b,)."""
    assert inputs.centres is not None
    found, targets = inputs.centres.softened, inputs.centres.soft_targets
    assert found is not None
    assert targets is not None
    student, teacher = (
        arc_margin(cosine, margin) if margin else cosine
        for cosine, margin in zip((found.target, found.teacher_target), margins, strict=True)
    )
    logits = teacher * (targets.teacher_scale / temperature)
    if found.own_noise is not None:
        logits = logits * found.own_noise
    return found, student * (inputs.centres.scale / temperature), logits
