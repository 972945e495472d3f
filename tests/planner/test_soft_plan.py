"""The plan of a phase with soft targets: the teacher's rows, products, what is sent, and the memory of a real pass."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from helpers.peaks import peak_of
from partialkd.centres import Centres, CentreStore
from partialkd.centres.row_optimizers import make_row_optimizer
from partialkd.config import DataConfig, ModelConfig, PhaseConfig
from partialkd.methods import make_method
from partialkd.methods.terms import TermInputs, Terms, TermSetting
from partialkd.methods.terms.soft import soft_targets
from partialkd.planner.plan import Beside, Plan, Ranks, plan_phase
from partialkd.planner.step_cost import centre_wire
from partialkd.world.world import World

DIM, TEACHER_DIM, BATCH, CLASSES = 32, 48, 64, 40_000
TEACHER = ModelConfig(name="iresnet18", embedding_dim=TEACHER_DIM, width=0.125)
DATA = DataConfig(path="none", image_size=32, loader="jpeg")


def phase_of(method: str, term: str | None) -> PhaseConfig:
    settings = {"model": {"name": "mobilefacenet_gdc", "embedding_dim": DIM, "width": 0.125, "depth": 0.2}}
    settings |= {"method": {"name": method}, "epochs": 1.0, "global_batch": BATCH, "centres": {"chunk_rows": 2048}}
    return PhaseConfig.model_validate(settings | {"terms": ({"name": term},) if term else ()})


def plan_of(phase: PhaseConfig, cuda: bool = False, ranks: int = 1) -> Plan:
    return plan_phase(phase, DATA, CLASSES, Ranks(ranks, cuda), Beside.of(TEACHER))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "term", "products"),
    [
        ("arcface", None, 4), ("arcface", "logit_kd", 8), ("arcface", "gkd", 10),
        ("arcdistill", None, 2), ("arcdistill", "margin_t", 5), ("adadistill", "gkd", 7),
    ],
)  # fmt: skip
def test_products_rows_and_graphs(method: str, term: str | None, products: int) -> None:
    phase = phase_of(method, term)
    plan = plan_of(phase)
    assert plan.flops["centres"] == 2 * products * BATCH * CLASSES * DIM
    rows = CLASSES * (4 * TEACHER_DIM + 5) if term and method != "arcdistill" else 0
    assert plan.resident.get("teacher's centres", 0) == rows
    graphed = phase.model_copy(update={"centres": phase.centres.model_copy(update={"backend": "graphed"})})
    assert ("centres: graph of the sums" in plan_of(graphed, cuda=True).resident) == (term is None)


def test_what_is_sent_does_not_grow_with_the_classes() -> None:
    wire = {term: sum(centre_wire(phase_of("arcface", term), 32, 2).values()) for term in (None, "logit_kd", "gkd")}
    assert wire["logit_kd"] - wire[None] == 32 * 4 * (3 * DIM + 4 + 2)
    assert wire["gkd"] - wire["logit_kd"] == 32 * 4 * (DIM + 2 + 5 + 1 + 2 * 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "term"), [("arcdistill", "logit_kd"), ("arcface", "logit_kd"), ("arcface", "gkd")])
def test_the_memory_of_a_pass_is_about_that_of_the_plan(method: str, term: str) -> None:
    phase = phase_of(method, term)
    planned = plan_of(phase).needs["centres: sums"]
    gc.collect()
    peak = peak_of(one_pass(phase))
    assert 0.5 * peak < planned < 1.5 * peak


def one_pass(phase: PhaseConfig) -> Any:
    """The loss and its gradient, without the rows' movement, which is counted apart."""
    g = torch.Generator().manual_seed(0)
    fixed = phase.method.centre_kind == "fixed"
    own, taught = (
        CentreStore.empty(range(CLASSES), CLASSES, dim, torch.float32, torch.device("cpu"))
        for dim in (DIM, TEACHER_DIM)
    )
    for store in (own, taught):
        store.fill(slice(None), torch.randn(CLASSES, store.dim, generator=g))
    optimizer = None if fixed else make_row_optimizer(own, phase.optimizer)
    centres = Centres(
        own, World(), 64.0, phase.centres, optimizer=optimizer, soft=soft_targets(phase, None if fixed else taught)
    )
    method, terms = make_method(phase.method), Terms(phase.terms, TermSetting())
    x, labels = torch.randn(BATCH, DIM, generator=g), torch.randint(CLASSES, (BATCH,), generator=g)
    f = torch.randn(BATCH, DIM if fixed else TEACHER_DIM, generator=g)

    def step() -> None:
        student = x.clone().requires_grad_()
        centres.teach(f)
        outcome = method.loss(centres, student, labels, None)
        terms.added_to(outcome, TermInputs(student, labels, f, World(), centres)).loss.backward()

    return step
