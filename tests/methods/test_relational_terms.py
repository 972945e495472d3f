"""Relational terms at their edges: batches without pairs, without differences, and larger than a block."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from helpers.peaks import peak_of
from helpers.term_batch import batches
from helpers.term_cases import CASES
from partialkd.config import PhaseConfig, TermSection
from partialkd.config.base import leaves
from partialkd.methods.base import Outcome
from partialkd.methods.terms import TermInputs, Terms, rkd
from partialkd.world.world import World

RELATIONS = {get_args(one.model_fields["name"].annotation)[0] for one in leaves(TermSection) if not one.same_dim}
WHOLE = [name for name, case in CASES.items() if case.settings["name"] in RELATIONS]  # student and teacher differ in D


def terms_of(case: str) -> Terms:
    phase = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1.0, "global_batch": 12}
    return Terms(PhaseConfig.model_validate(phase | {"terms": (CASES[case].settings,)}).terms)


def of(terms: Terms, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    x = student.clone().requires_grad_()
    loss = terms.added_to(Outcome(torch.zeros(())), TermInputs(x, labels, teacher, World())).loss
    loss.backward()
    assert x.grad is not None
    return loss.detach(), x.grad


@pytest.mark.parametrize("case", WHOLE)
def test_equal_embeddings_have_a_finite_gradient(case: str) -> None:
    """All of them equal to the student, or to the teacher, or zeros."""
    batch = batches(1)[0]
    for dtype in (torch.float64, torch.float32):
        for student in (batch.student, batch.student[:1].expand(12, -1), torch.zeros(12, 5)):
            for teacher in (batch.teacher, batch.teacher[:1].expand(12, -1)):
                value, gradient = of(terms_of(case), student.to(dtype), teacher.to(dtype), batch.labels)
                assert value.isfinite()
                assert gradient.isfinite().all()
                if student is not batch.student and student.any():
                    assert gradient.abs().max() < 1e4


@pytest.mark.parametrize("case", WHOLE)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(case: str) -> None:
    """But for triplets, which want a margin, and orders, of which more than one is probable."""
    batch = batches(1)[0]
    value, gradient = of(terms_of(case), batch.teacher, batch.teacher, batch.labels)
    if case.startswith("triplet") or (case.startswith("darkrank") and case != "darkrank_soft"):
        assert value > 0
    else:
        assert value.abs() < 1e-15
        assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("labels", [torch.arange(12), torch.zeros(12, dtype=torch.int64)])
@pytest.mark.parametrize("case", ["ekd", "ekd_wide", "triplet", "triplet_angle"])
def test_batches_without_pairs_of_a_kind(case: str, labels: Tensor) -> None:
    """Only pairs of two identities, or only pairs of one."""
    batch, terms = batches(1)[0], terms_of(case)
    value, gradient = of(terms, batch.student, batch.teacher, labels)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if case.startswith("triplet"):
        assert value == 0
        assert not gradient.any()
    else:
        (term,) = terms.named.values()
        term.stepped()
        kept = torch.stack(list(term.state().values()))
        assert kept.any() == bool(labels.any())  # thresholds are those of pairs of two identities


def test_angles_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, cases = batches(1)[0], ("rkd", "rkd_angle")
    whole = [of(terms_of(case), batch.student, batch.teacher, batch.labels) for case in cases]
    monkeypatch.setattr(rkd, "ENTRIES", 5 * 12 * 12)  # blocks of five, five and two
    for case, (value, gradient) in zip(cases, whole, strict=True):
        in_blocks = of(terms_of(case), batch.student, batch.teacher, batch.labels)
        torch.testing.assert_close(in_blocks[0], value, rtol=1e-13, atol=0)
        torch.testing.assert_close(in_blocks[1], gradient, rtol=1e-10, atol=1e-13)


def test_a_step_that_is_left_out_leaves_the_thresholds() -> None:
    batch, terms = batches(1)[0], terms_of("ekd")
    (term,) = terms.named.values()
    of(terms, batch.student, batch.teacher, batch.labels)
    term.skipped()
    term.stepped()
    assert not any(value.any() for value in term.state().values())


def test_memory_of_angles_does_not_grow_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    n, entries = 128, 1 << 16
    g = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(n, 16, generator=g) for _ in range(2))
    run = lambda: of(terms_of("rkd"), student, teacher, torch.arange(n))
    run()  # what is made once
    monkeypatch.setattr(rkd, "ENTRIES", entries)
    assert peak_of(run) < 4 * (10 * entries + 24 * n**2) < 4 * n**3 / 1.5
