"""Every term against formulas in float64: values and gradients at any number of ranks, duplicates in the batch.

The table of terms and references: helpers/term_cases.py. All of them share one start of each number of ranks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from helpers.places import TESTS
from helpers.ranks import run
from helpers.term_batch import DIM, TEACHER_DIM, Batch, N, batches
from helpers.term_cases import CASES, ELSEWHERE
from partialkd.config import PhaseConfig, TermSection
from partialkd.config.base import leaves
from partialkd.methods.base import Outcome
from partialkd.methods.terms import TermInputs, Terms, TermSetting
from partialkd.world.world import World

CLASSES, WEIGHT = 6, 0.7
SECTIONS = {get_args(section.model_fields["name"].annotation)[0]: section for section in leaves(TermSection)}
Step = dict[str, Any]


def terms_of(case: str, world: World) -> Terms:
    settings = {"model": {"name": "iresnet18"}, "method": {"name": "arcface"}, "epochs": 1.0, "global_batch": N}
    phase = PhaseConfig.model_validate(settings | {"terms": (CASES[case].settings | {"weight": WEIGHT},)})
    return Terms(phase.terms, TermSetting(world, CLASSES, DIM))


def batches_of(case: str) -> list[Batch]:
    same_dim = next(
        one
        for one in leaves(TermSection)
        if one.model_fields["name"].annotation.__args__ == (CASES[case].settings["name"],)
    ).same_dim
    return batches(teacher_dim=5 if same_dim else TEACHER_DIM)


def steps(world: World, case: str, dtype: torch.dtype) -> list[Step]:
    """Loss and gradient of this rank's part in consecutive steps."""
    terms, found = terms_of(case, world), []
    mine = torch.arange(N).chunk(world.size)[world.rank]
    for batch in batches_of(case):
        x = batch.student[mine].to(dtype).requires_grad_()
        inputs = TermInputs(x, batch.labels[mine], batch.teacher[mine].to(dtype), world)
        outcome = terms.added_to(Outcome(torch.zeros((), dtype=dtype)), inputs)
        outcome.loss.backward()
        for term in terms.named.values():
            term.stepped()
        found.append({"loss": outcome.loss.detach(), "gradient": x.grad, "values": outcome.values})
    return found


def all_steps(world: World) -> dict[tuple[str, torch.dtype], list[Step]]:
    return {(case, dtype): steps(world, case, dtype) for case in CASES for dtype in (torch.float64, torch.float32)}


@lru_cache
def on_ranks(size: int) -> list[dict[tuple[str, torch.dtype], list[Step]]]:
    return run(all_steps, size)


@lru_cache
def wanted(case: str) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient of the whole batch in consecutive steps."""
    known = batches_of(case)
    for batch in known:
        batch.student.requires_grad_()
    values = CASES[case].reference(CASES[case].settings, known)
    return [
        (value.detach(), torch.autograd.grad(value, batch.student)[0])
        for value, batch in zip(values, known, strict=True)
    ]


def close(got: list[Tensor], want: Tensor, tolerance: float) -> None:
    """The mean over ranks of scalars, or the mean over ranks of gradients, each rank's of its own rows."""
    mean = torch.stack(got).mean() if got[0].dim() == 0 else torch.cat(got) / len(got)
    torch.testing.assert_close(mean.double(), want, atol=tolerance * float(want.abs().max()), rtol=0)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("case", list(CASES))
def test_value_and_gradient_are_those_of_the_papers_formulas(case: str, size: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        ranks = [rank[case, dtype] for rank in on_ranks(size)]
        for at, (value, gradient) in enumerate(wanted(case)):
            assert gradient.abs().max() > 1e-4  # the case tries something
            (name,) = ranks[0][at]["values"]
            close([rank[at]["values"][name] for rank in ranks], value, tolerance)
            close([rank[at]["loss"] for rank in ranks], WEIGHT * value, tolerance)
            close([rank[at]["gradient"] for rank in ranks], WEIGHT * gradient, tolerance)


def test_every_term_has_a_case() -> None:
    assert {case.settings["name"] for case in CASES.values()} | ELSEWHERE.keys() == SECTIONS.keys()
    assert all((TESTS / file).is_file() for file in ELSEWHERE.values())
