"""What the planner says of terms of the whole batch is what they hold, and what they send."""

from __future__ import annotations

import pytest
import torch

from helpers.peaks import peak_of
from partialkd.config import DataConfig, PhaseConfig
from partialkd.methods.base import Outcome
from partialkd.methods.terms import TermInputs, Terms
from partialkd.planner.step_cost import wire_of
from partialkd.planner.term_cost import term_bytes
from partialkd.world.world import World

N, DIM, K = 384, 64, 4
PK = DataConfig(path="x", sampler="pk", images_per_identity=K)


def phase_of(*terms: dict[str, object]) -> PhaseConfig:
    model = {"name": "iresnet18", "embedding_dim": DIM}
    rest = {"method": {"name": "arcface"}, "epochs": 1.0, "global_batch": N, "terms": terms}
    return PhaseConfig.model_validate({"model": model, **rest})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rkd", "sp", "cckd", "darkrank", "ekd", "triplet"])
def test_terms_hold_what_is_planned(name: str) -> None:
    phase = phase_of({"name": name})
    terms, g = Terms(phase.terms), torch.Generator().manual_seed(2)
    x, t = (torch.randn(N, DIM, generator=g) for _ in range(2))
    x.requires_grad_()

    def step() -> None:
        x.grad = None
        inputs = TermInputs(x, torch.arange(N) // K, t, World())
        terms.added_to(Outcome(torch.zeros(())), inputs).loss.backward()

    step()  # what is made once
    measured, planned = peak_of(step), term_bytes(phase, PK)
    assert measured < planned < 3 * measured


def test_without_such_terms_nothing_is_planned() -> None:
    phase = phase_of({"name": "embedding"})
    assert term_bytes(phase, PK) == 0
    assert "all_gather of whole-batch terms" not in wire_of(phase, 100, 96, 4)
    wire = wire_of(phase_of({"name": "sp"}, {"name": "cckd"}), 100, 96, 4)
    assert wire["all_gather of whole-batch terms"] == 3 * 96 * (2 * DIM * 4 + 8)
